"""The program as a user starts it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

Run = subprocess.CompletedProcess[str]
QUICK = ("--low-type", "Q2_K", "--samples", "10", "--threads", "1")
"""Options of a conversion that takes seconds."""


def command(*arguments: str | int | Path) -> list[str]:
    return [sys.executable, "-m", "luq_gguf", *map(str, arguments)]


def run_program(*arguments: str | int | Path, timeout: float = 600) -> Run:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=timeout, check=False)
