"""`luq-gguf bench` and `bench-compare`: how fast files are on this CPU, and what changed since or elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from luq_gguf.cli import options
from luq_gguf.cli.progress import show_progress
from luq_gguf.cli.speed import parse_threads
from luq_gguf.errors import RequestError

if TYPE_CHECKING:
    from luq_gguf.bench_record import BenchRecord, Measured
    from luq_gguf.bench_run import BenchRequest

STDOUT = "-"
FORMS = {"--json": (".json",), "--csv": (".csv",), "--markdown": (".md", ".markdown")}
"""The options that take a file or none, and how the names of their files end."""


class BenchCommand(TyperCommand):
    """A command whose forms may be named without a file: what follows them is one only where its name says so."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put "-" for standard output behind every form without a file."""
        return super().parse_args(ctx, name_outputs(args))


def name_outputs(args: Sequence[str]) -> list[str]:
    """The arguments with "-" behind every form without a file, so that none takes a model for its file."""
    named: list[str] = []
    for place, word in enumerate(args):
        named.append(word)
        following = args[place + 1] if place + 1 < len(args) else ""
        if word in FORMS and following != STDOUT and not following.lower().endswith(FORMS[word]):
            named.append(STDOUT)
    return named


@dataclass(frozen=True)
class Outputs:
    """Where each form goes; "-" is standard output."""

    json: str | None
    csv: str | None
    markdown: str | None
    plot: Path | None

    def files(self) -> list[Path]:
        """The files that will be written."""
        named = [Path(name) for name in (self.json, self.csv, self.markdown) if name not in (None, STDOUT)]
        return [*named, *([self.plot] if self.plot else [])]

    def printed(self) -> str | None:
        """The form that takes the place of the table on standard output; raises RequestError for several."""
        forms = [form for form in ("json", "csv", "markdown") if getattr(self, form) == STDOUT]
        if len(forms) > 1:
            names = " and ".join(f"--{form}" for form in forms)
            raise RequestError(f"{names} cannot both be printed", hint="give one of them a file")
        return forms[0] if forms else None


