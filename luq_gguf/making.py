"""Makes the text model of a plan out of quantized parts, checked; the loop that corrects a plan which is too slow.

A part is quantized once, under a name made of all that its bytes depend on. Kept, it makes a further plan cost an
assembly; where no other plan may want it, it moves into the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gguf import GGMLQuantizationType

from luq_gguf.artifacts import Plan
from luq_gguf.assemble import Blueprint, assemble
from luq_gguf.bench import measure_decode
from luq_gguf.choice import Choice
from luq_gguf.errors import BudgetError, GGUFError
from luq_gguf.export import export_text
from luq_gguf.gguf_file import GGUFFile, align, tensor_bytes
from luq_gguf.growing import Growing, drop_growing
from luq_gguf.imatrix import check_importance
from luq_gguf.importance import ImatrixNote, read_importance
from luq_gguf.job import Job
from luq_gguf.layout import part_names
from luq_gguf.planning import weights_to_quantize
from luq_gguf.quantize import make_part, part_key
from luq_gguf.quantizer import Quantizer
from luq_gguf.result_names import text_name
from luq_gguf.room import PartBytes, require_room_to_grow, require_room_to_keep
from luq_gguf.speed_budget import SpeedRule
from luq_gguf.verify import verify_types

Groups = dict[Path, list[str]]
"""The parts of a plan, each with the names of its tensors."""


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

    def make_result(self, plan: Plan) -> Path:
        """The file of the plan that was chosen, checked, under the name that it gets in the output folder.

        Its parts move into it one by one where no other plan may want them.
        """
        job = self.job
        target = job.out / text_name(job.name, plan)
        if not job.moves_parts(plan.high_size_bytes):
            drop_growing(job.out)
            return self.make(plan, target)
        check_importance(read_importance(self.imatrix), weights_to_quantize(plan), self.header)
        self._grow(plan, target)
        self._check(target, plan)
        return target

    def make(self, plan: Plan, target: Path) -> Path:
        """The file of a plan, checked, as `target`; its parts stay for other plans."""
        job = self.job
        check_importance(read_importance(self.imatrix), weights_to_quantize(plan), self.header)
        groups = self._groups(plan)
        require_room_to_keep(target, plan.size_bytes, job.parts, self._bytes_of(groups, plan))
        self._make_parts(plan, groups)
        with job.watch.measure("assemble"):
            note = ImatrixNote.of(self.imatrix)
            assemble(list(groups), self.header, plan, target, imatrix=note, progress=job.progress)
        self._check(target, plan)
        return target

    def _make_parts(self, plan: Plan, groups: Groups, growing: Growing | None = None) -> None:
        """Make the parts of a plan that are missing, and move each into the growing file, if there is one."""
        job = self.job
        for done, (part, names) in enumerate(groups.items()):
            job.progress("quantize", done, len(groups))
            if growing is None or part.stem not in growing.held:
                with job.watch.measure("quantize"):
                    self._make_part(part, plan, names)
            if growing is not None:
                with job.watch.measure("assemble"):
                    growing.move(part)
        job.progress("quantize", len(groups), len(groups))

    def _grow(self, plan: Plan, target: Path) -> None:
        """Make a plan's file out of parts that move into it one by one; goes on where an earlier run was."""
        job, groups = self.job, self._groups(plan)
        blueprint = Blueprint.draw(self.header, plan, ImatrixNote.of(self.imatrix))
        blueprint.require_size(plan, target)
        parts = {part.stem: names for part, names in groups.items()}
        with job.watch.measure("assemble"):
            growing = Growing.open(target, blueprint, parts, job.progress)
        missing = {part: names for part, names in groups.items() if part.stem not in growing.held}
        require_room_to_grow(target, job.parts, self._bytes_of(missing, plan))
        self._make_parts(plan, groups, growing)
        with job.watch.measure("assemble"):
            growing.finish()

    def _groups(self, plan: Plan) -> Groups:
        return {self._path_of(plan, names): names for names in part_names(plan)}

    def _path_of(self, plan: Plan, names: Sequence[str]) -> Path:
        job = self.job
        key = part_key(job.checkpoint.fingerprint, job.dtype, _types(plan, names), self.imatrix)
        return job.parts / f"{key}.gguf"

    def _bytes_of(self, groups: Groups, plan: Plan) -> list[PartBytes]:
        base = GGUFFile.open(self.header).tensors
        found = []
        for part, names in groups.items():
            quantized = (tensor_bytes(kind, base[name].shape) for name, kind in _types(plan, names).items())
            source = sum(align(base[name].nbytes) for name in names)
            found.append(PartBytes(sum(map(align, quantized)), source, part.exists()))
        return found

    def make_part(self, plan: Plan, names: Sequence[str]) -> Path:
        """The quantized part with these tensors, taken from an earlier run where it is there."""
        part = self._path_of(plan, names)
        self._make_part(part, plan, names)
        return part

    def _make_part(self, part: Path, plan: Plan, names: Sequence[str]) -> None:
        job, wanted = self.job, frozenset(names)

        def export(target: Path) -> None:
            with job.watch.measure("export"):
                export_text(
                    job.checkpoint, job.family, target, dtype=job.dtype, select=wanted.__contains__, tokenizer=False
                )

        make_part(
            export, part, _types(plan, names), self.imatrix, high_type=plan.high_type, threads=job.settings.threads,
            quantizer=self.quantizer, progress=lambda _, done, total: job.progress("tensors", done, total),
        )  # fmt: skip

    def _check(self, target: Path, plan: Plan) -> None:
        """Reread the written file; what differs from its plan does not stay under a final name."""
        with self.job.watch.measure("verify"):
            differences = verify_types(target, plan)
        if differences:
            target.unlink()
            raise GGUFError(f"the written file differs from its plan: {differences[0]}", path=target)


def _types(plan: Plan, names: Sequence[str]) -> dict[str, GGMLQuantizationType]:
    return {name: GGMLQuantizationType[plan.types[name]] for name in names}
