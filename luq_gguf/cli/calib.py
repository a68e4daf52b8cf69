"""`luq-gguf calib`: looking at calibration data before it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from luq_gguf.cli import options
from luq_gguf.cli.progress import show_progress

calib = typer.Typer(no_args_is_help=True, help="Look at calibration data before hours are spent on it.")


@calib.callback()
def _root() -> None:
    pass


@calib.command()
def show(
    source: Annotated[
        str | None, typer.Argument(help="What you would give to --calib; default: the set general.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Count with this model's tokenizer and image rule.",
            show_default=False,
            rich_help_panel=options.CALIBRATION,
        ),
    ] = None,
    samples: options.Samples = None,
    image_max_tokens: options.ImageMaxTokens = None,
    skip_bad: options.SkipBad = False,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Print what a set holds: samples by kind, tokens by modality, sizes of images, rows that cannot be used.

    Example: luq-gguf calib show my-images.jsonl --model Qwen/Qwen2.5-VL-7B-Instruct
    """
    from luq_gguf.analysis import read_calibration
    from luq_gguf.calibration_summary import summarize_calibration
    from luq_gguf.cli.tables import format_calibration
    from luq_gguf.job import Settings, open_job

    settings = Settings(
        calib=source, samples=samples, image_max_tokens=image_max_tokens, skip_bad=skip_bad, seed=seed
    )  # fmt: skip
    with show_progress() as progress:
        job = open_job(model, Path(), settings, progress) if model else None
        found = summarize_calibration(
            read_calibration(settings, progress),
            (job.checkpoint, job.family) if job else None,
            image_tokens=image_max_tokens,
            progress=progress,
        )
    typer.echo(json.dumps(found.as_json()) if as_json else format_calibration(found))
