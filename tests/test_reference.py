"""The reference: the best tokens of a whole softmax, taken piece by piece, and its file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from luq_gguf import reference
from luq_gguf.activations import analyze
from luq_gguf.calibration import load_calibration
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import ArtifactError
from luq_gguf.export import export_text, export_vision
from luq_gguf.families import find_family
from luq_gguf.reference import Reference, read_reference, score_answers, write_reference
from luq_gguf.runtime import Runtime
from luq_gguf.tensor_record import write_arrays


def states_and_head(places: int = 11, vocabulary: int = 300, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(places, width, generator=generator) * 3,
        torch.randn(vocabulary, width, generator=generator),
    )


@pytest.mark.parametrize("rows", [1, 7, 64, 300])
@pytest.mark.parametrize("places", [3, 1000])
def test_pieces_give_the_softmax_of_the_whole(monkeypatch, rows, places):
    monkeypatch.setattr(reference, "PLACES", places)
    hidden, head = states_and_head()
    top, log_probabilities, rest = score_answers(hidden, head.split(rows), top=20)
    whole = torch.log_softmax((hidden.double() @ head.double().T), dim=1)
    values, ids = whole.topk(20, dim=1)
    assert (top == ids.numpy()).all()
    np.testing.assert_allclose(log_probabilities, values, atol=1e-5)
    np.testing.assert_allclose(rest, 1 - values.exp().sum(dim=1), atol=1e-6)
    assert (top.dtype, log_probabilities.dtype, rest.dtype) == (np.int32, np.float32, np.float32)


def test_a_vocabulary_below_the_top_is_taken_whole():
    hidden, head = states_and_head(vocabulary=10)
    top, log_probabilities, rest = score_answers(hidden, head.split(4), top=64)
    assert top.shape == (11, 10)
    assert (np.sort(top, axis=1) == np.arange(10)).all()
    np.testing.assert_allclose(np.exp(log_probabilities).sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(rest, 0, atol=1e-6)


def test_no_answers_give_no_rows():
    top, log_probabilities, rest = score_answers(torch.empty(0, 8), states_and_head()[1].split(64))
    assert (top.shape, log_probabilities.shape, rest.shape) == ((0, 64), (0, 64), (0,))


def sample_reference() -> Reference:
    rng = np.random.default_rng(0)
    return Reference(
        samples=("one", "two \u00e4", "three"),
        starts=np.array([0, 2, 2, 5], dtype=np.int64),
        prompts=np.array([7, 8, 9], dtype=np.int32),
        answers=rng.integers(0, 100, 5, dtype=np.int32),
        top=rng.integers(0, 100, (5, 4), dtype=np.int32),
        log_probabilities=-np.sort(rng.random((5, 4), dtype=np.float32)),
        rest=rng.random(5, dtype=np.float32),
        context={"calibration": "x.jsonl", "seed": 3},
    )


def test_it_survives_its_file(tmp_path):
    write_reference(tmp_path / "r.safetensors", sample_reference())
    found, wanted = read_reference(tmp_path / "r.safetensors"), sample_reference()
    assert (found.samples, found.context) == (wanted.samples, wanted.context)
    for name in reference.ARRAYS:
        assert getattr(found, name).tobytes() == getattr(wanted, name).tobytes()
        assert getattr(found, name).shape == getattr(wanted, name).shape


@pytest.mark.parametrize(
    "change",
    [
        {"samples": ("one",)},
        {"starts": np.array([0, 2, 2, 6])},
        {"starts": np.array([0, 3, 2, 5])},
        {"starts": np.array([1, 2, 2, 5])},
        {"prompts": np.array([7, 8], dtype=np.int32)},
        {"answers": np.array([1, 2, 3, 4, -5], dtype=np.int32)},
        {"answers": np.array([1, 2, 3, 4], dtype=np.int32)},
        {"top": np.zeros((5, 3), dtype=np.int32)},
        {"top": np.full((5, 4), -1, dtype=np.int32)},
        {"log_probabilities": np.full((5, 4), np.nan, dtype=np.float32)},
        {"rest": np.array([0, 0, 0, 0, np.inf], dtype=np.float32)},
        {"rest": np.zeros(4, dtype=np.float32)},
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path, change):
    write_reference(tmp_path / "r.safetensors", replace(sample_reference(), **change))
    with pytest.raises(ArtifactError, match="contradicts itself"):
        read_reference(tmp_path / "r.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"starts": np.zeros((1, 1), dtype=np.int64)},
        {"starts": np.array([0.0, 2.0, 2.0, 5.0])},
        {"prompts": np.array([7, 8, 9])},
        {"answers": np.array([1, 2, 3, 4, 5], dtype=np.int64)},
        {"top": np.zeros(5, dtype=np.int32)},
        {"rest": np.zeros(5, dtype=np.float64)},
    ],
    ids=str,
)
def test_arrays_of_another_form_are_refused(tmp_path, change):
    path = tmp_path / "reference.safetensors"
    arrays = {name: getattr(sample_reference(), name) for name in reference.ARRAYS} | change
    write_arrays(path, reference.FORMAT, arrays, {"samples": list(sample_reference().samples), "context": {}})
    with pytest.raises(ArtifactError, match="another form"):
        read_reference(path)


@pytest.mark.parametrize("note", [{"samples": "abc", "context": {}}, {"samples": [1, 2, 3], "context": {}},
                                  {"samples": ["a", "b", "c"], "context": 7}, {"samples": ["a"]}], ids=str)  # fmt: skip
def test_notes_of_another_form_are_refused(tmp_path, note):
    path = tmp_path / "reference.safetensors"
    write_arrays(path, reference.FORMAT, {name: getattr(sample_reference(), name) for name in reference.ARRAYS}, note)
    with pytest.raises(ArtifactError):
        read_reference(path)


def test_broken_files_are_refused(tmp_path):
    path: Path = tmp_path / "r.safetensors"
    write_reference(path, sample_reference())
    data, tensors = path.read_bytes(), load_file(path)
    note = {"format": reference.FORMAT, "samples": [], "context": {}}
    broken = [
        (tensors, note | {"format": "luq-gguf sums 1"}),
        (tensors, note | {"samples": 5}),
        (tensors, [note]),
        (tensors, {"format": note["format"]}),
        ({name: row for name, row in tensors.items() if name != "rest"}, note),
    ]
    for content, header in broken:
        save_file(content, path, {"luq_gguf": json.dumps(header)})
        with pytest.raises(ArtifactError, match=r"r\.safetensors as a reference"):
            read_reference(path)
    for damaged in (b"", data[:-3], data[:9], b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"r\.safetensors as a reference"):
            read_reference(path)
    with pytest.raises(ArtifactError, match="gone"):
        read_reference(tmp_path / "gone")


def test_llama_cpp_says_the_same_of_the_same_pixels_and_tokens(pico_checkpoint, tmp_path):
    """The whole way: prompts made again from the calibration set, and the exported files in llama.cpp."""
    checkpoint = Checkpoint.open(pico_checkpoint)
    family = find_family(checkpoint.config, checkpoint)
    calibration = load_calibration("shapes", samples=30)
    found = analyze(checkpoint, family, calibration, compute_type="f32").reference
    export_text(checkpoint, family, tmp_path / "text.gguf", dtype="f32")
    export_vision(checkpoint, family, tmp_path / "vision.gguf", dtype="f32")
    assert {sample.picture is None for sample in calibration.held_out} == {True, False}
    assert found.samples == tuple(sample.id for sample in calibration.held_out)
    with Runtime(tmp_path / "text.gguf", tmp_path / "vision.gguf", threads=1) as runtime:
        for number, sample in enumerate(calibration.held_out):
            rows = slice(found.starts[number], found.starts[number + 1])
            answer = found.answers[rows].tolist()
            logits = [
                runtime.start(sample.question, sample.picture and sample.picture.read()),
                *runtime.extend(answer[:-1]),
            ]
            expected = torch.from_numpy(np.stack(logits)).double().log_softmax(dim=1).numpy()
            said = np.take_along_axis(expected, found.top[rows].astype(np.int64), axis=1)
            np.testing.assert_allclose(found.log_probabilities[rows], said, atol=0.02)
            assert (expected.argmax(axis=1) == found.top[rows][:, 0]).mean() > 0.9
