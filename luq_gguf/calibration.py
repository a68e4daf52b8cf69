"""Images and texts -> calibration samples, some of them held out to judge by.

A JSONL file has a row a sample: {"image", "question", "answer"}, {"question", "answer"} or {"text"}; image
paths are relative to the file and stay below its folder. Without a file: drawn scenes with questions,
and small text-only questions, always the same for a seed.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luq_gguf.demo import FRESH_SEED
from luq_gguf.demo.scenes import draw_scene, make_scene, talk_about, talk_without_picture
from luq_gguf.errors import CalibrationError, ImageError
from luq_gguf.images import load_image

if TYPE_CHECKING:
    from PIL import Image

HELD_OUT_SHARE = 0.2
DRAWN_SCENES = 24
DRAWN_TALKS = 16
BUILT_IN_SEED = FRESH_SEED // 2
KEYS = {"image", "question", "answer", "text"}


@dataclass(frozen=True)
class Sample:
    """One prompt, with an image or without, and its answer where there is one; or a plain `text`."""

    id: str
    question: str = ""
    answer: str | None = None
    image: Image.Image | None = None
    text: str | None = None


@dataclass(frozen=True)
class CalibrationSet:
    """Samples to measure on, samples to judge by, and what names them: `digest` changes with their content."""

    name: str
    samples: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    digest: str
    skipped: int = 0


def load_calibration(
    source: Path | None,
    *,
    samples: int | None = None,
    seed: int = 0,
    held_out_share: float = HELD_OUT_SHARE,
    skip_bad: bool = False,
) -> CalibrationSet:
    """Read a JSONL file, or draw the built-in set; `samples` takes a seeded subset.

    Raises CalibrationError with file and line of the first row that cannot be used (with `skip_bad` it is left
    out and counted), or where nothing is left.
    """
    if source is None:
        found, skipped, name = list(draw_samples()), 0, "drawn scenes"
    else:
        found, skipped = _read_rows(source, skip_bad=skip_bad)
        name = source.name
    chosen = sorted(found, key=lambda sample: _rank(sample, seed))[:samples]
    if not chosen:
        raise CalibrationError(f"{source} holds no samples", hint="write one JSON object a line, or leave out --calib")
    answered = [sample for sample in chosen if sample.answer is not None]
    held_out = answered[: int(held_out_share * len(answered))] if len(chosen) > 1 else []
    out = {sample.id for sample in held_out}
    kept = tuple(sample for sample in chosen if sample.id not in out)
    return CalibrationSet(name, kept, tuple(held_out), _digest(kept, held_out), skipped)


def draw_samples() -> Iterator[Sample]:
    """The built-in set: questions about drawn scenes, and questions without a picture."""
    for number in range(DRAWN_SCENES):
        scene = make_scene(BUILT_IN_SEED + number)
        image = draw_scene(scene)
        for turn, question in enumerate(talk_about(scene)):
            yield Sample(f"scene-{number}-{turn}", question.text, question.answer, image)
    for number in range(DRAWN_TALKS):
        for turn, question in enumerate(talk_without_picture(BUILT_IN_SEED + number)):
            yield Sample(f"talk-{number}-{turn}", question.text, question.answer)


def _read_rows(path: Path, *, skip_bad: bool) -> tuple[list[Sample], int]:
    samples: list[Sample] = []
    skipped = 0
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"cannot read {path}: {error}", hint="give a JSONL file in UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            samples.append(_read_row(path, number, line))
        except CalibrationError:
            if not skip_bad:
                raise
            skipped += 1
    return samples, skipped


def _read_row(path: Path, number: int, line: str) -> Sample:
    where = f"{path}:{number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CalibrationError(f"{where} is no JSON: {error}", hint="write one object a line") from error
    if not isinstance(row, dict) or not row or any(not isinstance(row.get(key, ""), str) for key in KEYS):
        raise CalibrationError(f"{where} is no object of texts", hint=f"use the keys {', '.join(sorted(KEYS))}")
    content = hashlib.sha256(line.strip().encode()).hexdigest()[:16]
    if "text" in row:
        return Sample(f"{content}-{number}", text=row["text"])
    if "question" not in row:
        raise CalibrationError(f"{where} has neither a question nor a text", hint="add one of them")
    image = _read_image(path, where, row["image"]) if "image" in row else None
    return Sample(f"{content}-{number}", row["question"], row.get("answer"), image)


def _read_image(path: Path, where: str, name: str) -> Image.Image:
    folder = path.parent.resolve()
    image = (folder / name).resolve()
    if not image.is_relative_to(folder):
        raise CalibrationError(f"{where}: {name} leads out of {folder}", hint="put images beside the JSONL file")
    try:
        return load_image(image)
    except ImageError as error:
        raise ImageError(f"{where}: {error.message}", path=error.path, hint=error.hint) from error


def _rank(sample: Sample, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{sample.id}".encode()).digest()


def _digest(*groups: Any) -> str:
    digest = hashlib.sha256()
    for group in groups:
        for sample in group:
            texts = [sample.id, sample.question, sample.answer, sample.text]
            digest.update(json.dumps(texts).encode())
            if sample.image is not None:
                digest.update(repr(sample.image.size).encode() + sample.image.tobytes())
        digest.update(b"|")
    return digest.hexdigest()


def messages_of(sample: Sample) -> list[dict[str, Any]]:
    """The question as chat messages, with a place for the image."""
    content: list[dict[str, str]] = [{"type": "image"}] if sample.image is not None else []
    return [{"role": "user", "content": [*content, {"type": "text", "text": sample.question}]}]


def shuffled(items: list[Any], seed: int) -> list[Any]:
    """A seeded permutation."""
    return random.Random(seed).sample(items, len(items))
