"""The importance matrix along the quantized model, against transformers' model with the layers that the file has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from luq_gguf.artifacts import sha256_of
from luq_gguf.audit import audit_folder
from luq_gguf.calibration import load_calibration
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import RequestError
from luq_gguf.export import export_text
from luq_gguf.families import find_family
from luq_gguf.importance import read_importance
from luq_gguf.job import IMATRIX, Settings
from luq_gguf.pipeline import Conversion, convert, quantize_file
from luq_gguf.planning import layer_of
from luq_gguf.prompts import PromptMaker
from luq_gguf.sequential import _weights_in
from tests.families_under_test import READING, SEEING, Original
from tests.picos import build_family
from tests.test_pipeline import tensors_of

SETTINGS = Settings(
    calib="shapes", samples=16, low_type="IQ1_M", low_layers=3, threads=1, compute_type="f32", keep_parts=True
)


@pytest.fixture(scope="module")
def plain(pico_checkpoint: Path, tmp_path_factory) -> Conversion:
    return convert(str(pico_checkpoint), tmp_path_factory.mktemp("plain"), SETTINGS)


@pytest.fixture(scope="module")
def refined(pico_checkpoint: Path, tmp_path_factory) -> Conversion:
    return convert(str(pico_checkpoint), tmp_path_factory.mktemp("refined"), replace(SETTINGS, sequential=True))


def means_of(conversion: Conversion) -> dict[str, np.ndarray]:
    matrix = read_importance(conversion.model.parent / IMATRIX)
    return {name: entry.means.astype(np.float64) for name, entry in matrix.weights.items()}


def test_the_first_layer_sees_what_it_saw_and_later_ones_do_not(plain: Conversion, refined: Conversion) -> None:
    before, after = means_of(plain), means_of(refined)
    assert before.keys() == after.keys()
    for name in before:
        same = np.allclose(before[name], after[name], rtol=1e-5)
        assert same == (layer_of(name) == 0), name
    assert plain.plan == refined.plan


def test_the_sums_are_those_of_a_model_with_the_quantized_layers_before(pico_checkpoint: Path, tmp_path: Path) -> None:
    """transformers' whole model, its first layers' weights taken from the file; of text tokens alone (alpha 0)."""
    settings = replace(SETTINGS, sequential=True, alpha=0.0)
    made = convert(str(pico_checkpoint), tmp_path, settings)
    checkpoint = Checkpoint.open(pico_checkpoint)
    family = find_family(checkpoint.config, checkpoint)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(pico_checkpoint, dtype=torch.float32).eval()
    changed = _weights_in(made.model, {tensor.name: tensor for tensor in family.text_tensors()})
    layers = model.model.language_model.layers
    for index in range(2):
        prefix = f"model.layers.{index}."
        state = {name.removeprefix(prefix): value for name, value in changed.items() if name.startswith(prefix)}
        assert len(state) == 7
        layers[index].load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=False)
    seen: list[torch.Tensor] = []
    layers[2].mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    maker, squares, tokens = PromptMaker(checkpoint, family), np.zeros(family.hparams["intermediate_size"]), 0
    for sample in load_calibration(SETTINGS.calib, samples=SETTINGS.samples).samples:
        if sample.picture is None:
            (tokenized,) = maker.tokenize(sample)
            with torch.inference_mode():
                model(input_ids=torch.from_numpy(tokenized.ids)[None])
            rows = seen.pop().double().numpy()
            squares, tokens = squares + (rows**2).sum(axis=0), tokens + len(rows)
    means = squares / tokens
    found = means_of(made)["blk.2.ffn_down.weight"]
    np.testing.assert_allclose(found, np.maximum(means, 1e-5 * means.mean()), rtol=1e-3, atol=1e-5 * means.mean())


def test_the_file_is_what_the_refined_matrix_makes_of_the_16_bit_one(
    refined: Conversion, plain: Conversion, pico_checkpoint: Path, tmp_path: Path
) -> None:
    """The layers are those that were quantized on the way: the same bytes as by the finished matrix in one run."""
    checkpoint = Checkpoint.open(pico_checkpoint)
    full = tmp_path / "16bit.gguf"
    export_text(checkpoint, find_family(checkpoint.config, checkpoint), full, dtype="bf16")
    again = tmp_path / "again.gguf"
    quantize_file(full, refined.plan_path, refined.imatrix_path, again)
    assert tensors_of(again) == tensors_of(refined.model)
    assert refined.plan.size_bytes == plain.plan.size_bytes
    assert tensors_of(plain.model) != tensors_of(refined.model)
    assert audit_folder(refined.model.parent) == []


def test_a_second_run_goes_through_no_sample(refined: Conversion, pico_checkpoint: Path) -> None:
    out = refined.model.parent
    again = convert(str(pico_checkpoint), out, replace(SETTINGS, sequential=True, evaluate=False))
    assert "analyze" not in again.seconds
    assert "refine" not in again.seconds
    assert sha256_of(again.imatrix_path) == sha256_of(refined.imatrix_path)


@pytest.mark.parametrize("name", [*SEEING, *READING])
def test_weights_come_back_as_the_checkpoint_has_them(name: str, tmp_path: Path) -> None:
    """LLaMA's rotated rows too: 16-bit weights, which are exact, through the GGUF and back."""
    original = Original(name, build_family(tmp_path / name, name))
    part = tmp_path / "part.gguf"
    export_text(
        original.checkpoint, original.family, part, dtype="f32", tokenizer=False,
        select=lambda tensor: layer_of(tensor) == 1,
    )  # fmt: skip
    sources = {tensor.name: tensor for tensor in original.family.text_tensors()}
    found = _weights_in(part, sources)
    assert len(found) == 7
    for source, values in found.items():
        stored = original.checkpoint.read_float32(original.family.find(original.checkpoint, source))
        np.testing.assert_array_equal(values, stored)


def test_a_matrix_that_was_brought_is_not_measured_again() -> None:
    with pytest.raises(RequestError, match="--sequential measures what --imatrix brings"):
        Settings(sequential=True, imatrix=(Path("i.gguf"),))
