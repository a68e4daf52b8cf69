"""Every form of calibration data, as others write it, and what damage does to it."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from luq_gguf.calibration import load_calibration
from luq_gguf.errors import CalibrationError
from luq_gguf.samples import Sample


def png(color: str, size: tuple[int, int] = (6, 5)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def load(path: Path, **options: Any) -> dict[str, Sample]:
    """Samples by question or text, none held out."""
    found = load_calibration(path, held_out_share=0, **options)
    return {sample.question or str(sample.text): sample for sample in found.samples}


def write_tsv(path: Path, rows: list[dict[str, str]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, names, delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def color_of(sample: Sample) -> tuple[int, ...]:
    assert sample.picture is not None
    return sample.picture.read().getpixel((0, 0))


def test_llava_instructions(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.png").write_bytes(png("red"))
    rows = [
        {"id": "1", "image": "train/a.png", "conversations": [
            {"from": "human", "value": "<image>\nWhat color is it?"}, {"from": "gpt", "value": "Red."},
            {"from": "human", "value": "Are you sure?"}, {"from": "gpt", "value": "Yes."}]},
        {"id": "2", "conversations": [
            {"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hello!"},
            {"from": "gpt", "value": "Hello."}]},
    ]  # fmt: skip
    (tmp_path / "llava.json").write_text(json.dumps(rows))
    found = load(tmp_path / "llava.json")
    sure = found["Are you sure?"]
    assert (sure.turns, sure.answer) == ((("What color is it?", "Red."),), "Yes.")
    assert color_of(sure) == (255, 0, 0)
    assert sure.origin.endswith("llava.json:1, row 1")
    assert (found["Hello!"].answer, found["Hello!"].picture, found["Hello!"].turns) == ("Hello.", None, ())


def test_messages_with_parts(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png("blue"))
    row = {"images": ["a.png"], "messages": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A blue box."}]}]}  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    sample = load(tmp_path / "rows.jsonl")["What is it?"]
    assert (sample.answer, color_of(sample)) == ("A blue box.", (0, 0, 255))


def test_vlmevalkit_tables(tmp_path: Path) -> None:
    (tmp_path / "c.png").write_bytes(png("lime"))
    red = base64.b64encode(png("red", (300, 200)) + bytes(200_000)).decode()  # longer than csv reads by default
    rows = [
        {
            "index": "0",
            "image": red,
            "question": "Which color?",
            "A": "red",
            "B": "blue",
            "hint": "look",
            "answer": "A",
        },
        {"index": "1", "image": "0", "question": "The same?", "answer": "yes"},
        {"index": "2", "image_path": "c.png", "question": "And this?", "answer": "lime"},
    ]
    found = load(write_tsv(tmp_path / "bench.tsv", rows))
    chosen = next(sample for question, sample in found.items() if "Which color?" in question)
    assert chosen.question.splitlines() == [
        "Hint: look", "Question: Which color?", "Options:", "A. red", "B. blue",
        "Please select the correct answer from the options above.",
    ]  # fmt: skip
    assert chosen.answer == "A"
    assert color_of(chosen) == color_of(found["The same?"]) == (255, 0, 0)
    assert chosen.picture.key == found["The same?"].picture.key
    assert color_of(found["And this?"]) == (0, 255, 0)
    assert chosen.origin == f"{tmp_path / 'bench.tsv'}:2"


def test_parquet_of_the_hub(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": png("red"), "path": "a.png"}, "question": "One?", "answers": ["1", "one"], "id": 1},
        {"image": {"bytes": png("blue"), "path": None}, "question": "Two?", "answers": ["2"], "id": 2},
        {"image": None, "question": "Three?", "answers": [], "id": 3},
    ] * 20
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet", row_group_size=7)
    found = load(tmp_path / "set.parquet")
    assert (found["One?"].answer, color_of(found["One?"])) == ("1", (255, 0, 0))
    assert (found["Two?"].answer, color_of(found["Two?"])) == ("2", (0, 0, 255))
    assert (found["Three?"].answer, found["Three?"].picture) == (None, None)
    everything = load_calibration(tmp_path / "set.parquet", held_out_share=0)
    assert len({sample.id for sample in everything.samples}) == 60


def test_a_folder_of_images(tmp_path: Path) -> None:
    home = tmp_path / "pictures"
    (home / "more").mkdir(parents=True)
    (home / ".hidden").mkdir()
    for name, color in (("a.png", "red"), ("more/b.JPG", "blue"), (".hidden/c.png", "white"), (".d.png", "white")):
        Image.new("RGB", (9, 9), color).save(home / name, "PNG")
    (home / "a.txt").write_text("A red square.\n")
    (home / "letter.txt").write_text("Dear reader, this is a text.")
    (home / "notes.md").write_text("not read")
    found = load_calibration(home, held_out_share=0).samples
    assert sorted(s.question or str(s.text) for s in found) == [
        "Dear reader, this is a text.", "Describe this image.", "Describe this image.",
    ]  # fmt: skip
    assert {s.answer for s in found if s.picture} == {"A red square.", None}


def test_a_link_out_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "secret.png").write_bytes(png("red"))
    home = tmp_path / "pictures"
    home.mkdir()
    (home / "fine.png").write_bytes(png("blue"))
    for name in ("secret.txt", "secret.png"):
        (home / name).symlink_to(tmp_path / name)
        with pytest.raises(CalibrationError, match="leads out"):
            load_calibration(home)
        left = load_calibration(home, skip_bad=True)
        assert (len(left.samples), left.skipped) == (1, 1)
        (home / name).unlink()


def refusal(path: Path, *, skip_bad: bool) -> str:
    """What is said of a file that is refused; empty where it is taken."""
    try:
        load_calibration(path, skip_bad=skip_bad)
    except CalibrationError as error:
        return str(error)
    return ""


BAD_ROWS: list[tuple[str, dict[str, Any]]] = [
    ("take turns", {"conversations": [{"from": "gpt", "value": "x"}]}),
    ("take turns", {"conversations": [{"from": "human", "value": "x"}, {"from": "human", "value": "y"}]}),
    ("empty", {"conversations": [{"from": "system", "value": "x"}]}),
    ("no list", {"conversations": "x"}),
    ("no list", {"conversations": [1]}),
    ("message 1 is no text", {"conversations": [{"from": "human", "value": 5}]}),
    ("names no image", {"conversations": [{"from": "human", "value": "<image>"}]}),
    ("more than one image", {"image": "a.png", "conversations": [{"from": "human", "value": "<image><image>which?"}]}),
    ("2 images", {"images": ["a.png", "b.png"], "question": "?"}),
    ("keys", {"question": "?", "conversations": [{"from": "human", "value": "x"}]}),
    ("is an address", {"image": "https://example.org/a.png", "question": "?"}),
    ("image is no text", {"image": {"path": 5}, "question": "?"}),
]


@pytest.mark.parametrize(("words", "row"), BAD_ROWS)
@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_bad_rows_are_named_or_skipped(tmp_path: Path, form: str, words: str, row: dict[str, Any]) -> None:
    path = tmp_path / f"rows.{form}"
    rows = [{"text": "fine"}, row]
    path.write_text(json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows)))
    with pytest.raises(CalibrationError, match=words) as caught:
        load_calibration(path)
    place = f"{path}:1, row 2" if form == "json" else f"{path}:2"
    assert str(caught.value).startswith(place)
    assert "\n" not in str(caught.value)
    left = load_calibration(path, skip_bad=True)
    assert (len(left.samples), left.skipped, left.skipped_reasons[0].startswith(place)) == (1, 1, True)


@pytest.mark.parametrize(
    ("words", "row"),
    [("no base64", {"index": "2", "image": "!" * 100, "question": "?"}),
     ("no row with an image", {"index": "2", "image": "7", "question": "?"}),
     ("no image that can be read", {"index": "2", "image": base64.b64encode(b"x" * 100).decode(), "question": "?"}),
     ("leads out", {"index": "2", "image_path": "../a.png", "question": "?"})],
)  # fmt: skip
def test_bad_rows_of_tables(tmp_path: Path, words: str, row: dict[str, str]) -> None:
    path = write_tsv(tmp_path / "t.tsv", [{"index": "1", "question": "Fine?"}, row])
    with pytest.raises(CalibrationError, match=words) as caught:
        load_calibration(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert load_calibration(path, skip_bad=True).skipped == 1


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(CalibrationError, match=r"pipe\.jsonl: it is no regular file"):
        load_calibration(tmp_path / "pipe.jsonl")
    home = tmp_path / "home"
    home.mkdir()
    (home / "fine.txt").write_text("fine")
    os.mkfifo(home / "pipe.png")
    assert len(load_calibration(home).samples) == 1


ANYTHING = st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".tsv", ".csv"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=ANYTHING)
def test_any_bytes_are_a_set_or_one_error(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"any{suffix}"
    path.write_bytes(content)
    for skip_bad in (False, True):
        assert "\n" not in refusal(path, skip_bad=skip_bad)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=ANYTHING)
def test_any_bytes_are_no_parquet(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.parquet"
    path.write_bytes(content)
    assert refusal(path, skip_bad=True).startswith(f"{path} holds no sample that can be used ({path} is no parquet")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.just("a.png"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ROWS = st.dictionaries(
    st.sampled_from(["image", "images", "question", "answer", "answers", "text", "conversations", "messages"]),
    JSON | st.lists(st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "x"]), "value": JSON}), max_size=3),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, max_size=3))
def test_any_row_is_a_sample_or_one_error(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    (tmp_path / "a.png").write_bytes(png("red"))
    (tmp_path / "rows.json").write_text(json.dumps([*rows, {"text": "fine"}]))
    found = load_calibration(tmp_path / "rows.json", skip_bad=True)
    assert found.skipped + len(found.samples) + len(found.held_out) == len(rows) + 1
    assert "\n" not in refusal(tmp_path / "rows.json", skip_bad=False)


@pytest.mark.parametrize("damage", range(8))
def test_damaged_parquet_is_one_error(tmp_path: Path, damage: int) -> None:
    path = tmp_path / "set.parquet"
    rows = [{"image": {"bytes": png("red")}, "question": f"{number}?", "answer": "x"} for number in range(30)]
    parquet.write_table(pa.Table.from_pylist(rows), path)
    content = bytearray(path.read_bytes())
    rng = random.Random(damage)
    for _ in range(rng.randint(1, 8)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
    assert "\n" not in refusal(path, skip_bad=True)
