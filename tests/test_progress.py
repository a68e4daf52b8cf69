"""What is seen of long work: bars with the time left in a terminal, plain lines elsewhere, colours where wanted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luq_gguf.cli.progress import LEAST_SECONDS, MOST_SECONDS, PlainLines
from luq_gguf.cli.stages import Stages
from tests.program import QUICK
from tests.terminal import CODE, COLOUR, program_in_terminal, script_in_terminal

WORK = """
import time
from luq_gguf.cli.progress import show_progress
with show_progress() as progress:
    for layer in range(4):
        progress("analyze", layer, 4)
        for batch in range(3):
            progress("batches", batch, 3)
            time.sleep(0.12)
        progress("batches", 3, 3)
    progress("analyze", 4, 4)
    progress("write", 0, 2_000_000)
    progress("write", 2_000_000, 2_000_000)
"""


def test_the_time_left_is_that_of_the_rate_so_far() -> None:
    stages = Stages()
    stage, _ = stages.update("analyze", 0, 10, 100.0)
    assert stage.left(105.0) is None
    stages.update("analyze", 1, 10, 110.0)
    assert stage.left(110.0) == pytest.approx(90)
    assert stage.left(114.0) == pytest.approx(86)
    stages.update("analyze", 4, 10, 140.0)
    assert stage.left(140.0) == pytest.approx(60)
    assert stage.left(1000.0) == 0


@pytest.mark.parametrize("skipped", [1, 7, 20])
def test_what_an_earlier_run_did_says_nothing_of_the_time_left(skipped: int) -> None:
    """Parts that are there pass in no time; a run that goes on in the middle begins to count there."""
    stages = Stages()
    for done in range(skipped + 1):
        stage, _ = stages.update("quantize", done, 28, 0.001 * done)
    stages.update("quantize", skipped + 1, 28, 20.0)
    assert stage.left(20.0) == pytest.approx(20 * (27 - skipped), rel=0.01)
    resumed, _ = Stages().update("analyze", skipped, 28, 0.0)
    resumed.advance(skipped + 1, 28, 20.0)
    assert resumed.left(20.0) == pytest.approx(20 * (27 - skipped))


@given(st.lists(st.floats(1.0, 1.9), min_size=2, max_size=30), st.integers(0, 40))
def test_the_time_left_lies_between_those_of_the_fastest_and_the_slowest_step(steps: list[float], more: int) -> None:
    stages, now, total = Stages(), 0.0, len(steps) + more
    stage, _ = stages.update("judge", 0, total, now)
    for done, step in enumerate(steps):
        now += step
        stages.update("judge", done + 1, total, now)
    left = stage.left(now)
    assert left is not None
    assert more * min(steps) - 1e-6 <= left <= more * max(steps) + 1e-6


def test_a_stage_that_begins_before_another_is_done_lies_within_it() -> None:
    stages = Stages()
    assert stages.update("sweep", 0, 2, 0)[0].depth == 0
    assert stages.update("quantize", 0, 2, 1)[0].depth == 1
    assert stages.update("tensors", 1, 7, 2)[0].depth == 2
    _, ended = stages.update("quantize", 1, 2, 3)
    assert [stage.name for stage in ended] == ["tensors"]
    stages.update("quantize", 2, 2, 4)
    assert stages.update("judge", 0, 9, 5)[0].depth == 1
    _, ended = stages.update("sweep", 1, 2, 6)
    assert [stage.name for stage in ended] == ["judge"]
    stages.update("sweep", 2, 2, 7)
    assert stages.update("report", 0, 1, 8)[0].depth == 0


class Clock:
    """A time that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> tuple[Clock, PlainLines, Callable[[], list[str]]]:
    """A clock, a listener that goes by it, and what it has printed since the last look."""
    clock = Clock()

    def printed() -> list[str]:
        return capsys.readouterr().err.splitlines()

    return clock, PlainLines(clock), printed


def test_without_a_terminal_a_line_comes_now_and_then(lines) -> None:
    clock, progress, printed = lines
    for layer in range(28):
        progress("analyze", layer, 28)
        for batch in range(10):
            clock.now += 2
            progress("batches", batch, 10)
        progress("batches", 10, 10)
    progress("analyze", 28, 28)
    said = printed()
    assert said[0] == "analyze: 0 of 28"
    assert said[-1] == "analyze: 28 of 28"
    assert said[1].startswith("analyze: 3 of 28")
    assert said[1].endswith(", about 8 min left")
    assert 9 <= len(said) <= 12
    assert not [line for line in said if line.startswith("batches")]


