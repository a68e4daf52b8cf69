"""Runs a command and watches what it takes: seconds, memory of its own, room on the disk.

Memory is what the kernel calls RssAnon, summed over the process and its children: mapped files and the page cache,
which the system takes back when it needs them, are not counted.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

EVERY = 0.05


@dataclass(frozen=True)
class Watched:
    """What a command took, and what it printed on stdout."""

    seconds: float
    anonymous_bytes: int
    disk_bytes: int
    printed: str


def run_watched(
    command: Sequence[str | Path], *, folders: Sequence[Path] = (), environment: Mapping[str, str] | None = None
) -> Watched:
    """Run a command to its end; `folders` are where the room that it takes is counted. Raises where it fails."""
    peaks = {"memory": 0, "disk": 0}
    begun = time.monotonic()
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | dict(environment or {}),
    )  # fmt: skip
    done = threading.Event()

    def watch() -> None:
        while not done.wait(EVERY):
            peaks["memory"] = max(peaks["memory"], anonymous_bytes(process.pid))
            if folders:
                peaks["disk"] = max(peaks["disk"], sum(map(bytes_in, folders)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate()
    done.set()
    watcher.join()
    seconds = time.monotonic() - begun
    if process.returncode:
        raise RuntimeError(f"{command[0]}: exit {process.returncode}\n{err.decode(errors='replace')[-2000:]}")
    return Watched(seconds, peaks["memory"], peaks["disk"], out.decode(errors="replace"))


def anonymous_bytes(pid: int) -> int:
    """Memory of a process and its children that no file stands behind."""
    total = 0
    with contextlib.suppress(psutil.Error, OSError):
        parent = psutil.Process(pid)
        for each in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error, OSError):
                status = Path(f"/proc/{each.pid}/status").read_text(encoding="ascii")
                total += sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))
    return total


def bytes_in(folder: Path) -> int:
    """Bytes on the disk of all files below a folder, holes not counted."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_blocks * 512
    return total
