"""Parquet: read by a child that damage may end, images read again from any row."""

from __future__ import annotations

import base64
import io
import random
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from luq_gguf import parquet_worker
from luq_gguf.calibration import load_calibration
from luq_gguf.calibration_parquet import ParquetReader
from luq_gguf.errors import CalibrationError, ImageError

ABORTS = (
    "P(e~L6#x|+6&x%T0u=xi1{DSz00002000020R#X50A^`!WfcS&EHwZa26JO*Wo=;<0ss{PB?1@(bY*ySB>+qu0000M0vQ|`93}u96$}|A1^^it1axJ1"
    "bQJ&=0v19RLM8}F92Ec+02KlNJQfHU1{o#*0ssI27D5&RCI}Wn04N}EVRCVGWppiLaBwYQa&m8XAa-SPb7^mGATl;CFfK6}92@`u0Ehqp08l|vF#"
)
"""A row of text with one byte changed: pyarrow 26 ends its process on it."""


def png(red: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(path: Path, rows: int = 50) -> Path:
    """Images of different reds; every third row holds none, every fifth is a path."""
    table = []
    for number in range(rows):
        image: dict[str, object] | None = {"bytes": png(number), "path": None}
        if number % 3 == 0:
            image = None
        elif number % 5 == 0:
            (path.parent / f"{number}.png").write_bytes(png(number))
            image = {"bytes": None, "path": f"{number}.png"}
        table.append({"image": image, "question": f"{number}?", "answer": str(number), "more": [number]})
    parquet.write_table(pa.Table.from_pylist(table), path, row_group_size=7)
    return path


@pytest.mark.parametrize("samples", [None, 12])
def test_images_are_read_again_in_any_order(tmp_path: Path, samples: int | None) -> None:
    found = load_calibration(write_images(tmp_path / "t.parquet"), samples=samples)
    taken = [*found.samples, *found.held_out]
    assert len(taken) == (samples or 50)
    random.Random(1).shuffle(taken)
    for sample in taken * 2:
        number = int(sample.question[:-1])
        assert (sample.picture is None) == (number % 3 == 0)
        if sample.picture is not None:
            assert sample.picture.read().getpixel((0, 0)) == (number, 0, 0)
    assert not [child for child in psutil.Process().children() if "parquet_worker" in " ".join(child.cmdline())]


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": png(number % 4)}, "question": f"{number % 3}?"} for number in range(24)]
    digests = set()
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=5)
        digests.add(load_calibration(tmp_path / "t.parquet").digest)
    assert len(digests) == 1


def test_images_as_bytes_in_lists_and_rows_of_every_form(tmp_path: Path) -> None:
    table = pa.table({
        "images": [[png(1)], [], [png(3), png(4)], None],
        "texts": [[{"user": "What?", "assistant": "A box."}]] * 4,
        "messages": pa.nulls(4),
    })  # fmt: skip
    parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(CalibrationError, match=r"t\.parquet, row 3: has 2 images"):
        load_calibration(tmp_path / "t.parquet")
    found = load_calibration(tmp_path / "t.parquet", skip_bad=True, held_out_share=0)
    reds = [sample.picture.read().getpixel((0, 0))[0] if sample.picture else None for sample in found.samples]
    assert sorted(reds, key=str) == [1, None, None]


def test_a_file_that_ends_its_reader_costs_one_line(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(base64.b85decode(ABORTS))
    with pytest.raises(CalibrationError, match=r"t\.parquet is no parquet file that can be read: "):
        load_calibration(path)
    with pytest.raises(CalibrationError, match="holds no sample"):
        load_calibration(path, skip_bad=True)
    with ParquetReader() as reader:
        for _ in range(2):
            path.write_bytes(base64.b85decode(ABORTS))
            with pytest.raises(CalibrationError, match="can be read"):
                list(reader.rows(path))
            write_images(path, rows=4)
            assert [row["question"] for row in reader.rows(path)] == ["0?", "1?", "2?", "3?"]


@pytest.mark.parametrize(
    ("words", "table", "options"),
    [
        ("claims 100,000 rows", pa.table({"text": ["x" * 99] * 100_000}), {}),
        ("in one of its columns", pa.table({"text": ["a" * 200_000_000]}), {"use_dictionary": False}),
        ("none of the columns", pa.table({"a": [1]}), {}),
    ],
)  # fmt: skip
def test_files_that_claim_too_much(tmp_path: Path, words: str, table: pa.Table, options: dict[str, bool]) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(table, path, compression="zstd", **options)
    with pytest.raises(CalibrationError, match=words):
        load_calibration(path)


def test_repeated_texts_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet"
    rng = random.Random(0)
    other = [rng.randbytes(20).hex() for _ in range(3000)]
    table = {"question": pa.DictionaryArray.from_arrays(pa.array([0] * 3000), ["x" * 100_000]), "answer": other}
    parquet.write_table(pa.table(table), path, compression="zstd")
    with pytest.raises(CalibrationError, match="texts are too many for its size"):
        load_calibration(path)
    monkeypatch.setattr(parquet_worker, "EXPANSION", 5000)
    assert sum(1 for _ in parquet_worker._rows(path, ["question"])) == 3000


def test_a_file_that_changes_afterwards_is_noticed(tmp_path: Path) -> None:
    path = write_images(tmp_path / "t.parquet", rows=3)
    with ParquetReader() as reader:
        assert reader.image(path, 1, "image", 0) == png(1)
        for row in (0, 9):
            with pytest.raises(CalibrationError, match="can be read"):
                reader.image(path, row, "image", 0)
    with path.open("r+b") as handle:
        handle.truncate(100)
    with pytest.raises((CalibrationError, ImageError), match="can be read"):
        load_calibration(path)
