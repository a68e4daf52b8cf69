"""The benchmarks that can be run: how each asks, by which rule it scores, and what figures it publishes.

Pure. Figures are in percent unless said; every one is a function of how often each group of questions is drawn, so
that it has an interval.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from luq_gguf.bootstrap import Figures, Weights
from luq_gguf.errors import RequestError
from luq_gguf.vqa import scorers
from luq_gguf.vqa.questions import Question, circular

SHORT = "Answer the question using a single word or phrase."
PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


@dataclass(frozen=True)
class Answered:
    """A question with what the model said and what that scores."""

    question: Question
    said: str
    score: float


Measure = Callable[[Sequence[Answered], "Groups"], Figures]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark; `note` says in what it differs from its publication, `words` is put behind every question."""

    name: str
    title: str
    score: Callable[[Question, str], float]
    measure: Measure
    words: str = ""
    max_tokens: int = 32
    needed: tuple[str, ...] = ()
    expand: Callable[[Sequence[Question]], Iterable[Question]] | None = None
    note: str = ""

    def prepare(self, questions: Sequence[Question]) -> list[Question]:
        """The questions as they are asked."""
        asked = list(self.expand(questions)) if self.expand else list(questions)
        return [replace(each, prompt=f"{each.prompt}\n{self.words}") for each in asked] if self.words else asked


class Groups:
    """The groups of answers that are drawn together, by number."""

    def __init__(self, answered: Sequence[Answered]) -> None:
        names = {name: number for number, name in enumerate(dict.fromkeys(each.question.group for each in answered))}
        self.count = len(names)
        self.of = np.array([names[each.question.group] for each in answered], dtype=np.intp)


def _where(answered: Sequence[Answered], category: str) -> NDArray[np.bool_]:
    return np.array([each.question.category == category for each in answered], dtype=bool)


def _categories(answered: Sequence[Answered]) -> list[str]:
    return sorted({each.question.category for each in answered} - {""})


def _ratio(part: float, whole: float) -> float:
    return float("nan") if whole == 0 else part / whole


def mean_score(answered: Sequence[Answered], groups: Groups) -> Figures:
    """The mean score of all questions, and of each category where there are several."""
    scores = np.array([each.score for each in answered])
    parts = {"score": np.ones(len(scores), dtype=bool)}
    if len(names := _categories(answered)) > 1:
        parts |= {name: _where(answered, name) for name in names}

    def figures(weights: Weights) -> Mapping[str, float]:
        drawn = weights[groups.of]
        return {
            name: 100 * _ratio(float(drawn[part] @ scores[part]), float(drawn[part].sum()))
            for name, part in parts.items()
        }

    return figures


def mme_sums(answered: Sequence[Answered], groups: Groups) -> Figures:
    """Sums over the subtasks of MME: for each the accuracy, and that of the images of which both answers are right."""
    scores = np.array([each.score for each in answered])
    parts = {name: _where(answered, name) for name in _categories(answered)}
    whole = {name: _whole_groups(scores, groups, part) for name, part in parts.items()}

    def figures(weights: Weights) -> Mapping[str, float]:
        drawn = weights[groups.of]
        subtasks = {}
        for name, part in parts.items():
            present, right = whole[name]
            accuracy = _ratio(float(drawn[part] @ scores[part]), float(drawn[part].sum()))
            plus = _ratio(float(weights[present] @ right), float(weights[present].sum()))
            subtasks[name] = 100 * (accuracy + plus)
        sums = {
            "perception": sum(subtasks[name] for name in PERCEPTION if name in subtasks),
            "cognition": sum(subtasks[name] for name in COGNITION if name in subtasks),
        }
        return {"score": sum(subtasks.values()), **sums, **subtasks}

    return figures


