"""What is told of processors, cores, memory and governors, from trees as Linux writes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luq_gguf import machine
from luq_gguf.artifacts import read_record, write_record
from luq_gguf.machine import Machine, describe_machine, free_memory, parse_cpu_list

GIB = 1 << 30
X86 = (
    "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu sse2 fma f16c avx2 avx512f avx512_vnni amx_tile avx_vnni\n"
)
ARM = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes asimddp sve i8mm bf16\nCPU part\t: 0xd40\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def write_cpu(system: Path, number: int, siblings: str, frequency: int | None = None, governor: str = "") -> None:
    folder = system / "devices/system/cpu" / f"cpu{number}"
    write(folder / "topology/thread_siblings_list", siblings)
    if frequency is not None:
        write(folder / "cpufreq/cpuinfo_max_freq", str(frequency))
    if governor:
        write(folder / "cpufreq/scaling_governor", governor)


def described(system: Path, info: str = "") -> Machine:
    write(system / "cpuinfo", info)
    return describe_machine(system, system / "cpuinfo")


def test_this_machine(tmp_path: Path):
    found = describe_machine()
    assert found.cpu
    assert 1 <= found.physical_cores <= found.logical_cores
    assert 1 <= found.usable <= found.logical_cores
    assert found.memory_bytes == psutil.virtual_memory().total
    assert found.system
    write_record(tmp_path / "machine.json", found)
    assert read_record(tmp_path / "machine.json", Machine) == found


@pytest.mark.parametrize(
    ("info", "flags"),
    [
        (X86, ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_tile", "fma", "f16c")),
        (ARM, ("neon", "dotprod", "i8mm", "sve")),
        ("processor\t: 0\nFeatures\t: half thumb neon vfpv4\n", ("neon",)),
        ("processor\t: 0\nflags\t\t: fpu sse2 avx22\n", ()),
        ("", ()),
    ],
)
def test_vector_instructions(tmp_path: Path, info: str, flags: tuple[str, ...]):
    assert described(tmp_path, info).flags == flags


def test_cores_of_two_kinds_on_intel(tmp_path: Path):
    """Eight performance cores with two threads each, sixteen efficiency cores."""
    write(tmp_path / "devices/cpu_core/cpus", "0-15")
    write(tmp_path / "devices/cpu_atom/cpus", "16-31")
    for cpu in range(32):
        write_cpu(tmp_path, cpu, f"{cpu - cpu % 2}-{cpu - cpu % 2 + 1}" if cpu < 16 else str(cpu), 5_000_000)
    found = described(tmp_path)
    assert (found.performance_cores, found.efficiency_cores) == (8, 16)
    assert " (8 performance, 16 efficiency)" in found.cores()


def test_cores_of_two_kinds_by_frequency(tmp_path: Path):
    for cpu, frequency in enumerate([1_800_000] * 4 + [2_800_000, 2_800_000, 2_400_000, 2_400_000]):
        write_cpu(tmp_path, cpu, str(cpu), frequency)
    found = described(tmp_path)
    assert (found.performance_cores, found.efficiency_cores) == (4, 4)


@pytest.mark.parametrize("frequencies", [[], [3_000_000] * 4, [5_700_000, 5_450_000, 5_200_000, 5_000_000]])
def test_cores_of_one_kind(tmp_path: Path, frequencies: list[int]):
    """One core of many boosts somewhat higher than the others."""
    for cpu, frequency in enumerate(frequencies):
        write_cpu(tmp_path, cpu, str(cpu), frequency)
    found = described(tmp_path)
    assert found.performance_cores is found.efficiency_cores is None
    assert "performance" not in found.cores()


def test_governors(tmp_path: Path):
    assert described(tmp_path).governor is None
    for cpu, governor in enumerate(["schedutil", "performance", "schedutil"]):
        write_cpu(tmp_path, cpu, str(cpu), governor=governor)
    assert described(tmp_path).governor == "performance, schedutil"


def test_broken_trees_tell_nothing(tmp_path: Path):
    write_cpu(tmp_path, 0, "0")
    write(tmp_path / "devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "<unknown>")
    (tmp_path / "devices/system/cpu/cpu0/cpufreq/scaling_governor").mkdir()
    found = described(tmp_path)
    assert (found.performance_cores, found.governor) == (None, None)


def test_processors_that_may_not_be_used_are_said():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from luq_gguf.machine import describe_machine\nfound = describe_machine()\nprint(found.usable, found.cores())"
    )
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert said.startswith("1 ")
    assert ("1 of them usable" in said) == (describe_machine().logical_cores > 1)


def test_machines_differ_by_their_processors():
    this = describe_machine()
    assert this.same_cpu(this.model_copy(update={"memory_bytes": 1, "governor": "powersave", "system": "another"}))
    for key, value in (("cpu", "another"), ("physical_cores", 99), ("flags", ("sve",)), ("efficiency_cores", 9)):
        assert not this.same_cpu(this.model_copy(update={key: value}))


def available(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    memory = psutil.virtual_memory()._replace(available=count)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: memory)


def test_free_memory_is_what_the_system_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    available(monkeypatch, 5 * GIB)
    assert free_memory(tmp_path) == 5 * GIB


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("limit", "used", "files", "free"),
    [
        (2 * GIB, 1 * GIB, 0, 1 * GIB),
        (2 * GIB, 2 * GIB, 1 * GIB, 1 * GIB),
        (9 * GIB, 1 * GIB, 0, 5 * GIB),
        (1 * GIB, 2 * GIB, 0, 0),
        (None, 2 * GIB, 0, 5 * GIB),
    ],
)
def test_a_control_group_limits_it(monkeypatch, tmp_path: Path, version: int, limit, used: int, files: int, free: int):
    available(monkeypatch, 5 * GIB)
    names = machine.GROUP_FILES[2 - version]
    write(tmp_path / names[0], "max" if limit is None else str(limit))
    write(tmp_path / names[1], str(used))
    write(tmp_path / names[2], f"anon {used - files}\nactive_file {files // 2}\ninactive_file {files - files // 2}")
    assert free_memory(tmp_path) == free


def test_lists_of_processors():
    assert parse_cpu_list("0") == (0,)
    assert parse_cpu_list("8, 0-3,2") == (0, 1, 2, 3, 8)


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "0-99999999", "1.5", "0-3-5"])
def test_what_is_no_list(text: str):
    with pytest.raises(ValueError, match=r"."):
        parse_cpu_list(text)


@given(st.sets(st.integers(0, 200), min_size=1))
def test_lists_round_trip(cpus: set[int]):
    assert parse_cpu_list(",".join(map(str, cpus))) == tuple(sorted(cpus))
