"""Images and texts -> calibration samples, some of them held out to judge by.

Samples come from a file or folder of the user's, or from one of two shipped sets: `general`, with pictures of
the kinds that people ask about and texts in many languages, and `shapes`, the demo model's drawn scenes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from luq_gguf.calibration_files import KNOWN, read_drafts
from luq_gguf.calibration_images import Looker
from luq_gguf.calibration_rows import HINT, Draft
from luq_gguf.calibration_set import built_in_samples
from luq_gguf.demo import FRESH_SEED
from luq_gguf.demo.scenes import draw_scene, make_scene, talk_about, talk_without_picture
from luq_gguf.errors import CalibrationError
from luq_gguf.images import Picture
from luq_gguf.progress import Progress, silent
from luq_gguf.samples import CalibrationSet, Sample

HELD_OUT_SHARE = 0.2
DRAWN_SCENES = 96
DRAWN_TALKS = 48
BUILT_IN_SEED = FRESH_SEED // 2
"""Where drawn scenes begin. The demo model's training drew some 90,000 seeds below 1e9, so that it saw one of these
with odds of about 1 in 100; the scenes that it is judged by begin at 1e9, where it saw none."""
GENERAL, SHAPES = "general", "shapes"
REASONS = 5
"""So many of the rows that were left out say why."""
MANY = 100
"""Looking at fewer images is not worth a bar."""


class _Ranked(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...


RankedT = TypeVar("RankedT", bound=_Ranked)


@dataclass
class _LeftOut:
    """Raises the first error of a row, or counts them and keeps the first reasons."""

    skip_bad: bool
    count: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, error: CalibrationError) -> None:
        if not self.skip_bad:
            raise error
        self.count += 1
        if len(self.reasons) < REASONS:
            self.reasons.append(error.message)


def load_calibration(
    source: str | Path | None,
    *,
    samples: int | None = None,
    seed: int = 0,
    held_out_share: float = HELD_OUT_SHARE,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> CalibrationSet:
    """Read a file or folder, or take a shipped set (None stands for `general`); `samples` takes a seeded subset.

    Held out are a share of the samples of each kind that have an answer, chosen by `seed` and content alone. Images
    are looked at for the samples that are taken only. Raises CalibrationError with file and line of the first row that
    cannot be used (with `skip_bad` it is left out and counted, and another takes its place), and where nothing is left.
    """
    recipe: dict[str, Any] = {"samples": samples, "seed": seed, "held_out_share": held_out_share, "skip_bad": skip_bad}
    left_out = _LeftOut(skip_bad)
    shipped = _shipped_set(source)
    if shipped is not None:
        drafts, name = [Draft(sample) for sample in SHIPPED[shipped]()], f"luq_gguf {shipped}"
        skip_bad = True  # made for any model, also one with a context that some of its samples do not fit
    else:
        path = Path(str(source))
        drafts, name = _read(path, left_out, progress), path.name
    with Looker() as looker:
        chosen = _finish(drafts, samples, seed, looker, left_out, progress)
    if not chosen:
        first = f" ({left_out.reasons[0]})" if left_out.reasons else ""
        raise CalibrationError(f"{source or GENERAL} holds no sample that can be used{first}", hint=HINT)
    out = {sample.id for sample in _held_out(chosen, held_out_share)}
    kept = tuple(sample for sample in chosen if sample.id not in out)
    held_out = tuple(sample for sample in chosen if sample.id in out)
    recipe["source"] = shipped or str(Path(str(source)).resolve())
    return CalibrationSet(
        name, kept, held_out, _digest(kept, held_out), left_out.count, tuple(left_out.reasons), skip_bad, recipe
    )


def _shipped_set(source: str | Path | None) -> str | None:
    """The name of the shipped set that is meant; a file or folder of that name goes before it."""
    if source is None:
        return GENERAL
    return str(source) if str(source) in SHIPPED and not Path(source).exists() else None


def _read(path: Path, left_out: _LeftOut, progress: Progress) -> list[Draft]:
    """The rows of a file or folder under ids of their own, their images not looked at."""
    if not path.exists():
        shipped = " or ".join(SHIPPED)
        raise CalibrationError(f"{path} does not exist", hint=f"give {KNOWN}, or the name {shipped}")
    drafts: list[Draft] = []
    seen: Counter[str] = Counter()
    for row in read_drafts(path, progress):
        if isinstance(row, CalibrationError):
            left_out.add(row)
            continue
        seen[row.id] += 1
        drafts.append(row if seen[row.id] == 1 else row.named(f"{row.id}-{seen[row.id]}"))
    return drafts


def _finish(
    drafts: list[Draft], count: int | None, seed: int, looker: Looker, left_out: _LeftOut, progress: Progress
) -> list[Sample]:
    """The samples that are taken, with their pictures; one whose picture cannot be read gives way to another."""
    samples: dict[str, Sample] = {}
    while True:
        chosen = _choose(drafts, count, seed)
        new = {draft.id for draft in chosen} - samples.keys()
        images = sum(draft.id in new and draft.image is not None for draft in drafts)
        seen, bad = 0, set[str]()
        for draft in drafts:
            if draft.id not in new:
                continue
            try:
                samples[draft.id] = draft.finish(looker)
            except CalibrationError as error:
                left_out.add(error)
                bad.add(draft.id)
            seen += draft.image is not None
            if images >= MANY:
                progress("check images", seen, images)
        if not bad:
            return [samples[draft.id] for draft in chosen]
        drafts = [draft for draft in drafts if draft.id not in bad]


def draw_samples() -> list[Sample]:
    """The set `shapes`: a question about each of many drawn scenes, and questions without a picture."""
    drawn = []
    for number in range(DRAWN_SCENES):
        scene = make_scene(BUILT_IN_SEED + number)
        question = talk_about(scene, turns=1)[0]
        drawn.append(
            Sample(f"scene-{number}", question.text, question.answer, Picture.of(draw_scene(scene)), origin=SHAPES)
        )
    for number in range(DRAWN_TALKS):
        question = talk_without_picture(BUILT_IN_SEED + number, turns=1)[0]
        drawn.append(Sample(f"talk-{number}", question.text, question.answer, origin=SHAPES))
    return drawn


SHIPPED: dict[str, Callable[[], list[Sample]]] = {GENERAL: built_in_samples, SHAPES: draw_samples}


def _choose(found: Iterable[RankedT], count: int | None, seed: int) -> list[RankedT]:
    """All samples, or a seeded choice with the same share of each kind, in an order of their own."""
    ranked = sorted(found, key=lambda sample: _rank(sample, seed))
    if count is None or count >= len(ranked):
        return ranked
    kinds = Counter(sample.kind for sample in ranked)
    place: Counter[str] = Counter()
    shares = {}
    for sample in ranked:
        place[sample.kind] += 1
        shares[sample.id] = (place[sample.kind] - 0.5) / kinds[sample.kind]
    chosen = {sample.id for sample in sorted(ranked, key=lambda sample: shares[sample.id])[: max(count, 0)]}
    return [sample for sample in ranked if sample.id in chosen]


def _held_out(chosen: Sequence[Sample], share: float) -> list[Sample]:
    """The first of each kind, as many as their share, and never all that there is.

    Questions about one picture stay together, so that nothing is judged by a picture that was measured on; where all
    are about a single picture that cannot be.
    """
    held_out: list[Sample] = []
    for kind in ("image", "question"):
        answered = [sample for sample in chosen if sample.kind == kind and sample.answer is not None]
        room = round(share * len(answered))
        for group in _by_picture([sample for sample in chosen if sample.kind == kind]):
            if len(group) <= room and all(sample.answer is not None for sample in group):
                held_out += group
                room -= len(group)
    return held_out if len(held_out) < len(chosen) else held_out[1:]


def _by_picture(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples that share a picture, in the order of the first of each; one by one where all share the same."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.picture.key if sample.picture else sample.id, []).append(sample)
    return list(groups.values()) if len(groups) > 1 else [[sample] for sample in samples]


def _rank(sample: _Ranked, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{sample.id}".encode()).digest()


def _digest(*groups: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    for group in groups:
        for sample in group:
            digest.update(json.dumps([sample.id, sample.turns, sample.question, sample.answer, sample.text]).encode())
            if sample.picture is not None:
                digest.update(sample.picture.key.encode())
        digest.update(b"|")
    return digest.hexdigest()
