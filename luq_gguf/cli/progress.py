"""Progress on stderr: a bar with the time left for every stage, plain lines where there is no terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from luq_gguf.progress import Progress as Listener


@contextlib.contextmanager
def show_progress() -> Iterator[Listener]:
    """A listener that draws; the bars stay when a stage is done."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines()
        return
    columns = (
        TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def listen(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield listen


def _plain_lines() -> Listener:
    """One line when a stage starts and one when it is done."""
    seen: dict[str, int] = {}

    def listen(what: str, done: int, total: int) -> None:
        previous = seen.get(what)
        seen[what] = done
        if previous is None or (done >= total > previous):
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)  # noqa: T201

    return listen
