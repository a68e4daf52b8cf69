"""What a calibration set holds, counted before hours are spent on it.

With a model its own tokenizer, template and image rule count exactly; without one images are counted on
Qwen2.5-VL's grid and texts by their bytes. No torch here.
"""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from luq_gguf.artifacts import MODALITIES
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import CalibrationError
from luq_gguf.families.base import Family, ImageGrid
from luq_gguf.images import fit_to_grid, grid_limits
from luq_gguf.progress import Progress, silent
from luq_gguf.prompts import PromptMaker
from luq_gguf.samples import CalibrationSet, Sample

QWEN_GRID = ImageGrid(28, 56 * 56, 12845056, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
BYTES_PER_TOKEN = 4
"""Of English text; other scripts have fewer bytes a token, so that their tokens are more."""


@dataclass(frozen=True)
class CalibrationSummary:
    """Counts of a set: samples by kind, pictures by size and image tokens, tokens by modality.

    `exact` says whether a model counted; `sizes` are (width, height) of every distinct picture, `picture_tokens` the
    image tokens of each.
    """

    name: str
    samples: dict[str, int]
    answered: int
    held_out: int
    conversations: int
    sizes: tuple[tuple[int, int], ...]
    picture_tokens: tuple[int, ...]
    tokens: dict[str, int]
    exact: bool
    skipped: int
    reasons: tuple[str, ...]

    @property
    def median_tokens(self) -> float:
        """Image tokens of the middle picture; 0 where there is none."""
        return statistics.median(self.picture_tokens) if self.picture_tokens else 0

    def as_json(self) -> dict[str, Any]:
        """The counts as one JSON object."""
        return asdict(self)


def summarize_calibration(
    calibration: CalibrationSet,
    model: tuple[Checkpoint, Family] | None = None,
    *,
    image_tokens: int | None = None,
    progress: Progress = silent,
) -> CalibrationSummary:
    """Count a set, reading every picture once; raises CalibrationError for a sample that the model cannot take."""
    everything = (*calibration.samples, *calibration.held_out)
    rule = model[1].image_grid if model else QWEN_GRID
    sizes, by_picture = _measure_pictures(everything, grid_limits(rule, image_tokens), progress)
    reasons = list(calibration.skipped_reasons)
    left_out: list[str] = []
    if model:
        tokens = _count_exactly(calibration, everything, model, image_tokens, left_out)
    else:
        tokens = _estimate(everything, by_picture)
    kinds = Counter(sample.kind for sample in everything)
    return CalibrationSummary(
        name=calibration.name,
        samples={kind: kinds[kind] for kind in ("image", "question", "text")},
        answered=sum(sample.answer is not None for sample in everything),
        held_out=len(calibration.held_out),
        conversations=sum(bool(sample.turns) for sample in everything),
        sizes=tuple(sizes.values()),
        picture_tokens=tuple(by_picture.values()),
        tokens=tokens,
        exact=model is not None,
        skipped=calibration.skipped + len(left_out),
        reasons=tuple([*reasons, *left_out][:5]),
    )


def _measure_pictures(
    samples: tuple[Sample, ...], limits: tuple[int, int, int], progress: Progress
) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """Size and image tokens of every distinct picture, by its key."""
    pictures = {sample.picture.key: sample.picture for sample in samples if sample.picture}
    sizes, tokens = {}, {}
    for done, (key, picture) in enumerate(pictures.items()):
        progress("read pictures", done, len(pictures))
        image = picture.read()
        fitted = fit_to_grid(image, *limits)
        sizes[key], tokens[key] = image.size, (fitted.width // limits[0]) * (fitted.height // limits[0])
    if pictures:
        progress("read pictures", len(pictures), len(pictures))
    return sizes, tokens


def _count_exactly(
    calibration: CalibrationSet,
    samples: tuple[Sample, ...],
    model: tuple[Checkpoint, Family],
    image_tokens: int | None,
    left_out: list[str],
) -> dict[str, int]:
    checkpoint, family = model
    names = family.modules()
    maker = PromptMaker(
        checkpoint, family, image_token=names.IMAGE_TOKEN, end_token=names.END_TOKEN, image_tokens=image_tokens
    )
    counts = dict.fromkeys(MODALITIES, 0)
    for sample in maker.all_of(samples, left_out if calibration.skip_bad else None):
        for index, modality in enumerate(MODALITIES):
            counts[modality] += int((sample.kinds == index).sum())
    if not any(counts.values()):
        raise CalibrationError(f"{calibration.name} holds no sample that this model takes", hint=left_out[0])
    return counts


def _estimate(samples: tuple[Sample, ...], by_picture: dict[str, int]) -> dict[str, int]:
    counts = dict.fromkeys(MODALITIES, 0)
    for sample in samples:
        said = [part for turn in sample.turns for part in turn]
        text = "".join([*said, sample.question, sample.answer or "", sample.text or ""])
        kind = "multimodal_text" if sample.picture else "text"
        counts[kind] += -(-len(text.encode()) // BYTES_PER_TOKEN)
        counts["image"] += by_picture[sample.picture.key] if sample.picture else 0
    return counts
