"""`luq-gguf profile`: measure this CPU once, so that plans can say how fast they will be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luq_gguf.cli import options
from luq_gguf.cli.progress import show_progress
from luq_gguf.errors import RequestError

if TYPE_CHECKING:
    from luq_gguf.speed import Profile


def profile(
    threads: Annotated[
        str,
        typer.Option(
            "--threads",
            help="Threads: 1,2,4; default: one and all cores.",
            show_default=False,
            rich_help_panel=options.MEASUREMENT,
        ),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Write it there; default: where plans look for it.",
            show_default=False,
            rich_help_panel=options.RESULTS,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", help="Draw the rates as an image (PNG, SVG).", show_default=False, rich_help_panel=options.RESULTS
        ),
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure how fast this CPU multiplies with every type, in about a minute, and keep it for predictions.

    Example: luq-gguf profile --threads 1,2,4
    """
    from luq_gguf.cli.tables import format_profile
    from luq_gguf.profile import keep_profile, measure_profile

    with show_progress() as progress:
        measured = measure_profile(parse_threads(threads), progress)
    target = keep_profile(measured, out)
    if plot is not None:
        draw_profile(measured, plot)
    typer.echo(measured.model_dump_json() if as_json else f"{format_profile(measured)}\nwrote {target}")


def parse_threads(text: str) -> tuple[int, ...]:
    """Numbers of threads of an option, "1,2,4"; raises RequestError."""
    try:
        found = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise RequestError(f"--threads is {text!r}", hint="give numbers like 1,2,4") from error
    if any(not 1 <= count <= 512 for count in found):
        raise RequestError(f"--threads is {text!r}", hint="give numbers from 1 to 512")
    return found


def draw_profile(measured: Profile, target: Path) -> None:
    """A bar for each type and number of threads: weights a second when generating."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    kinds = sorted(measured.rates, key=lambda kind: measured.weight_time(kind, measured.threads[-1]))
    width = 0.8 / len(measured.threads)
    for rank, count in enumerate(measured.threads):
        speeds = [1 / measured.weight_time(kind, count) for kind in kinds]
        axes.barh([place + rank * width for place in range(len(kinds))], speeds, width, label=f"{count} threads")
    axes.set_yticks([place + 0.4 - width / 2 for place in range(len(kinds))], kinds)
    axes.invert_yaxis()
    axes.set_xlabel("billion weights a second, generating")
    axes.set_title(measured.cpu)
    axes.legend()
    figure.savefig(target)
