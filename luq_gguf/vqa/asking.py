"""Asks a running model every question of a benchmark, keeps each answer at once, and scores them.

A run that was stopped goes on where it was: answers lie in a file of lines under a name made of everything that they
depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from luq_gguf.artifacts import Record
from luq_gguf.bootstrap import Estimate, bootstrap
from luq_gguf.calibration_images import Looker
from luq_gguf.errors import CalibrationError, RunError
from luq_gguf.progress import Progress, silent
from luq_gguf.runtime import Runtime
from luq_gguf.vqa.benchmarks import Answered, Benchmark, Groups
from luq_gguf.vqa.questions import Question


class Answer(Record):
    """What a model said to a question, and what that scores."""

    id: str
    said: str
    score: float
    answers: tuple[str, ...]


class BenchmarkResult(Record):
    """What a file reached: every figure that the benchmark publishes, each with its interval."""

    format: Literal["luq-gguf benchmark 1"] = "luq-gguf benchmark 1"
    benchmark: str
    model: str
    data: str
    questions: int
    left_out: int
    figures: dict[str, Estimate]
    note: str
    answers: tuple[Answer, ...]


def ask_all(
    runtime: Runtime,
    benchmark: Benchmark,
    questions: Sequence[Question],
    kept: Path,
    *,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> tuple[list[Answered], list[str]]:
    """Every question's answer, those in the file `kept` taken from there; the second are reasons of those left out.

    Raises CalibrationError, naming the row, for an image that is missing or broken, RunError for a question that is too
    long, unless bad rows are left out.
    """
    said = _read_kept(kept)
    kept.parent.mkdir(parents=True, exist_ok=True)
    found, left_out = [], []
    with Looker() as looker, kept.open("a", encoding="utf-8") as handle:
        for number, question in enumerate(questions):
            progress(f"ask {benchmark.name}", number, len(questions))
            if question.id not in said:
                try:
                    sample = question.finish(looker)
                    image = None if sample.picture is None else sample.picture.read()
                    said[question.id] = runtime.answer(
                        sample.question, image, turns=sample.turns, max_tokens=benchmark.max_tokens
                    )
                except (CalibrationError, RunError) as error:
                    if not skip_bad:
                        raise
                    where = f"{question.origin}: " if isinstance(error, RunError) else ""
                    left_out.append(f"{where}{error.message}")
                    continue
                handle.write(json.dumps([question.id, said[question.id]]) + "\n")
                handle.flush()
            answer = said[question.id]
            found.append(Answered(question, answer, benchmark.score(question, answer)))
    progress(f"ask {benchmark.name}", len(questions), len(questions))
    return found, left_out


def _read_kept(path: Path) -> dict[str, str]:
    """The answers of an earlier run; a last line that was cut is dropped, from the file too."""
    if not path.is_file():
        return {}
    said, whole = {}, 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            name, answer = json.loads(line)
        except (ValueError, TypeError):
            break
        if not line.endswith(b"\n") or not isinstance(name, str) or not isinstance(answer, str):
            break
        said[name] = answer
        whole += len(line)
    with path.open("r+b") as handle:
        handle.truncate(whole)
    return said


def score_all(
    benchmark: Benchmark, found: Sequence[Answered], *, model: str, data: str, left_out: int = 0
) -> BenchmarkResult:
    """The figures of all answers; raises CalibrationError where there are none."""
    if not found:
        raise CalibrationError(f"{data} holds no question that can be asked", hint="see what was left out")
    groups = Groups(found)
    return BenchmarkResult(
        benchmark=benchmark.name,
        model=model,
        data=data,
        questions=len(found),
        left_out=left_out,
        figures=bootstrap(groups.count, benchmark.measure(found, groups)),
        note=benchmark.note,
        answers=tuple(
            Answer(id=each.question.id, said=each.said, score=each.score, answers=each.question.answers)
            for each in found
        ),
    )


def digest_of(questions: Iterable[Question]) -> str:
    """What names the questions: their words, answers and images."""
    digest = hashlib.sha256()
    for each in questions:
        image = each.image.identity if each.image else each.group
        digest.update(json.dumps([each.id, each.prompt, each.answers, image]).encode())
    return digest.hexdigest()
