"""Profiles of this CPU: measured, though shortly; kept where predictions look, shown, and refused where broken."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType as Q

from luq_gguf import profile as profiling
from luq_gguf.bench import Part, PartSamples
from luq_gguf.cli.speed import parse_threads
from luq_gguf.errors import RequestError
from luq_gguf.processors import cpu_name
from luq_gguf.profile import Profiler, keep_profile, load_profile, measure_profile, profile_path
from luq_gguf.speed import Profile
from tests.hostile import run

FEW_TYPES = (Q.Q4_K, Q.Q6_K, Q.F16)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Few types, small matrices, a cache folder of its own."""
    for name, value in {
        "TYPES": FEW_TYPES, "LAYERS": (*FEW_TYPES, Q.Q6_K), "GENERATED": 4, "PROMPT": 16, "LONG_PROMPT": 64,
        "WIDE": profiling.WIDE | {"hidden_size": 2048, "intermediate_size": 1024, "num_attention_heads": 16},
        "LONG": profiling.LONG | {"intermediate_size": 2048},
    }.items():  # fmt: skip
        monkeypatch.setattr(profiling, name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_a_measured_profile_has_every_type_and_number_of_threads(short: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    found = measure_profile((2, 1), lambda *step: steps.append(step))
    assert found.cpu == cpu_name() != "unknown"
    assert found.threads == (1, 2)
    assert set(found.rates) == {kind.name for kind in FEW_TYPES}
    for by_threads in found.rates.values():
        assert set(by_threads) == {1, 2}
        for rates in by_threads.values():
            assert all(0 < rate < 1000 for rate in (rates.prompt, rates.weight, rates.long_weight))
            assert 0 <= rates.row < 1e5
    assert all(1e8 < speed < 1e13 for speed in found.bandwidth.values())
    for other in found.other.values():
        assert 0 < other.generate_channel + other.generate_unit < 10_000
        assert 0 < other.prompt_channel + other.prompt_unit < 10_000
        assert 0 <= other.context_channel < 1000
        assert 0 < other.generate_token < 1e8
    assert 1 << 10 <= found.cache <= 1 << 20
    assert found.prompt == 16
    assert [step for step in steps if step[1] == step[2]], "it never says that it is done"


def test_rounds_of_before_count_and_nothing_is_left(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of three that is a thousand times slower does not show in the median, unless it is alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    native, slowed = profiling.measure_parts, [1]

    def measure_parts(*arguments: Any, **named: Any) -> list[PartSamples]:
        (found,) = native(*arguments, **named)
        times = {
            what: tuple(Part(part.kind, tuple(ns * slowed[0] for ns in part.ns)) for part in getattr(found, what))
            for what in ("prompt", "generate")
        }
        return [replace(found, **times)]

    monkeypatch.setattr(profiling, "measure_parts", measure_parts)
    monkeypatch.setattr(profiling.Profiler, "_measure_cut", lambda *_: 0.0)
    with Profiler((1,)) as profiler:
        first = profiler.measure(2)
        slowed[0] = 1000
        together = profiler.measure(1, earlier=2)
        alone = profiler.measure(1)
        assert len(list(short.iterdir())) == 1
    assert list(short.iterdir()) == []
    before, mixed, slow = (each.rates["Q4_K"][1].prompt for each in (first, together, alone))
    assert slow > 100 * before
    assert mixed < 20 * before


def test_a_kept_profile_is_found_again(short: Path) -> None:
    assert load_profile() is None
    found = measure_profile((1,))
    path = keep_profile(found)
    assert path == profile_path(found.cpu, found.llama_cpp)
    assert path.is_relative_to(short / "cache")
    assert load_profile() == load_profile(path) == found
    elsewhere = keep_profile(found, short / "given" / "profile.json")
    assert load_profile(elsewhere) == found


def test_profiles_of_other_processors_and_versions_have_other_names() -> None:
    paths = {profile_path(cpu, version) for cpu in ("One (R) 3", "One (R) 4") for version in ("0.3.36", "0.3.37")}
    assert len(paths) == 4
    assert all(path.name.isascii() and "/" not in path.name for path in paths)


def test_the_command_measures_keeps_and_shows(short: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picture, target = short / "rates.png", short / "mine.json"
    code, out, err = run(capfd, "profile", "--threads", "1", "--out", target, "--plot", picture)
    assert code == 0, err
    assert "Gweights/s" in out
    assert f"wrote {target}" in out
    assert "1 threads: memory reads" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert load_profile(target) is not None
    code, out, err = run(capfd, "profile", "--threads", "1", "--out", target, "--json")
    assert code == 0, err
    assert Profile.model_validate_json(out) == load_profile(target)


@pytest.mark.parametrize("text", ["0", "-1", "1,x", "513", "1.5"])
def test_numbers_of_threads_that_cannot_be(text: str) -> None:
    with pytest.raises(RequestError, match="--threads is"):
        parse_threads(text)


def test_numbers_of_threads() -> None:
    assert parse_threads("") == ()
    assert parse_threads("1, 2,4") == (1, 2, 4)
