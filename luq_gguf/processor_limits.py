"""What keeps this program from the whole of the processors: quotas of control groups, other programs, other machines.

Takes what Linux tells; what a system does not tell limits nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from luq_gguf.memory_limits import GROUPS, MEMBERSHIP, own_groups


@dataclass(frozen=True)
class Quota:
    """Processors that control groups grant in the mean, None without a limit, and the share of periods in which they
    made the program wait, in percent."""

    processors: float | None
    throttled: float


@dataclass(frozen=True)
class Load:
    """Percent of all processors that were busy in a while, and that another virtual machine had taken."""

    busy: float
    stolen: float


def processor_quota(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> Quota:
    """The least that the process' control group and those around it grant, in versions 2 and 1."""
    folders = [groups, *own_groups(groups, membership)]
    granted = [found for folder in folders for found in (*_granted(folder), *_granted_by_version_1(folder / "cpu"))]
    throttled = [_throttled(folder) for folder in (*folders, groups / "cpu")]
    return Quota(min(granted, default=None), max(throttled))


def measure_load(seconds: float = 1.0) -> Load:
    """What the processors do while this program waits."""
    times = psutil.cpu_times_percent(interval=seconds)
    return Load(busy=max(0.0, 100.0 - times.idle - getattr(times, "iowait", 0.0)), stolen=getattr(times, "steal", 0.0))


def _granted(folder: Path) -> Iterator[float]:
    with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
        quota, period = (int(word) for word in (folder / "cpu.max").read_text(encoding="utf-8").split())
        yield quota / period


def _granted_by_version_1(folder: Path) -> Iterator[float]:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        if quota > 0:
            yield quota / period


def _throttled(folder: Path) -> float:
    with contextlib.suppress(OSError, ValueError):
        lines = (folder / "cpu.stat").read_text(encoding="utf-8").splitlines()
        stat = {name: int(value) for name, value in map(str.split, lines)}
        return 100 * stat.get("nr_throttled", 0) / max(1, stat.get("nr_periods", 0))
    return 0.0
