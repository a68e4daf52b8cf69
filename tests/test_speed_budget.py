"""Speeds through the program: predictions are printed, `auto` and `--min-tps` choose, what they chose is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from luq_gguf.artifacts import write_record
from luq_gguf.processors import cpu_name
from luq_gguf.profile import TYPES
from luq_gguf.speed import OtherCosts, Profile, Rates
from tests.hostile import run
from tests.program import QUICK, Run, result_of

HARD = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"}
"""Types that cost this made-up processor more than Q4_K."""


def write_profile(folder: Path, *, scale: float = 1.0, hard: float = 3.0, **changed: Any) -> Path:
    """A processor on which a weight costs 1 ns, of a hard type more, of Q2_K and Q3_K less."""
    rates = {}
    for kind in (kind.name for kind in TYPES):
        cost = scale * (hard if kind in HARD else 0.5 if kind in ("Q2_K", "Q3_K") else 1.0)
        rates[kind] = {1: Rates(row=0, weight=cost, long_weight=cost, prompt=cost / 4)}
    other = OtherCosts(
        generate_channel=0, generate_unit=0, generate_token=0, prompt_channel=0, prompt_unit=0, prompt_token=0,
        context_channel=0,
    )  # fmt: skip
    named = {"cpu": "made up", "llama_cpp": llama_cpp.__version__} | changed
    profile = Profile(**named, prompt=128, cache=1 << 15, rates=rates, other={1: other}, bandwidth={1: 1e10})
    path = folder / "profile.json"
    write_record(path, profile)
    return path


def plan(capfd: pytest.CaptureFixture[str], folder: Path, *options: object) -> tuple[int, str, str]:
    return run(capfd, "plan", folder, "--threads", 1, *options)


def test_a_plan_says_how_fast_it_will_be(copy_of_converted: Path, tmp_path: Path, capfd) -> None:
    profile = write_profile(tmp_path)
    code, out, err = plan(capfd, copy_of_converted, "--low-layers", 1, "--low-type", "Q2_K", "--profile", profile)
    assert code == 0, err
    assert "predicted on made up, 1 threads: " in out
    assert "; after 4,096 tokens of context " in out
    assert "SLOWER" not in out
    code, out, err = plan(capfd, copy_of_converted, "--low-layers", 2, "--low-type", "IQ1_M", "--profile", profile)
    assert code == 0, err
    assert "SLOWER: on this CPU the file will be smaller than Q4_K_M alone, but not faster" in out


def test_auto_takes_the_smallest_type_that_slows_nothing_down(copy_of_converted: Path, tmp_path: Path, capfd) -> None:
    chosen = {}
    for hard in (3.0, 0.9):
        profile = write_profile(tmp_path, hard=hard)
        code, out, err = plan(
            capfd, copy_of_converted, "--low-layers", 2, "--low-type", "auto", "--profile", profile, "--json"
        )
        assert code == 0, err
        chosen[hard] = json.loads(out)["low_type"]
    assert chosen == {3.0: "Q2_K", 0.9: "IQ1_S"}


def test_a_speed_that_cannot_be_reached_names_the_fastest(copy_of_converted: Path, tmp_path: Path, capfd) -> None:
    profile = write_profile(tmp_path)
    code, _, err = plan(capfd, copy_of_converted, "--min-tps", 1e5, "--profile", profile, "--low-type", "Q2_K")
    assert code == 2
    assert "no plan reaches 100000 tokens/s on made up with 1 threads" in err
    assert "3 of 3 layers Q2_K" in err


def test_a_bare_model_shows_speeds_beside_sizes(pico_checkpoint: Path, tmp_path: Path, capfd) -> None:
    profile = write_profile(tmp_path)
    code, out, err = run(capfd, "plan", pico_checkpoint, "--profile", profile, "--threads", 1, "--json")
    assert code == 0, err
    table = json.loads(out)
    assert len(table["tps"]) == len(table["sizes"]) == 4
    assert table["tps"] == sorted(table["tps"], reverse=True)
    code, _, err = run(capfd, "plan", pico_checkpoint, "--low-type", "auto", "--profile", profile)
    assert code == 2
    assert "a plan by speed needs the order of the layers" in err


@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_a_conversion_by_speed_is_measured(pico_checkpoint: Path, tmp_path: Path, capfd, scale: float) -> None:
    """A tiny model is fast: the prediction, wrong by what the profile is, is corrected once and told as it is."""
    profile = write_profile(tmp_path, scale=scale, cpu=cpu_name())
    options = ("--min-tps", 1, "--profile", profile, *QUICK, "--json")
    code, out, err = run(capfd, "convert", pico_checkpoint, "--out", tmp_path / "out", *options)
    assert code == 0, err
    made = json.loads(out)
    assert made["measured_tps"] >= 1
    assert made["low_layers"] == []
    assert made["predicted_tps"] == made["high_predicted_tps"]
    code, out, err = run(capfd, "verify", tmp_path / "out")
    assert code == 0, out + err


def test_a_speed_that_is_missed_is_corrected_once(pico_checkpoint: Path, tmp_path: Path, capfd) -> None:
    """The profile promises more than any processor keeps: a second plan is made, and its speed reported as it is."""
    profile = write_profile(tmp_path, scale=1e-6, cpu=cpu_name())
    wanted = 2e5
    options = ("--min-tps", wanted, "--profile", profile, *QUICK, "--json")
    code, out, err = run(capfd, "convert", pico_checkpoint, "--out", tmp_path / "out", *options)
    assert code == 0, err
    made = json.loads(out)
    assert made["predicted_tps"] > wanted > made["measured_tps"] > 0
    assert Path(made["model"]).is_file()
    assert len(list((tmp_path / "out").glob("*-LUQ-*"))) == 1


def test_for_another_cpu_nothing_is_measured(pico_checkpoint: Path, tmp_path: Path, capfd) -> None:
    profile = write_profile(tmp_path, scale=1e-6)
    options = ("--min-tps", 2e5, "--profile", profile, *QUICK, "--json")
    code, out, err = run(capfd, "convert", pico_checkpoint, "--out", tmp_path / "out", *options)
    assert code == 0, err
    made = json.loads(out)
    assert made["measured_tps"] is None
    assert made["predicted_tps"] > 2e5


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, f"the profile is of made up, this is {cpu_name()}: nothing is measured here"),
        ({"cpu": cpu_name(), "llama_cpp": "0.1.2"}, "MIND: it was measured with llama-cpp-python 0.1.2, this is"),
        ({"cpu": cpu_name(), "busy": True}, "MIND: other programs ran while it was measured"),
        ({"cpu": cpu_name()}, None),
    ],
)
def test_profiles_of_elsewhere_are_doubted(
    copy_of_converted: Path, pico_checkpoint: Path, tmp_path: Path, capfd, changed: dict[str, Any], words: str | None
) -> None:
    profile = write_profile(tmp_path, **changed)
    for arguments in ((copy_of_converted, "--low-layers", 1), (pico_checkpoint,)):
        code, out, err = plan(capfd, *arguments, "--profile", profile)
        assert code == 0, err
        assert (words or "predicted") in out
        assert ("MIND: " in out) == (words is not None)


def test_without_a_profile_nothing_is_said(converted: Run) -> None:
    assert result_of(converted)["predicted_tps"] is None


def test_a_profile_that_is_none_is_refused(copy_of_converted: Path, tmp_path: Path, capfd) -> None:
    for content, words in (("{}", "profile.json"), ("[", "profile.json"), ('{"format": "luq-gguf plan 1"}', "format")):
        (tmp_path / "profile.json").write_text(content)
        code, _, err = plan(capfd, copy_of_converted, "--profile", tmp_path / "profile.json")
        assert code == 1, content
        assert words in err
    code, _, err = plan(capfd, copy_of_converted, "--profile", tmp_path / "none.json")
    assert (code, "none.json is no file" in err) == (1, True)
    code, _, err = plan(capfd, copy_of_converted, "--min-tps", -1)
    assert code == 2
