"""Tables: where rows and their images stand, whatever is quoted, and in whatever order."""

from __future__ import annotations

import base64
import csv
import io
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from luq_gguf import calibration_tables
from luq_gguf.calibration import load_calibration
from luq_gguf.calibration_files import read_drafts
from luq_gguf.calibration_rows import Draft
from luq_gguf.errors import CalibrationError, ImageError
from luq_gguf.samples import Sample


def encoded(color: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), color).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


RED, BLUE = encoded("red"), encoded("blue")


def write_table(path: Path, rows: list[dict[str, str]], **options: Any) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding=options.pop("encoding", "utf-8"), newline="") as handle:
        writer = csv.DictWriter(handle, names, delimiter="," if path.suffix == ".csv" else "\t", **options)
        writer.writeheader()
        writer.writerows(rows)
    return path


def load(path: Path, **options: Any) -> dict[str, Sample]:
    found = load_calibration(path, held_out_share=0, **options)
    return {sample.question: sample for sample in found.samples}


def color_of(sample: Sample) -> tuple[int, ...]:
    assert sample.picture is not None
    return sample.picture.read().getpixel((0, 0))


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("suffix", ["tsv", "csv"])
def test_rows_of_several_lines_are_read_again_where_they_stand(
    tmp_path: Path, ending: str, encoding: str, suffix: str
) -> None:
    rows = [
        {"index": "0", "question": "One?", "image": encoded("red")},
        {"index": "1", "question": 'Two\nlines, "quoted"\t\u2028and \u00e4?', "image": encoded("lime")},
        {"index": "2", "question": "Three?", "image": encoded("blue")},
    ]
    path = write_table(tmp_path / f"t.{suffix}", rows, lineterminator=ending, encoding=encoding)
    found = load(path)
    assert [found[row["question"]].origin for row in rows] == [f"{path}:{line}" for line in (2, 3, 5)]
    assert [color_of(found[row["question"]]) for row in rows] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=12)


@settings(deadline=None, max_examples=100)
@given(
    cells=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_every_record_is_found_again_by_its_place(cells: list[tuple[str, str]], quoting: Any) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter="\t", quoting=quoting, lineterminator="\n").writerows(cells)
    data = buffer.getvalue().encode()
    for record, row in zip(calibration_tables._records(Path("t"), io.BytesIO(data), "\t"), cells, strict=True):
        assert isinstance(record, calibration_tables._Record)
        assert tuple(record.values) == row
        assert record.line == 1 + data[: record.start].count(b"\n")
        again = io.StringIO(data[record.start : record.end].decode(), newline="\n")
        assert next(csv.reader(again, delimiter="\t")) == list(row)


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    rows = [
        {"index": str(number), "question": f"{number // 2}?", "image": encoded(["red", "blue"][number % 2])}
        for number in range(12)
    ]  # fmt: skip
    rows += [
        {"index": "90", "question": "As before?", "image": "3"},
        {"index": "91", "question": "As later?", "image": "5"},
    ]
    digests = set()
    for seed in range(4):
        random.Random(seed).shuffle(rows)
        path = write_table(tmp_path / "t.tsv", rows)
        digests.add(load_calibration(path).digest)
        assert color_of(load(path)["As later?"]) == (0, 0, 255)
    assert len(digests) == 1


def test_options_beyond_four_and_names_of_lists(tmp_path: Path) -> None:
    Image.new("RGB", (6, 5), "red").save(tmp_path / "a.png")
    long = "f" * 80
    (tmp_path / long).mkdir()
    Image.new("RGB", (6, 5), "blue").save(tmp_path / long / "a.png")
    rows = [
        {
            "image": "a.png",
            "question": "Which?",
            **{letter: letter.lower() for letter in "ABCDEFGHIJKL"},
            "answer": "L",
        },
        {"image": f"{long}/a.png", "question": "Color?", "answer": "blue"},
    ]
    which, color = load(write_table(tmp_path / "t.tsv", rows)).values()
    which, color = (which, color) if "Which?" in which.question else (color, which)
    assert "\nL. l\n" in which.question
    assert (which.answer, color_of(which), color_of(color)) == ("L", (255, 0, 0), (0, 0, 255))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("has 1 columns, the header has 2", "question\tanswer\nWhat?\n"),
        ("has 3 columns, the header has 2", "question\tanswer\nWhat?\tthis\tthat\n"),
        ("has a list of images", f"question\timage\nWhat?\t['{'A' * 80}', '{'B' * 80}']\n"),
        ("question is no text that UTF-8", "question\tanswer\nWh\udce4t?\tthis\n"),
        ("another row has the index '1'", f"index\tquestion\timage\n1\tA?\t{RED}\n1\tB?\t{BLUE}\n"),
        ("begins a row of more than 1,000 bytes", 'question\tanswer\n"What?' + "\n" * 2000),
        ("or 100 columns", "question\tanswer\n" + "\t" * 500),
        ("new-line character", "question\tanswer\nWhat\ris?\tthis\n"),
    ],
)  # fmt: skip
def test_bad_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, text: str) -> None:
    monkeypatch.setattr(calibration_tables, "MAX_ROW", 1000)
    monkeypatch.setattr(calibration_tables, "MAX_COLUMNS", 100)
    path = tmp_path / "t.tsv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CalibrationError, match=words) as caught:
        load(path)
    second = "another" in words
    assert str(caught.value).startswith(f"{path}:{3 if second else 2}")
    assert sum(isinstance(draft, Draft) for draft in read_drafts(path)) == second


@pytest.mark.parametrize(
    ("words", "text"),
    [("none of the columns", "a\tb\n1\t2\n"), ("one name", "text\ttext\n1\t2\n"), ("none of the columns", "")],
)
def test_headers(tmp_path: Path, words: str, text: str) -> None:
    path = tmp_path / "t.tsv"
    path.write_text(text)
    for skip_bad in (False, True):
        with pytest.raises(CalibrationError, match=words):
            load(path, skip_bad=skip_bad)


def test_a_table_that_changes_afterwards_is_noticed(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.tsv", [{"question": "What?", "image": encoded("red")}])
    picture = load(path)["What?"].picture
    assert picture is not None
    for content in (path.read_bytes().replace(b"image", b"image\tanswer"), b"", b"question\timage\n"):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"changed|no base64"):
            picture.read()
