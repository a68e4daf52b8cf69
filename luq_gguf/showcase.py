"""What a report shows of the samples: thumbnails of the calibration images, and some held-out answers token by token.

Takes samples and what two models said at the held-out answers, gives records that need neither the samples nor the
models again. Knows nothing of pages.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from PIL import Image
from pydantic import Field

from luq_gguf.artifacts import Record
from luq_gguf.errors import LuqError
from luq_gguf.samples import CalibrationSet, Sample

if TYPE_CHECKING:
    from luq_gguf.judging import Judgement

SHOWCASE = "showcase.json"
PER_KIND, WORST = {"image": 4, "question": 2}, 2
"""Held-out answers that are shown: the first of each kind, and of the others those that differ in most places."""
MOST_PLACES = 120
THUMBNAILS, THUMBNAIL_SIDE, ANSWER_SIDE = 24, 96, 168
MOST_PIXELS = 60_000_000
"""Of all images that are read for thumbnails: a page must not take long."""
MOST_TEXT = 600


class Place(Record):
    """One token of a given answer, and what both models would say in its place, as texts; `same` is of the tokens."""

    answer: str
    reference: str
    file: str
    same: bool


class Said(Record):
    """What both models say along a held-out answer; `chosen` says why it is shown."""

    sample: str
    chosen: Literal["first", "worst"]
    tokens: int = Field(ge=1)
    same: int = Field(ge=0)
    places: tuple[Place, ...]


class Answers(Record):
    """Some of the answers that a file was judged by."""

    format: Literal["luq-gguf answers 1"] = "luq-gguf answers 1"
    answers: tuple[Said, ...]


class Thumbnail(Record):
    """A picture made small: base64 of a JPEG, and the width and height of the picture itself."""

    jpeg: str
    width: int
    height: int


class ShownAnswer(Record):
    """A held-out question with its picture, the answer that was given with it, and what both models say along it."""

    question: str
    answer: str
    picture: Thumbnail | None = None
    said: Said


class Showcase(Record):
    """`showcase.json`: the calibration set in short, and what a report shows of it.

    `samples` counts those that were measured on by kind, `pictures` the distinct ones among them.
    """

    format: Literal["luq-gguf showcase 1"] = "luq-gguf showcase 1"
    calibration: str
    samples: dict[str, int]
    pictures: int
    thumbnails: tuple[Thumbnail, ...]
    answers: tuple[ShownAnswer, ...] = ()


def choose_answers(judgements: Sequence[Judgement]) -> Answers:
    """The answers that are shown, in the set's own order: by kind the first, whatever they are, then the worst."""
    first: list[Judgement] = []
    for kind, count in PER_KIND.items():
        first += [found for found in judgements if found.kind == kind][:count]
    others = [found for found in judgements if found not in first and found.same < found.tokens]
    worst = sorted(others, key=lambda found: found.same / found.tokens)[:WORST]
    return Answers(answers=(*(_said(found, "first") for found in first), *(_said(found, "worst") for found in worst)))


def _said(found: Judgement, chosen: Literal["first", "worst"]) -> Said:
    return Said(
        sample=found.sample, chosen=chosen, tokens=found.tokens, same=found.same, places=found.places[:MOST_PLACES]
    )


def make_showcase(calibration: CalibrationSet, answers: Answers | None) -> Showcase:
    """What is shown of a set; a picture that can no longer be read is left out."""
    pictured = {sample.picture.key: sample for sample in calibration.samples if sample.picture is not None}
    held_out = {sample.id: sample for sample in calibration.held_out}
    shown = [
        _shown(held_out[said.sample], said)
        for said in (answers.answers if answers else ())
        if said.sample in held_out
    ]  # fmt: skip
    return Showcase(
        calibration=calibration.name,
        samples=dict(Counter(sample.kind for sample in calibration.samples)),
        pictures=len(pictured),
        thumbnails=tuple(_thumbnails(pictured.values())),
        answers=tuple(shown),
    )


def _shown(sample: Sample, said: Said) -> ShownAnswer:
    return ShownAnswer(
        question=_cut(sample.question),
        answer=_cut(sample.answer or ""),
        picture=_picture(sample, ANSWER_SIDE),
        said=said,
    )


def _cut(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} ..."


def _thumbnails(samples: Iterable[Sample]) -> Iterable[Thumbnail]:
    """Of the first pictures, as long as reading them is quick."""
    found, pixels = 0, 0
    for sample in samples:
        width, height = sample.picture.size or (0, 0) if sample.picture is not None else (0, 0)
        if found == THUMBNAILS or pixels + width * height > MOST_PIXELS:
            return
        pixels += width * height
        made = _picture(sample, THUMBNAIL_SIDE)
        if made is not None:
            found += 1
            yield made


def _picture(sample: Sample, side: int) -> Thumbnail | None:
    if sample.picture is None:
        return None
    try:
        image = sample.picture.read()
    except (LuqError, OSError):
        return None
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    small.save(written, "JPEG", quality=72, optimize=True)
    return Thumbnail(jpeg=base64.b64encode(written.getvalue()).decode(), width=image.width, height=image.height)
