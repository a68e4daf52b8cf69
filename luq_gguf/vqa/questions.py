"""Rows of a benchmark's table (TSV as VLMEvalKit has it) -> questions with their images, options and answers."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from luq_gguf.calibration_images import Looker, StoredImage, image_below
from luq_gguf.calibration_rows import located, text_of
from luq_gguf.calibration_tables import TableRow, choice_text, options_of, read_rows
from luq_gguf.errors import CalibrationError
from luq_gguf.progress import Progress, silent
from luq_gguf.samples import Sample
from luq_gguf.small_files import require_regular
from luq_gguf.vqa.scorers import rotations

COLUMNS = (
    "index", "question", "answer", "answers", "hint", "category", "l2-category", "split", "image_path",
    "question_type", "answer_type", "choices", "precision", "task", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
)  # fmt: skip
CIRCULAR = 1_000_000
"""VLMEvalKit numbers the rotations of a question by adding multiples of this to its index."""
HINT = "take the benchmark's table as VLMEvalKit publishes it"
SHOWN = 40


@dataclass(frozen=True)
class Question:
    """One question of a benchmark: the prompt as it is asked, what answers are right, and what it is counted under.

    `answers` are those of all annotators; `options` the texts of a choice by letter; `group` is what is drawn together
    in an interval: what is about one image, or the rotations of one question; `details` holds further columns;
    `sample` is the whole question where it was read as one.
    """

    id: str
    prompt: str
    answers: tuple[str, ...]
    category: str = ""
    group: str = ""
    options: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    image: StoredImage | None = None
    sample: Sample | None = None
    origin: str = ""

    def finish(self, looker: Looker) -> Sample:
        """The question as a sample with its picture; raises CalibrationError, naming the row, where it is broken."""
        if self.sample is not None:
            return self.sample
        try:
            picture = None if self.image is None else looker.picture(self.image)
        except CalibrationError as error:
            raise located(self.origin, error) from error
        return Sample(self.id, self.prompt, self.answers[0], picture, origin=self.origin)


def read_questions(path: Path, needed: Sequence[str] = (), progress: Progress = silent) -> list[Question]:
    """Every row of a table; raises CalibrationError, naming the row, for one without question or answer.

    `needed` are further columns that every row must have. Images are not looked at yet.
    """
    if path.suffix.lower() not in {".tsv", ".csv"}:
        raise CalibrationError(f"{path} is no table", hint=HINT)
    try:
        require_regular(path)
        with path.open("rb") as handle:
            rows = list(read_rows(path, handle, COLUMNS))
    except OSError as error:
        raise CalibrationError(f"cannot read {path}: {error.strerror or error}", hint=HINT) from error
    found = [_question(row, path.parent, needed) for row in rows]
    if not found:
        raise CalibrationError(f"{path} has no row", hint=HINT)
    names = [question.id for question in found]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CalibrationError(f"{path} has two rows of the index {twice!r}", hint="number the rows again")
    progress("read rows", len(found), len(found))
    return found


def _question(row: TableRow | CalibrationError, folder: Path, needed: Sequence[str]) -> Question:
    if isinstance(row, CalibrationError):
        raise row
    values = row.values
    missing = [name for name in ("question", *needed) if name not in values]
    answers = _answers(values)
    if missing or not answers:
        what = ", ".join(missing) or "answer"
        raise CalibrationError(f"{row.where} has no {what}", hint=f"{HINT}; its split without answers has no labels")
    try:
        for name, text in values.items():
            text_of(name, text)
        image = image_below(folder, row.image) if isinstance(row.image, str) else row.image
    except CalibrationError as error:
        raise located(row.where, error) from error
    options = options_of(values) or _choices(values)
    question = choice_text(values, options) if options_of(values) else values["question"]
    return Question(
        id=values.get("index", row.where.rpartition(":")[2]),
        prompt=question,
        answers=answers,
        category=values.get("category") or values.get("split") or values.get("task") or "",
        group=values.get("image_path") or (image.identity if image else row.where),
        options=options,
        details=values,
        image=image,
        origin=row.where,
    )


def _answers(values: dict[str, str]) -> tuple[str, ...]:
    """The right answers: one, or those of several annotators as a list in JSON or Python's notation.

    MathVista has lists that are one answer.
    """
    text = values.get("answer") or values.get("answers") or ""
    several = None if values.get("answer_type") == "list" else _list(text)
    return tuple(several) if several is not None else ((text,) if text else ())


def _choices(values: dict[str, str]) -> dict[str, str]:
    """MathVista's options, a list in one column, by letter."""
    several = _list(values.get("choices", "")) or []
    return {chr(ord("A") + number): text for number, text in enumerate(several[:26])}


def _list(text: str) -> list[str] | None:
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list) and found:
            return [str(each.get("answer", each) if isinstance(each, dict) else each) for each in found]
    return None


def circular(questions: Sequence[Question]) -> Iterator[Question]:
    """Each choice in every rotation of its options under one group; a table that has the rotations stays as it is."""
    for question in questions:
        if question.answers[0].strip().upper() not in question.options:
            what = (
                f"{question.origin} has the answer {question.answers[0][:SHOWN]!r}, which is no letter of its options"
            )
            raise CalibrationError(what, hint=HINT)
    numbers = [int(question.id) if question.id.isdecimal() else 0 for question in questions]
    if any(number >= CIRCULAR for number in numbers):
        for question, number in zip(questions, numbers, strict=True):
            yield replace(question, group=str(number % CIRCULAR))
        return
    for question in questions:
        letters, right = list(question.options), question.answers[0].strip().upper()
        for turn, options in enumerate(rotations(question.options)):
            letter = letters[(letters.index(right) - turn) % len(letters)]
            yield replace(
                question,
                id=f"{question.id}+{turn}",
                prompt=choice_text(question.details, options),
                answers=(letter,),
                group=question.id,
                options=options,
            )
