"""Sweeps: every file once, presets as llama.cpp makes them, resumed without measuring again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from luq_gguf.artifacts import read_record
from luq_gguf.cli.sweep import draw_frontier, format_frontier
from luq_gguf.errors import RequestError
from luq_gguf.frontier import FRONTIER, Frontier, FrontierPoint, better_preset, undominated
from luq_gguf.job import Settings
from luq_gguf.pipeline import convert
from luq_gguf.quality import Evaluator
from luq_gguf.sweep import SweepRequest, sweep
from tests.program import run_program

SETTINGS = Settings(calib="shapes", samples=20, threads=1, keep_parts=True)
REQUEST = SweepRequest(("entropy", "reverse"), ("IQ1_M",), ("Q4_K_M", "Q2_K"), step=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def frontier(pico_checkpoint: Path, folder: Path) -> Frontier:
    return sweep(str(pico_checkpoint), folder, SETTINGS, REQUEST)


def test_every_plan_is_measured_once(frontier: Frontier, folder: Path) -> None:
    assert read_record(folder / FRONTIER, Frontier) == frontier
    names = [point.name for point in frontier.points]
    assert names == [
        "Q4_K_M", "Q2_K", "1 of 3 IQ1_M, entropy", "2 of 3 IQ1_M, entropy", "3 of 3 IQ1_M, entropy",
        "1 of 3 IQ1_M, reverse", "2 of 3 IQ1_M, reverse",
    ]  # fmt: skip
    sizes = [point.size_bytes for point in frontier.points if point.order_name == "entropy"]
    assert sizes == sorted(sizes, reverse=True)
    assert not list(folder.glob("*LUQ*"))


def test_a_second_sweep_measures_nothing(
    pico_checkpoint: Path, frontier: Frontier, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a file was measured again")

    monkeypatch.setattr(Evaluator, "judge", fail)
    assert sweep(str(pico_checkpoint), folder, SETTINGS, REQUEST) == frontier


def test_points_are_what_conversions_measure(pico_checkpoint: Path, frontier: Frontier, folder: Path) -> None:
    for preset, point in (("Q4_K_M", frontier.points[0]), ("Q2_K", frontier.points[1])):
        made = convert(str(pico_checkpoint), folder, replace(SETTINGS, high_type=preset, low_layers=0))
        assert (made.plan.size_bytes, made.quality) == (point.size_bytes, point.quality)
    two = frontier.points[3]
    made = convert(str(pico_checkpoint), folder, replace(SETTINGS, low_layers=2))
    assert (made.plan.size_bytes, made.plan.low_layers, made.quality) == (two.size_bytes, two.low_layers, two.quality)


def point(size: int, divergence: float, *, preset: bool = True, like: FrontierPoint) -> FrontierPoint:
    group = like.quality.all
    figure = group.figures["divergence"].model_copy(update={"value": divergence})
    changed = group.model_copy(update={"figures": group.figures | {"divergence": figure}})
    quality = like.quality.model_copy(update={"groups": {"all": changed}})
    return like.model_copy(update={"size_bytes": size, "quality": quality, "preset": preset})


def test_undominated_points_have_no_better_one(frontier: Frontier) -> None:
    like = frontier.points[0]
    points = [point(size, value, like=like) for size, value in ((10, 5.0), (20, 4.0), (15, 6.0), (30, 4.0), (20, 4.5))]
    assert [each.size_bytes for each in undominated(points)] == [10, 20]


def test_a_preset_that_was_measured_to_be_better_is_named(frontier: Frontier, tmp_path: Path) -> None:
    like = frontier.points[0]
    points = (point(90, 0.2, like=like), point(80, 0.1, like=like), point(70, 0.01, preset=False, like=like))
    made = frontier.model_copy(update={"points": points})
    (tmp_path / FRONTIER).write_text(made.model_dump_json())
    worse = point(100, 0.3, like=like).quality
    best = better_preset(tmp_path, frontier.checkpoint, 100, worse)
    assert best is not None
    assert best.size_bytes == 80
    assert better_preset(tmp_path, frontier.checkpoint, 79, worse) is None
    assert better_preset(tmp_path, frontier.checkpoint, 100, point(1, 0.05, like=like).quality) is None
    assert better_preset(tmp_path, "another model", 100, worse) is None
    assert better_preset(tmp_path / "elsewhere", frontier.checkpoint, 100, worse) is None


def test_the_table_and_the_plot_show_every_file(frontier: Frontier, tmp_path: Path) -> None:
    shown = format_frontier(frontier)
    for each in frontier.points:
        assert f"{each.size_bytes:,}" in shown
        assert each.name in shown
    draw_frontier(frontier, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_chosen_by_measuring_is_no_sweep(pico_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="name them: --low-type IQ1_M,Q2_K"):
        sweep(str(pico_checkpoint), tmp_path, SETTINGS, replace(REQUEST, low_types=("auto",)))


def test_the_command_prints_one_object(pico_checkpoint: Path, frontier: Frontier, folder: Path) -> None:
    options = ("--order", "entropy", "--low-type", "IQ1_M", "--presets", "Q4_K_M,Q2_K", "--step", 1, "--json")
    run = run_program("sweep", pico_checkpoint, "--out", folder, "--calib", "shapes", "--samples", 20, *options)
    assert run.returncode == 0
    found = Frontier.model_validate(json.loads(run.stdout))
    assert found.points == frontier.points[:5]
    refused = run_program("sweep", pico_checkpoint, "--out", folder, "--order", "best")
    assert refused.returncode == 2
    assert "unknown order 'best'" in refused.stderr
