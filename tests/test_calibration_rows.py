"""The forms that a row may have, and what of an image is looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from luq_gguf.calibration import load_calibration
from luq_gguf.calibration_rows import Draft, draft_of
from luq_gguf.errors import CalibrationError, ImageError
from luq_gguf.samples import Sample


def drafted(row: object) -> Draft:
    found = draft_of(row, "here", Path())
    assert isinstance(found, Draft), found
    return found


def refusal(row: object) -> str:
    found = draft_of(row, "here", Path())
    assert isinstance(found, CalibrationError)
    assert found.message.startswith("here: ")
    assert found.hint
    return str(found)


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "question", "answer"),
    [
        ({"question": "How many?", "answer": 4}, "How many?", "4"),
        ({"question": "How much?", "answer": 0.5}, "How much?", "0.5"),
        ({"question": "Which?", "answer": ""}, "Which?", None),
        ({"question": "Which?", "answers": ["b", "a", "a", "c"]}, "Which?", "a"),
        ({"question": "Which?", "answers": ["b", "a"]}, "Which?", "b"),
        ({"question": "Which?", "answers": [{"answer": "b"}, {"answer": "c"}, {"answer": "c"}]}, "Which?", "c"),
        ({"question": "Which?", "answers": {"text": ["b"], "start": [1]}}, "Which?", "b"),
        ({"image": "a.png", "question": "<image>\nWhich?"}, "Which?", None),
        ({"image": "a.png", "text": "A red box."}, "Describe this image.", "A red box."),
        ({"image": "a.png", "caption": ["A box.", "Red."]}, "Describe this image.", "A box."),
        ({"images": ["a.png"], "texts": [{"user": "Which?", "assistant": "This.", "source": "x"}]}, "Which?", "This."),
        ({"messages": [user("What does <image> do in SVG?")]}, "What does <image> do in SVG?", None),
    ],
)  # fmt: skip
def test_questions_and_answers(row: dict[str, Any], question: str, answer: str | None) -> None:
    found = drafted(row)
    assert (found.sample.question, found.sample.answer) == (question, answer)
    assert (found.image.name if found.image else None) == ("a.png" if "image" in row or "images" in row else None)


def test_an_image_may_be_named_in_a_message() -> None:
    for part in ({"type": "image", "image": "b.png"}, {"type": "image_url", "image_url": {"url": "b.png"}}):
        found = drafted({"messages": [user([part, {"type": "text", "text": "What?"}]), assistant("A box.")]})
        assert found.image is not None
        assert (found.image.name, found.sample.question, found.sample.answer) == ("b.png", "What?", "A box.")


def test_turns_and_the_system_message() -> None:
    talk = [{"role": "system", "content": "Be brief."}, user("One?"), assistant("1"), user("Two?"), assistant("2"),
            user("Three?")]  # fmt: skip
    sample = drafted({"messages": talk}).sample
    assert (sample.turns, sample.question, sample.answer) == ((("One?", "1"), ("Two?", "2")), "Three?", None)


@pytest.mark.parametrize(
    ("words", "row"),
    [
        ("more than one image", {"image": "a.png", "question": "<image> or <image>?"}),
        ("names no image", {"question": "<image>\nWhat?"}),
        ("later question", {"image": "a.png", "messages": [user("Hi."), assistant("Hi!"), user("<image> What?")]}),
        ("2 images", {"messages": [user([{"type": "image", "image": "a.png"}, {"type": "image", "image": "b.png"}])]}),
        ("2 images", {"image": "a.png", "images": ["b.png"], "question": "?"}),
        ("a part of the kind 'audio'", {"messages": [user([{"type": "audio"}])]}),
        ("a part without text", {"messages": [user([{"type": "text", "text": 5}])]}),
        ("stands in the row itself", {"image": "data:image/png;base64,AAAA", "question": "?"}),
        ("is an address", {"image": "http://example.org/a.png", "question": "?"}),
        ("NUL", {"question": "a\0b"}),
        ("UTF-8 can hold", {"question": "\udc80?"}),
        ("answer is no text", {"question": "?", "answer": True}),
        ("answer is no text", {"question": "?", "answer": float("nan")}),
        ("answer is no text", {"question": "?", "answers": [["deep"]]}),
        ("has the keys", {"image": "a.png"}),
        ("has the keys", {"image": "a.png", "text": "A box.", "answer": "?"}),
        ("question and answer must take turns", {"messages": [{"role": ["x"], "content": "?"}]}),
        ("no list of questions", {"texts": ["x"]}),
        ("user is no text", {"texts": [{"assistant": "x"}]}),
        ("is no object", ["x"]),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used(words: str, row: object) -> None:
    assert words in refusal(row)


def test_an_id_follows_from_what_a_row_says() -> None:
    rows = [{"image": image, "question": question, "answer": answer} for image in ("a.png", "b.png")
            for question in ("What?", "Where?") for answer in ("this", "that")]  # fmt: skip
    ids = [drafted(row).id for row in rows]
    assert len(set(ids)) == len(rows)
    assert [drafted({"id": 7, "source": "x", **row}).id for row in rows] == ids
    assert {drafted(row).kind for row in rows} == {"image"}


def write_set(folder: Path, names: list[str]) -> Path:
    """A question about each image, of which some are there."""
    folder.mkdir()
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"image": name, "question": f"{name}?"}) + "\n" for name in names))
    return path


def test_only_the_images_of_the_samples_taken_are_looked_at(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(30)]
    path = write_set(tmp_path / "set", names)
    for name in names:
        Image.new("RGB", (6, 6), "red").save(path.parent / name)
    taken = {sample.picture.name for sample in load_calibration(path, samples=5).samples if sample.picture}
    for name in set(names) - taken:
        (path.parent / name).unlink()
    again = load_calibration(path, samples=5)
    assert {sample.picture.name for sample in again.samples if sample.picture} == taken
    with pytest.raises(ImageError, match=r"rows\.jsonl:\d+: .*does not exist"):
        load_calibration(path, samples=6)


def test_a_sample_without_its_image_gives_way_to_another(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(30)]
    path = write_set(tmp_path / "set", names)
    for name in names[::3]:
        Image.new("RGB", (6, 6), "red").save(path.parent / name)
    found = load_calibration(path, samples=8, skip_bad=True)
    assert len(found.samples) == 8
    assert 0 < found.skipped <= 20
    assert len(found.skipped_reasons) == min(found.skipped, 5)
    assert load_calibration(path, skip_bad=True).skipped == 20


def first(path: Path) -> Sample:
    return load_calibration(path).samples[0]


def test_an_image_that_changes_afterwards_is_noticed(tmp_path: Path) -> None:
    path = write_set(tmp_path / "set", ["a.png"])
    Image.new("RGB", (6, 9), "red").save(path.parent / "a.png")
    picture = first(path).picture
    assert picture is not None
    assert (picture.size, picture.read().size, picture.read().getpixel((0, 0))) == ((6, 9), (6, 9), (255, 0, 0))
    Image.new("RGB", (6, 9), "blue").save(path.parent / "a.png")
    with pytest.raises(ImageError, match=r"a\.png has changed"):
        picture.read()


def test_the_digest_does_not_depend_on_the_folders_place(tmp_path: Path) -> None:
    digests = set()
    for home in ("one", ".hidden"):
        path = write_set(tmp_path / home, ["a.png"])
        Image.new("RGB", (6, 6), "red").save(path.parent / "a.png")
        digests |= {load_calibration(path).digest, load_calibration(path.parent).digest}
    assert len(digests) == 2  # of the rows, and of the folder of images
