"""What this machine's processor is called, what it is good at, and how many threads work on it when nobody says."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

INFO = Path("/proc/cpuinfo")


def default_threads() -> int:
    """Physical cores, or the processors that this process may use where those are fewer."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[int]:
    """Have torch compute on so many threads for the length of the block, 0: on those that it takes itself; gives them.

    Products may round otherwise than on another number. The number is the process's, whichever thread enters the block.
    """
    import torch

    before = torch.get_num_threads()
    if not count:
        yield before
        return
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    names = [value for key, value in cpu_entries(INFO) if key.startswith(("model name", "Model"))]
    return next((name for name in names if name), platform.processor() or platform.machine() or "unknown")


def fast_bf16(info: Path = INFO) -> bool:
    """Whether products in bf16 take less time than in float32, by the instructions that Linux tells of at `info`.

    With AMX, with ARM's, and with AMD's AVX512_BF16 they do. Intel's AVX512_BF16 alone, AMX being kept from a virtual
    machine, was measured to take 1.8 times as long as float32 (164 beside 295 GFLOP/s on two cores of a Xeon).
    """
    told: dict[str, str] = {}
    for key, value in cpu_entries(info):
        told.setdefault(key, value)
    flags = {*told.get("flags", "").split(), *told.get("Features", "").split()}
    return bool(flags & {"amx_bf16", "bf16"}) or ("avx512_bf16" in flags and told.get("vendor_id") != "GenuineIntel")


def cpu_entries(info: Path) -> list[tuple[str, str]]:
    """Keys and values that Linux tells of all processors, one after the other; none where it tells nothing."""
    try:
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [(key.strip(), value.strip()) for key, _, value in pairs]
