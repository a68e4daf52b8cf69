"""What a conversion would take, before anything is done: memory, disk and time of every stage on this machine.

Measures the machine's rates for some seconds; writes nothing into the folders of the conversion.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from luq_gguf.activations import resolve_compute_type
from luq_gguf.analysis import is_analyzed, read_calibration
from luq_gguf.artifacts import Plan
from luq_gguf.costs import Costs
from luq_gguf.durations import Rates, estimate_seconds
from luq_gguf.errors import DiskSpaceError, MemoryLimitError
from luq_gguf.imatrix import read_brought
from luq_gguf.job import Job, Settings, open_job
from luq_gguf.layout import lay_out, write_header
from luq_gguf.machine_rates import measure_rates
from luq_gguf.memory_limits import available_memory
from luq_gguf.processors import cpu_name
from luq_gguf.progress import Progress, silent
from luq_gguf.prompts import tokenize_calibration
from luq_gguf.quantizer import Quantizer
from luq_gguf.resources import Place, costs_of, places, require_resources, task_of
from luq_gguf.speed_budget import AUTO_TYPES


@dataclass(frozen=True)
class DryRun:
    """What a conversion would take and make, and what there is; `refusal` is why it would not begin.

    `plan` has the size that the file will have, with layers in the order of their depth.
    """

    name: str
    plan: Plan
    costs: Costs
    places: tuple[Place, ...]
    available: int
    cpu: str
    threads: int
    compute_type: str
    tokens: int
    notes: tuple[str, ...] = ()
    refusal: DiskSpaceError | MemoryLimitError | None = None

    def as_json(self) -> dict[str, Any]:
        """The object that `convert --dry-run --json` prints; sizes in bytes."""
        disk, peak = self.costs.disk, self.costs.peak
        return {
            "name": self.name,
            "stages": [asdict(stage) for stage in self.costs.stages],
            "seconds": self.costs.seconds,
            "peak_memory_bytes": peak.memory_bytes,
            "peak_stage": peak.name,
            "available_memory_bytes": self.available,
            "final_disk_bytes": disk.final,
            "model_bytes": disk.text,
            "mmproj_bytes": disk.mmproj,
            "bundle_bytes": disk.bundle,
            "scratch_disk_bytes": disk.scratch,
            "places": [asdict(place) | {"folder": str(place.folder)} for place in self.places],
            "low_layers": len(self.plan.low_layers),
            "layers": self.plan.layers,
            "tokens": self.tokens,
            "compute_type": self.compute_type,
            "cpu": self.cpu,
            "threads": self.threads,
            "notes": list(self.notes),
            "fits": self.refusal is None,
            "refusal": str(self.refusal) if self.refusal else None,
        }


def foresee(model: str, out: Path, settings: Settings, progress: Progress = silent) -> DryRun:
    """What `convert` would take with the same arguments; raises LuqError for what it would refuse besides size."""
    job = open_job(model, out, settings, progress)
    brought = read_brought(settings.imatrix)
    calibration = read_calibration(settings, progress)
    progress("dry run", 0, 3)
    some = replace(settings, low_type=AUTO_TYPES[0]) if settings.by_speed else settings
    with Quantizer() as quantizer, tempfile.TemporaryDirectory(prefix="luq-gguf-") as scratch:
        header = write_header(job, Path(scratch))
        dataset = brought.dataset if brought else calibration.name
        layout = lay_out(job.checkpoint.digest, header, some, dataset, quantizer)
        progress("dry run", 1, 3)
        prompts = tokenize_calibration(job.checkpoint, job.family, calibration, settings.image_max_tokens)
        task = task_of(job, layout, prompts, analyzed=is_analyzed(job, calibration))
        costs, compute_type = costs_of(job, task), resolve_compute_type(settings.compute_type)
        progress("dry run", 2, 3)
        rates = measure_rates(task.shape, compute_type, task.chosen.types, job.work, settings.threads, quantizer)
    progress("dry run", 3, 3)
    timed = costs.timed(estimate_seconds(task.shape, task.load, task.chosen, rates))
    return _held_against(
        job, task.plan, timed, rates, compute_type, sum(task.load.lengths), analyzed=task.chosen.analyzed
    )


def _held_against(
    job: Job, plan: Plan, costs: Costs, rates: Rates, compute_type: str, tokens: int, *, analyzed: bool
) -> DryRun:
    refusal = None
    try:
        require_resources(job, costs)
    except (DiskSpaceError, MemoryLimitError) as error:
        refusal = error
    return DryRun(
        job.name, plan, costs, tuple(places(job, costs)), available_memory(), cpu_name(), rates.threads, compute_type,
        tokens, tuple(_notes(job, analyzed=analyzed)), refusal,
    )  # fmt: skip


def _notes(job: Job, *, analyzed: bool) -> list[str]:
    """What to mind when reading the figures."""
    settings, notes = job.settings, []
    if settings.order != "depth":
        notes.append(
            "the order of the layers is not known yet: the size is that of --order depth, others differ slightly"
        )
    if settings.min_tps is not None or settings.max_drop is not None:
        notes.append("how many layers become low is measured: the size is the largest that the budget allows")
    if analyzed:
        notes.append("the analysis is there from an earlier run")
    if any(job.parts.glob("*.gguf")):
        notes.append("quantized layers of an earlier run are there: those that fit are not made again")
    return notes
