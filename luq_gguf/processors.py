"""What this machine's processor is called, and how many threads work on it when nobody says."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import psutil


def default_threads() -> int:
    """Physical cores, or the processors that this process may use where those are fewer."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return next((name for name in names if name), platform.processor() or platform.machine() or "unknown")
