"""How well a file says what the 16-bit model says: agreement, divergence and perplexity at the held-out answers.

Takes a running model, samples with answers and a reference; gives figures with intervals, apart for questions about
images and others. A 16-bit GGUF can take the place of a stored reference.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from luq_gguf.artifacts import Record
from luq_gguf.bootstrap import Estimate, Weights, bootstrap
from luq_gguf.errors import ArtifactError, RequestError, RunError
from luq_gguf.progress import Progress, silent
from luq_gguf.reference import TOP, Reference
from luq_gguf.runtime import Runtime
from luq_gguf.samples import Sample
from luq_gguf.showcase import Place

PIECE = 64
"""Answer tokens whose logits are in memory at once."""
SUBSTITUTE = "\N{REPLACEMENT CHARACTER}"
KINDS = {"image": "with image", "question": "text only"}
FIGURES = ("agreement", "divergence", "perplexity", "exact", "reference_exact")


class QualityGroup(Record):
    """Figures over a group of answers: how many they are, their tokens, and every figure with its interval.

    `agreement` is the share of tokens in whose place both models say the same; `divergence` the mean Kullback-Leibler
    divergence from the reference in nats a token, its top tokens one by one and all others as one; `perplexity` that of
    the answers, `exact` the share of answers that the model would give word for word, `reference_exact` of the
    reference.
    """

    samples: int
    tokens: int
    figures: dict[str, Estimate]

    @model_validator(mode="after")
    def _has_figures(self) -> Self:
        if missing := [name for name in FIGURES if name not in self.figures]:
            raise ValueError(f"it has no {missing[0]}")
        return self

    @property
    def agreement(self) -> float:
        """Share of tokens in whose place both models say the same."""
        return self.figures["agreement"].value

    @property
    def divergence(self) -> float:
        """Mean divergence from the reference, in nats a token."""
        return self.figures["divergence"].value


class Quality(Record):
    """What was measured of a file: figures of all answers, of those about images ("image") and others ("question")."""

    format: Literal["luq-gguf quality 1"] = "luq-gguf quality 1"
    reference: str
    groups: dict[str, QualityGroup]

    @model_validator(mode="after")
    def _has_all(self) -> Self:
        if "all" not in self.groups:
            raise ValueError("it has no figures of all answers")
        return self

    @property
    def all(self) -> QualityGroup:
        """The figures of all answers."""
        return self.groups["all"]

    @property
    def drop(self) -> float:
        """The share of tokens in whose place the file says something else than the 16-bit model."""
        return 1 - self.all.agreement

    def _repr_html_(self) -> str:
        from luq_gguf.notebook import quality_html

        return quality_html(self)


@dataclass(frozen=True)
class Judgement:
    """One answer: its kind, how many tokens it has, and sums over them.

    `same` counts where both models say the same, `divergence` and `surprise` (minus the answer's log-probability) are
    in nats; `exact` and `reference_exact` say whether each model would give the answer word for word. `sample` is its
    id, `places` are its tokens as texts.
    """

    kind: str
    tokens: int
    same: int
    divergence: float
    surprise: float
    exact: bool
    reference_exact: bool
    sample: str = ""
    places: tuple[Place, ...] = ()


def judge(
    runtime: Runtime, samples: Iterable[Sample], reference: Reference, progress: Progress = silent
) -> list[Judgement]:
    """Every answer of a reference as the running model sees it; `samples` are those it was made of, and may be more.

    Raises ArtifactError where the reference is of other samples or of a model with another vocabulary or template.
    """
    known = {sample.id: sample for sample in samples}
    missing = [name for name in reference.samples if name not in known]
    if missing:
        raise _other(f"{len(missing)} samples of the reference are not in this data, the first is {missing[0]}")
    if (last := int(reference.top.max(initial=0))) >= runtime.vocabulary:
        raise _other(f"the reference knows a token {last}, the model has {runtime.vocabulary} tokens")
    found = []
    for number, name in enumerate(reference.samples):
        progress("judge answers", number, len(reference.samples))
        places = slice(reference.starts[number], reference.starts[number + 1])
        found.append(_judge(runtime, known[name], reference, places, int(reference.prompts[number])))
    progress("judge answers", len(reference.samples), len(reference.samples))
    return found


def _judge(runtime: Runtime, sample: Sample, reference: Reference, places: slice, prompt: int) -> Judgement:
    answer = reference.answers[places]
    if answer.tolist() != answer_tokens(runtime, sample, reference.turn_end):
        raise _other(f"the model has other tokens for the answer of sample {sample.id} than the reference")
    best = reference.top[places, 0]
    pieces: list[NDArray[np.intp]] = []
    divergence = surprise = 0.0
    for piece, logits in _along(runtime, sample, answer):
        if runtime.prompt_tokens != prompt:
            what = f"the prompt of sample {sample.id} has {runtime.prompt_tokens} tokens, the reference says {prompt}"
            raise _other(what)
        log_probabilities = log_softmax(logits)
        pieces.append(logits.argmax(axis=1))
        surprise -= float(np.take_along_axis(log_probabilities, answer[piece][:, None], axis=1).sum())
        there = slice(places.start + piece.start, places.start + piece.stop)
        divergence += float(
            divergences(
                reference.log_probabilities[there], reference.rest[there], reference.top[there], log_probabilities
            ).sum()
        )
    said = np.concatenate(pieces)
    return Judgement(
        kind=sample.kind,
        tokens=len(answer),
        same=int((said == best).sum()),
        divergence=divergence,
        surprise=surprise,
        exact=bool((said == answer).all()),
        reference_exact=bool((best == answer).all()),
        sample=sample.id,
        places=tuple(_places(runtime, answer, best, said)),
    )


def _places(
    runtime: Runtime, answer: NDArray[np.int32], best: NDArray[np.int32], said: NDArray[np.intp]
) -> Iterator[Place]:
    """The tokens along an answer as texts, all of them read as what follows the answer's bytes before them.

    A letter of several tokens stands with the last of them; of what would have begun another its substitute is shown.
    """
    begun = b""
    for tokens in zip(answer.tolist(), best.tolist(), said.tolist(), strict=True):
        texts, rests = zip(*(_letters(begun + runtime.piece(token, special=True)) for token in tokens), strict=True)
        of_reference, of_file = (
            text if token == tokens[0] or not rest else text + SUBSTITUTE
            for token, text, rest in zip(tokens[1:], texts[1:], rests[1:], strict=True)
        )
        yield Place(answer=texts[0], reference=of_reference, file=of_file, same=tokens[1] == tokens[2])
        begun = rests[0]


def _letters(data: bytes) -> tuple[str, bytes]:
    """The whole letters of UTF-8 bytes, and what is begun of the next; what is none shows as its substitute."""
    decoder = getincrementaldecoder("utf-8")("replace")
    return decoder.decode(data), decoder.getstate()[0]


def _along(runtime: Runtime, sample: Sample, answer: Sequence[int] | NDArray[Any]) -> Iterable[tuple[slice, Any]]:
    """Logits at the places of an answer, some places at a time: where they lie, float32 (places, vocabulary)."""
    image = sample.picture.read() if sample.picture is not None else None
    last = runtime.start(sample.question, image, sample.turns)[None]
    for first in range(0, len(answer), PIECE):
        piece = [int(token) for token in answer[first : first + PIECE]]
        after = runtime.extend(piece)
        if not (np.isfinite(last).all() and np.isfinite(after).all()):
            what = f"the model's logits are not finite at sample {sample.id}"
            raise RunError(what, hint="its file is damaged: make or download it again")
        yield slice(first, first + len(piece)), np.concatenate([last, after[:-1]])
        last = after[-1:]


def answer_tokens(runtime: Runtime, sample: Sample, turn_end: str) -> list[int]:
    """The tokens that a model says for a sample's answer."""
    return runtime.tokenize((sample.answer or "") + turn_end)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities (places, vocabulary) in float64."""
    shifted: NDArray[np.float64] = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def divergences(
    said: NDArray[np.float32], rest: NDArray[np.float32], top: NDArray[np.int32], other: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Kullback-Leibler divergence in nats (places,) from a reference to log-probabilities (places, vocabulary).

    The reference has log-probabilities `said` (places, k) of the tokens `top`, and `rest` (places,) for all others,
    which are one bin: a lower bound of the divergence over the whole vocabulary.
    """
    log_top = np.take_along_axis(other, top.astype(np.int64), axis=1)
    log_outside = np.log(np.maximum(_mass_outside(other, top.astype(np.int64)), np.finfo(np.float64).tiny))
    reference = said.astype(np.float64)
    among = (np.exp(reference) * (reference - log_top)).sum(axis=1)
    mass = rest.astype(np.float64)
    beyond = np.where(mass > 0, mass * (np.log(np.where(mass > 0, mass, 1.0)) - log_outside), 0.0)
    return np.asarray(among + beyond)


def _best(log_probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """The TOP tokens at each place, best first."""
    count = min(TOP, log_probabilities.shape[1])
    some = np.argpartition(log_probabilities, -count, axis=1)[:, -count:]
    order = np.argsort(-np.take_along_axis(log_probabilities, some, axis=1), axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1).astype(np.int64)


def _mass_outside(log_probabilities: NDArray[np.float64], top: NDArray[np.int64]) -> NDArray[np.float64]:
    """The probability of all tokens but those, summed without taking it from 1."""
    outside = np.exp(log_probabilities)
    np.put_along_axis(outside, top, 0.0, axis=1)
    return np.asarray(outside.sum(axis=1))


def refer(runtime: Runtime, samples: Iterable[Sample], name: str, progress: Progress = silent) -> Reference:
    """The reference that a running 16-bit model gives: its top tokens at every answer.

    Raises RequestError where no sample has an answer.
    """
    answered = [sample for sample in samples if sample.answer is not None]
    if not answered:
        raise RequestError("none of the samples has an answer to judge by", hint="give data with answers")
    turn_end = runtime.turn_end
    tokens, prompts, tops, values, rests = [], [], [], [], []
    for number, sample in enumerate(answered):
        progress("reference", number, len(answered))
        answer = answer_tokens(runtime, sample, turn_end)
        for _, logits in _along(runtime, sample, answer):
            log_probabilities = log_softmax(logits)
            top = _best(log_probabilities)
            tops.append(top.astype(np.int32))
            values.append(np.take_along_axis(log_probabilities, top, axis=1).astype(np.float32))
            rests.append(_mass_outside(log_probabilities, top).astype(np.float32))
        tokens.append(answer)
        prompts.append(runtime.prompt_tokens)
    progress("reference", len(answered), len(answered))
    return Reference(
        samples=tuple(sample.id for sample in answered),
        starts=np.cumsum([0, *map(len, tokens)], dtype=np.int64),
        prompts=np.array(prompts, np.int32),
        answers=np.concatenate([np.array(each, np.int32) for each in tokens]),
        top=np.concatenate(tops),
        log_probabilities=np.concatenate(values),
        rest=np.concatenate(rests),
        context={"model": name, "turn_end": turn_end},
    )


def summarize(judgements: Sequence[Judgement], reference: str) -> Quality:
    """The figures of all answers, and apart of those about images and of others; raises RequestError without any."""
    if not judgements:
        raise RequestError("there is no answer to judge by", hint="calibrate with samples that have answers")
    groups = {"all": list(judgements)}
    groups |= {kind: [found for found in judgements if found.kind == kind] for kind in KINDS}
    return Quality(reference=reference, groups={name: _group(found) for name, found in groups.items() if found})


def _group(found: Sequence[Judgement]) -> QualityGroup:
    columns = {
        name: np.array([getattr(each, name) for each in found], np.float64)
        for name in ("tokens", "same", "divergence", "surprise", "exact", "reference_exact")
    }

    def figures(weights: Weights) -> Mapping[str, float]:
        sums = {name: float(weights @ column) for name, column in columns.items()}
        answers = float(weights.sum())
        return {
            "agreement": sums["same"] / sums["tokens"],
            "divergence": sums["divergence"] / sums["tokens"],
            "perplexity": float(np.exp(sums["surprise"] / sums["tokens"])),
            "exact": sums["exact"] / answers,
            "reference_exact": sums["reference_exact"] / answers,
        }

    return QualityGroup(
        samples=len(found), tokens=int(columns["tokens"].sum()), figures=bootstrap(len(found), figures)
    )  # fmt: skip


def _other(what: str) -> ArtifactError:
    hint = "take the reference of the same model and samples, or a 16-bit GGUF with --ref"
    return ArtifactError(what, path=Path("reference"), hint=hint)
