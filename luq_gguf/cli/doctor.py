"""`luq-gguf doctor`: this machine and what is installed on it, with a hint for everything that can be mended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.text import Text

from luq_gguf.cli import options
from luq_gguf.cli.progress import show_progress
from luq_gguf.cli.tables import make_table, render

if TYPE_CHECKING:
    from luq_gguf.doctor import Report

STYLES = {"ok": "green", "mind": "yellow", "broken": "bold red"}


def doctor(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """Look at this machine and its installation: versions, processor, memory, disk, what is slow, and how to mend it.

    Takes some seconds. Exit code 1 where something is broken.

    Example: luq-gguf doctor
    """
    from luq_gguf.doctor import examine
    from luq_gguf.doctor_facts import gather_facts

    with show_progress() as progress:
        report = examine(gather_facts(progress))
    typer.echo(report.model_dump_json() if as_json else format_report(report))
    if not report.usable:
        raise typer.Exit(1)


def format_report(report: Report) -> str:
    """A row for each finding, its hint below it, and the sum of them in the last line."""
    table = make_table("", ("", "what", "found"))
    for column in table.columns:
        column.justify, column.overflow = "left", "fold"
    for finding in report.findings:
        table.add_row(Text(finding.mark, STYLES[finding.mark]), finding.name, finding.found)
        if finding.hint:
            table.add_row("", "", Text(f"-> {finding.hint}", "bold"))
    return render(table, "", summary(report))


def summary(report: Report) -> str:
    """Whether all can be used, in a line."""
    broken, minded = (sum(each.mark == mark for each in report.findings) for mark in ("broken", "mind"))
    if broken:
        return f"{broken} broken, {minded} to mind"
    return f"nothing is broken, {minded} to mind"
