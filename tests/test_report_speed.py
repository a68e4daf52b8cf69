"""Speeds on a report: predicted where a CPU was profiled, measured where a benchmark of this file lies beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from luq_gguf import pipeline
from luq_gguf.artifacts import read_record, sha256_of, write_record
from luq_gguf.bench_results import GENERATION, speeds
from luq_gguf.job import REPORT, Settings
from luq_gguf.processors import cpu_name
from luq_gguf.profile import keep_profile, load_profile
from luq_gguf.report import write_report
from luq_gguf.speed_record import SPEED, SpeedRecord
from tests.program import QUICK, Run, result_of, run_program
from tests.test_bench_report import make_file, make_record
from tests.test_report import Page, folder_of
from tests.test_speed_budget import write_profile


def values(text: str) -> set[str]:
    return {value for tag, name, value in Page(text).attributes if (tag, name) == ("data", "value")}


def test_without_a_profile_it_says_how_to_get_one(converted: Run) -> None:
    text = (folder_of(converted) / REPORT).read_text()
    assert "luq-gguf profile" in text
    assert "luq-gguf bench Pico-VL-Instruct-LUQ-1of3-Q2_K.gguf" in text
    assert not (folder_of(converted) / SPEED).exists()


def test_a_conversion_with_a_profile_keeps_what_it_predicted(pico_checkpoint: Path, tmp_path: Path) -> None:
    profile, out = write_profile(tmp_path), tmp_path / "out"
    done = run_program(
        "convert", pico_checkpoint, "--out", out, "--low-layers", 1, *QUICK, "--no-eval", "--profile", profile, "--json"
    )
    result = result_of(done)
    record = read_record(out / SPEED, SpeedRecord)
    assert (record.plan.generate, record.high.generate) == (result["predicted_tps"], result["high_predicted_tps"])
    assert record.full is not None
    text = Path(result["report"]).read_text()
    assert "Predicted for made up with 1 threads" in text
    for rate in (record.plan, record.high, record.full):
        assert {str(rate.generate), str(rate.prompt)} <= values(text)
    assert f"{record.high.generate:,.1f}" in (out / "README.md").read_text()


def test_a_profile_that_was_measured_afterwards_is_used(
    copy_of_converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made_up = load_profile(write_profile(tmp_path, cpu=cpu_name()))
    assert made_up is not None
    keep_profile(made_up)
    other = Path(shutil.copytree(copy_of_converted, tmp_path / "other"))
    _, forecast = pipeline.plan_from_analysis(other, Settings(low_layers=1, low_type="Q2_K"))
    assert forecast is not None
    text = write_report(copy_of_converted).page.read_text()
    assert {str(forecast.plan.generate), str(forecast.high.generate), str(forecast.long.generate)} <= values(text)
    assert not (copy_of_converted / SPEED).exists()


def test_benchmarks_of_this_file_are_shown_and_others_are_not(copy_of_converted: Path) -> None:
    model = next(copy_of_converted.glob("*-LUQ-*.gguf"))
    this = make_file(model.name).model_copy(update={"sha256": sha256_of(model)})
    record = make_record(10.0, 5.0, threads=(1, 4), files=(make_file("model-Q4_K_M.gguf", 1), this))
    write_record(copy_of_converted / "bench.json", record)
    write_record(copy_of_converted / "bench-other.json", make_record(7.0))
    page = Page(write_report(copy_of_converted).page.read_text())
    text = "".join(page.texts)
    assert "Measured side by side" in text
    assert "model-Q4_K_M.gguf" in text
    assert "model-0.gguf" not in text
    shown = values((copy_of_converted / REPORT).read_text())
    rates = [each.rate.median for each in speeds(record) if each.phase == GENERATION]
    assert len(rates) == 4
    assert {str(rate) for rate in rates} <= shown