def bench(
    files: Annotated[list[Path], typer.Argument(help="GGUF files; the others are held against the first.")],
    prompt: Annotated[
        int, typer.Option("--prompt", min=1, help="Tokens of the prompt.", rich_help_panel=options.MEASUREMENT)
    ] = 128,
    generate: Annotated[
        int,
        typer.Option("--generate", min=1, help="Tokens decoded one at a time.", rich_help_panel=options.MEASUREMENT),
    ] = 32,
    rounds: Annotated[
        int,
        typer.Option(
            "--repeat",
            "--rounds",
            min=1,
            help="Rounds in which the files take turns.",
            rich_help_panel=options.MEASUREMENT,
        ),
    ] = 6,
    threads: Annotated[
        str,
        typer.Option(
            "--threads",
            help="Threads, or several to sweep: 1,2,4; 0 takes one for each core.",
            rich_help_panel=options.MEASUREMENT,
        ),
    ] = "0",
    mmproj: Annotated[
        Path | None,
        typer.Option(
            "--mmproj",
            help="A vision part, to measure --image with.",
            show_default=False,
            rich_help_panel=options.MEASUREMENT,
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option("--image", help="An image to look at.", show_default=False, rich_help_panel=options.MEASUREMENT),
    ] = None,
    cpus: Annotated[
        str | None,
        typer.Option(
            "--cpus", help="Stay on these processors: 0-3,8.", show_default=False, rich_help_panel=options.MEASUREMENT
        ),
    ] = None,
    json_out: Annotated[
        str | None,
        typer.Option(
            "--json",
            metavar="[FILE.json]",
            help="Write the record, with every sample, for bench-compare; without FILE print the samples.",
            show_default=False,
            rich_help_panel=options.RESULTS,
        ),
    ] = None,
    csv_out: Annotated[
        str | None,
        typer.Option(
            "--csv",
            metavar="[FILE.csv]",
            help="Write a row for each file, threads and phase; without FILE print them.",
            show_default=False,
            rich_help_panel=options.RESULTS,
        ),
    ] = None,
    markdown: Annotated[
        str | None,
        typer.Option(
            "--markdown",
            metavar="[FILE.md]",
            help="Write the tables for a README or a forum; without FILE print them.",
            show_default=False,
            rich_help_panel=options.RESULTS,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            help="Draw tokens/s against threads (PNG, SVG, PDF).",
            show_default=False,
            rich_help_panel=options.RESULTS,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Measure files larger than the free memory, too.", rich_help_panel=options.MEASUREMENT
        ),
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Measure how fast GGUF files are on this CPU, in turn, and whether they differ by more than noise.

    Example: luq-gguf bench model-Q4_K_M.gguf model-LUQ.gguf --threads 1,2,4 --json mine.json
    """
    from luq_gguf.bench_run import BenchRequest, run_bench

    outputs = Outputs(json_out, csv_out, markdown, plot)
    request = BenchRequest(
        files=tuple(files), prompt=prompt, generate=generate, rounds=rounds, threads=parse_sweep(threads),
        cpus=parse_cpus(cpus), mmproj=mmproj, image=image, force=force,
    )  # fmt: skip
    check_outputs(outputs, request)
    with show_progress() as progress:
        record, measured = run_bench(request, progress)
    print_results(record, measured, outputs.printed())
    write_results(record, outputs)


def bench_compare(
    old: Annotated[Path, typer.Argument(help="What `luq-gguf bench --json FILE` wrote before, or elsewhere.")],
    new: Annotated[Path, typer.Argument(help="What it wrote now, or here.")],
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Hold two benchmarks of the same files against each other: another version, another day, another CPU.

    Example: luq-gguf bench-compare laptop.json server.json
    """
    from luq_gguf.artifacts import read_record
    from luq_gguf.bench_compare import compare_records, comparison_report
    from luq_gguf.bench_record import BenchRecord
    from luq_gguf.bench_report import format_text

    found = compare_records(read_record(old, BenchRecord), read_record(new, BenchRecord))
    typer.echo(json.dumps(asdict(found)) if as_json else format_text(comparison_report(found)))


def parse_sweep(text: str) -> tuple[int, ...]:
    """Numbers of threads of --threads; () for "0", which takes one for each core. Raises RequestError."""
    return () if text.strip() == "0" else parse_threads(text)


def parse_cpus(text: str | None) -> tuple[int, ...] | None:
    """Processors of --cpus, None where it was not given; raises RequestError."""
    from luq_gguf.machine import parse_cpu_list

    try:
        return None if text is None else parse_cpu_list(text)
    except ValueError as error:
        raise RequestError(f"--cpus is {text!r}", hint="name processors like 0-3,8") from error


def check_outputs(outputs: Outputs, request: BenchRequest) -> None:
    """Raise RequestError, before anything is measured, for a form that could not be written or would destroy a file."""
    from luq_gguf.bench_report import check_plot

    outputs.printed()
    if outputs.plot is not None:
        check_plot(outputs.plot, request.counts())
    read = {path.resolve() for path in (*request.files, request.mmproj, request.image) if path is not None}
    written: set[Path] = set()
    for target in outputs.files():
        if target.is_dir():
            raise RequestError(f"{target} is a folder", hint="name a file in it")
        if target.resolve() in read | written or target.suffix == ".gguf":
            raise RequestError(f"{target} would be overwritten", hint="give another name")
        written.add(target.resolve())


def print_results(record: BenchRecord, measured: Measured, form: str | None) -> None:
    """The table, or the form that was asked for instead."""
    from luq_gguf.bench_report import format_csv, format_markdown, format_text, report_of

    if form == "json":
        typer.echo(json.dumps([asdict(sample) for sample in measured.decodes]))
    elif form == "csv":
        typer.echo(format_csv(record), nl=False)
    elif form == "markdown":
        typer.echo(format_markdown(report_of(record)))
    else:
        typer.echo(format_text(report_of(record)))


def write_results(record: BenchRecord, outputs: Outputs) -> None:
    """Write every form that has a file."""
    from luq_gguf.artifacts import write_record, write_text
    from luq_gguf.bench_report import draw_plot, format_csv, format_markdown, report_of

    if outputs.json not in (None, STDOUT):
        write_record(Path(outputs.json), record)
    if outputs.csv not in (None, STDOUT):
        write_text(Path(outputs.csv), format_csv(record))
    if outputs.markdown not in (None, STDOUT):
        write_text(Path(outputs.markdown), format_markdown(report_of(record)) + "\n")
    if outputs.plot is not None:
        draw_plot(record, outputs.plot)
    if outputs.printed() is None and outputs.files():
        typer.echo("\nwrote " + ", ".join(map(str, outputs.files())))
