"""Benchmarks asked of the demo model: every question once, answers kept at once, and what cannot be asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luq_gguf.demo import CHECKPOINT, FRESH_SEED
from luq_gguf.demo.scenes import draw_scene, make_scene, talk_about
from luq_gguf.errors import CalibrationError, RunError
from luq_gguf.images import Picture
from luq_gguf.runtime import Runtime
from luq_gguf.samples import Sample, Turns
from luq_gguf.vqa.asking import ask_all, digest_of, score_all
from luq_gguf.vqa.benchmarks import EXACT, Answered
from luq_gguf.vqa.questions import Question, read_questions
from tests.exported import export_both
from tests.test_calibration_tables import RED, write_table


class Heard(Runtime):
    """A runtime that remembers what it was asked."""

    def __init__(self, *files: Path) -> None:
        super().__init__(*files, threads=1, context=1024)
        self.asked: list[str] = []

    def answer(self, question: str, image: Any = None, *, turns: Turns = (), max_tokens: int = 256) -> str:
        self.asked.append(question)
        return super().answer(question, image, turns=turns, max_tokens=max_tokens)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return export_both(CHECKPOINT, tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def opened(files: tuple[Path, Path]) -> Iterator[Heard]:
    with Heard(*files) as runtime:
        yield runtime


@pytest.fixture
def runtime(opened: Heard) -> Heard:
    opened.asked.clear()
    return opened


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    """Two questions about each of three drawn scenes."""
    found = []
    for number in range(3):
        scene = make_scene(FRESH_SEED + 50 + number)
        picture = Picture.of(draw_scene(scene))
        for turn, asked in enumerate(talk_about(scene, turns=2)):
            sample = Sample(f"{number}-{turn}", asked.text, asked.answer, picture)
            found.append(Question(sample.id, asked.text, (asked.answer,), "scene", picture.key, sample=sample))
    return found


def asked(
    runtime: Runtime, questions: Sequence[Question], kept: Path, **options: Any
) -> tuple[list[Answered], list[str]]:
    return ask_all(runtime, EXACT, questions, kept, **options)


def test_the_demo_model_is_asked_and_scored(runtime: Heard, questions: list[Question], tmp_path: Path) -> None:
    found, left_out = asked(runtime, questions, tmp_path / "new" / "kept.jsonl")
    assert runtime.asked == [each.prompt for each in questions]
    assert left_out == []
    for question, each in zip(questions, found, strict=True):
        assert question.sample is not None
        assert question.sample.picture is not None
        assert each.said == runtime.answer(question.prompt, question.sample.picture.read())
        assert each.score == (each.said.casefold().rstrip(".") == question.answers[0])
    result = score_all(EXACT, found, model="demo", data="scenes")
    assert result.figures["score"].value == pytest.approx(100 * sum(each.score for each in found) / len(found))
    assert result.figures["score"].value > 60  # it knows such scenes


def test_turns_are_asked_with_their_question(runtime: Heard, questions: list[Question], tmp_path: Path) -> None:
    sample = questions[0].sample
    assert sample is not None
    assert sample.picture is not None
    turns = (("What is 1 plus 1?", "2"), ("What color is snow?", "white"))
    talk = replace(questions[0], sample=replace(sample, turns=turns, question="What is 3 plus 4?"))
    ((each,), _) = asked(runtime, [talk], tmp_path / "kept.jsonl")
    assert each.said == runtime.answer("What is 3 plus 4?", sample.picture.read(), turns=turns)


def test_kept_answers_are_not_asked_again(runtime: Heard, questions: list[Question], tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    whole, _ = asked(runtime, questions, kept)
    runtime.asked.clear()
    again, _ = asked(runtime, questions, kept)
    assert runtime.asked == []
    assert again == whole
    kept.write_text("".join(json.dumps([each.id, "never said"]) + "\n" for each in questions[:2]))
    changed, _ = asked(runtime, questions, kept)
    assert runtime.asked == [each.prompt for each in questions[2:]]
    assert [(each.said, each.score) for each in changed[:2]] == [("never said", 0), ("never said", 0)]
    assert changed[2:] == whole[2:]


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_a_run_that_was_stopped_goes_on_where_it_was(
    runtime: Heard, questions: list[Question], tmp_path: Path, stop: int
) -> None:
    kept = tmp_path / "kept.jsonl"

    def progress(stage: str, done: int, total: int) -> None:
        assert (stage, total) == ("ask exact", len(questions))
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asked(runtime, questions, kept, progress=progress)
    assert len(kept.read_text().splitlines()) == stop
    runtime.asked.clear()
    found, _ = asked(runtime, questions, kept)
    assert runtime.asked == [each.prompt for each in questions[stop:]]
    assert found == asked(runtime, questions, tmp_path / "whole.jsonl")[0]


def test_a_last_line_that_was_cut_is_asked_again(runtime: Heard, questions: list[Question], tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    whole, _ = asked(runtime, questions, kept)
    content = kept.read_bytes()
    begin = content.rindex(b"\n", 0, -1) + 1
    for end in range(begin, len(content)):
        runtime.asked.clear()
        kept.write_bytes(content[:end])
        assert asked(runtime, questions, kept)[0] == whole
        assert runtime.asked == [questions[-1].prompt]
        assert kept.read_bytes() == content


@pytest.mark.parametrize("line", [b"5", b"[]", b'["0-0"]', b'["0-0", 3]', b'{"id": "0-0"}', b"null", b"\xff", b"[" * 9])
def test_what_is_no_answer_is_dropped_with_all_behind_it(
    runtime: Heard, questions: list[Question], tmp_path: Path, line: bytes
) -> None:
    kept = tmp_path / "kept.jsonl"
    good = [json.dumps([each.id, "kept"]).encode() for each in questions[:2]]
    kept.write_bytes(b"\n".join([good[0], line, good[1], b""]))
    found, _ = asked(runtime, questions[:2], kept)
    assert runtime.asked == [questions[1].prompt]
    assert found[0].said == "kept" != found[1].said
    assert len(kept.read_bytes().splitlines()) == 2


def test_an_image_that_cannot_be_read_is_named_or_left_out(runtime: Heard, tmp_path: Path) -> None:
    draw_scene(make_scene(3)).save(tmp_path / "good.png")
    rows = [
        {"index": "0", "image": "good.png", "question": "How many objects are there?", "answer": "3"},
        {"index": "1", "image": "gone.png", "question": "How many objects are there?", "answer": "3"},
        {"index": "2", "image": RED, "question": "Is there a dog?", "answer": "no"},
    ]
    table, kept = tmp_path / "t.tsv", tmp_path / "kept.jsonl"
    questions = read_questions(write_table(table, rows))
    with pytest.raises(CalibrationError, match=r"t\.tsv:3: gone\.png does not exist"):
        asked(runtime, questions, kept)
    found, left_out = asked(runtime, questions, kept, skip_bad=True)
    assert [each.question.id for each in found] == ["0", "2"]
    assert left_out == [f"{table}:3: gone.png does not exist"]
    assert runtime.asked == [rows[0]["question"], rows[2]["question"]]


def test_a_model_without_its_vision_part_is_told_so(
    files: tuple[Path, Path], questions: list[Question], tmp_path: Path
) -> None:
    with Heard(files[0]) as blind, pytest.raises(RunError, match="--mmproj"):
        asked(blind, questions, tmp_path / "kept.jsonl")


def test_answers_may_be_any_text(runtime: Heard, questions: list[Question], tmp_path: Path) -> None:
    texts = ["two\nlines\r", "\u2028\u00e4\ufffd", "", "\x85 \x1c", '["x"]', "\\"]
    kept = tmp_path / "kept.jsonl"
    kept.write_text("".join(json.dumps([q.id, text]) + "\n" for q, text in zip(questions, texts, strict=True)))
    found, _ = asked(runtime, questions, kept)
    assert [each.said for each in found] == texts
    assert runtime.asked == []


def test_questions_are_named_by_everything_that_is_asked(tmp_path: Path) -> None:
    row = {"index": "0", "image": RED, "question": "Is there a dog?", "answer": "no"}
    (plain,) = read_questions(write_table(tmp_path / "t.tsv", [row]))
    changes: list[dict[str, str]] = [{}, {"index": "7"}, {"question": "A cat?"}, {"answer": "yes"}, {"image": "x.png"}]
    digests = [digest_of(read_questions(write_table(tmp_path / "t.tsv", [row | change]))) for change in changes]
    assert len(set(digests)) == len(changes)
    assert digests[0] == digest_of([plain])
    assert digest_of([plain, plain]) != digests[0]
