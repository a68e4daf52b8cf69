"""The GGUF reader: agrees with the gguf library on sound files, ends in one clear error on broken ones."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from gguf import GGUFReader, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luq_gguf.errors import GGUFError
from luq_gguf.gguf_file import GGUFFile, encode_header, encode_string, raw_value
from tests.ggufs import Shape, write_text_gguf


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return write_text_gguf(tmp_path_factory.mktemp("sound") / "sound.gguf", Shape(layers=1, vocabulary=32), tokens=40)


def test_reads_what_the_library_reads(sound: Path):
    ours, theirs = GGUFFile.open(sound), GGUFReader(sound)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, field in fields.items():
        assert ours.metadata[key] == field.contents(), key
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert (found.type, found.offset, found.nbytes) == (
            tensor.tensor_type, tensor.data_offset, tensor.n_bytes,
        )  # fmt: skip
        assert found.shape == tuple(int(size) for size in tensor.shape)
        assert ours.read_raw(tensor.name) == tensor.data.tobytes()
    assert ours.data_end == ours.size == sound.stat().st_size


def test_every_kind_of_metadata_is_decoded(tmp_path: Path):
    writer = GGUFWriter(tmp_path / "kinds.gguf", "kinds")
    values = {"u8": 200, "i8": -3, "u16": 60000, "i16": -30000, "u32": 1 << 31, "i32": -5, "u64": 1 << 63, "i64": -7}
    for kind, value in values.items():
        long = kind.replace("u", "uint").replace("i", "int", 1) if kind[0] == "i" else kind.replace("u", "uint")
        getattr(writer, f"add_{long}")(kind, value)
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("flag", True)
    writer.add_array("numbers", [1, 2, 3])
    writer.add_array("flags", [True, False])
    writer.add_array("texts", ["ä", "", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = GGUFFile.open(tmp_path / "kinds.gguf").metadata
    expected = values | {
        "f32": 0.5, "f64": 0.1, "flag": True, "numbers": [1, 2, 3], "flags": [True, False], "texts": ["ä", "", "b"],
    }  # fmt: skip
    assert {key: metadata[key] for key in expected} == expected


def test_a_written_header_is_read_by_the_library(tmp_path: Path, sound: Path):
    base = GGUFFile.open(sound)
    entries = {key: base.metadata.raw(key) for key in base.metadata} | {"n": raw_value(7), "t": raw_value("text")}
    infos = [("a.weight", (256, 3), Q.IQ1_M), ("b", (5,), Q.F32)]
    header = encode_header(entries, infos)
    path = tmp_path / "made.gguf"
    path.write_bytes(header + b"\1" * 168 + b"\0" * 24 + b"\2" * 20 + b"\0" * 12)
    read = GGUFReader(path)
    assert (read.fields["n"].contents(), read.fields["t"].contents()) == (7, "text")
    assert read.fields["tokenizer.ggml.tokens"].contents() == base.metadata["tokenizer.ggml.tokens"]
    assert [(tensor.name, tensor.tensor_type, tensor.n_bytes) for tensor in read.tensors] == [
        ("a.weight", Q.IQ1_M, 168), ("b", Q.F32, 20),
    ]  # fmt: skip
    assert set(read.tensors[1].data.tobytes()) == {2}


def test_float32_tensors(sound: Path):
    file = GGUFFile.open(sound)
    assert file.read_float32("output_norm.weight").shape == (256,)
    with pytest.raises(GGUFError, match="F16, not F32"):
        file.read_float32("output.weight")
    with pytest.raises(GGUFError, match="no tensor nothing"):
        file.read_raw("nothing")


def preamble(tensors: int, entries: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


def info(name: str, shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return encode_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def entry(key: str, kind: int, value: bytes) -> bytes:
    return encode_string(key) + struct.pack("<I", kind) + value


def alignment_of(value: int) -> bytes:
    return entry("general.alignment", 4, struct.pack("<I", value))


ROOM = b"\0" * 4096
HUGE = struct.pack("<Q", 1 << 60)
BROKEN = {
    "no bytes": (b"", "is empty"),
    "another magic": (b"GGML" + ROOM, "does not begin with GGUF"),
    "only the magic": (b"GGUF", "ends within the version"),
    "version 1": (preamble(0, 0, 1), "its version is 1"),
    "big-endian": (preamble(0, 0, 3 << 24), "its version is"),
    "a quintillion tensors": (preamble(1 << 60, 0) + ROOM, "do not fit"),
    "a quintillion keys": (preamble(0, 1 << 60) + ROOM, "do not fit"),
    "a huge key": (preamble(0, 1) + HUGE + ROOM, "ends within a metadata key"),
    "a key in no encoding": (preamble(0, 1) + struct.pack("<Q", 2) + b"\xff\xfe" + ROOM, "not UTF-8"),
    "a huge text": (preamble(0, 1) + entry("k", 8, HUGE) + ROOM, "ends within metadata 'k'"),
    "a huge array": (preamble(0, 1) + entry("k", 9, struct.pack("<I", 4) + HUGE) + ROOM, "ends within metadata 'k'"),
    "huge texts": (preamble(0, 1) + entry("k", 9, struct.pack("<I", 8) + HUGE) + ROOM, "claims"),
    "a huge text in a list": (
        preamble(0, 1) + entry("k", 9, struct.pack("<IQ", 8, 2) + HUGE) + ROOM, "ends within metadata 'k'",
    ),
    "a list in a list": (preamble(0, 1) + entry("k", 9, struct.pack("<IQ", 9, 1)) + ROOM, "array of type 9"),
    "an unknown kind": (preamble(0, 1) + entry("k", 77, b"") + ROOM, "unknown type 77"),
    "a key twice": (preamble(0, 2) + entry("k", 0, b"\1") * 2 + ROOM, "'k' stands in it twice"),
    "a crooked alignment": (preamble(0, 1) + alignment_of(48) + ROOM, "power of two"),
    "no alignment": (preamble(0, 1) + alignment_of(0) + ROOM, "power of two"),
    "alignment as a text": (preamble(0, 1) + entry("general.alignment", 8, HUGE[:7] + b"\0") + ROOM, "power of two"),
    "a vast alignment": (
        preamble(1, 1) + alignment_of(1 << 31) + info("t") + ROOM, "before its tensor",
    ),
    "a tensor twice": (preamble(2, 0) + info("t") * 2 + ROOM, "'t' stands in it twice"),
    "a long name": (preamble(1, 0) + info("t" * 64) + ROOM, "longer than 63"),
    "no dimensions": (preamble(1, 0) + info("t", ()) + ROOM, "0 dimensions"),
    "five dimensions": (preamble(1, 0) + info("t", (1,) * 5) + ROOM, "5 dimensions"),
    "an empty tensor": (preamble(1, 0) + info("t", (0, 4)) + ROOM, "is empty"),
    "overflowing dimensions": (preamble(1, 0) + info("t", (1 << 63, 1 << 63)) + ROOM, "past its end"),
    "an unknown tensor type": (preamble(1, 0) + info("t", kind=4) + ROOM, "4 is not a valid"),
    "a row that does not fit its block": (preamble(1, 0) + info("t", (100,), Q.Q4_K) + ROOM, "no multiple of Q4_K"),
    "an offset past the end": (preamble(1, 0) + info("t", offset=1 << 40) + ROOM, "past its end"),
    "an offset that wraps": (preamble(1, 0) + info("t", offset=(1 << 64) - 32) + ROOM, "past its end"),
    "an unaligned offset": (preamble(1, 0) + info("t", offset=16) + ROOM, "unaligned"),
    "tensors that overlap": (
        preamble(2, 0) + info("s", (64,)) + info("t", (64,), offset=32) + ROOM, "'s' and 't' overlap",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(tmp_path: Path, case: str):
    content, message = BROKEN[case]
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(GGUFError, match=message) as caught:
            GGUFFile.open(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    assert "\n" not in str(caught.value)
    assert caught.value.path == path


def test_what_is_no_file(tmp_path: Path):
    for path in (tmp_path, tmp_path / "missing.gguf"):
        with pytest.raises(GGUFError, match="cannot read"):
            GGUFFile.open(path)


def test_every_cut_of_a_sound_file_is_noticed(tmp_path: Path, sound: Path):
    content = sound.read_bytes()
    path = tmp_path / "cut.gguf"
    header = GGUFFile.open(sound).data_start
    for size in [*range(0, header, 37), header, header + 1, len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(GGUFError):
            GGUFFile.open(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4))
def test_random_damage_to_a_header_never_escapes(tmp_path: Path, sound: Path, damage):
    content = bytearray(sound.read_bytes())
    header = GGUFFile.open(sound).data_start
    for place, patch in damage:
        start = int(place * header)
        content[start : start + len(patch)] = patch
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    try:
        file = GGUFFile.open(path)
    except GGUFError:
        return
    assert all(tensor.offset + tensor.nbytes <= len(content) for tensor in file.tensors.values())
    for key in file.metadata:
        file.metadata[key]


def test_a_large_vocabulary_is_quick(tmp_path: Path):

    words = encode_string("token") * 150_000
    path = tmp_path / "large.gguf"
    path.write_bytes(preamble(0, 1) + entry("k", 9, struct.pack("<IQ", 8, 150_000) + words))
    started = time.process_time()
    file = GGUFFile.open(path)
    assert time.process_time() - started < 1
    assert file.metadata["k"][-1] == "token"
    assert np.unique(file.metadata["k"]).size == 1
