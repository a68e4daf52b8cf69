"""Families from configs alone: published sizes, both forms, and configs that cannot be."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from math import prod
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import CheckpointError, TensorError, UnsupportedModelError
from luq_gguf.export import text_layout
from luq_gguf.families import KNOWN, family_from_config, find_family
from tests.pico import build_pico, hub_config, nested_config, pico_shapes

SEVEN_B: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
}


def changed(path: str, value: object, config: dict[str, Any] = SEVEN_B) -> dict[str, Any]:
    """A copy of a config with one value replaced; `...` takes the key out."""
    copy = deepcopy(config)
    *outer, key = path.split(".")
    place = copy
    for name in outer:
        place = place[name]
    if value is ...:
        del place[key]
    else:
        place[key] = value
    return copy


def test_seven_b_has_its_published_sizes() -> None:
    family = family_from_config(SEVEN_B)
    layout = text_layout(family, "f16")
    assert len(layout) == 28 * 12 + 3
    weights = {name: prod(shape) for name, (shape, _) in layout.items()}
    layer = sum(size for name, size in weights.items() if name.startswith("blk.9."))
    assert round(layer / 1e6, 1) == 233.1
    assert weights["token_embd.weight"] == weights["output.weight"] == 152064 * 3584
    assert sum(weights.values()) == 7_615_616_512
    assert layout["blk.0.attn_k.weight"] == ((512, 3584), GGMLQuantizationType.F16)
    assert layout["blk.27.ffn_down.weight"] == ((3584, 18944), GGMLQuantizationType.F16)
    assert layout["blk.27.attn_v.bias"] == ((512,), GGMLQuantizationType.F32)
    assert family.hparams["mrope_section"] == [16, 24, 24]
    assert family.image_factor == 28
    vision = {tensor.name: tensor.shape for tensor in family.vision_tensors()}
    assert sum(prod(shape) for shape in vision.values()) == 676_550_144
    assert vision["mm.2.weight"] == (3584, 5120)
    assert vision["v.blk.31.attn_q.weight"] == (1280, 1280)


def test_every_layer_weight_is_in_the_layout_and_nothing_else_is_a_matrix() -> None:
    family = family_from_config(SEVEN_B)
    matrices = {tensor.name for tensor in family.text_tensors() if len(tensor.shape) == 2}
    expected = {f"blk.{layer}.{weight}.weight" for layer in range(28) for weight in family.layer_weights}
    assert matrices == expected | {"token_embd.weight", "output.weight"}


def test_tied_embeddings_have_no_output_matrix() -> None:
    family = family_from_config(changed("tie_word_embeddings", True))
    assert family.tied_embeddings
    assert "output.weight" not in {tensor.name for tensor in family.text_tensors()}


def test_both_forms_of_a_config_are_the_same_family() -> None:
    flat, nested = family_from_config(SEVEN_B), family_from_config(nested_config(SEVEN_B))
    assert flat.hparams == nested.hparams
    assert flat.vision == nested.vision
    assert flat.text_tensors() == nested.text_tensors()
    assert flat.tied_embeddings is nested.tied_embeddings is False
    assert family_from_config(nested_config(changed("tie_word_embeddings", True))).tied_embeddings


def test_sources_are_the_tensors_of_the_checkpoint(pico_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(pico_checkpoint)
    family = find_family(checkpoint.config)
    tensors = family.text_tensors() + family.vision_tensors()
    assert {tensor.source for tensor in tensors} == checkpoint.tensors.keys()
    shapes = pico_shapes(3, tied=False)
    assert all(tensor.source_shape == shapes[tensor.source] for tensor in tensors)
    assert len({tensor.name for tensor in tensors}) == len(tensors)


def test_names_of_every_form_are_found(pico_checkpoint: Path) -> None:
    family = find_family(Checkpoint.open(pico_checkpoint).config)
    for source, stored in {
        "model.layers.0.self_attn.q_proj.weight": "model.language_model.layers.0.self_attn.q_proj.weight",
        "model.norm.weight": "language_model.model.norm.weight",
        "visual.blocks.0.norm1.weight": "model.visual.blocks.0.norm1.weight",
        "lm_head.weight": "lm_head.weight",
    }.items():
        checkpoint = Checkpoint(pico_checkpoint, {}, {stored: None}, "")  # type: ignore[dict-item]
        assert family.find(checkpoint, source) == stored
    with pytest.raises(TensorError, match=r"tensor model\.norm\.weight is missing"):
        family.find(Checkpoint(pico_checkpoint, {}, {}, ""), "model.norm.weight")


@pytest.mark.parametrize("form", ["hub", "transformers5"])
def test_image_rule_comes_from_the_checkpoint_in_both_forms(tmp_path: Path, form: str) -> None:
    folder = build_pico(tmp_path / "model", form=form)
    checkpoint = Checkpoint.open(folder)
    family = find_family(checkpoint.config, checkpoint)
    assert (family.image_factor, family.min_pixels, family.max_pixels) == (28, 3136, 401408)
    assert family.image_mean == (0.48145466, 0.4578275, 0.40821073)
    assert family.image_std == (0.26862954, 0.26130258, 0.27577711)
    path = folder / "preprocessor_config.json"
    image = json.loads(path.read_text())
    path.unlink()
    nested = {"processor_class": "Qwen2_5_VLProcessor", "image_processor": image | {"image_mean": [0.5, 0.25, 1]}}
    (folder / "processor_config.json").write_text(json.dumps(nested))
    family = find_family(checkpoint.config, checkpoint)
    assert family.max_pixels == 401408
    assert family.image_mean == (0.5, 0.25, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_mean": None}, "image_mean is missing"),
        ({"image_std": [1, 2]}, r"image_std is \[1, 2\], not three"),
        ({"image_std": [1, 0, 1]}, "image_std is .*not three positive numbers"),
        ({"image_mean": [0.1, 1e5, 0.1]}, "image_mean"),
        ({"image_mean": [0.1, 10**400, 0.1]}, "image_mean"),
        ({"image_std": [1e-5, 1, 1]}, "image_std"),
        ({"min_pixels": 1 << 25}, "min_pixels is 33554432"),
        ({"max_pixels": -5}, "max_pixels is -5"),
        ({"min_pixels": "3136"}, "min_pixels is '3136'"),
        ({"min_pixels": 500_000}, "max_pixels is 401408, not at least min_pixels"),
    ],
)
def test_image_rules_that_cannot_be(
    pico_checkpoint: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folder = Path(shutil.copytree(pico_checkpoint, tmp_path / "model"))
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(CheckpointError, match=message):
        find_family(checkpoint.config, checkpoint)


def test_an_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(UnsupportedModelError, match="BertModel is not supported; known are") as caught:
        find_family({"architectures": ["BertModel"]})
    assert all(name in str(caught.value) for name in KNOWN)


@pytest.mark.parametrize("named", [None, [], "Qwen2_5_VLForConditionalGeneration", [7], {}])
def test_a_config_without_architecture(named: object) -> None:
    with pytest.raises(CheckpointError, match="architectures is missing or no list of names"):
        find_family({"architectures": named})


def test_a_quantized_checkpoint_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="already quantized"):
        find_family(SEVEN_B | {"quantization_config": {"quant_method": "awq"}})


REQUIRED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling",
    "rope_scaling.mrope_section", "vision_config", "vision_config.depth", "vision_config.hidden_size",
    "vision_config.intermediate_size", "vision_config.num_heads",
)  # fmt: skip


@pytest.mark.parametrize("path", REQUIRED)
def test_a_missing_key_is_named(path: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{path.rpartition('.')[2]} is missing"):
        find_family(changed(path, ...))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("hidden_size", "3584", "hidden_size is '3584'"),
        ("hidden_size", 0, "hidden_size is 0"),
        ("hidden_size", -3584, "hidden_size is -3584"),
        ("hidden_size", 3584.0, "hidden_size is 3584.0"),
        ("hidden_size", True, "hidden_size is True"),
        ("hidden_size", 1 << 40, "hidden_size is"),
        ("hidden_size", 3600, "num_attention_heads is 28, not a divisor"),
        ("num_hidden_layers", 10**9, "num_hidden_layers is 1000000000"),
        ("num_attention_heads", 27, "num_attention_heads is 27, not a divisor"),
        ("num_key_value_heads", 5, "num_key_value_heads is 5, not a divisor"),
        ("num_key_value_heads", [4], r"num_key_value_heads is \[4\]"),
        ("vocab_size", 1 << 60, "vocab_size is"),
        ("rms_norm_eps", 0, "rms_norm_eps is 0"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps is nan"),
        ("rope_theta", float("inf"), "rope_theta is inf"),
        ("rope_scaling", [1], "rope_scaling is"),
        ("rope_scaling.mrope_section", [16, 24], "mrope_section is"),
        ("rope_scaling.mrope_section", [16, 24, 23], "mrope_section is .*sum 64"),
        ("rope_scaling.mrope_section", ["a"], "mrope_section is"),
        ("rope_scaling.type", "yarn", "type is 'yarn'"),
        ("hidden_act", "gelu", "hidden_act is 'gelu'"),
        ("head_dim", 64, "head_dim is 64"),
        ("tie_word_embeddings", "no", "tie_word_embeddings is 'no'"),
        ("vision_config", 3, "vision_config is 3"),
        ("vision_config.depth", 0, "depth is 0"),
        ("vision_config.num_heads", 7, "num_heads is 7, not a divisor"),
        ("vision_config.temporal_patch_size", 3, "temporal_patch_size is 3"),
        ("vision_config.out_hidden_size", 2048, "out_hidden_size is 2048"),
        ("vision_config.fullatt_block_indexes", [7, 15, 22], "fullatt_block_indexes is"),
        ("vision_config.fullatt_block_indexes", [], "fullatt_block_indexes is"),
        ("text_config", 5, "text_config is 5"),
        ("hidden_size", "x" * 10_000, "hidden_size is 'xxx"),
    ],
)
def test_a_value_that_cannot_be_is_named(path: str, value: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        find_family(changed(path, value))
    assert len(str(caught.value)) < 400


def test_the_pico_configs_are_what_transformers_writes() -> None:
    """tests/pico.py's nested form against transformers' own writing of the flat one."""
    from transformers import Qwen2_5_VLConfig

    ids = dict.fromkeys(
        ("<|endoftext|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>"), 3
    )
    flat = hub_config(ids | {"<|video_pad|>": 4}, 3, False, "bf16")
    written = json.loads(Qwen2_5_VLConfig(**deepcopy(flat)).to_json_string())
    nested = find_family(nested_config(flat))
    assert find_family(written | {"architectures": flat["architectures"]}).hparams == nested.hparams
    assert find_family(flat).hparams == nested.hparams
