"""Facts about this machine that speeds depend on: processor, cores, vector instructions, memory, governor, system.

Takes what Linux tells in /proc and /sys, gives a record; what a system does not tell is None or empty.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil
from pydantic import Field

from luq_gguf.artifacts import Record
from luq_gguf.processors import INFO, cpu_entries, cpu_name

SYSTEM = Path("/sys")
FLAGS = {
    "avx2": "avx2", "avx512f": "avx512f", "avx512_vnni": "avx512_vnni", "avx_vnni": "avx_vnni", "amx_tile": "amx_tile",
    "avx512_bf16": "avx512_bf16", "fma": "fma", "f16c": "f16c", "neon": "neon", "asimd": "neon", "asimddp": "dotprod",
    "i8mm": "i8mm", "sve": "sve",
}  # fmt: skip
"""The vector instructions that llama.cpp's kernels make a difference of, by the names that Linux has for them."""
SLOW_CORE = 0.8
"""Cores that reach less of the fastest core's frequency are efficiency cores; boost differs by less among equals."""
GROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""Limit, use and details of this process's control group, in versions 2 and 1."""


class Machine(Record, strict=True):
    """What a speed was measured on; `memory_bytes` is all of its memory.

    `usable` are the logical processors that the process might use. Performance and efficiency cores are physical ones,
    None where all are alike or the system does not tell them apart.
    """

    cpu: str
    physical_cores: int = Field(ge=1)
    logical_cores: int = Field(ge=1)
    usable: int = Field(ge=1)
    performance_cores: int | None = Field(default=None, ge=1)
    efficiency_cores: int | None = Field(default=None, ge=1)
    flags: tuple[str, ...]
    memory_bytes: int = Field(ge=1)
    governor: str | None
    system: str

    def same_cpu(self, other: Machine) -> bool:
        """Whether both have the same processor with as many cores, as far as the records tell."""
        keys = ("cpu", "physical_cores", "logical_cores", "performance_cores", "efficiency_cores", "flags")
        return all(getattr(self, key) == getattr(other, key) for key in keys)

    def cores(self) -> str:
        """Its cores in words."""
        kinds = ""
        if self.performance_cores and self.efficiency_cores:
            kinds = f" ({self.performance_cores} performance, {self.efficiency_cores} efficiency)"
        limit = f", {self.usable} of them usable" if self.usable < self.logical_cores else ""
        return f"{self.physical_cores} cores{kinds}, {self.logical_cores} logical{limit}"


def describe_machine(system: Path = SYSTEM, info: Path = INFO) -> Machine:
    """This machine; `system` and `info` are where Linux tells about processors."""
    logical = os.cpu_count() or 1
    fast, slow = _core_kinds(system) or (None, None)
    return Machine(
        cpu=cpu_name(),
        physical_cores=psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
        usable=len(os.sched_getaffinity(0)) if sys.platform == "linux" else logical,
        performance_cores=fast,
        efficiency_cores=slow,
        flags=_flags(info),
        memory_bytes=psutil.virtual_memory().total,
        governor=_governor(system),
        system=_system_name(),
    )


def free_memory(groups: Path = SYSTEM / "fs/cgroup") -> int:
    """Bytes that a program can still have: what the system has available, within the control group's limit."""
    return max(0, min([int(psutil.virtual_memory().available), *_left_in_groups(groups)]))


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Processors of a list as Linux writes it, "0-3,8", rising; raises ValueError for what is none."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        low, high = int(first), int(last if dash else first)
        if not 0 <= low <= high < 1 << 16:
            raise ValueError(f"{part!r} is no range of processors")
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def _left_in_groups(groups: Path) -> Iterable[int]:
    """What the limits leave; files in memory can make room, so they do not count as used."""
    for limit_file, used_file, stat_file in GROUP_FILES:
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
            limit, used = (int((groups / name).read_text()) for name in (limit_file, used_file))
            stat = dict(line.split() for line in (groups / stat_file).read_text().splitlines())
            files = int(stat.get("active_file", 0)) + int(stat.get("inactive_file", 0))
            yield limit - max(0, used - files)


def _flags(info: Path) -> tuple[str, ...]:
    """The known vector instructions that the first processor has."""
    for key, value in cpu_entries(info):
        if key in {"flags", "Features"}:
            has = {FLAGS[flag] for flag in value.split() if flag in FLAGS}
            return tuple(name for name in dict.fromkeys(FLAGS.values()) if name in has)
    return ()


def _core_kinds(system: Path) -> tuple[int, int] | None:
    """Physical performance and efficiency cores, where there are both."""
    lists = [_read(system / "devices" / kind / "cpus") for kind in ("cpu_core", "cpu_atom")]
    if all(lists):
        fast, slow = (parse_cpu_list(text) for text in lists)
    else:
        speeds = _frequencies(system)
        limit = SLOW_CORE * max(speeds.values(), default=0)
        slow = tuple(cpu for cpu, speed in speeds.items() if speed < limit)
        fast = tuple(cpu for cpu, speed in speeds.items() if speed >= limit)
    return (_count_cores(system, fast), _count_cores(system, slow)) if fast and slow else None


def _frequencies(system: Path) -> dict[int, int]:
    """The highest frequency of each processor, in kHz."""
    found = {}
    for path in sorted((system / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq")):
        text = _read(path)
        if text.isdecimal():
            found[int(path.parent.parent.name[3:])] = int(text)
    return found


def _count_cores(system: Path, cpus: Iterable[int]) -> int:
    """Physical cores of logical processors: those of one core name the same siblings."""
    siblings = "devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return len({_read(system / siblings.format(cpu)) or str(cpu) for cpu in cpus})


def _governor(system: Path) -> str | None:
    """The frequency governors in use, joined by commas."""
    paths = (system / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    return ", ".join(sorted({text for path in paths if (text := _read(path))})) or None


def _system_name() -> str:
    kernel = f"{platform.system()} {platform.release()}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {kernel}"
    except (OSError, KeyError):
        return kernel


def _read(path: Path) -> str:
    """A file of the system without the last line break; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