def test_quick_stages_say_only_that_they_begin_and_end(lines) -> None:
    clock, progress, printed = lines
    for name in ("check images", "quantize"):
        for done in range(1001):
            clock.now += LEAST_SECONDS / 1500
            progress(name, done, 1000)
    progress("quantize", 1000, 1000)
    assert printed() == [
        "check images: 0 of 1000", "check images: 1000 of 1000", "quantize: 0 of 1000", "quantize: 1000 of 1000"
    ]  # fmt: skip


def test_a_step_that_takes_long_is_heard_of(lines) -> None:
    clock, progress, printed = lines
    progress("analyze", 5, 28)
    progress("analyze", 6, 28)
    for batch in range(7):
        progress("batches", batch, 7)
        clock.now += MOST_SECONDS / 2
    assert printed() == [
        "analyze: 5 of 28", "analyze: 6 of 28, batches 2 of 7", "analyze: 6 of 28, batches 4 of 7",
        "analyze: 6 of 28, batches 6 of 7",
    ]  # fmt: skip


def frame_lines(shown: str) -> list[str]:
    """The lines of everything that was drawn, one frame after the other."""
    lines = (CODE.sub("", line).rstrip() for line in shown.replace("\r", "\n").splitlines())
    return [line for line in lines if line]


def test_a_terminal_shows_bars_with_the_time_left() -> None:
    code, shown = script_in_terminal(WORK)
    assert code == 0
    assert COLOUR.search(shown)
    frames = frame_lines(shown)
    nested = [place for place, line in enumerate(frames) if line.startswith("  batches")]
    assert nested
    assert all(frames[place - 1].startswith(("analyze", "write")) for place in nested)
    assert any(line.startswith("analyze") and line.endswith(" s left") for line in frames)
    analyzed, written = frames[-2:]
    assert analyzed.split()[0] == "analyze"
    assert " 4/4 " in analyzed
    assert "100 %" in written
    assert "left" not in analyzed + written


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "vt100", "NO_COLOR": "yes"}])
def test_no_color_is_heeded(environment: dict[str, str]) -> None:
    code, shown = script_in_terminal(WORK, **environment)
    assert code == 0
    assert "analyze" in shown
    assert not COLOUR.search(shown)


def test_an_empty_no_color_says_nothing() -> None:
    assert COLOUR.search(script_in_terminal(WORK, NO_COLOR="")[1])


def test_a_terminal_that_cannot_move_its_cursor_gets_lines() -> None:
    code, shown = script_in_terminal(WORK, TERM="dumb")
    assert code == 0
    assert "\x1b" not in shown
    assert shown.splitlines() == [
        "analyze: 0 of 4", "analyze: 4 of 4", "write: 0 of 2000000", "write: 2000000 of 2000000"
    ]  # fmt: skip


def test_forced_colours_draw_no_bars_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[0] == "analyze: 0 of 4"
    assert "\x1b" not in done.stderr


def test_a_narrow_terminal_keeps_a_bar_on_one_line() -> None:
    _, shown = script_in_terminal(WORK, columns=50)
    lines = frame_lines(shown)
    assert all(len(line) <= 50 for line in lines)
    assert sum(line.startswith("analyze") for line in lines) >= 2


def test_a_conversion_in_a_terminal(copy_of_converted: Path, pico_checkpoint: Path) -> None:
    """Another budget quantizes again: its tensors lie within the layers; the tables have bold heads."""
    arguments = ("convert", pico_checkpoint, "--out", copy_of_converted, "--low-layers", 2, *QUICK)
    code, shown = program_in_terminal(*arguments, "--high-type", "Q5_K_M")
    assert code == 0, shown
    assert "  tensors" in shown
    assert "\x1b[1m" in shown.partition("layer")[0].splitlines()[-1]
    code, plain = program_in_terminal("plan", copy_of_converted, "--low-layers", 1, "--low-type", "Q2_K", NO_COLOR="1")
    assert code == 0
    assert not COLOUR.search(plain)
    assert json.loads((copy_of_converted / "plan.json").read_text())["low_type"] == "Q2_K"


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_help_is_coloured_where_wanted(environment: dict[str, str], coloured: bool) -> None:
    code, shown = program_in_terminal("convert", "--help", **environment)
    assert code == 0
    assert "--max-size" in shown
    assert bool(COLOUR.search(shown)) == coloured
