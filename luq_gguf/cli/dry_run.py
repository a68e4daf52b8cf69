"""What `convert --dry-run` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luq_gguf.amounts import format_bytes
from luq_gguf.cli.tables import make_table, render

if TYPE_CHECKING:
    from luq_gguf.dry_run import DryRun
    from luq_gguf.resources import Place


def format_seconds(seconds: float) -> str:
    """A time in the units people read."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def format_dry_run(found: DryRun) -> str:
    """The stages with their time and memory, then the peak beside what there is, and the disk."""
    table = make_table("", ("stage", "time, about", "peak memory, about"))
    for stage in found.costs.stages:
        time = "-" if stage.seconds is None else format_seconds(stage.seconds)
        table.add_row(stage.name, time, format_bytes(stage.memory_bytes))
    return render(table, "", *_lines(found))


def _lines(found: DryRun) -> list[str]:
    plan, costs, disk = found.plan, found.costs, found.costs.disk
    time = "-" if costs.seconds is None else format_seconds(costs.seconds)
    lines = [
        (
            f"{found.name}: {len(plan.low_layers)} of {plan.layers} layers {plan.low_type}, "
            f"{found.tokens:,} tokens of samples"
        ),
        f"time: about {time} on {found.cpu}, {found.threads} threads, computed in {found.compute_type}",
        (
            f"memory: {format_bytes(costs.peak.memory_bytes)} at most ({costs.peak.name}), "
            f"{format_bytes(found.available)} available"
        ),
        (
            f"results: {format_bytes(disk.final)}: text model {disk.text:,} bytes, vision part {disk.mmproj:,}, "
            f"bundle {disk.bundle:,}, records about {disk.records:,}"
        ),
        f"on the way: {format_bytes(disk.scratch)} in the work folder",
        *map(_place_line, found.places),
        *found.notes,
    ]
    return [*lines, "it fits; nothing was done" if found.refusal is None else "it does not fit; nothing was done"]


def _place_line(place: Place) -> str:
    return f"disk of {place.folder}: {format_bytes(place.needed)} needed at most, {format_bytes(place.free)} free"
