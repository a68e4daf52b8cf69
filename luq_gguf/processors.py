"""How many threads work on this machine when nobody says."""

from __future__ import annotations

import os
import sys

import psutil


def default_threads() -> int:
    """Physical cores, or the processors that this process may use where those are fewer."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))
