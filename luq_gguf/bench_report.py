"""The forms of a benchmark: plain tables, Markdown, CSV, a plot of threads.

Takes a record, gives text, or writes an image. The numbers come from `bench_results`.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from luq_gguf.artifacts import atomic_path
from luq_gguf.bench_record import BenchRecord
from luq_gguf.bench_results import ENCODING, GENERATION, IMAGE, PROMPT, Speed, bandwidth_rate, speeds, type_shares
from luq_gguf.bench_statistics import CONFIDENCE, LEAST_ROUNDS, Interval, verdict
from luq_gguf.errors import RequestError, printable
from luq_gguf.machine import Machine

PLOTS = (".pdf", ".png", ".svg")
COLUMNS = (
    "file", "sha256", "bytes", "bits_per_weight", "cpu", "threads", "phase", "tokens", "rounds", "tokens_per_second",
    "tokens_per_second_low", "tokens_per_second_high", "ms_per_token", "ratio_to_first", "ratio_low", "ratio_high",
    "verdict", "gigabytes_per_second", "share_of_bandwidth", "time_by_type", "date",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A title, names of columns, and rows of cells; the first column is text, the others figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Report:
    """Tables, and lines below them."""

    tables: tuple[Table, ...]
    lines: tuple[str, ...]


def report_of(record: BenchRecord) -> Report:
    """What a benchmark says: a table a phase and number of threads, one of the files, and what it was measured on."""
    found = speeds(record)
    groups = dict.fromkeys((speed.phase, speed.threads) for speed in found)
    tables = [
        _speed_table(record, [speed for speed in found if (speed.phase, speed.threads) == group]) for group in groups
    ]
    times = [_time_table(record, count) for count in record.settings.threads if record.types]
    return Report((*tables, *times, _file_table(record)), (*machine_lines(record), *_notes(record, found)))


def format_text(report: Report) -> str:
    """Aligned columns for a terminal."""
    parts = [f"{printable(table.title)}\n{_aligned(table)}" for table in report.tables]
    return "\n\n".join([*parts, "\n".join(map(printable, report.lines))])


def format_markdown(report: Report) -> str:
    """Tables as GitHub and most forums show them."""
    parts = []
    for table in report.tables:
        rule = "|".join(["---", *["---:"] * (len(table.columns) - 1)])
        rows = ["| " + " | ".join(map(_escaped, cells)) + " |" for cells in (table.columns, *table.rows)]
        parts.append(f"**{_escaped(table.title)}**\n\n" + "\n".join([rows[0], f"|{rule}|", *rows[1:]]))
    return "\n\n".join([*parts, "\n".join(f"- {_escaped(line)}" for line in report.lines)])


def format_csv(record: BenchRecord) -> str:
    """A row for each file, number of threads and phase, with a line of names; numbers are not rounded."""
    shares = type_shares(record)
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(COLUMNS)
    for speed in speeds(record):
        file, ratio = record.files[speed.file], speed.ratio
        writer.writerow(
            [
                file.name, file.sha256, file.bytes, file.bits_per_weight, record.machine.cpu, speed.threads,
                speed.phase, speed.tokens, record.settings.rounds, speed.rate.median, speed.rate.low, speed.rate.high,
                speed.milliseconds.median, *([ratio.median, ratio.low, ratio.high] if ratio else [""] * 3),
                verdict(ratio) if ratio else "", speed.gigabytes, speed.share,
                " ".join(f"{kind}={share}" for kind, share in shares.get(_place(speed), {}).items()),
                record.date.isoformat(),
            ]
        )  # fmt: skip
    return target.getvalue()


def check_plot(path: Path, threads: Sequence[int]) -> None:
    """Raise RequestError where no plot of these numbers of threads can be written to `path`."""
    if path.suffix.lower() not in PLOTS:
        raise RequestError(f"{path} is no name of a plot", hint=f"let it end in {', '.join(PLOTS)}")
    if len(threads) < 2:
        raise RequestError("a plot needs two numbers of threads", hint="sweep, for example with --threads 1,2,4")


def draw_plot(record: BenchRecord, path: Path) -> None:
    """Tokens a second against threads for each file, prompt and generation apart, with their intervals."""
    from matplotlib.figure import Figure

    found, labels = speeds(record), record.labels()
    figure = Figure(figsize=(11, 5), layout="constrained")
    for axes, phase in zip(figure.subplots(1, 2), (PROMPT, GENERATION), strict=True):
        for place, label in enumerate(labels):
            line = sorted((s for s in found if s.phase == phase and s.file == place), key=lambda speed: speed.threads)
            rates = [speed.rate for speed in line]
            reach = [[rate.median - rate.low for rate in rates], [rate.high - rate.median for rate in rates]]
            counts, medians = [speed.threads for speed in line], [rate.median for rate in rates]
            axes.errorbar(
                counts, medians, yerr=reach, marker="o", capsize=3, label=printable(label).replace("$", r"\$")
            )
        axes.set(title=phase, xlabel="threads", ylabel="tokens/s", xticks=sorted(record.settings.threads))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.suptitle(printable(record.machine.cpu).replace("$", r"\$"))
    with atomic_path(path) as partial:
        figure.savefig(partial, format=path.suffix[1:].lower(), dpi=120)


def machine_lines(record: BenchRecord) -> list[str]:
    """What a benchmark was measured on and with."""
    machine, versions = record.machine, record.versions
    return [
        f"{cpu_line(machine)}; {machine.memory_bytes / 2**30:.1f} GiB of memory; {machine.system}",
        (
            f"frequency governor: {machine.governor or 'not told'}; "
            f"vector instructions: {' '.join(machine.flags) or 'not told'}"
        ),
        f"luq_gguf {versions.luq_gguf}, llama-cpp-python {versions.llama_cpp_python}, {record.date:%Y-%m-%d %H:%M} UTC",
    ]


def cpu_line(machine: Machine) -> str:
    """A processor in words."""
    return f"{machine.cpu}, {machine.cores()}"


def ratio_cell(ratio: Interval) -> str:
    """A ratio, its interval, and what it says."""
    return f"{ratio.median:.3f} ({ratio.low:.3f} .. {ratio.high:.3f}) {verdict(ratio)}"


def rate_cell(rate: Interval) -> str:
    """A rate and its interval."""
    return f"{_figure(rate.median)} ({_range(rate)})"


def _speed_table(record: BenchRecord, found: Sequence[Speed]) -> Table:
    labels, first = record.labels(), found[0]
    whole = first.phase in (ENCODING, IMAGE)
    span = "95 % interval" if first.rate.confidence >= CONFIDENCE else "range of rounds"
    columns = ["file", "tokens/s", span, "ms/image" if whole else "ms/token"]
    generation = first.phase == GENERATION
    rows = []
    for speed in found:
        milliseconds = speed.milliseconds.median * (speed.tokens if whole else 1)
        cells = [labels[speed.file], _figure(speed.rate.median), _range(speed.rate), _figure(milliseconds)]
        if speed.gigabytes is not None and speed.share is not None:
            cells += [f"{speed.gigabytes:.1f}", f"{100 * speed.share:.0f} %"]
        if len(record.files) > 1:
            cells.append(ratio_cell(speed.ratio) if speed.ratio else "1")
        rows.append(tuple(cells))
    columns += ["GB/s", "of memory's"] if generation else []
    columns += [f"against {labels[0]}"] if len(record.files) > 1 else []
    tokens = record.settings.generate if generation else first.tokens
    title = f"{first.phase}, {tokens:,} tokens, {_threads(first.threads)}"
    return Table(title, tuple(columns), tuple(rows))


def _time_table(record: BenchRecord, threads: int) -> Table:
    """Which types of weights the time goes to."""
    shares, rows = type_shares(record), []
    for place, label in enumerate(record.labels()):
        rows.append((label, *(_kinds(shares[phase, threads, place]) for phase in (PROMPT, GENERATION))))
    return Table(f"time by type, {_threads(threads)}", ("file", PROMPT, GENERATION), tuple(rows))


def _place(speed: Speed) -> tuple[str, int, int]:
    return speed.phase, speed.threads, speed.file


def _kinds(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {100 * share:.1f} %" for kind, share in shares.items()) or "not told"


def _file_table(record: BenchRecord) -> Table:
    """Size and tensor types of every file, and how long it takes to load."""
    rows = []
    for place, (label, file) in enumerate(zip(record.labels(), record.files, strict=True)):
        loads = [nanoseconds for run in record.runs if run.file == place for nanoseconds in run.load_ns]
        load = _figure(statistics.median(loads) / 1e6)
        sizes = f"{file.bytes / 2**20:,.2f}", f"{file.bits_per_weight:.2f}"
        rows.append((label, *sizes, load, _kinds(file.type_shares)))
    return Table("files", ("file", "MiB", "bits/weight", "load ms", "bytes by type"), tuple(rows))


def _notes(record: BenchRecord, found: Sequence[Speed]) -> list[str]:
    """How to read the numbers, and what to mind."""
    asked = record.settings
    rates = ", ".join(f"{bandwidth_rate(record, count):.1f} GB/s with {_threads(count)}" for count in asked.threads)
    pinned = f", on processors {', '.join(map(str, asked.cpus))}" if asked.cpus else ""
    held = f"at most {record.peak_memory / 2**20:,.0f} MiB of memory held"
    lines = [f"{asked.rounds} rounds in turn{pinned}; memory: {rates}; {held}"]
    if asked.rounds < LEAST_ROUNDS:
        confidence = found[0].rate.confidence
        lines.append(
            f"{asked.rounds} rounds: the median lies within their range with {100 * confidence:.0f} %; "
            f"for 95 % take {LEAST_ROUNDS} or more (--repeat)"
        )
    if any(speed.share is not None and speed.share > 1 for speed in found):
        lines.append("above 100 % of the memory's bandwidth: those weights fit into the processor's cache")
    lines += asked.image.doubts if asked.image else ()
    usable = len(asked.cpus) if asked.cpus else record.machine.usable
    if max(asked.threads) > usable:
        lines.append(f"more threads than the {usable} processors in use: they wait for each other")
    return lines


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _range(interval: Interval) -> str:
    return f"{_figure(interval.low)} .. {_figure(interval.high)}"


def _figure(value: float) -> str:
    """Four digits that mean something, thousands set off."""
    digits = 0 if value >= 1000 else 1 if value >= 100 else 2 if value >= 10 else 3
    return f"{value:,.{digits}f}"


def _aligned(table: Table) -> str:
    rows = [[printable(cell) for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_joined(row, widths) for row in rows)


def _joined(row: Sequence[str], widths: Iterable[int]) -> str:
    cells = [
        cell.rjust(width) if place else cell.ljust(width)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _escaped(text: str) -> str:
    """Text that Markdown takes for nothing else."""
    return "".join(f"\\{mark}" if mark in "\\`*_[]<>|#" else mark for mark in printable(text))
