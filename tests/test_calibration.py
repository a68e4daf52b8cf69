"""Calibration sets: what is read, what is refused, what is held out."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from luq_gguf.calibration import BUILT_IN_SEED, DRAWN_SCENES, load_calibration
from luq_gguf.demo.scenes import draw_scene, make_scene, talk_about
from luq_gguf.errors import CalibrationError, ImageError
from luq_gguf.images import Picture
from luq_gguf.samples import Sample, messages_of


def write_rows(path: Path, rows: list[object]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def many_rows(folder: Path) -> list[dict[str, str]]:
    """Twenty questions about images, twenty without, ten texts."""
    rows = []
    for number in range(20):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": "Which red?", "answer": str(number)})
        rows.append({"question": f"What is {number} plus 1?", "answer": str(number + 1)})
        if number % 2:
            rows.append({"text": f"Text number {number}."})
    return rows


def test_the_demos_scenes_are_drawn_and_the_same_every_time():
    one, other = load_calibration("shapes"), load_calibration("shapes")
    assert one.digest == other.digest
    everything = {sample.id: sample for sample in (*one.samples, *one.held_out)}
    assert Counter(sample.kind for sample in everything.values()) == {"image": 96, "question": 48}
    scene = make_scene(BUILT_IN_SEED + 3)
    question = talk_about(scene, turns=1)[0]
    sample = everything["scene-3"]
    assert (sample.question, sample.answer) == (question.text, question.answer)
    assert sample.picture is not None
    assert sample.picture.read().tobytes() == draw_scene(scene).tobytes()
    assert len({sample.picture.key for sample in everything.values() if sample.picture}) == DRAWN_SCENES


def test_the_held_out_part_depends_on_the_seed():
    parts = [frozenset(sample.id for sample in load_calibration("shapes", seed=seed).held_out) for seed in range(4)]
    assert len(set(parts)) == 4
    assert {len(part) for part in parts} == {29}
    assert load_calibration("shapes", seed=1).digest != load_calibration("shapes", seed=2).digest


def test_rows_become_samples(tmp_path):
    Image.new("RGB", (5, 7), "red").save(tmp_path / "red.png")
    rows = [
        {"image": "red.png", "question": "What color?", "answer": "red", "id": 7},
        {"image": "./red.png", "question": "And the size?"},
        {"question": "One plus one?", "answer": "two", "image": None},
        {"text": "Call me Ishmael. \u00e4\u4e2d"},
        "   ",
    ]
    found = load_calibration(write_rows(tmp_path / "c.jsonl", rows), held_out_share=0)
    samples = {sample.question or sample.text: sample for sample in found.samples}
    assert set(samples) == {"What color?", "And the size?", "One plus one?", "Call me Ishmael. \u00e4\u4e2d"}
    assert samples["What color?"].picture.read().size == (5, 7)
    assert samples["What color?"].answer == "red"
    assert samples["And the size?"].answer is None
    assert samples["One plus one?"].picture is None
    assert (found.name, found.held_out, found.skipped) == ("c.jsonl", (), 0)


def test_the_order_of_rows_does_not_matter(tmp_path):
    rows = many_rows(tmp_path)
    one = load_calibration(write_rows(tmp_path / "c.jsonl", rows))
    random.Random(0).shuffle(rows)
    other = load_calibration(write_rows(tmp_path / "c.jsonl", rows))
    assert [sample.id for sample in one.held_out] == [sample.id for sample in other.held_out]
    assert one.digest == other.digest


def test_a_share_of_each_kind_with_answers_is_held_out(tmp_path):
    rows = [*many_rows(tmp_path), *({"question": f"No answer {number}"} for number in range(30))]
    found = load_calibration(write_rows(tmp_path / "c.jsonl", rows))
    assert Counter(sample.kind for sample in found.held_out) == {"image": 4, "question": 4}
    assert all(sample.answer is not None for sample in found.held_out)
    assert len(found.samples) + len(found.held_out) == len(rows)
    assert not {sample.id for sample in found.samples} & {sample.id for sample in found.held_out}


def test_no_picture_is_on_both_sides(tmp_path):
    rows = [row | {"question": f"{row['question']} {turn}"} for row in many_rows(tmp_path) if "image" in row
            for turn in range(3)]  # fmt: skip
    unanswered = {"image": "3.png", "question": "And who knows?"}
    for seed in range(5):
        found = load_calibration(write_rows(tmp_path / "c.jsonl", [*rows, unanswered]), seed=seed)
        assert len(found.held_out) == 12
        sides = [{sample.picture.key for sample in side} for side in (found.samples, found.held_out)]
        assert not sides[0] & sides[1]
        assert all(sample.answer is not None for sample in found.held_out)


def test_of_a_single_picture_some_questions_are_held_out(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    rows = [{"image": "one.png", "question": f"What is {number}?", "answer": "black"} for number in range(10)]
    assert len(load_calibration(write_rows(tmp_path / "c.jsonl", rows)).held_out) == 2


def test_a_subset_keeps_the_shares(tmp_path):
    path = write_rows(tmp_path / "c.jsonl", many_rows(tmp_path))
    found = load_calibration(path, samples=25, seed=3)
    assert Counter(sample.kind for sample in (*found.samples, *found.held_out)) == {
        "image": 10,
        "question": 10,
        "text": 5,
    }
    assert len(load_calibration(path, samples=1000).samples) == len(load_calibration(path).samples)


def test_something_is_always_left_to_measure_on(tmp_path):
    path = write_rows(tmp_path / "c.jsonl", [{"question": "a?", "answer": "b"}])
    found = load_calibration(path, held_out_share=1)
    assert (len(found.samples), len(found.held_out)) == (1, 0)


def test_equal_rows_stay_apart(tmp_path):
    path = write_rows(tmp_path / "c.jsonl", [{"text": "same"}] * 3)
    assert len({sample.id for sample in load_calibration(path).samples}) == 3


@pytest.mark.parametrize(
    "row",
    [
        "{not json",
        "[" * 100_000,
        "[1, 2]",
        '"text"',
        {},
        {"answer": "no question"},
        {"question": 5},
        {"text": ""},
        {"text": "  \n"},
        {"text": "half a pair \ud800"},
        {"text": "both", "question": "kinds"},
        {"text": "a text", "answer": "with an answer"},
        {"image": ["a.png", "a.png"], "question": "?"},
        {"image": "a.png"},
        {"image": "gone.png", "question": "?"},
        {"image": "broken.png", "question": "?"},
        {"image": "../secret.png", "question": "?"},
        {"image": "sub/../../secret.png", "question": "?"},
        {"image": "/etc/hostname", "question": "?"},
        {"image": "link.png", "question": "?"},
        {"image": "nul\0byte.png", "question": "?"},
        {"image": "https://example.org/a.png", "question": "?"},
    ],
)
def test_bad_rows_are_named_by_file_and_line_or_skipped(tmp_path, row):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    path = write_rows(folder / "c.jsonl", [{"text": "fine"}, "", row])
    with pytest.raises(CalibrationError, match=r"c\.jsonl:3") as caught:
        load_calibration(path)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    left = load_calibration(path, skip_bad=True)
    assert ([sample.text for sample in left.samples], left.skipped) == (["fine"], 1)


def test_unreadable_images_are_image_errors(tmp_path):
    path = write_rows(tmp_path / "c.jsonl", [{"image": "gone.png", "question": "?"}])
    with pytest.raises(ImageError, match=r"c\.jsonl:1: gone\.png does not exist"):
        load_calibration(path)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00"])
def test_empty_and_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "c.jsonl"
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=r"c\.jsonl"):
        load_calibration(path)


def test_missing_files_folders_and_no_samples_are_refused(tmp_path):
    with pytest.raises(CalibrationError, match=r"gone\.jsonl does not exist.*general or shapes"):
        load_calibration(tmp_path / "gone.jsonl")
    (tmp_path / "dir.jsonl").mkdir()
    for path in (tmp_path / "dir.jsonl", write_rows(tmp_path / "c.jsonl", ["bad"])):
        with pytest.raises(CalibrationError, match="no sample"):
            load_calibration(path, skip_bad=True)
    with pytest.raises(CalibrationError, match="no sample"):
        load_calibration("shapes", samples=0)
    (tmp_path / "rows.xml").write_text("<a/>")
    with pytest.raises(CalibrationError, match=r"rows\.xml is of no known form"):
        load_calibration(tmp_path / "rows.xml")


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"text": "first"}).encode())
    assert load_calibration(path).samples[0].text == "first"


def test_the_digest_covers_the_pixels(tmp_path):
    path = write_rows(tmp_path / "c.jsonl", [{"image": "a.png", "question": "?"}])
    digests = set()
    for color in ("red", "blue"):
        Image.new("RGB", (4, 4), color).save(tmp_path / "a.png")
        digests.add(load_calibration(path).digest)
    assert len(digests) == 2


def test_messages_have_the_image_before_the_question():
    with_image = messages_of(Sample("a", "What?", picture=Picture.of(Image.new("RGB", (4, 4)))))
    assert [part["type"] for part in with_image[0]["content"]] == ["image", "text"]
    assert [part["type"] for part in messages_of(Sample("a", "What?"))[0]["content"]] == ["text"]


def test_earlier_turns_stand_before_the_question_and_the_image_in_the_first():
    picture = Picture.of(Image.new("RGB", (4, 4)))
    found = messages_of(Sample("a", "And now?", picture=picture, turns=(("What?", "This."), ("Where?", "There."))))
    texts = [(message["role"], message["content"][-1]["text"]) for message in found]
    assert texts == [
        ("user", "What?"), ("assistant", "This."), ("user", "Where?"), ("assistant", "There."), ("user", "And now?"),
    ]  # fmt: skip
    assert [len(message["content"]) for message in found] == [2, 1, 1, 1, 1]
