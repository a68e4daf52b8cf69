"""The program as a user starts it, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

Run = subprocess.CompletedProcess[str]
QUICK = ("--calib", "shapes", "--low-type", "Q2_K", "--samples", "10", "--threads", "1")
"""Options of a conversion that takes seconds."""


def command(*arguments: str | int | Path) -> list[str]:
    return [sys.executable, "-m", "luq_gguf", *map(str, arguments)]


def run_program(*arguments: str | int | Path, timeout: float = 600) -> Run:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=timeout, check=False)


def result_of(done: Run) -> dict[str, Any]:
    """The JSON object that a run printed."""
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of the last change of every file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def dead_process() -> int:
    """The number of a process that is gone."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid
