"""What calibration is made of: samples, sets of them, and a sample as chat messages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from luq_gguf.images import Picture


@dataclass(frozen=True)
class Sample:
    """One prompt, with an image or without, and its answer where there is one; or a plain `text`.

    `turns` are questions and answers that came before; the image belongs to the first question. `origin` says where
    the sample stands (file and line), for messages.
    """

    id: str
    question: str = ""
    answer: str | None = None
    picture: Picture | None = None
    text: str | None = None
    turns: tuple[tuple[str, str], ...] = ()
    origin: str = ""

    @property
    def kind(self) -> str:
        """What it is for the shares: with an image, a question without one, or plain text."""
        return "image" if self.picture is not None else "text" if self.text is not None else "question"


@dataclass(frozen=True)
class CalibrationSet:
    """Samples to measure on, samples to judge by, and what names them: `digest` changes with their content.

    `skipped` counts the rows that could not be used, `skipped_reasons` says why of the first of them; with
    `skip_bad` samples that a model cannot take are left out too, and counted. Both groups are in an order that does not
    depend on the file's.
    """

    name: str
    samples: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    digest: str
    skipped: int = 0
    skipped_reasons: tuple[str, ...] = ()
    skip_bad: bool = False


def messages_of(sample: Sample, *, plain: bool = False) -> list[dict[str, Any]]:
    """The conversation up to the question as chat messages, with a place for the image in its first.

    `plain` gives contents as strings, as the templates of models without vision want them.
    """
    asked = [*(question for question, _ in sample.turns), sample.question]
    messages = [{"role": "user", "content": question if plain else [_text(question)]} for question in asked]
    if sample.picture is not None:
        messages[0] = {"role": "user", "content": [{"type": "image"}, _text(asked[0])]}
    for number, (_, answer) in enumerate(sample.turns):
        messages.insert(2 * number + 1, {"role": "assistant", "content": answer if plain else [_text(answer)]})
    return messages


def _text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def without_pictures(calibration: CalibrationSet) -> CalibrationSet:
    """The set for a model that takes no images: its questions without one, and its texts."""

    def plain(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
        return tuple(sample for sample in samples if sample.picture is None)

    return replace(calibration, samples=plain(calibration.samples), held_out=plain(calibration.held_out))
