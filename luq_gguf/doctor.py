"""What to think of a machine and of what is installed on it: facts in, findings out.

Pure: `doctor_facts` gathers the facts. Knows no model; what one takes is what `convert --dry-run` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from luq_gguf.artifacts import Record
from luq_gguf.machine import Machine

Mark = Literal["ok", "mind", "broken"]
GIB = 1 << 30
FEW_CORES = 4
LEAST_MEMORY, LEAST_ADDRESSES = 3 * GIB, 16 * GIB
"""The analysis of a 7B model takes about so much memory; of addresses a process has many more."""
LEAST_FREE = {"this folder": 20 * GIB, "hub's models": 20 * GIB, "temporary files": GIB}
"""A 7B checkpoint takes 15 GiB, a result with the 16-bit layer beside it 6."""
TEMPORARY, QUIET = "temporary files", "profiles"
"""A place that nothing goes without, and one that is told of only where it cannot be used."""
BUSY, STOLEN, THROTTLED, SWAPPED = 25.0, 5.0, 1.0, 0.25
"""Percent of the processors, the same, percent of periods, and a share of the memory."""
LEAST_FILES = 256
FAST_GOVERNORS = {"performance"}
INSTRUCTIONS = {
    "avx2": "AVX2", "avx512f": "AVX512", "avx512_vnni": "AVX512_VNNI", "avx_vnni": "AVX_VNNI", "amx_tile": "AMX_INT8",
    "avx512_bf16": "AVX512_BF16", "fma": "FMA", "f16c": "F16C", "neon": "NEON", "dotprod": "DOTPROD",
    "i8mm": "MATMUL_INT8", "sve": "SVE",
}  # fmt: skip
"""Vector instructions by the names of `machine` and of llama.cpp."""
COMPILE = "CMAKE_ARGS=-DGGML_NATIVE=ON pip install --force-reinstall --no-cache-dir --no-deps --no-binary :all:"


class Finding(Record):
    """What was looked at, what to think of it, what was found, and what to do about it ("" for nothing)."""

    name: str
    mark: Mark
    found: str
    hint: str = ""


class Library(Record):
    """A library that luq_gguf needs; `wanted` are the versions that it takes, `version` None where there is none."""

    name: str
    wanted: str
    version: str | None
    fits: bool


class Trial(Record):
    """What a library said when it was used in a process of its own; `problem` where that failed."""

    version: str | None = None
    problem: str | None = None


class LlamaTrial(Trial):
    """What llama.cpp said: its build and the instructions in it, by its names; and what became of our native module,
    which was built for `native_for`."""

    build: str | None = None
    instructions: tuple[str, ...] = ()
    native_for: str | None = None
    native_problem: str | None = None


class Place(Record):
    """A folder that is written to; bytes free, None where it cannot be told."""

    name: str
    folder: str
    free: int | None
    writable: bool


class Limits(Record):
    """What the system lets this program have; None and 0 where nothing limits. Bytes, processors, percent."""

    memory: int = Field(ge=0)
    group_memory: int | None = None
    addresses: int | None = None
    swap_total: int = 0
    swap_used: int = 0
    files: int | None = None
    processors: float | None = None
    throttled: float = 0.0
    threads: str | None = None


class Activity(Record):
    """What the machine did just now, in percent of its processors; `battery` where it runs on one."""

    busy: float
    stolen: float
    battery: bool = False


class KeptProfile(Record):
    """The profile of this CPU, where there is one; `others` are those of other CPUs or versions."""

    path: str
    found: bool
    busy: bool = False
    threads: tuple[int, ...] = ()
    others: int = 0
    problem: str | None = None


class Facts(Record):
    """Everything that the findings follow from."""

    luq_gguf: str
    python: str
    libraries: tuple[Library, ...]
    trials: dict[str, Trial]
    llama: LlamaTrial
    machine: Machine
    limits: Limits
    activity: Activity
    places: tuple[Place, ...]
    profile: KeptProfile


class Report(Record):
    """Facts and findings; usable where nothing is broken."""

    usable: bool
    findings: tuple[Finding, ...]
    facts: Facts


def examine(facts: Facts) -> Report:
    """Findings in the order in which they are shown."""
    findings = (
        *_versions(facts),
        *_trials(facts),
        *_llama(facts.llama, facts.machine),
        *_processor(facts.machine),
        *_slowness(facts),
        *_memory(facts.limits, facts.machine),
        *_places(facts.places),
        _profile(facts.profile),
    )
    return Report(usable=all(each.mark != "broken" for each in findings), findings=findings, facts=facts)


def _versions(facts: Facts) -> Iterator[Finding]:
    yield Finding(name="luq_gguf", mark="ok", found=f"{facts.luq_gguf}, Python {facts.python}")
    if not facts.libraries:
        yield Finding(
            name="libraries", mark="mind", found="luq_gguf is not installed: nobody knows which versions it needs",
            hint="install it: `pip install .` in its folder",
        )  # fmt: skip
        return
    wrong = [library for library in facts.libraries if not library.fits]
    for library in wrong:
        there = f"{library.version} is installed" if library.version else "not installed"
        yield Finding(
            name=library.name, mark="broken", found=f"{there}, luq_gguf needs {library.wanted or 'it'}",
            hint=f"pip install '{library.name}{library.wanted}'",
        )  # fmt: skip
    if not wrong:
        found = f"{len(facts.libraries)} are there in versions that luq_gguf takes"
        yield Finding(name="libraries", mark="ok", found=found)


def _trials(facts: Facts) -> Iterator[Finding]:
    for name, trial in facts.trials.items():
        if trial.problem is None:
            yield Finding(name=name, mark="ok", found=f"{trial.version} works")
        else:
            hint = f"pip install --force-reinstall {name}"
            yield Finding(name=name, mark="broken", found=f"cannot be used: {trial.problem}", hint=hint)


def _llama(llama: LlamaTrial, machine: Machine) -> Iterator[Finding]:
    again = f"{COMPILE} llama-cpp-python llama-cpp-python=={llama.native_for or llama.version or 'VERSION'}"
    alien = [name for name in _known(llama) if name not in _of_processor(machine)] if machine.flags else []
    if alien:
        found = f"compiled for another processor: this one has no {', '.join(alien)}"
        yield Finding(name="llama.cpp", mark="broken", found=found, hint=f"compile it here: {again}")
    elif llama.problem is not None:
        hint = f"install it again: {again}"
        yield Finding(name="llama.cpp", mark="broken", found=f"cannot be used: {llama.problem}", hint=hint)
    else:
        found = f"llama-cpp-python {llama.version}, {llama.build or 'build not told'}"
        yield Finding(name="llama.cpp", mark="ok", found=found)
        yield _instructions(llama, machine, again)
    if llama.problem is None:
        yield _native(llama)


def _known(llama: LlamaTrial) -> list[str]:
    return [name for name in INSTRUCTIONS.values() if name in llama.instructions]


def _of_processor(machine: Machine) -> list[str]:
    return [INSTRUCTIONS[flag] for flag in machine.flags if flag in INSTRUCTIONS]


def _instructions(llama: LlamaTrial, machine: Machine, again: str) -> Finding:
    """What the processor has and llama.cpp was compiled without; one form of VNNI is as good as the other."""
    missing = [name for name in _of_processor(machine) if name not in llama.instructions]
    if "AVX512_VNNI" in llama.instructions and "AVX_VNNI" in missing:
        missing.remove("AVX_VNNI")
    if missing:
        found = f"compiled without {', '.join(missing)}, which this processor has: slower than it could be"
        return Finding(name="instructions", mark="mind", found=found, hint=f"compile it here: {again}")
    found = f"llama.cpp uses {', '.join(_known(llama)) or 'none'}"
    return Finding(name="instructions", mark="ok", found=found)


def _native(llama: LlamaTrial) -> Finding:
    hint = "install luq_gguf again: pip install --force-reinstall --no-deps luq_gguf, or `make install` in its folder"
    if llama.native_problem is not None:
        found = f"cannot be used: {llama.native_problem}"
        return Finding(name="native module", mark="broken", found=found, hint=hint)
    if llama.native_for != llama.version:
        found = f"built for llama-cpp-python {llama.native_for}, {llama.version} is installed"
        return Finding(name="native module", mark="broken", found=found, hint=hint)
    return Finding(name="native module", mark="ok", found=f"built for llama-cpp-python {llama.native_for}, works")


def _processor(machine: Machine) -> Iterator[Finding]:
    flags = f"; {', '.join(machine.flags)}" if machine.flags else ""
    yield Finding(name="processor", mark="ok", found=f"{machine.cpu}, {machine.cores()}{flags}")
    if min(machine.usable, machine.physical_cores) < FEW_CORES:
        count = min(machine.usable, machine.physical_cores)
        yield Finding(
            name="cores", mark="mind", found=f"only {count}: IQ1 and IQ2 types are slower than Q4_K on so few",
            hint="measure it by `luq-gguf profile`; `--low-type auto` takes what slows nothing down",
        )  # fmt: skip
    if machine.flags and not {"avx2", "neon"} & set(machine.flags):
        found = "neither AVX2 nor NEON: every type is slow here"
        yield Finding(name="vectors", mark="mind", found=found, hint="convert on another machine")


def _slowness(facts: Facts) -> Iterator[Finding]:
    """What makes the processors slower than they are."""
    machine, limits, activity = facts.machine, facts.limits, facts.activity
    if machine.governor is not None:
        slow = sorted(set(machine.governor.split(", ")) - FAST_GOVERNORS)
        hint = "for measurements: sudo cpupower frequency-set -g performance" if slow else ""
        yield Finding(name="governor", mark="mind" if slow else "ok", found=machine.governor, hint=hint)
    if activity.battery:
        yield Finding(name="power", mark="mind", found="runs on its battery", hint="plug it in before long work")
    if activity.busy > BUSY:
        found = f"{activity.busy:.0f} % of the processors are busy with other programs"
        yield Finding(name="load", mark="mind", found=found, hint="close them before you measure; `top` names them")
    else:
        yield Finding(name="load", mark="ok", found=f"{activity.busy:.0f} % of the processors are busy")
    if activity.stolen > STOLEN:
        found = f"other virtual machines take {activity.stolen:.0f} % of the processors"
        yield Finding(name="neighbours", mark="mind", found=found, hint="measure at another time, with more --repeat")
    if limits.processors is not None and limits.processors < machine.usable:
        found = f"{limits.processors:g} of {machine.usable} processors are granted by the control group"
        hint = f"give as many threads: --threads {max(1, int(limits.processors))}, or raise the quota (docker --cpus)"
        yield Finding(name="quota", mark="mind", found=found, hint=hint)
    if limits.throttled > THROTTLED:
        found = f"the control group made programs wait in {limits.throttled:.0f} % of its periods"
        yield Finding(name="throttling", mark="mind", found=found, hint="fewer --threads, or a higher quota")
    if limits.threads is not None:
        found = f"OMP_NUM_THREADS={limits.threads} sets the threads of the analysis"
        yield Finding(name="threads", mark="mind", found=found, hint="unset OMP_NUM_THREADS for the full speed")


def _memory(limits: Limits, machine: Machine) -> Iterator[Finding]:
    found = f"{_gib(limits.memory)} can be had, {_gib(machine.memory_bytes)} in all"
    if limits.memory < LEAST_MEMORY:
        hint = "close other programs; `convert --dry-run` says what a model needs"
        yield Finding(name="memory", mark="mind", found=found, hint=hint)
    else:
        yield Finding(name="memory", mark="ok", found=found)
    if limits.group_memory is not None and limits.group_memory < machine.memory_bytes:
        found = f"{_gib(limits.group_memory)} at most for its control group"
        hint = "raise it where a dry run says that it is too little (docker --memory)"
        yield Finding(name="memory limit", mark="mind", found=found, hint=hint)
    if limits.addresses is not None and limits.addresses < LEAST_ADDRESSES:
        found = f"`ulimit` allows a process {_gib(limits.addresses)}"
        yield Finding(name="ulimit", mark="mind", found=found, hint="ulimit -v unlimited; ulimit -d unlimited")
    if limits.swap_used > SWAPPED * machine.memory_bytes:
        found = f"{_gib(limits.swap_used)} of memory lie on the disk"
        yield Finding(name="swap", mark="mind", found=found, hint="close other programs before you measure speeds")
    if limits.files is not None and limits.files < LEAST_FILES:
        found = f"`ulimit` allows {limits.files} open files"
        yield Finding(name="open files", mark="mind", found=found, hint="ulimit -n 1024")


def _places(places: tuple[Place, ...]) -> Iterator[Finding]:
    for place in places:
        found = _place(place)
        if found.mark != "ok" or place.name != QUIET:
            yield found


def _place(place: Place) -> Finding:
    name = place.name
    if not place.writable:
        hint = "set TMPDIR to a folder of yours" if name == TEMPORARY else "take another folder, or the right to write"
        found = f"{place.folder} cannot be written to"
        return Finding(name=name, mark="broken" if name == TEMPORARY else "mind", found=found, hint=hint)
    if place.free is None:
        hint = "see to it yourself that there is room"
        return Finding(name=name, mark="mind", found=f"the disk of {place.folder} tells nothing", hint=hint)
    found = f"{_gib(place.free)} free in {place.folder}"
    if place.free < LEAST_FREE.get(name, 0):
        return Finding(name=name, mark="mind", found=found, hint="free some; `convert --dry-run` says what is needed")
    return Finding(name=name, mark="ok", found=found)


def _profile(profile: KeptProfile) -> Finding:
    measure = "luq-gguf profile (about a minute)"
    if profile.problem is not None:
        hint = f"measure it again: {measure}"
        return Finding(name="profile", mark="mind", found=f"{profile.path}: {profile.problem}", hint=hint)
    if not profile.found:
        others = f" ({profile.others} of other processors or versions)" if profile.others else ""
        found = f"this processor was not measured{others}: plans do not say how fast a file will be"
        return Finding(name="profile", mark="mind", found=found, hint=measure)
    counts = ", ".join(map(str, profile.threads))
    if profile.busy:
        found = f"of this processor, {counts} threads, but other programs ran meanwhile"
        return Finding(name="profile", mark="mind", found=found, hint=f"measure when it is quiet: {measure}")
    return Finding(name="profile", mark="ok", found=f"of this processor, {counts} threads")


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
