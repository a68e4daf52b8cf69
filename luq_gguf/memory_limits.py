"""How much memory this program can still have: what the system has free, swap, control groups and `ulimit`.

Takes what Linux tells; what a system does not tell limits nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

from luq_gguf.machine import GROUP_FILES, SYSTEM, free_memory

GROUPS = SYSTEM / "fs/cgroup"
MEMBERSHIP = Path("/proc/self/cgroup")
LIMIT_FILES = tuple(limit for limit, *_ in GROUP_FILES)
UNLIMITED = 1 << 60
"""Version 1 of control groups writes about so much where there is no limit."""
SWAP_FILES = ("memory.swap.max", "memory.swap.current")


def available_memory(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int:
    """Bytes that all processes of this program can have: those that it has, and those that can still be had.

    Of the system and of each of the process' control groups the least counts; swap counts as far as the groups let it.
    """
    folders = [groups, *own_groups(groups, membership)]
    free = min(free_memory(folder) for folder in folders)
    swap = min([int(psutil.swap_memory().free), *(left for folder in folders for left in _swap_left(folder))])
    return free + swap + int(psutil.Process().memory_info().rss)


def group_limit(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int | None:
    """Bytes that the process' control groups allow it; None without limit."""
    found: list[int] = []
    for folder in (groups, *own_groups(groups, membership)):
        for name in LIMIT_FILES:
            with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
                found.append(int((folder / name).read_text()))
    return min((limit for limit in found if limit < UNLIMITED), default=None)


def process_limit() -> int | None:
    """Bytes that one process may have by `ulimit -v` and `ulimit -d`; None without limit, or where there are none.

    The first counts addresses, of which a process has more than memory: only what is far too little is found so.
    """
    try:
        import resource
    except ImportError:
        return None
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=None)


def own_groups(groups: Path, membership: Path) -> Iterator[Path]:
    """The folders of the process' control group and of those around it, the innermost first."""
    with contextlib.suppress(OSError):
        for line in membership.read_text(encoding="utf-8").splitlines():
            number, controllers, path = (*line.split(":", 2), "", "")[:3]
            if number == "0" and not controllers:
                inner = groups / path.lstrip("/")
                yield from (place for place in (inner, *inner.parents) if groups in place.parents)


def _swap_left(folder: Path) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
        limit, used = (int((folder / name).read_text()) for name in SWAP_FILES)
        yield max(0, limit - used)
