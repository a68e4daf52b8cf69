"""The frontier of a model: files of many plans with what each was measured to be; which of them are worth having.

Pure, but for reading and writing `frontier.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from luq_gguf.artifacts import Record, read_record
from luq_gguf.judging import Quality

FRONTIER = "frontier.json"


class FrontierPoint(Record):
    """A plan's file: its bytes, its predicted tokens a second where this CPU was profiled, and its measured quality.

    A `preset` is one type of llama.cpp's for the whole file, by its name `high_type`.
    """

    preset: bool
    order_name: str
    low_type: str
    high_type: str
    low_layers: tuple[int, ...]
    layers: int
    size_bytes: int
    bits_per_weight: float
    predicted_tps: float | None = None
    quality: Quality

    @property
    def name(self) -> str:
        """What it is called in tables."""
        if self.preset:
            return self.high_type
        return f"{len(self.low_layers)} of {self.layers} {self.low_type}, {self.order_name}"

    @property
    def divergence(self) -> float:
        """Nats a token."""
        return self.quality.all.divergence

    @property
    def verdict(self) -> str:
        """What a preset that is better than a file has over it."""
        return (
            f"the preset {self.name} was measured to diverge less with no more bytes: "
            f"KL {self.divergence:.4f} nats, {self.size_bytes:,} bytes"
        )


class Frontier(Record):
    """`frontier.json`: every file that was measured of a model, `checkpoint` its digest."""

    format: Literal["luq-gguf frontier 1"] = "luq-gguf frontier 1"
    model: str
    checkpoint: str
    cpu: str | None = None
    threads: int | None = None
    points: tuple[FrontierPoint, ...] = ()


def undominated(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """Those that no other is better than in bytes and divergence both, the smallest first."""
    found: list[FrontierPoint] = []
    for point in sorted(points, key=lambda each: (each.size_bytes, each.divergence)):
        if not found or point.divergence < found[-1].divergence:
            found.append(point)
    return found


def better_preset(folder: Path, checkpoint: str, size_bytes: int, quality: Quality) -> FrontierPoint | None:
    """The preset of at most these bytes that a sweep of the same model measured to diverge least, and less than this.

    None where no sweep lies in the folder.
    """
    path = folder / FRONTIER
    if not path.is_file():
        return None
    frontier = read_record(path, Frontier)
    presets = [point for point in frontier.points if point.preset and point.size_bytes <= size_bytes]
    best = min(presets, key=lambda point: point.divergence, default=None)
    if best is None or frontier.checkpoint != checkpoint or best.divergence >= quality.all.divergence:
        return None
    return best
