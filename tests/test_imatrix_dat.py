"""llama.cpp's older form of importance matrices, held against bytes that `struct` writes here."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luq_gguf.errors import ArtifactError, GGUFError
from luq_gguf.imatrix_dat import read_dat
from luq_gguf.importance import ImatrixNote, read_importance, read_means
from tests.ggufs import DatEntry as Entry
from tests.ggufs import dat_bytes

Q: Entry = (b"blk.0.attn_q.weight", 3, [6.0, 0.5, 0.0])
K: Entry = (b"blk.0.attn_k.weight", 2, [1.0])


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_every_number_is_read(tmp_path: Path) -> None:
    found = read_dat(write(tmp_path / "i.dat", dat_bytes([Q, K])))
    assert (found.chunks, found.dataset) == (7, "wiki.train.raw")
    assert {name: (entry.chunks, entry.values.tolist()) for name, entry in found.entries.items()} == {
        "blk.0.attn_q.weight": (3, [6.0, 0.5, 0.0]), "blk.0.attn_k.weight": (2, [1.0]),
    }  # fmt: skip


def test_means_are_those_of_llama_quantize(tmp_path: Path) -> None:
    """tools/quantize divides by the number of chunks; llama-imatrix takes each for 512 tokens when it merges."""
    path = write(tmp_path / "i.dat", dat_bytes([Q, K]))
    matrix = read_importance(path)
    assert {name: row.tolist() for name, row in matrix.rows.items()} == {
        "blk.0.attn_q.weight": (np.array([6.0, 0.5, 0.0], np.float32) / np.float32(3)).tolist(),
        "blk.0.attn_k.weight": [0.5],
    }
    assert matrix.weights["blk.0.attn_q.weight"].sums.tolist() == [3072.0, 256.0, 0.0]
    assert matrix.weights["blk.0.attn_q.weight"].counts.tolist() == [1536]
    assert (matrix.tokens, matrix.datasets) == (1536, ("wiki.train.raw",))
    means = read_means(path, ["blk.0.attn_k.weight", "absent"])
    assert {name: row.tolist() for name, row in means.items()} == {"blk.0.attn_k.weight": [0.5]}
    assert ImatrixNote.of(path) == ImatrixNote("i.dat", "wiki.train.raw", 2, 7)


@pytest.mark.parametrize(
    ("chunks", "dataset", "read", "named"),
    [(None, None, (0, ""), "i.dat"), (5, None, (5, ""), "i.dat"), (5, b"", (5, ""), "i.dat"),
     (5, b"a\x1b[1m\xff", (5, "a\x1b[1m\ufffd"), "a[1m\ufffd")],
)  # fmt: skip
def test_the_end_may_say_less(
    tmp_path: Path, chunks: int | None, dataset: bytes | None, read: tuple[int, str], named: str
) -> None:
    path = write(tmp_path / "i.dat", dat_bytes([Q], chunks, dataset))
    found = read_dat(path)
    assert (found.chunks, found.dataset) == read
    assert read_importance(path).dataset == named


names = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=55).map(str.encode)
values = st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=9)
tables = st.lists(
    st.tuples(names, st.integers(1, 2**31 - 1), values), min_size=1, max_size=5, unique_by=lambda row: row[0]
)


@settings(deadline=None)
@given(tables, st.integers(0, 2**31 - 1), st.text(max_size=20))
def test_whatever_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Entry], chunks: int, dataset: str
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "any.dat", dat_bytes(entries, chunks, dataset.encode()))
    found = read_dat(path)
    assert [(name.encode(), row.chunks, row.values.tolist()) for name, row in found.entries.items()] == entries
    assert (found.chunks, found.dataset) == (chunks, dataset)
    for name, calls, row in entries:
        mean = read_importance(path).rows[name.decode()]
        np.testing.assert_array_equal(mean, np.array(row, np.float32) / np.float32(calls))


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    """But for the two that the format allows: after the entries, and after the number of chunks."""
    whole = dat_bytes([Q, K])
    entries, chunks = len(dat_bytes([Q, K], None, None)), len(dat_bytes([Q, K], 7, None))
    for size in range(len(whole)):
        path = write(tmp_path / "i.dat", whole[:size])
        if size in {entries, chunks}:
            assert len(read_dat(path).entries) == 2
            continue
        with pytest.raises(ArtifactError, match=r"i\.dat"):
            read_importance(path)


LARGE = 2**31 - 1
HOSTILE = {
    "no entries": dat_bytes([]),
    "fewer than none": struct.pack("<i", -1) + dat_bytes([Q]),
    "billions of entries": struct.pack("<i", LARGE) + dat_bytes([Q])[4:],
    "one entry too many": struct.pack("<i", 2) + dat_bytes([Q])[4:],
    "a long name": dat_bytes([(b"n" * 56, 1, [1.0])]),
    "a name of two GiB": struct.pack("<ii", 1, LARGE) + b"n" * 40,
    "a name of less than nothing": struct.pack("<ii", 1, -5) + b"n" * 40,
    "an empty name": dat_bytes([(b"", 1, [1.0] * 9)]),
    "a name with zeros": dat_bytes([(b"blk.0\0", 1, [1.0])]),
    "a name of escapes": dat_bytes([(b"\x1b[2J", 1, [1.0])]),
    "a name that is no text": dat_bytes([(b"\xff\xfe", 1, [1.0])]),
    "a name twice": dat_bytes([Q, Q]),
    "no chunks": dat_bytes([(b"a", 0, [1.0])]),
    "negative chunks": dat_bytes([(b"a", -3, [1.0])]),
    "no values": dat_bytes([(b"a", 1, []), Q]),
    "negative values": struct.pack("<iicii", 1, 1, b"a", 1, -1) + bytes(40),
    "billions of values": struct.pack("<iicii", 1, 1, b"a", 1, LARGE) + bytes(40),
    "negative total": dat_bytes([Q], -1),
    "a long data set": dat_bytes([Q], 7, None) + struct.pack("<i", LARGE) + b"x",
    "a negative data set": dat_bytes([Q], 7, None) + struct.pack("<i", -1) + b"x",
    "bytes at the end": dat_bytes([Q]) + b"x",
    "not a number": dat_bytes([(b"a", 1, [1.0, float("nan")])]),
    "infinity": dat_bytes([(b"a", 1, [float("inf")])]),
    "a negative square": dat_bytes([(b"a", 1, [-1.0])]),
    "infinite when multiplied": dat_bytes([(b"a", 1, [3e38])]),
    "nothing": b"",
    "text": b"this is no importance matrix at all\n" * 9,
    "JSON": b'{"blk.0.attn_q.weight": [1, 2, 3]}',
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused_in_one_line(tmp_path: Path, what: str) -> None:
    path = write(tmp_path / "i.dat", HOSTILE[what])
    for read in (read_importance, lambda path: read_means(path, ["a", "blk.0.attn_q.weight"])):
        with pytest.raises(ArtifactError, match=r"i\.dat") as caught:
            read(path)
        assert str(caught.value).isprintable()
        assert caught.value.hint


@settings(deadline=None)
@given(st.binary(max_size=400), st.integers(0, 90), st.integers(0, 255))
def test_damage_never_ends_in_another_error(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, place: int, value: int
) -> None:
    whole = bytearray(dat_bytes([Q, K]))
    whole[place % len(whole)] = value
    for data in (junk, struct.pack("<i", 1) + junk, bytes(whole)):
        path = write(tmp_path_factory.getbasetemp() / "junk.dat", data)
        try:
            matrix = read_importance(path)
        except (ArtifactError, GGUFError):  # hypothesis tries the magic of a GGUF too
            continue
        assert all(np.isfinite(row).all() and (row >= 0).all() for row in matrix.rows.values())


def test_what_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.dat", tmp_path):
        with pytest.raises(ArtifactError, match="cannot read"):
            read_importance(path)
        with pytest.raises(ArtifactError, match="cannot read"):
            read_dat(path)
