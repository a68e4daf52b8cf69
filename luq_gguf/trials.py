"""Plans tried out: the file of a plan made, judged, and thrown away; what was measured is kept for later runs.

A plan costs an assembly and a run, not a quantization.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from luq_gguf.artifacts import Plan, read_record, scratch_folder, sha256_of, write_record
from luq_gguf.evaluate import Quality
from luq_gguf.job import key_of
from luq_gguf.making import Maker
from luq_gguf.manifest import versions
from luq_gguf.quality import Evaluator, Yardstick, yardstick_of_calibration
from luq_gguf.reference import read_reference
from luq_gguf.samples import CalibrationSet

JUDGED, TRIAL = "judged", "trial.gguf"


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
            quality = self.evaluator.quality(file, self.yardstick)
        write_record(self._kept(plan), quality)
        return quality

    def of(self, maker: Maker) -> Trials:
        """The same of files that another maker makes."""
        if maker.imatrix == self.maker.imatrix:
            return self
        return replace(self, maker=maker, key=key_of(self.key, sha256_of(maker.imatrix)))

    def brief(self, samples: int) -> Trials:
        """The same on some of the samples only, evenly spaced among them."""
        reference = self.yardstick.reference
        if len(reference.samples) <= samples:
            return self
        yardstick = replace(self.yardstick, reference=reference.some(samples))
        return replace(self, yardstick=yardstick, key=key_of(self.key, samples))

    def _kept(self, plan: Plan) -> Path:
        return self.maker.job.work / JUDGED / f"{key_of(self.key, plan.types)}.json"


def open_trials(maker: Maker, mmproj: Path | None, calibration: CalibrationSet, reference: Path) -> Trials | None:
    """Trials by an analysis' reference and with a vision part, or None where no sample with an answer was held out."""
    stored, job = read_reference(reference), maker.job
    if not stored.samples:
        return None
    evaluator = Evaluator(mmproj, job.work, job.settings.threads, progress=job.progress)
    vision = sha256_of(mmproj) if mmproj else ""
    key = key_of(versions(), job.checkpoint.fingerprint, sha256_of(reference), sha256_of(maker.imatrix), vision)
    return Trials(maker, evaluator, yardstick_of_calibration(job.name, stored, calibration), key)
