"""How much memory there is: the system, swap, control groups, `ulimit`."""

from __future__ import annotations

import resource
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from luq_gguf.memory_limits import available_memory, process_limit

GIB = 1 << 30
OWN = 100 << 20


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch):
    """Sets what the system has available and free in swap; this program has 100 MiB."""

    def have(available: int, swap: int = 0) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
        monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=swap))
        process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=OWN))
        monkeypatch.setattr(psutil, "Process", lambda: process)

    return have


def group(folder: Path, limit: int | str, used: int, files: int = 0, swap: int | str = "max") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - files}\ninactive_file {files}\n")
    (folder / "memory.swap.max").write_text(f"{swap}\n")
    (folder / "memory.swap.current").write_text("0\n")


def test_it_is_what_the_system_has_with_swap_and_what_the_program_has(system, tmp_path: Path) -> None:
    system(3 * GIB, 2 * GIB)
    assert available_memory(tmp_path, tmp_path / "none") == 5 * GIB + OWN


def test_the_process_own_group_and_those_around_it_limit(system, tmp_path: Path) -> None:
    system(8 * GIB)
    membership = tmp_path / "cgroup"
    membership.write_text("0::/user.slice/mine.scope\n")
    groups = tmp_path / "groups"
    group(groups / "user.slice/mine.scope", "max", GIB)
    assert available_memory(groups, membership) == 8 * GIB + OWN
    group(groups / "user.slice", 4 * GIB, 2 * GIB, files=GIB)
    assert available_memory(groups, membership) == 3 * GIB + OWN
    group(groups / "user.slice/mine.scope", 2 * GIB, GIB)
    assert available_memory(groups, membership) == GIB + OWN
    group(groups / "other.slice", 1, 1)
    assert available_memory(groups, membership) == GIB + OWN


def test_a_group_without_swap_gets_none(system, tmp_path: Path) -> None:
    system(8 * GIB, 4 * GIB)
    group(tmp_path, 2 * GIB, GIB, swap=0)
    assert available_memory(tmp_path, tmp_path / "none") == GIB + OWN
    group(tmp_path, 2 * GIB, GIB, swap=GIB // 2)
    assert available_memory(tmp_path, tmp_path / "none") == GIB + GIB // 2 + OWN


def test_a_membership_that_leads_out_of_the_groups_counts_for_nothing(system, tmp_path: Path) -> None:
    system(8 * GIB)
    (tmp_path / "cgroup").write_text("0::/../../elsewhere\nnonsense\n4:memory:/old\n")
    assert available_memory(tmp_path / "groups", tmp_path / "cgroup") == 8 * GIB + OWN


def test_a_limit_of_the_process_is_the_smaller_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_AS: resource.RLIM_INFINITY, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], resource.RLIM_INFINITY))
    assert process_limit() is None
    limits[resource.RLIMIT_AS] = 3 * GIB
    assert process_limit() == 3 * GIB
    limits[resource.RLIMIT_DATA] = GIB
    assert process_limit() == GIB
