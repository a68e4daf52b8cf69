"""What a calibration set holds, counted before hours are spent on it.

With a model its own tokenizer, template and image rule count exactly; without one images are counted on
Qwen2.5-VL's grid and texts by their bytes. No torch here.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from luq_gguf.artifacts import MODALITIES
from luq_gguf.calibration import REASONS
from luq_gguf.calibration_rows import located
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import CalibrationError, ImageError
from luq_gguf.families.base import Family, ImageGrid
from luq_gguf.images import Limits, fitted_size, grid_limits
from luq_gguf.progress import Progress, silent
from luq_gguf.prompts import PromptMaker
from luq_gguf.samples import CalibrationSet, Sample, without_pictures

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
    """Count a set; raises CalibrationError with the place of a sample that cannot be used, unless those are skipped."""
    maker = PromptMaker(*model, image_tokens=image_tokens) if model else None
    if model and model[1].vision is None:
        calibration = without_pictures(calibration)
    limits = maker.limits if maker else grid_limits(QWEN_GRID, image_tokens)
    left_out: list[str] = []
    everything = (*calibration.samples, *calibration.held_out)
    used, sizes, by_picture = _measure(everything, limits, calibration, left_out, progress)
    if maker:
        used, tokens = _count_exactly(calibration, used, maker, left_out)
    else:
        tokens = _estimate(used, by_picture)
    if not used:
        raise CalibrationError(f"{calibration.name} holds no sample that can be used", hint=left_out[0])
    ids, kinds = {sample.id for sample in used}, Counter(sample.kind for sample in used)
    return CalibrationSummary(
        name=calibration.name,
        samples={kind: kinds[kind] for kind in ("image", "question", "text")},
        answered=sum(sample.answer is not None for sample in used),
        held_out=sum(sample.id in ids for sample in calibration.held_out),
        conversations=sum(bool(sample.turns) for sample in used),
        sizes=tuple(sizes.values()),
        picture_tokens=tuple(by_picture.values()),
        tokens=tokens,
        exact=model is not None,
        skipped=calibration.skipped + len(left_out),
        reasons=tuple([*calibration.skipped_reasons, *left_out][:REASONS]),
    )


def _measure(
    samples: Sequence[Sample],
    limits: Limits,
    calibration: CalibrationSet,
    left_out: list[str],
    progress: Progress,
) -> tuple[list[Sample], dict[str, tuple[int, int]], dict[str, int]]:
    """The samples without those whose picture is too narrow; size and image tokens of every distinct picture."""
    used: list[Sample] = []
    sizes: dict[str, tuple[int, int]] = {}
    tokens: dict[str, int] = {}
    for done, sample in enumerate(samples):
        if sample.picture is not None and sample.picture.key not in sizes:
            progress("read pictures", done, len(samples))
            size = sample.picture.measure()
            try:
                width, height = fitted_size(*size, limits)
            except ImageError as error:
                if not calibration.skip_bad:
                    raise located(sample.origin, error) from error
                left_out.append(located(sample.origin, error).message)
                continue
            sizes[sample.picture.key] = size
            tokens[sample.picture.key] = limits.tokens(width, height)
        used.append(sample)
    if sizes:
        progress("read pictures", len(samples), len(samples))
    return used, sizes, tokens


def _count_exactly(
    calibration: CalibrationSet, samples: Sequence[Sample], maker: PromptMaker, left_out: list[str]
) -> tuple[list[Sample], dict[str, int]]:
    """The samples that the model takes, and their tokens by modality."""
    counts = dict.fromkeys(MODALITIES, 0)
    taken = set()
    for piece in maker.all_of(samples, left_out if calibration.skip_bad else None):
        taken.add(piece.id.partition("/")[0])
        for index, modality in enumerate(MODALITIES):
            counts[modality] += int((piece.kinds == index).sum())
    return [sample for sample in samples if sample.id in taken], counts


def _estimate(samples: Sequence[Sample], by_picture: dict[str, int]) -> dict[str, int]:
    counts = dict.fromkeys(MODALITIES, 0)
    for sample in samples:
        said = [part for turn in sample.turns for part in turn]
        text = "".join([*said, sample.question, sample.answer or "", sample.text or ""])
        kind = "multimodal_text" if sample.picture else "text"
        counts[kind] += -(-len(text.encode()) // BYTES_PER_TOKEN)
        counts["image"] += by_picture[sample.picture.key] if sample.picture else 0
    return counts
