"""Two benchmarks of the same files, held against each other: the same processor at two times, or two processors.

Takes two records, gives ratios with verdicts. Refuses to compare what was asked differently.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from luq_gguf.bench_record import BenchRecord, DecodeRun
from luq_gguf.bench_report import Report, Table, cpu_line, rate_cell, ratio_cell
from luq_gguf.bench_results import Timed, timed_run, tokens_per_second
from luq_gguf.bench_statistics import TOO_FEW, Interval, median_interval, unpaired_ratio, verdict
from luq_gguf.errors import RequestError


@dataclass(frozen=True)
class Change:
    """One phase of one file in both records: tokens a second, the new rate against the old one, and what that says."""

    file: str
    sha256: str
    threads: int
    phase: str
    old: Interval
    new: Interval
    ratio: Interval
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """What both records have in common, whether their processors are the same, and what to mind."""

    same_cpu: bool
    changes: tuple[Change, ...]
    cpus: tuple[str, str]
    notes: tuple[str, ...]


def compare_records(old: BenchRecord, new: BenchRecord) -> Comparison:
    """Every file with every number of threads that both have.

    Raises RequestError where prompts or generated tokens differ, or no file or no number of threads is in both.
    """
    for key in ("prompt", "generate"):
        before, after = getattr(old.settings, key), getattr(new.settings, key)
        if before != after:
            raise RequestError(f"--{key} was {before} in one run, {after} in the other", hint="measure both alike")
    hashes = {file.sha256 for file in old.files} & {file.sha256 for file in new.files}
    if not hashes:
        raise RequestError("the runs have no file in common, by SHA-256", hint="measure the same file in both")
    threads = [count for count in old.settings.threads if count in new.settings.threads]
    if not threads:
        counts = " and ".join(",".join(map(str, record.settings.threads)) for record in (old, new))
        raise RequestError(f"the runs have no number of threads in common: {counts}", hint="give both --threads")
    changes = [change for count in threads for change in _changes(old, new, count)]
    return Comparison(
        same_cpu=old.machine.same_cpu(new.machine),
        changes=tuple(changes),
        cpus=(cpu_line(old.machine), cpu_line(new.machine)),
        notes=(*_left_out(old, new, hashes, threads), *_differences(old, new), *_too_few(changes)),
    )


def comparison_report(found: Comparison) -> Report:
    """A table of the changes, and the processors below it."""
    rows = [
        (
            change.file,
            change.phase,
            str(change.threads),
            rate_cell(change.old),
            rate_cell(change.new),
            ratio_cell(change.ratio),
        )
        for change in found.changes
    ]
    columns = ("file", "what", "threads", "old tokens/s", "new tokens/s", "new against old")
    if found.same_cpu:
        lines = [f"the same CPU: {found.cpus[0]}"]
    else:
        lines = ["different CPUs", f"old: {found.cpus[0]}", f"new: {found.cpus[1]}"]
    return Report((Table("new against old", columns, tuple(rows)),), (*lines, *found.notes))


def _changes(old: BenchRecord, new: BenchRecord, threads: int) -> Iterator[Change]:
    runs = {new.files[run.file].sha256: run for run in reversed(new.runs) if run.threads == threads}
    seen: set[str] = set()
    for run in old.runs:
        file = old.files[run.file]
        if run.threads != threads or file.sha256 not in runs or file.sha256 in seen:
            continue
        seen.add(file.sha256)
        for before, after in zip(_timed(old, run), _timed(new, runs[file.sha256]), strict=True):
            rates = tokens_per_second(before), tokens_per_second(after)
            ratio = unpaired_ratio(*rates)
            yield Change(
                file=file.name,
                sha256=file.sha256,
                threads=threads,
                phase=before.phase,
                old=median_interval(rates[0]),
                new=median_interval(rates[1]),
                ratio=ratio,
                verdict=verdict(ratio),
            )


def _timed(record: BenchRecord, run: DecodeRun) -> tuple[Timed, Timed]:
    return timed_run(run, record.settings.prompt, record.settings.rounds)


def _left_out(old: BenchRecord, new: BenchRecord, hashes: set[str], threads: list[int]) -> Iterator[str]:
    for record, which in ((old, "old"), (new, "new")):
        files = [file.name for file in record.files if file.sha256 not in hashes]
        counts = [str(count) for count in record.settings.threads if count not in threads]
        if files:
            yield f"only in the {which} run: {', '.join(files)}"
        if counts:
            yield f"only in the {which} run: {', '.join(counts)} threads"


def _differences(old: BenchRecord, new: BenchRecord) -> Iterator[str]:
    """What else is not the same and may be what made the difference."""
    pairs = {
        "luq_gguf": (old.versions.luq_gguf, new.versions.luq_gguf),
        "llama-cpp-python": (old.versions.llama_cpp_python, new.versions.llama_cpp_python),
        "how llama.cpp was built": (old.versions.system_info, new.versions.system_info),
        "system": (old.machine.system, new.machine.system),
        "frequency governor": (old.machine.governor, new.machine.governor),
        "memory in bytes": (old.machine.memory_bytes, new.machine.memory_bytes),
        "processors it stayed on": (_processors(old), _processors(new)),
    }
    for what, (before, after) in pairs.items():
        if before != after:
            yield f"not the same: {what}: {before} before, {after} now"


def _processors(record: BenchRecord) -> str:
    return "any" if record.settings.cpus is None else ",".join(map(str, record.settings.cpus))


def _too_few(changes: list[Change]) -> Iterator[str]:
    if any(change.verdict == TOO_FEW for change in changes):
        yield "too few rounds to tell: measure four or more in each run, or six in one (--repeat)"
