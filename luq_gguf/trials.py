"""Plans tried out: the file of a plan made, judged, and thrown away; what was measured is kept for later runs.

A plan costs an assembly and a run, not a quantization.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from luq_gguf.artifacts import Plan, read_record, scratch_folder, sha256_of, write_record
from luq_gguf.job import key_of
from luq_gguf.judging import Quality
from luq_gguf.making import Maker
from luq_gguf.manifest import versions
from luq_gguf.quality import Evaluator, Yardstick, yardstick_of_calibration
from luq_gguf.reference import read_reference
from luq_gguf.samples import CalibrationSet
from luq_gguf.showcase import Answers

JUDGED, ANSWERS, TRIAL = "judged", "answers", "trial.gguf"


@dataclass(frozen=True)
class Trials:
    """The quality of plans of one model, measured on its held-out samples; make it with `open_trials`."""

    maker: Maker
    evaluator: Evaluator
    yardstick: Yardstick
    key: str

    def quality(self, plan: Plan) -> Quality:
        """What the file of a plan was measured to be, now or in an earlier run."""
        return self._known(plan) or self._measure(plan)

    def judge(self, plan: Plan, file: Path) -> Quality:
        """The quality of a plan's file that is there already."""
        return self._known(plan) or self._judge(plan, file)

    def _known(self, plan: Plan) -> Quality | None:
        kept = self._kept(plan)
        return read_record(kept, Quality) if kept.is_file() else None

    def _measure(self, plan: Plan) -> Quality:
        with scratch_folder(self.maker.job.work, "trial") as scratch:
            return self._judge(plan, self.maker.make(plan, scratch / TRIAL))

    def _judge(self, plan: Plan, file: Path) -> Quality:
        with self.maker.job.watch.measure("judge"):
            quality, answers = self.evaluator.judge(file, self.yardstick)
        write_record(self._answers(plan), answers)
        write_record(self._kept(plan), quality)
        return quality

    def answers(self, plan: Plan) -> Answers | None:
        """Some of the answers by which a plan's file was judged, now or in an earlier run that kept them."""
        kept = self._answers(plan)
        return read_record(kept, Answers) if kept.is_file() else None

    def _answers(self, plan: Plan) -> Path:
        kept = self._kept(plan)
        return kept.parent / ANSWERS / kept.name

    def of(self, maker: Maker) -> Trials:
        """The same of files that another maker makes."""
        if maker.imatrix == self.maker.imatrix:
            return self
        return replace(self, maker=maker, key=key_of(self.key, sha256_of(maker.imatrix)))

    def brief(self, tokens: int) -> Trials:
        """The same on some of the samples only, with about so many tokens (see `choose_brief`)."""
        reference = self.yardstick.reference
        pictured = {sample.id for sample in self.yardstick.samples if sample.picture}
        answers = np.diff(reference.starts)
        kinds = [sample in pictured for sample in reference.samples]
        places = choose_brief((reference.prompts + answers).tolist(), kinds, tokens)
        yardstick = replace(self.yardstick, reference=reference.some(places))
        return replace(self, yardstick=yardstick, key=key_of(self.key, places))

    def _kept(self, plan: Plan) -> Path:
        return self.maker.job.work / JUDGED / f"{key_of(self.key, plan.types)}.json"


def choose_brief(costs: Sequence[int], kinds: Sequence[bool], tokens: int) -> list[int]:
    """The places of some samples, of which each costs so many tokens to read.

    They are of the cheaper half of their kind, both kinds in turns, as long as all of them have at most `tokens`; there
    is one of each kind at least.
    """
    queues = []
    for kind in (True, False):
        mine = sorted((place for place in range(len(costs)) if kinds[place] is kind), key=lambda place: costs[place])
        queues.append(sorted(mine[: -(-len(mine) // 2)]))
    chosen: list[int] = []
    for place in (place for turn in zip_longest(*queues) for place in turn if place is not None):
        is_first = all(kinds[place] is not kinds[other] for other in chosen)
        if is_first or costs[place] + sum(costs[other] for other in chosen) <= tokens:
            chosen.append(place)
    return sorted(chosen)


def open_trials(maker: Maker, mmproj: Path | None, calibration: CalibrationSet, reference: Path) -> Trials | None:
    """Trials by an analysis' reference and with a vision part, or None where no sample with an answer was held out."""
    stored, job = read_reference(reference), maker.job
    if not stored.samples:
        return None
    evaluator = Evaluator(mmproj, job.work, job.settings.threads, progress=job.progress)
    vision = sha256_of(mmproj) if mmproj else ""
    key = key_of(versions(), job.checkpoint.fingerprint, sha256_of(reference), sha256_of(maker.imatrix), vision)
    return Trials(maker, evaluator, yardstick_of_calibration(job.name, stored, calibration), key)
