"""What calibration is made of: samples, sets of them, and a sample as chat messages."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from luq_gguf.images import Picture

Part = dict[str, Any]
Turns = tuple[tuple[str, str], ...]
IMAGE_PART: Part = {"type": "image"}


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
    turns: Turns = ()
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
    depend on the file's. `recipe` is what `load_calibration` made the set from.
    """

    name: str
    samples: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    digest: str
    skipped: int = 0
    skipped_reasons: tuple[str, ...] = ()
    skip_bad: bool = False
    recipe: dict[str, Any] = field(default_factory=dict)


def messages_of(sample: Sample, *, plain: bool = False) -> list[Part]:
    """The conversation up to the question as chat messages, with a place for the image in its first.

    `plain` gives contents as strings, as the templates of models without vision want them.
    """
    image = None if sample.picture is None else IMAGE_PART
    return chat_messages(sample.question, sample.turns, image=image, plain=plain)


def chat_messages(question: str, turns: Turns = (), *, image: Part | None = None, plain: bool = False) -> list[Part]:
    """A conversation as chat messages; `image` is the part of the first that stands for an image."""
    asked = [*(earlier for earlier, _ in turns), question]
    messages: list[Part] = [{"role": "user", "content": text if plain else [text_part(text)]} for text in asked]
    if image is not None:
        messages[0] = {"role": "user", "content": [image, text_part(asked[0])]}
    for number, (_, answer) in enumerate(turns):
        content = answer if plain else [text_part(answer)]
        messages.insert(2 * number + 1, {"role": "assistant", "content": content})
    return messages


def text_part(content: str) -> Part:
    """The part of a message that is text."""
    return {"type": "text", "text": content}


def without_pictures(calibration: CalibrationSet) -> CalibrationSet:
    """The set for a model that takes no images: its questions without one, and its texts."""

    def plain(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
        return tuple(sample for sample in samples if sample.picture is None)

    return replace(calibration, samples=plain(calibration.samples), held_out=plain(calibration.held_out))
