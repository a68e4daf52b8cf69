"""`luq-gguf report`: the page and the model card of a finished conversion, made anew from its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from luq_gguf.cli import options


def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished conversion.")],
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Make report.html, the model card README.md with its plots, and a Modelfile for Ollama from a folder alone.

    A README.md or Modelfile that this tool did not write, or that was edited since, is left as it is.

    Example: luq-gguf report qwen
    """
    from luq_gguf.report import write_report

    made = write_report(folder)
    for note in made.notes:
        typer.echo(f"luq-gguf: mind: {note}", err=True)
    if as_json:
        found = {"report": made.page, "card": made.card, "modelfile": made.modelfile}
        paths = {name: str(path) if path else None for name, path in found.items()}
        typer.echo(json.dumps(paths | {"plots": [str(path) for path in made.plots], "notes": list(made.notes)}))
        return
    for path in made.files:
        typer.echo(f"wrote {path} ({path.stat().st_size:,} bytes)")
