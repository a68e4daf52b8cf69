"""The family's torch code, part by part, against transformers' own model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.demo.scenes import draw_scene, make_scene
from luq_gguf.errors import CheckpointError, TensorError
from luq_gguf.families import find_family
from luq_gguf.families.qwen25_vl_modules import Modules
from luq_gguf.families.qwen_vl_modules import mrope_positions
from luq_gguf.images import Limits, fit_to_grid, patchify
from tests.pico import build_pico, pico_weights
from tests.pico_files import write_safetensors


def modules_of(folder: Path, dtype: torch.dtype = torch.float32) -> Modules:
    checkpoint = Checkpoint.open(folder)
    return Modules(checkpoint, find_family(checkpoint.config, checkpoint), dtype)


@pytest.fixture(scope="module")
def modules(pico_checkpoint) -> Modules:
    return modules_of(pico_checkpoint)


@pytest.fixture(scope="module")
def model(pico_checkpoint) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(pico_checkpoint, dtype=torch.float32).eval()


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_image_features_are_the_models(pico_checkpoint, model, dtype, together):
    """Larger than an attention window; alone and together."""
    modules = modules_of(pico_checkpoint, dtype)
    images = [draw_scene(make_scene(number)).resize(size) for number, size in enumerate(((252, 140), (84, 168)))]
    patched = [patchify(image, modules.family) for image in images]
    grids = [grid for _, grid in patched]
    with torch.inference_mode():
        groups = [patched] if together else [[image] for image in patched]
        features = [rows for group in modules.image_features(iter(groups)) for rows in group]
        found = torch.cat(features)
        expected = model.model.visual(
            torch.from_numpy(np.concatenate([rows for rows, _ in patched])),
            grid_thw=torch.tensor([[1, *grid] for grid in grids]),
        ).pooler_output
    assert found.dtype == dtype
    assert [len(rows) for rows in features] == [rows * columns // 4 for rows, columns in grids]
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    assert (found.float() - expected).abs().max() < tolerance * expected.abs().max()


def test_a_tower_holds_one_block_at_a_time(pico_checkpoint, monkeypatch):
    modules = modules_of(pico_checkpoint)
    towers, held = [], []
    fill_tower, fill = Modules.fill_tower, Modules.fill

    def remember(self, tower, *more):
        towers.append(tower)
        fill_tower(self, tower, *more)

    def look(self, module, prefix, **options):
        fill(self, module, prefix, **options)
        if "blocks." in prefix:
            held.append(sum(not next(block.parameters()).is_meta for block in towers[0].blocks))

    monkeypatch.setattr(Modules, "fill_tower", remember)
    monkeypatch.setattr(Modules, "fill", look)
    image = patchify(draw_scene(make_scene(0)).resize((84, 84)), modules.family)
    with torch.inference_mode():
        features = [rows for group in modules.image_features([[image], [image]]) for rows in group]
    assert held == [1] * (2 * len(towers[0].blocks))
    assert torch.equal(*features)
    assert all(parameter.is_meta for parameter in towers[0].blocks.parameters())


def test_the_smallest_and_the_longest_image_go_through_the_tower(modules):
    for size in ((28, 28), (28, 28 * 40)):
        image = fit_to_grid(draw_scene(make_scene(0)).resize(size), Limits(28, 1, 10**7))
        rows, grid = patchify(image, modules.family)
        with torch.inference_mode():
            [[features]] = modules.image_features([[(rows, grid)]])
        assert features.shape == (size[0] * size[1] // 784, 256)
        assert torch.isfinite(features).all()


def test_embeddings_and_head_are_the_matrices_rows(modules, model, monkeypatch):
    ids = np.array([5, 0, 511, 5])
    assert (modules.embed(ids) == model.model.language_model.embed_tokens.weight[ids]).all()
    monkeypatch.setattr("luq_gguf.families.decoder_modules.HEAD_ROWS", 100)
    parts = list(modules.head())
    assert [len(part) for part in parts] == [100] * 5 + [12]
    assert (torch.cat(parts) == model.lm_head.weight).all()


def test_rotary_tables_and_norm_are_the_models(modules, model):
    positions = torch.from_numpy(mrope_positions(np.arange(20) % 20 // 4 == 1, (2, 2)))[:, None]
    text = model.model.language_model
    for found, expected in zip(modules.rotary(positions), text.rotary_emb(torch.empty(0), positions), strict=True):
        assert torch.equal(found, expected)
    states = torch.randn(1, 20, 256, generator=torch.Generator().manual_seed(0))
    assert torch.equal(modules.norm()(states), text.norm(states))


@pytest.mark.parametrize(("start", "after", "grid"), [(3, 5, (4, 4)), (1, 1, (2, 6)), (0, 7, (5, 2)), (4, 0, (1, 1))])
def test_positions_are_the_models(model, start, after, grid):
    rows, columns = grid
    kinds = torch.tensor([[0] * start + [1] * (rows * columns) + [0] * after])
    expected, _ = model.model.get_rope_index(
        input_ids=torch.zeros_like(kinds),
        mm_token_type_ids=kinds,
        image_grid_thw=torch.tensor([[1, rows * 2, columns * 2]]),
    )
    assert (mrope_positions(kinds[0].numpy() == 1, grid) == expected[:, 0].numpy()).all()
    assert (mrope_positions(np.zeros(4, dtype=bool), None) == np.arange(4)).all()


@pytest.mark.parametrize("stored", ["f32", "f16", "bf16"])
def test_weights_are_widened_exactly(tmp_path, stored):
    modules = modules_of(build_pico(tmp_path / "pico", dtype=stored, layers=1))
    weight = modules.layer(0).get_parameter("mlp.up_proj.weight")
    assert weight.dtype == torch.float32
    drawn = torch.from_numpy(dict(pico_weights(seed=0, layers=1))["model.layers.0.mlp.up_proj.weight"])
    kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[stored]
    assert torch.equal(weight, drawn.to(kind).float())
    assert not weight.requires_grad


@pytest.mark.parametrize(
    "name", ["visual.blocks.1.attn.qkv.weight", "model.layers.2.self_attn.q_proj.bias", "lm_head.weight"]
)
def test_weights_that_are_not_finite_are_named(tmp_path, name):
    folder = build_pico(tmp_path / "pico", dtype="f32")
    tensors = dict(pico_weights(seed=0, layers=3))
    tensors[name].flat[3] = np.nan
    write_safetensors(folder / "model.safetensors", tensors, "f32")
    modules = modules_of(folder)
    rows, grid = patchify(draw_scene(make_scene(0)), modules.family)
    read = {
        "visual": lambda: list(modules.image_features([[(rows, grid)]])),
        "model": lambda: modules.layer(2),
        "lm_head": lambda: list(modules.head()),
    }[name.partition(".")[0]]
    with pytest.raises(TensorError, match=name):
        read()


def test_a_missing_weight_is_named(tmp_path):
    folder = build_pico(tmp_path / "pico", dtype="f32")
    tensors = dict(pico_weights(seed=0, layers=3))
    del tensors["model.layers.1.input_layernorm.weight"]
    write_safetensors(folder / "model.safetensors", tensors, "f32")
    with pytest.raises(TensorError, match=r"model\.layers\.1\.input_layernorm\.weight"):
        modules_of(folder).layer(1)


def test_a_weight_of_another_shape_is_named(tmp_path):
    folder = build_pico(tmp_path / "pico", dtype="f32")
    tensors = dict(pico_weights(seed=0, layers=3))
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"][:-1].copy()
    write_safetensors(folder / "model.safetensors", tensors, "f32")
    with pytest.raises(TensorError, match=r"model\.layers\.1\.mlp\.up_proj\.weight") as caught:
        modules_of(folder).layer(1)
    assert "\n" not in str(caught.value)


def test_a_config_that_transformers_refuses_is_our_error(tmp_path):
    folder = build_pico(tmp_path / "pico")
    config = json.loads((folder / "config.json").read_text()) | {"attention_dropout": "much"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"transformers cannot use .*config\.json") as caught:
        modules_of(folder)
    assert "\n" not in str(caught.value)
