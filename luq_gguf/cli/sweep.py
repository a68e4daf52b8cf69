"""`sweep`: the frontier of a model, as a table, a plot and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luq_gguf.cli import completion, options
from luq_gguf.cli.progress import show_progress
from luq_gguf.cli.tables import format_interval, make_table, render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luq_gguf.frontier import Frontier, FrontierPoint

PLOT = "frontier.png"


def sweep(
    model: options.Model,
    out: options.Out,
    order: Annotated[
        str,
        typer.Option(
            "--order",
            help="Orders of the layers, with commas between them.",
            autocompletion=completion.order_lists,
            rich_help_panel=options.METHOD,
        ),
    ] = "entropy",
    low_type: Annotated[
        str,
        typer.Option(
            "--low-type",
            help="Low types, with commas between them.",
            autocompletion=completion.low_type_lists,
            rich_help_panel=options.METHOD,
        ),
    ] = "IQ1_M",
    high_type: options.HighType = "Q4_K_M",
    presets: Annotated[
        str,
        typer.Option(
            "--presets",
            help="llama.cpp's types of whole files to compare with; default: eight of them; none.",
            autocompletion=completion.preset_lists,
            rich_help_panel=options.METHOD,
        ),
    ] = "",
    step: Annotated[
        int | None,
        typer.Option(
            "--step",
            min=1,
            help="Measure every so many low layers; default: about 8 of them.",
            show_default=False,
            rich_help_panel=options.METHOD,
        ),
    ] = None,
    strict: options.Strict = False,
    calib: options.Calib = None,
    samples: options.Samples = None,
    image_max_tokens: options.ImageMaxTokens = None,
    skip_bad: options.SkipBad = False,
    alpha: options.Alpha = 0.5,
    imatrix: options.Imatrix = None,
    seed: options.Seed = 0,
    compute_type: options.ComputeType = "auto",
    mmproj_type: options.MmprojType = "f16",
    mmproj_layout: options.MmprojLayout = None,
    threads: options.Threads = 0,
    work: options.Work = None,
    profile: options.ProfileFile = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure files of many plans, and llama.cpp's presets beside them: bytes, predicted speed and quality of each.

    A sweep that was stopped goes on where it was; quantized layers are shared by all files.

    Example: luq-gguf sweep Qwen/Qwen2.5-VL-3B-Instruct --out qwen --order entropy,depth --low-type IQ1_M,Q2_K
    """
    from luq_gguf.job import Settings
    from luq_gguf.sweep import PRESETS, SweepRequest
    from luq_gguf.sweep import sweep as measure

    settings = Settings(
        high_type=high_type, strict=strict, calib=calib, samples=samples, image_max_tokens=image_max_tokens,
        skip_bad=skip_bad, alpha=alpha, imatrix=tuple(imatrix or ()), seed=seed, compute_type=compute_type,
        mmproj_type=mmproj_type, mmproj_layout=mmproj_layout, threads=threads, work=work, profile=profile,
        keep_parts=True,
    )  # fmt: skip
    chosen = PRESETS if not presets else _list(presets)
    request = SweepRequest(_list(order), _list(low_type), () if chosen == ("none",) else chosen, step)
    with show_progress() as progress:
        frontier = measure(model, out, settings, request, progress)
    draw_frontier(frontier, out / PLOT)
    typer.echo(frontier.model_dump_json() if as_json else f"{format_frontier(frontier)}\nwrote {out / PLOT}")


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def format_frontier(frontier: Frontier) -> str:
    """Every file by size, and which of them no other is better than."""
    from luq_gguf.frontier import undominated

    best = {id(point) for point in undominated(frontier.points)}
    table = make_table(
        f"{frontier.model}: files by size; * no smaller file diverges less",
        ("file", "bytes", "bits", "KL, nats a token", "same token, %", "tokens/s"),
    )
    for point in sorted(frontier.points, key=lambda each: -each.size_bytes):
        figures = point.quality.all.figures
        table.add_row(
            f"{'*' if id(point) in best else ' '} {point.name}",
            f"{point.size_bytes:,}",
            f"{point.bits_per_weight:.2f}",
            format_interval(figures["divergence"], "{:.4f}"),
            format_interval(figures["agreement"], "{:.1f}", 100),
            f"{point.predicted_tps:.1f}" if point.predicted_tps else "-",
        )
    return render(table)


def draw_frontier(frontier: Frontier, target: Path) -> None:
    """Divergence against bytes, and against predicted speed where it is known; presets as crosses."""
    from matplotlib.figure import Figure

    from luq_gguf.artifacts import atomic_path

    by_speed = any(point.predicted_tps for point in frontier.points)
    figure = Figure(figsize=(13 if by_speed else 7, 5), layout="constrained")
    axes = figure.subplots(1, 1 + by_speed, sharey=True, squeeze=False)[0]
    for axis, what, label in zip(axes, (_mebibytes, _speed), ("MiB", "predicted tokens/s"), strict=False):
        for name, points in _series(frontier.points).items():
            places = [(what(point), point) for point in points if what(point) is not None]
            style = "kx" if name == "presets" else "o-"
            axis.plot([place for place, _ in places], [point.divergence for _, point in places], style, label=name)
            for place, point in places:
                text = point.high_type if point.preset else str(len(point.low_layers))
                axis.annotate(text, (place, point.divergence), textcoords="offset points", xytext=(4, 4), fontsize=7)
        axis.set_xlabel(label)
        axis.set_yscale("log")
        axis.grid(visible=True, which="both", alpha=0.3)
    axes[0].set_ylabel("KL divergence from 16 bits, nats a token")
    axes[0].legend(fontsize=8)
    figure.suptitle(frontier.model)
    with atomic_path(target) as partial:
        figure.savefig(partial, format=target.suffix.lstrip(".") or "png", dpi=120)


def _mebibytes(point: FrontierPoint) -> float | None:
    return point.size_bytes / 2**20


def _speed(point: FrontierPoint) -> float | None:
    return point.predicted_tps


def _series(points: Sequence[FrontierPoint]) -> dict[str, list[FrontierPoint]]:
    """Points that are joined by a line: of one order and low type, by the number of low layers."""
    found: dict[str, list[FrontierPoint]] = {}
    for point in sorted(points, key=lambda each: len(each.low_layers)):
        name = "presets" if point.preset else f"{point.low_type}, {point.order_name}"
        found.setdefault(name, []).append(point)
    return found
