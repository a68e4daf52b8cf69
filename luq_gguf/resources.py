"""What a conversion will take on this machine, held against what there is: memory and disk, before any work.

One arithmetic (`costs`) serves the check that every conversion begins with and `convert --dry-run`. Imports no torch.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from luq_gguf.artifacts import Plan, existing_folder, require_space
from luq_gguf.costs import JUDGE, LAYERS, PICTURES, Chosen, Costs, Load, Shape, StageCost, estimate_costs
from luq_gguf.errors import MemoryLimitError
from luq_gguf.growing import bytes_grown
from luq_gguf.job import Job
from luq_gguf.layout import Layout
from luq_gguf.memory_limits import available_memory, process_limit
from luq_gguf.processors import default_threads
from luq_gguf.prompts import Prompts
from luq_gguf.quantize import BUFFER_BYTES
from luq_gguf.workload import chosen_of, compute_bytes, expected_plan, load_of, shape_of, unknown_load

ANALYSIS = (PICTURES, LAYERS)
"""The stages of the analysis, which is one process."""


@dataclass(frozen=True)
class Place:
    """A folder, the bytes that a conversion needs there beside what earlier runs left, and the bytes free."""

    folder: Path
    needed: int
    free: int


@dataclass(frozen=True)
class Task:
    """A job in the numbers that its costs follow from."""

    shape: Shape
    load: Load
    chosen: Chosen
    plan: Plan


def task_of(job: Job, layout: Layout, prompts: Prompts | None, *, analyzed: bool) -> Task:
    """A job in numbers; without `prompts` its samples are counted as large as they can be.

    Raises BudgetError and RequestError where no plan keeps the budget.
    """
    from luq_gguf.activations import resolve_compute_type

    plan = expected_plan(layout, job.settings, job.family.layers)
    chosen = chosen_of(job, layout, plan, resolve_compute_type(job.settings.compute_type), analyzed=analyzed)
    load = load_of(prompts) if prompts else unknown_load(job.settings)
    return Task(shape_of(job.family), load, chosen, plan)


def costs_of(job: Job, task: Task) -> Costs:
    """Memory of every stage and disk of a job."""
    return estimate_costs(task.shape, task.load, task.chosen, BUFFER_BYTES, _threads(job))


def _threads(job: Job) -> int:
    return job.settings.threads or default_threads()


def estimate(job: Job, layout: Layout, prompts: Prompts | None) -> Costs:
    """The costs of a job; without `prompts` its analysis is there from an earlier run. Raises as `task_of`."""
    return costs_of(job, task_of(job, layout, prompts, analyzed=prompts is None))


def estimate_analysis(job: Job, prompts: Prompts) -> Costs:
    """The costs of a job's analysis alone."""
    from luq_gguf.activations import resolve_compute_type

    compute = compute_bytes(resolve_compute_type(job.settings.compute_type))
    nothing_made = Chosen(compute, text=0, high=0, low=0, step=0, header=0, tensors=0, types={}, evaluates=False)
    costs = estimate_costs(shape_of(job.family), load_of(prompts), nothing_made, BUFFER_BYTES, threads=_threads(job))
    return replace(costs, stages=tuple(stage for stage in costs.stages if stage.name in ANALYSIS))


def require_resources(job: Job, costs: Costs, doing: str = "converting") -> None:
    """Raise DiskSpaceError or MemoryLimitError where a job takes more than there is."""
    for place in places(job, costs):
        require_space(place.folder, place.needed, f"{doing} {job.name}")
    require_memory(job, costs, doing)


def places(job: Job, costs: Costs) -> list[Place]:
    """Where a job writes and how much: one place where results and work lie on one disk."""
    disk, there = costs.disk, _bytes_there(job)
    out, work = existing_folder(job.out), existing_folder(job.work)
    if out.stat().st_dev == work.stat().st_dev:
        return [Place(job.out, max(0, disk.together - there), _free(out))]
    return [Place(job.out, disk.final, _free(out)), Place(job.work, max(0, disk.scratch - there), _free(work))]


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _bytes_there(job: Job) -> int:
    """What earlier runs left of what this one would write: quantized layers, also in a file that grows, states of an
    analysis, the vision part."""
    folders = [job.parts, *job.work.glob("analyzing-*")]
    vision = sum(path.stat().st_size for path in job.work.glob("mmproj-*.gguf"))
    return sum(_sizes(folder) for folder in folders) + bytes_grown(job.out) + vision


def _sizes(folder: Path) -> int:
    def entries() -> Iterator[os.DirEntry[str]]:
        if folder.is_dir():
            with os.scandir(folder) as found:
                yield from found

    return sum(entry.stat().st_size for entry in entries() if entry.is_file())


def require_memory(job: Job, costs: Costs, doing: str) -> None:
    """Raise MemoryLimitError where a stage takes more memory than this program can have, or one process may have."""
    available, peak = available_memory(), costs.peak
    if peak.memory_bytes > available:
        there = f"{available:,} bytes are available"
        raise _too_much(job, doing, peak, available, there, "close other programs")
    limit, alone = process_limit(), _analysis(costs)
    if limit is not None and alone is not None and alone.memory_bytes > limit:
        there = f"`ulimit` allows {limit:,} bytes"
        raise _too_much(job, doing, alone, limit, there, "raise `ulimit -v` and `ulimit -d`")


def _analysis(costs: Costs) -> StageCost | None:
    """The larger stage of the analysis, which is one process."""
    stages = [stage for stage in costs.stages if stage.name in ANALYSIS]
    return max(stages, key=lambda stage: stage.memory_bytes, default=None)


def _too_much(job: Job, doing: str, stage: StageCost, available: int, there: str, hint: str) -> MemoryLimitError:
    others = _hints(job, stage)
    return MemoryLimitError(
        f"{doing} {job.name} needs {stage.memory_bytes:,} bytes of memory ({stage.name}), {there}",
        needed=stage.memory_bytes,
        available=available,
        hint=", or ".join([hint, *others]),
    )


def _hints(job: Job, stage: StageCost) -> list[str]:
    """What lowers the memory of a stage, beside more memory."""
    from luq_gguf.activations import resolve_compute_type

    hints = []
    if stage.name in ANALYSIS and resolve_compute_type(job.settings.compute_type) == "f32":
        hints.append("compute with half the bytes by --compute-type bf16")
    if stage.name == JUDGE:
        hints.append("leave the quality unmeasured by --no-eval")
    return hints
