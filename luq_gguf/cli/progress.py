"""Progress on stderr: a bar with the time left for every stage, and for a stage within it; plain lines where there is
no terminal, or one that cannot move its cursor."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from luq_gguf.cli.dry_run import format_seconds
from luq_gguf.cli.stages import Stage, Stages
from luq_gguf.progress import Progress as Listener

BAR_WIDTH = 30
LARGE = 100_000
"""Counts of so many are of bytes, and shown in percent."""
LEAST_SECONDS, MOST_SECONDS = 15.0, 120.0
"""Between two plain lines of a stage: never less than the one; the other suffices where less than a tenth was done."""


@contextlib.contextmanager
def show_progress() -> Iterator[Listener]:
    """A listener that draws; the bars stay when a stage is done, those within a stage vanish with it."""
    console = Console(stderr=True)
    if not sys.stderr.isatty() or console.is_dumb_terminal:
        yield PlainLines()
        return
    columns = (
        TextColumn("{task.description:<14}", markup=False), BarColumn(BAR_WIDTH), _CountColumn(), TimeElapsedColumn(),
        _TimeLeftColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        yield _Bars(progress)


class _CountColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        done, total = int(task.completed), int(task.total or 0)
        return Text(f"{100 * done / total:.0f} %" if total >= LARGE else f"{done}/{total}", style="progress.download")


class _TimeLeftColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        stage: Stage = task.fields["stage"]
        left = None if stage.finished else stage.left(time.monotonic())
        return Text("" if left is None else f"{format_seconds(left)} left", style="progress.remaining")


class _Bars:
    """Draws a bar for each stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._stages = progress, Stages()
        self._bars: dict[tuple[str, int], tuple[TaskID, Stage]] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        stage, ended = self._stages.update(what, done, total, time.monotonic())
        for inner in ended:
            self._drop(inner)
        self._progress.update(self._bar_of(stage), completed=done, total=total)
        if stage.finished and stage.depth:
            self._drop(stage)

    def _bar_of(self, stage: Stage) -> TaskID:
        key = (stage.name, stage.depth)
        if key not in self._bars:
            bar = self._progress.add_task("  " * stage.depth + stage.name, total=stage.total, stage=stage)
        else:
            bar, before = self._bars[key]
            if before is not stage:  # it begins once more
                self._progress.reset(bar, stage=stage)
        self._bars[key] = bar, stage
        return bar

    def _drop(self, stage: Stage) -> None:
        if (found := self._bars.pop((stage.name, stage.depth), None)) is not None:
            self._progress.remove_task(found[0])


class PlainLines:
    """A line when a stage begins, when it is done, and now and then between; none of stages within another."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._stages = clock, Stages()
        self._told: dict[str, tuple[int, float]] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """Take a call of a stage."""
        now = self._clock()
        stage, _ = self._stages.update(what, done, total, now)
        outermost = self._stages.open[0] if self._stages.open else stage
        if self._is_due(outermost, now):
            self._told[outermost.name] = (outermost.done, now)
            print(self._line(outermost, now), file=sys.stderr, flush=True)  # noqa: T201

    def _is_due(self, stage: Stage, now: float) -> bool:
        if stage.depth or stage.name not in self._told:
            return not stage.depth
        done, then = self._told[stage.name]
        if stage.finished:
            return stage.done != done
        tenth = 10 * (stage.done - done) >= stage.total
        return now - then >= (LEAST_SECONDS if tenth else MOST_SECONDS)

    def _line(self, stage: Stage, now: float) -> str:
        inner = [f", {each.name} {each.done} of {each.total}" for each in self._stages.open[1:]]
        left = None if stage.finished else stage.left(now)
        rest = "" if left is None else f", about {format_seconds(left)} left"
        return f"{stage.name}: {stage.done} of {stage.total}{''.join(inner)}{rest}"
