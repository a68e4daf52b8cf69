"""`eval`: the quality of files, as a table or JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luq_gguf.amounts import format_bytes
from luq_gguf.cli import completion, options
from luq_gguf.cli.progress import show_progress
from luq_gguf.cli.tables import format_interval, make_table, render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from luq_gguf.judging import Quality
    from luq_gguf.quality import Evaluation
    from luq_gguf.vqa.asking import BenchmarkResult


FIGURES = {
    "agreement": ("same token, %", "{:.1f}", 100.0),
    "divergence": ("KL, nats a token", "{:.4f}", 1.0),
    "perplexity": ("perplexity of the answers", "{:.3f}", 1.0),
    "exact": ("answers word for word, %", "{:.1f}", 100.0),
    "reference_exact": ("those of 16 bits, %", "{:.1f}", 100.0),
}
"""How each figure is shown: its name, its form, and what it is multiplied with."""


def evaluate(
    models: Annotated[list[Path], typer.Argument(help="Text GGUFs or bundles.")],
    mmproj: Annotated[
        Path | None,
        typer.Option(
            "--mmproj",
            help="Their vision part; a bundle brings its own.",
            show_default=False,
            rich_help_panel=options.MEASUREMENT,
        ),
    ] = None,
    ref: Annotated[
        Path | None,
        typer.Option(
            "--ref",
            help="What is right: the folder of `analyze` or `convert`, or a 16-bit GGUF.",
            show_default=False,
            rich_help_panel=options.MEASUREMENT,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Labelled questions (JSONL ...), or the benchmark's table.",
            show_default=False,
            rich_help_panel=options.MEASUREMENT,
        ),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            "--benchmark",
            help="mme, mmbench, textvqa, vqav2, gqa, pope, chartqa, docvqa, mathvista; --data is VLMEvalKit's TSV.",
            show_default=False,
            autocompletion=completion.benchmarks,
            rich_help_panel=options.MEASUREMENT,
        ),
    ] = None,
    image_max_tokens: options.ImageMaxTokens = None,
    skip_bad: options.SkipBad = False,
    work: options.Work = None,
    threads: options.Threads = 0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure how good a file is: what it says against the 16-bit model, and what it scores on labelled questions.

    An evaluation that was stopped goes on where it was.

    Example: luq-gguf eval model-LUQ.gguf --mmproj mmproj-model-F16.gguf --ref qwen
    """
    from luq_gguf.quality import EvaluationRequest, run_evaluation

    request = EvaluationRequest(
        tuple(models), mmproj, ref, data, benchmark, image_max_tokens, skip_bad=skip_bad, work=work, threads=threads
    )
    with show_progress() as progress:
        found = run_evaluation(request, progress)
    if as_json:
        typer.echo(json.dumps([each.model_dump() | {"accuracy_drop": each.accuracy_drop} for each in found]))
    else:
        typer.echo(format_evaluations(found))


def format_evaluations(found: Sequence[Evaluation]) -> str:
    """Every file's figures with their intervals."""
    parts: list[Table | str] = []
    for each in found:
        parts.append(f"{each.model}: {format_bytes(each.size_bytes)} ({each.size_bytes:,} bytes)")
        if each.quality is not None:
            parts += ["", *quality_parts(each.quality)]
        if each.benchmark is not None:
            parts += ["", *_benchmark_parts(each)]
        parts.append("")
    return render(*parts)


def quality_parts(quality: Quality) -> list[Table | str]:
    """Agreement, divergence and the rest, apart for questions about images and others."""
    from luq_gguf.judging import KINDS

    groups = quality.groups
    table = make_table(f"against {quality.reference}", ("95 % intervals", *(KINDS.get(name, name) for name in groups)))
    table.add_row("answers", *(f"{group.samples:,}" for group in groups.values()))
    table.add_row("tokens", *(f"{group.tokens:,}" for group in groups.values()))
    for name, (title, form, factor) in FIGURES.items():
        table.add_row(title, *(format_interval(group.figures[name], form, factor) for group in groups.values()))
    return [table]


def _benchmark_parts(evaluation: Evaluation) -> list[Table | str]:
    result, full = evaluation.benchmark, evaluation.reference_benchmark
    assert result is not None
    table = make_table(
        f"{result.benchmark}, {result.questions:,} questions of {result.data}, 95 % intervals",
        ("figure", "this file", *(["16 bits"] if full else [])),
    )
    for name, estimate in result.figures.items():
        table.add_row(name, format_interval(estimate, "{:.1f}"), *([_of(full, name)] if full else []))
    lines = [result.note] if result.note else []
    if result.left_out:
        lines.append(f"{result.left_out:,} questions could not be asked")
    if evaluation.accuracy_drop is not None:
        lines.append(f"drop against 16 bits: {100 * evaluation.accuracy_drop:.1f} % of its score")
    return [table, *lines]


def _of(full: BenchmarkResult, name: str) -> str:
    return format_interval(full.figures[name], "{:.1f}") if name in full.figures else "-"
