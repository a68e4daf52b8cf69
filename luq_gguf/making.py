"""Makes the text model of a plan out of quantized parts, checked; the loop that corrects a plan which is too slow.

A part is quantized once and kept under a name made of all that its bytes depend on, so that a further plan costs an
assembly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from gguf import GGMLQuantizationType

from luq_gguf.artifacts import Plan
from luq_gguf.assemble import assemble
from luq_gguf.bench import measure_decode
from luq_gguf.choice import Choice
from luq_gguf.errors import BudgetError, GGUFError
from luq_gguf.export import export_text
from luq_gguf.imatrix import check_importance
from luq_gguf.importance import ImatrixNote, read_importance
from luq_gguf.job import Job
from luq_gguf.layout import part_names
from luq_gguf.plan import weights_to_quantize
from luq_gguf.quantize import make_part, part_key
from luq_gguf.quantizer import Quantizer
from luq_gguf.speed_budget import SpeedRule
from luq_gguf.verify import verify_types


@dataclass(frozen=True)
class Made:
    """The text model of a conversion, how it was chosen, and its measured tokens a second where asked for."""

    target: Path
    choice: Choice
    tps: float | None = None


def make_to_speed(
    job: Job, choose: Callable[[SpeedRule | None], Choice], make: Callable[[Plan], Path], rule: SpeedRule | None
) -> Made:
    """Choose a plan and make its file; where a speed was asked for, measure it, and correct the plan once if it misses.

    For another CPU's profile nothing is measured. The second file is kept whatever it reaches; where no plan is
    predicted to do better, the first.
    """
    choice = choose(rule)
    target = make(choice.plan)
    if rule is None or rule.least is None or rule.elsewhere or choice.forecast is None:
        return Made(target, choice)
    measured = _measured(job, target, rule)
    if measured >= rule.least:
        return Made(target, choice, measured)
    stricter = replace(rule, least=rule.least * choice.forecast.plan.generate / measured)
    try:
        second = choose(stricter)
    except BudgetError:
        return Made(target, choice, measured)
    if second.plan == choice.plan:
        return Made(target, choice, measured)
    again = make(second.plan)
    if again != target:
        target.unlink()
    return Made(again, second, _measured(job, again, rule))


def _measured(job: Job, target: Path, rule: SpeedRule) -> float:
    with job.watch.measure("speed"):
        return measure_decode(target, threads=rule.threads, progress=job.progress).generate_tps


@dataclass(frozen=True)
class Maker:
    """Makes files of one model: by its 16-bit header and importance matrix, with a running quantizer."""

    job: Job
    header: Path
    imatrix: Path
    quantizer: Quantizer

    def make(self, plan: Plan, target: Path | None = None) -> Path:
        """The file of a plan, checked, under the name that it gets in the output folder or as `target`."""
        job = self.job
        check_importance(read_importance(self.imatrix), weights_to_quantize(plan), self.header)
        parts = self._make_parts(plan)
        target = target or job.out / f"{job.name}-LUQ-{len(plan.low_layers)}of{plan.layers}-{plan.low_type}.gguf"
        with job.watch.measure("assemble"):
            assemble(
                parts, self.header, plan, target, imatrix=ImatrixNote.of(self.imatrix), progress=job.progress
            )  # fmt: skip
        self._check(target, plan)
        return target

    def _make_parts(self, plan: Plan) -> list[Path]:
        """The quantized parts of a plan, each taken from an earlier run where it is there."""
        groups = part_names(plan)
        parts: list[Path] = []
        for done, names in enumerate(groups):
            self.job.progress("quantize", done, len(groups))
            with self.job.watch.measure("quantize"):
                parts.append(self.make_part(plan, names))
        self.job.progress("quantize", len(groups), len(groups))
        return parts

    def make_part(self, plan: Plan, names: list[str]) -> Path:
        """The quantized part with these tensors, taken from an earlier run where it is there."""
        job = self.job
        types = {name: GGMLQuantizationType[plan.types[name]] for name in names}
        part = job.parts / f"{part_key(job.checkpoint.fingerprint, job.dtype, types, self.imatrix)}.gguf"
        wanted = frozenset(names)

        def export(target: Path) -> None:
            with job.watch.measure("export"):
                export_text(
                    job.checkpoint, job.family, target, dtype=job.dtype, select=wanted.__contains__, tokenizer=False
                )

        make_part(
            export, part, types, self.imatrix, high_type=plan.high_type, threads=job.settings.threads,
            quantizer=self.quantizer,
        )  # fmt: skip
        return part

    def _check(self, target: Path, plan: Plan) -> None:
        """Reread the written file; what differs from its plan does not stay under a final name."""
        with self.job.watch.measure("verify"):
            differences = verify_types(target, plan)
        if differences:
            target.unlink()
            raise GGUFError(f"the written file differs from its plan: {differences[0]}", path=target)
