"""Tables of benchmarks as VLMEvalKit publishes them: what is asked, about which image, and what is wrong with a row."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from luq_gguf.calibration_images import Looker
from luq_gguf.errors import CalibrationError
from luq_gguf.samples import Sample
from luq_gguf.vqa.questions import CIRCULAR, Question, circular, read_questions
from tests.test_calibration_tables import BLUE, RED, color_of, write_table

Row = dict[str, str]
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=12)


def read(path: Path, *rows: Row, needed: tuple[str, ...] = ()) -> list[Question]:
    return read_questions(write_table(path, list(rows)), needed)


def finish(question: Question) -> Sample:
    with Looker() as looker:
        return question.finish(looker)


def choice(index: int, answer: str = "B", image: str = RED, **options: str) -> Row:
    options = options or {"A": "red", "B": "blue", "C": "a, or\tb"}
    return {"index": str(index), "image": image, "question": "Which?", **options, "answer": answer, "category": "color"}


def test_mme_has_two_questions_about_an_image_that_stands_in_the_first(tmp_path: Path) -> None:
    rows = [
        {"index": "0", "image": RED, "image_path": "existence/1.png", "question": "Is it red?", "answer": "Yes"},
        {"index": "1", "image": "0", "image_path": "existence/1.png", "question": "Is it blue?", "answer": "No"},
        {"index": "2", "image": BLUE, "image_path": "count/1.png", "question": "Is it one?", "answer": "Yes"},
    ]  # fmt: skip
    found = read(tmp_path / "MME.tsv", *(row | {"category": row["image_path"].split("/")[0]} for row in rows))
    assert [(each.id, each.prompt, each.answers, each.category, each.group) for each in found] == [
        ("0", "Is it red?", ("Yes",), "existence", "existence/1.png"),
        ("1", "Is it blue?", ("No",), "existence", "existence/1.png"),
        ("2", "Is it one?", ("Yes",), "count", "count/1.png"),
    ]
    samples = [finish(each) for each in found]
    assert [color_of(sample) for sample in samples] == [(255, 0, 0), (255, 0, 0), (0, 0, 255)]
    assert [(sample.question, sample.answer) for sample in samples] == [(r["question"], r["answer"]) for r in rows]


def test_images_may_lie_beside_the_table(tmp_path: Path) -> None:
    (tmp_path / "scene").mkdir()
    for name, color in (("scene/a.png", "red"), ("b.jpg", "blue")):
        Image.new("RGB", (16, 16), color).save(tmp_path / name)
    first, second = read(
        tmp_path / "t.tsv",
        {"index": "0", "image_path": "scene/a.png", "image": "", "question": "A?", "answer": "Yes"},
        {"index": "1", "image_path": "", "image": "b.jpg", "question": "B?", "answer": "No"},
    )
    assert color_of(finish(first)) == (255, 0, 0)
    assert color_of(finish(second))[2] > 200
    assert first.group != second.group


def test_questions_about_one_image_are_a_group_wherever_it_stands(tmp_path: Path) -> None:
    rows = [
        {"index": str(n), "question": f"{n}?", "answer": "x", "image": image} for n, image in enumerate((RED, BLUE))
    ]
    rows += [{"index": "2", "question": "2?", "answer": "x", "image": RED}]
    rows += [{"index": "3", "question": "3?", "answer": "x", "image": "1"}]
    groups = [each.group for each in read(tmp_path / "t.tsv", *rows)]
    assert groups[0] == groups[2] != groups[1] == groups[3]


def test_a_choice_is_asked_with_its_options_and_hint(tmp_path: Path) -> None:
    row = choice(0) | {"hint": "Look at the color."}
    (found,) = read(tmp_path / "t.tsv", row, needed=("A", "B"))
    assert found.options == {"A": "red", "B": "blue", "C": "a, or\tb"}
    assert found.prompt.splitlines() == [
        "Hint: Look at the color.", "Question: Which?", "Options:", "A. red", "B. blue", "C. a, or\tb",
        "Please select the correct answer from the options above.",
    ]  # fmt: skip


def test_every_option_stands_at_every_letter_once(tmp_path: Path) -> None:
    found = read(tmp_path / "t.tsv", choice(7), choice(8, answer="A", A="left", B="right"))
    turned = list(circular(found))
    assert [(each.id, each.group, each.answers) for each in turned] == [
        ("7+0", "7", ("B",)), ("7+1", "7", ("A",)), ("7+2", "7", ("C",)), ("8+0", "8", ("A",)), ("8+1", "8", ("B",)),
    ]  # fmt: skip
    for each in turned:
        right = {"7": "blue", "8": "left"}[each.group]
        assert each.options[each.answers[0]] == right
        assert f"{each.answers[0]}. {right}" in each.prompt.splitlines()
        assert color_of(finish(each)) == (255, 0, 0)
    assert {tuple(each.options.values()) for each in turned[:3]} == {
        ("red", "blue", "a, or\tb"), ("blue", "a, or\tb", "red"), ("a, or\tb", "red", "blue"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "answer", "letters"),
    [
        ({"A": "one", "B": "two", "D": "four"}, "D", "DBA"),
        ({"A": "same", "B": "same", "C": "other"}, "B", "BAC"),
        ({"A": "red", "B": "blue"}, " b", "BA"),
    ],
    ids=["a letter left out", "two equal texts", "written otherwise"],
)
def test_the_right_letter_turns_with_its_option(
    tmp_path: Path, options: dict[str, str], answer: str, letters: str
) -> None:
    found = list(circular(read(tmp_path / "t.tsv", choice(0, answer, **options))))
    assert [each.answers[0] for each in found] == list(letters)
    right = options[answer.strip().upper()]
    assert all(each.options[each.answers[0]] == right for each in found)


def test_a_table_that_has_the_rotations_stays_as_it_is(tmp_path: Path) -> None:
    rows = [
        choice(241, "B"),
        choice(7, "A", image=BLUE),
        choice(CIRCULAR + 241, "A", image="241", A="blue", B="a, or\tb", C="red"),
        choice(2 * CIRCULAR + 241, "C", image="241", A="a, or\tb", B="red", C="blue"),
    ]
    found = read(tmp_path / "MMBench.tsv", *rows)
    turned = list(circular(found))
    assert [(each.id, each.group) for each in turned] == [
        ("241", "241"), ("7", "7"), ("1000241", "241"), ("2000241", "241"),
    ]  # fmt: skip
    assert [each.prompt for each in turned] == [each.prompt for each in found]
    assert [color_of(finish(each))[0] for each in turned] == [255, 0, 255, 255]


@pytest.mark.parametrize(
    ("cells", "answers"),
    [
        ({"answer": "nokia"}, ("nokia",)),
        ({"answer": '["nokia", "Nokia 3310"]'}, ("nokia", "Nokia 3310")),
        ({"answer": "['nokia', \"it's\"]"}, ("nokia", "it's")),
        ({"answers": "['a', 'a', 'b']"}, ("a", "a", "b")),
        ({"answer": '[{"answer": "yes", "answer_id": 1}, {"answer": "no"}]'}, ("yes", "no")),
        ({"answer": "[3, 4.5]"}, ("3", "4.5")),
        ({"answer": "[sic]"}, ("[sic]",)),
        ({"answer": "[]"}, ("[]",)),
        ({"answer": "[" * 30_000 + "]" * 30_000}, ("[" * 30_000 + "]" * 30_000,)),
        ({"answer": "[0, 2, 5]", "answer_type": "list"}, ("[0, 2, 5]",)),
    ],
    ids=lambda value: str(value)[:30],
)
def test_answers_of_one_or_several(tmp_path: Path, cells: Row, answers: tuple[str, ...]) -> None:
    (found,) = read(tmp_path / "t.tsv", {"index": "0", "question": "What?", **cells})
    assert found.answers == answers


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers=st.lists(TEXTS, min_size=1, max_size=4), write=st.sampled_from([json.dumps, repr]))
def test_lists_are_read_in_either_notation(tmp_path: Path, answers: list[str], write) -> None:
    (found,) = read(tmp_path / "t.tsv", {"index": "0", "question": "What?", "answer": write(answers)})
    assert found.answers == tuple(answers)


def test_mathvistas_columns(tmp_path: Path) -> None:
    common = {"image": RED, "category": "math-targeted-vqa", "task": "geometry"}
    rows = [
        {"index": "1", "question": "Find x.\nChoices:\n(A) 2\n(B) 3", "question_type": "multi_choice",
         "choices": "['2', '3']", "answer": "3", "answer_option": "B", "answer_type": "text", "precision": ""},
        {"index": "2", "question": "How long?", "question_type": "free_form", "choices": "[]", "answer": "1.5",
         "answer_option": "", "answer_type": "float", "precision": "1.0"},
    ]  # fmt: skip
    chosen, free = read(tmp_path / "MathVista.tsv", *(row | common for row in rows))
    assert chosen.options == {"A": "2", "B": "3"}
    assert chosen.prompt == rows[0]["question"]  # the choices stand in it
    assert free.options == {}
    assert (free.details["answer_type"], free.details["precision"], free.category) == (
        "float", "1.0", "math-targeted-vqa",
    )  # fmt: skip


def test_rows_without_an_index_are_named_by_their_line(tmp_path: Path) -> None:
    found = read(tmp_path / "t.csv", *({"question": f"{n}?", "answer": "x"} for n in range(3)))
    assert [each.id for each in found] == ["2", "3", "4"]


GOOD = f"0\tWhat?\tthis\t{RED}"
BAD_ROWS = {
    "no question": ("index\tquestion\tanswer\timage", ["0\t \tthis\t"], 2, "has no question"),
    "no answer": ("index\tquestion\tanswer\timage", [GOOD, "1\tWhat?\t\t0"], 3, "has no answer"),
    "no needed column": ("index\tquestion\tanswer\timage", [GOOD], 2, "has no category"),
    "a needed cell is blank": ("index\tquestion\tanswer\tcategory", ["0\tA?\tb\tc", "1\tA?\tb\t "], 3, "no category"),
    "too few cells": ("index\tquestion\tanswer\tcategory", ["0\tA?\tb\tc", "1\tA?\tb"], 3, "has 3 columns"),
    "the image of no row": ("index\tquestion\tanswer\timage", [GOOD, "1\tWhat?\tthis\t9"], 3, "no row .* index '9'"),
    "a list of images": ("index\tquestion\tanswer\timage", ["0\tA?\tb\t['A', 'B']"], 2, "list of images"),
    "an address": ("index\tquestion\tanswer\timage", ["0\tA?\tb\thttps://example.com/a.png"], 2, "is an address"),
    "two images of one index": (
        "index\tquestion\tanswer\timage", [GOOD, f"0\tA?\tb\t{BLUE}"], 3, "another row has the index '0'",
    ),
    "no UTF-8": ("index\tquestion\tanswer", ["0\tWh\udce4t?\tthis"], 2, "question is no text that UTF-8 can hold"),
    "a NUL": ("index\tquestion\tanswer", ["0\tWhat?\tth\0is"], 2, "answer is no text"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named(tmp_path: Path, case: str) -> None:
    header, rows, line, words = BAD_ROWS[case]
    path = tmp_path / "t.tsv"
    path.write_bytes("\n".join([header, *rows, ""]).encode("utf-8", "surrogateescape"))
    needed = ("category",) if "needed" in case or "cells" in case else ()
    with pytest.raises(CalibrationError, match=words) as caught:
        read_questions(path, needed)
    assert str(caught.value).startswith(f"{path}:{line}")
    assert caught.value.hint


def test_a_table_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    cases = {
        "gone.tsv": (None, "cannot read"),
        "rows.jsonl": ('{"question": "What?", "answer": "this"}\n', "is no table"),
        "empty.tsv": ("", "none of the columns"),
        "other.tsv": ("name\tage\nAnn\t7\n", "none of the columns"),
        "header.tsv": ("index\tquestion\tanswer\n", "has no row"),
        "twice.tsv": ("index\tquestion\tanswer\n5\tA?\tb\n6\tA?\tb\n5\tC?\td\n", "two rows of the index '5'"),
        "columns.tsv": ("question\tquestion\nA?\tb\n", "two columns of one name"),
    }
    for name, (content, words) in cases.items():
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(CalibrationError, match=words) as caught:
            read_questions(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_a_broken_image_is_named_by_its_row_when_it_is_needed(tmp_path: Path) -> None:
    noise = base64.b64encode(b"no image at all" * 10).decode()
    (tmp_path / "cut.png").write_bytes(base64.b64decode(RED)[:40])
    broken = {
        RED[:-9] + "\u00e4" * 9: "its image is no base64",
        noise: "is no image that can be read",
        "gone.png": "gone.png does not exist",
        "cut.png": "cut.png",
        "../out.png": "leads out of",
    }
    rows = [{"index": str(n), "question": f"{n}?", "answer": "x", "image": image} for n, image in enumerate(broken)]
    path = tmp_path / "t.tsv"
    for number, (question, words) in enumerate(zip(read(path, *rows), broken.values(), strict=True)):
        with pytest.raises(CalibrationError, match=words) as caught:
            finish(question)
        assert str(caught.value).startswith(f"{path}:{number + 2}: ")