def _whole_groups(
    scores: NDArray[np.float64], groups: Groups, part: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The groups that some answers are of, and which of them are right altogether."""
    worst = np.ones(groups.count)
    np.minimum.at(worst, groups.of[part], scores[part])
    present = np.unique(groups.of[part])
    return present, worst[present]


def circular_score(answered: Sequence[Answered], groups: Groups) -> Figures:
    """MMBench: a question is right where all its rotations are; and the mean of the single answers."""
    scores = np.array([each.score for each in answered])
    parts = {"score": np.ones(len(scores), dtype=bool)}
    parts |= {name: _where(answered, name) for name in _categories(answered)}
    whole = {name: _whole_groups(scores, groups, part) for name, part in parts.items()}

    def figures(weights: Weights) -> Mapping[str, float]:
        drawn = weights[groups.of]
        found = {
            name: 100 * _ratio(float(weights[present] @ right), float(weights[present].sum()))
            for name, (present, right) in whole.items()
        }
        return found | {"single answers": 100 * _ratio(float(drawn @ scores), float(drawn.sum()))}

    return figures


def yes_no_figures(answered: Sequence[Answered], groups: Groups) -> Figures:
    """POPE: accuracy (the score), F1, precision and recall of "yes", and how often that is said."""
    scores = np.array([each.score for each in answered])
    said = np.array([scorers.pope_answer(each.said) == scorers.YES for each in answered])
    true = np.array([_yes(each.question) for each in answered])
    parts = {name: _where(answered, name) for name in _categories(answered)}

    def figures(weights: Weights) -> Mapping[str, float]:
        drawn = weights[groups.of]
        hits, claims, truths = (float(drawn[part].sum()) for part in (said & true, said, true))
        found = {
            "score": 100 * _ratio(float(drawn @ scores), float(drawn.sum())),
            "F1": 100 * _ratio(2 * hits, claims + truths),
            "precision": 100 * _ratio(hits, claims),
            "recall": 100 * _ratio(hits, truths),
            "yes": 100 * _ratio(claims, float(drawn.sum())),
        }
        for name, part in parts.items():
            found[name] = 100 * _ratio(float(drawn[part] @ scores[part]), float(drawn[part].sum()))
        return found

    return figures


def _yes(question: Question) -> bool:
    return scorers.plain(question.answers[0]) == scorers.YES


def _score_yes_no(read: Callable[[str], str | None]) -> Callable[[Question, str], float]:
    return lambda question, said: float(read(said) == scorers.plain(question.answers[0]))


def _score_choice(question: Question, said: str) -> float:
    return float(scorers.option_letter(said, question.options) == question.answers[0].strip().upper())


def _whole(text: str) -> int:
    """The number of decimals that a cell names; none where it names no number."""
    return int(float(text)) if re.fullmatch(r"\d{1,2}(\.0*)?", text) else 0


def _score_math(question: Question, said: str) -> float:
    values = question.details
    kind, precision = values.get("answer_type", "text"), _whole(values.get("precision", ""))
    given = scorers.math_answer(said, kind, precision, question.options)
    wanted = question.answers[0]
    if not question.options and kind in {"integer", "float"}:
        wanted = scorers.math_answer(wanted, kind, precision, {})
    return float(scorers.plain(given) == scorers.plain(wanted))


def _by(rule: Callable[[str, Sequence[str]], float]) -> Callable[[Question, str], float]:
    return lambda question, said: rule(said, question.answers)


EXACT = Benchmark("exact", "exact answers", _by(scorers.exact_match), mean_score, max_tokens=256)
"""Answers of labelled data, whatever their case and final period."""
BENCHMARKS = {
    each.name: each
    for each in (
        Benchmark("mme", "MME", _score_yes_no(scorers.mme_answer), mme_sums, max_tokens=16, needed=("category",)),
        Benchmark(
            "mmbench", "MMBench", _score_choice, circular_score, needed=("A", "B"), expand=circular,
            note="answers that name no option count as wrong; the authors ask another model what they mean",
        ),
        Benchmark("textvqa", "TextVQA", _by(scorers.vqa_accuracy), mean_score, SHORT),
        Benchmark("vqav2", "VQAv2", _by(scorers.vqa_accuracy), mean_score, SHORT),
        Benchmark("gqa", "GQA", _by(scorers.exact_match), mean_score, SHORT),
        Benchmark("pope", "POPE", _score_yes_no(scorers.pope_answer), yes_no_figures),
        Benchmark("chartqa", "ChartQA", _by(scorers.relaxed_accuracy), mean_score, SHORT),
        Benchmark("docvqa", "DocVQA", _by(scorers.anls), mean_score, SHORT, max_tokens=64),
        Benchmark(
            "mathvista", "MathVista", _score_math, mean_score, max_tokens=256,
            note="answers are read by a plain rule; the authors let a language model extract them",
        ),
    )
}  # fmt: skip


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of this name, in any case; raises RequestError that lists the known ones."""
    found = BENCHMARKS.get(name.lower())
    if found is None:
        raise RequestError(f"unknown benchmark {name!r}", hint=f"known are {', '.join(BENCHMARKS)}")
    return found
