"""An analysis that is killed goes on where it was, and ends in the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from luq_gguf import activations
from luq_gguf.activations import Analysis, analyze
from luq_gguf.analysis_state import LAYERS, STATES
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import ArtifactError, DiskSpaceError
from luq_gguf.families import find_family
from luq_gguf.families.decoder_modules import DecoderModules
from luq_gguf.samples import CalibrationSet
from tests.test_activations import CALIBRATION, COUNTED
from tests.test_activations import LAYERS as DECODER_LAYERS


class Killed(BaseException):
    """Nothing in the program handles it, as nothing handles SIGKILL."""


def run(folder: Path, keep: Path | None, *, stop: tuple[str, int] | None = None, seen: list | None = None) -> Analysis:
    def progress(what: str, done: int, total: int) -> None:
        if seen is not None:
            seen.append((what, done))
        if (what, done) == stop:
            raise Killed

    checkpoint = Checkpoint.open(folder)
    family = find_family(checkpoint.config, checkpoint)
    return analyze(checkpoint, family, CALIBRATION, compute_type="bf16", progress=progress, keep=keep)


@pytest.fixture(scope="module")
def undisturbed(pico_checkpoint: Path) -> Analysis:
    return run(pico_checkpoint, None)


def assert_same(found: Analysis, expected: Analysis) -> None:
    assert found.scores == expected.scores
    for name, by_modality in expected.sums.squares.items():
        for modality, row in by_modality.items():
            np.testing.assert_array_equal(found.sums.squares[name][modality], row)
    assert found.sums.counts == expected.sums.counts
    np.testing.assert_array_equal(found.reference.log_probabilities, expected.reference.log_probabilities)


@pytest.mark.parametrize("done", range(1, DECODER_LAYERS + 1))
def test_it_goes_on_at_its_layer(pico_checkpoint: Path, tmp_path: Path, undisturbed: Analysis, done: int) -> None:
    with pytest.raises(Killed):
        run(pico_checkpoint, tmp_path, stop=("analyze", done))
    assert {path.name for path in tmp_path.iterdir()} == {LAYERS, *STATES}
    seen: list[tuple[str, int]] = []
    found = run(pico_checkpoint, tmp_path, seen=seen)
    assert [number for what, number in seen if what == "analyze"] == [*range(done, DECODER_LAYERS), DECODER_LAYERS]
    assert "images" not in {what for what, _ in seen}
    assert_same(found, undisturbed)


def test_it_goes_on_at_its_picture(pico_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(activations, "GROUP_TOKENS", 1)
    undisturbed = run(pico_checkpoint, None)
    with pytest.raises(Killed):
        run(pico_checkpoint, tmp_path, stop=("images", 2))
    assert len(list(tmp_path.glob("features-*"))) == 2
    seen: list[tuple[str, int]] = []
    found = run(pico_checkpoint, tmp_path, seen=seen)
    assert [number for what, number in seen if what == "images"] == [3, 4]
    assert_same(found, undisturbed)


@pytest.mark.parametrize("number", [2, 3, 5])
def test_it_goes_on_from_the_middle_of_a_layer(pico_checkpoint: Path, tmp_path: Path, monkeypatch, number: int) -> None:
    """Killed in the `number`-th batch, of two a layer: what entered the layer must still be there."""
    monkeypatch.setattr(activations, "BATCH_TOKENS", 150)
    undisturbed = run(pico_checkpoint, None)
    through, calls = DecoderModules.run, 0

    def run_some(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise Killed
        return through(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(DecoderModules, "run", run_some)
        with pytest.raises(Killed):
            run(pico_checkpoint, tmp_path)
    assert calls == number
    assert_same(run(pico_checkpoint, tmp_path), undisturbed)


def test_states_are_in_files_not_in_memory(pico_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    through, seen = DecoderModules.run, []

    def run_and_look(modules: Any, module: Any, states: torch.Tensor, *more: Any) -> Any:
        seen.append(file_at(states.data_ptr()))
        return through(modules, module, states, *more)

    monkeypatch.setattr(DecoderModules, "run", run_and_look)
    run(pico_checkpoint, tmp_path)
    assert seen == [str(tmp_path / STATES[layer % 2]) for layer in range(DECODER_LAYERS)]


def file_at(address: int) -> str:
    """The file that is mapped there."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, *_, name = line.split(maxsplit=5)
        begin, end = (int(each, 16) for each in place.split("-"))
        if begin <= address < end:
            return name
    return ""


@pytest.mark.parametrize("kind", ["cut", "other", "not ours", "states cut", "states gone"])
def test_a_state_that_cannot_be_gone_on_from_is_refused(pico_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    with pytest.raises(Killed):
        run(pico_checkpoint, tmp_path, stop=("analyze", 1))
    path = tmp_path / LAYERS
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    elif kind == "not ours":
        save_file({"x": np.zeros(3)}, path)
    elif kind == "states cut":
        states = tmp_path / STATES[1]
        states.write_bytes(states.read_bytes()[:-64])
    elif kind == "states gone":
        (tmp_path / STATES[0]).unlink()
    else:
        checkpoint = Checkpoint.open(pico_checkpoint)
        family = find_family(checkpoint.config, checkpoint)
        with pytest.raises(ArtifactError, match="another analysis"):
            analyze(checkpoint, family, CalibrationSet("x", COUNTED[:1], (), ""), compute_type="bf16", keep=tmp_path)
        return
    with pytest.raises(ArtifactError, match="delete it"):
        run(pico_checkpoint, tmp_path)


def test_the_room_for_its_state_is_checked_first(pico_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(DiskSpaceError):
        run(pico_checkpoint, tmp_path)
