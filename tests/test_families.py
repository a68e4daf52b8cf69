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
from luq_gguf.errors import CheckpointError, LuqError, TensorError, UnsupportedModelError
from luq_gguf.export import text_layout
from luq_gguf.families import KNOWN, family_from_config, find_family
from tests.pico import build_pico, hub_config, nested_config, pico_shapes
from tests.picos import build_family
from tests.published import GEMMA3_4B, LLAVA_7B, QWEN2_VL_7B, QWEN3_VL_8B, QWEN25_VL_7B

SEVEN_B = QWEN25_VL_7B


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


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["Qwen3VLMoeForConditionalGeneration"]}, "has experts"),
        ({"architectures": ["Qwen2ForCausalLM"], "num_experts": 8}, "has experts"),
        (QWEN25_VL_7B | {"text_config": {"num_local_experts": 4}}, "has experts"),
        ({"architectures": ["Qwen2AudioForConditionalGeneration"]}, "takes audio"),
        ({"architectures": ["Qwen2_5OmniModel"]}, "takes audio"),
        ({"architectures": ["Gemma3nForConditionalGeneration"], "audio_config": {"hidden_size": 1}}, "takes audio"),
        ({"architectures": ["LlavaNextVideoForConditionalGeneration"]}, "takes video alone"),
    ],
)
def test_what_this_version_does_not_handle_is_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        find_family(config)
    message = str(caught.value)
    assert config["architectures"][0] in message
    assert "which this version does not handle" in message
    assert all(name in message for name in KNOWN)


def test_an_unknown_family_is_told_how_to_add_one() -> None:
    with pytest.raises(UnsupportedModelError, match=r"docs/adding-a-family\.md") as caught:
        find_family({"architectures": ["MambaForCausalLM"]})
    assert all(name in str(caught.value) for name in KNOWN)


@pytest.mark.parametrize(
    ("config", "path", "value", "message"),
    [
        (QWEN2_VL_7B, "vision_config.embed_dim", 1281, "num_heads is 16, not a divisor of hidden_size 1281"),
        (QWEN2_VL_7B, "vision_config.hidden_size", 1280, "hidden_size is 1280, not the text model's hidden_size, 3584"),
        (QWEN2_VL_7B, "vision_config.mlp_ratio", "4", "mlp_ratio is '4'"),
        (QWEN2_VL_7B, "vision_config.hidden_act", "silu", "hidden_act is 'silu'"),
        (QWEN3_VL_8B, "vision_config.deepstack_visual_indexes", [8, 8], "deepstack_visual_indexes is"),
        (QWEN3_VL_8B, "vision_config.deepstack_visual_indexes", [8, 27], "deepstack_visual_indexes is"),
        (QWEN3_VL_8B, "vision_config.deepstack_visual_indexes", [2, 1], "deepstack_visual_indexes is"),
        (QWEN3_VL_8B, "vision_config.num_position_embeddings", 2303, "num_position_embeddings is 2303, not a square"),
        (QWEN3_VL_8B, "vision_config.hidden_act", "relu", "hidden_act is 'relu'"),
        (QWEN3_VL_8B, "text_config.head_dim", 127, "head_dim is 127, not an even number"),
        (QWEN3_VL_8B, "text_config.rope_scaling.mrope_section", [24, 20, 21], "mrope_section is .*sum 64"),
        (LLAVA_7B, "vision_config.model_type", "siglip_vision_model", "of type 'siglip_vision_model', not clip"),
        (LLAVA_7B, "text_config.model_type", "mistral", "of type 'mistral', not llama"),
        (LLAVA_7B, "vision_feature_layer", [-2, -5], r"vision_feature_layer is \[-2, -5\]"),
        (LLAVA_7B, "vision_feature_select_strategy", "full", "vision_feature_select_strategy is 'full'"),
        (LLAVA_7B, "projector_hidden_act", "relu", "projector_hidden_act is 'relu'"),
        (LLAVA_7B, "vision_config.hidden_act", "gelu", "hidden_act is 'gelu'"),
        (LLAVA_7B, "vision_config.image_size", 1 << 20, "image_size is 1048576"),
        (LLAVA_7B, "vision_config.image_size", 7, "image_size is 7, not at least patch_size, 14"),
        (LLAVA_7B, "vision_config.num_attention_heads", 15, "num_attention_heads is 15"),
        (LLAVA_7B, "vision_config.intermediate_size", 1024, "intermediate_size is 1024, not another number than"),
        (QWEN25_VL_7B, "vision_config.intermediate_size", 1280, "intermediate_size is 1280, not another number than"),
        (LLAVA_7B, "text_config.rope_scaling", {"type": "dynamic", "factor": 2.0}, "rope_type is 'dynamic'"),
        (LLAVA_7B, "text_config.rope_scaling", {"type": "linear"}, "factor is missing"),
        (GEMMA3_4B, "mm_tokens_per_image", 255, "mm_tokens_per_image is 255, not the square"),
        (GEMMA3_4B, "text_config.sliding_window_pattern", 5, "sliding_window_pattern is 5, not 6"),
        (GEMMA3_4B, "text_config.final_logit_softcapping", 30.0, "final_logit_softcapping is 30.0"),
        (GEMMA3_4B, "text_config.query_pre_attn_scalar", 168, "query_pre_attn_scalar is 168, not 256"),
        (GEMMA3_4B, "text_config.hidden_activation", "silu", "hidden_activation is 'silu'"),
        (GEMMA3_4B, "text_config.sliding_window", 0, "sliding_window is 0"),
    ],
)
def test_a_value_that_llama_cpp_would_not_follow_is_named(
    config: dict[str, Any], path: str, value: object, message: str
) -> None:
    with pytest.raises(LuqError, match=message):
        find_family(changed(path, value, config))


PROCESSORS: dict[str, list[tuple[dict[str, Any], str]]] = {
    "qwen2-vl": [({"patch_size": 16}, "patch_size is 16, not 14"), ({"merge_size": 1}, "merge_size is 1, not 2")],
    "qwen3-vl": [({"patch_size": 14}, "patch_size is 14, not 16")],
    "llava-1.5": [({"crop_size": {"height": 224, "width": 224}}, "crop_size is .*, not 56 x 56 pixels")],
    "gemma-3": [
        ({"size": {"height": 224, "width": 224}}, "size is .*, not 56 x 56 pixels"),
        ({"image_seq_length": 256}, "image_seq_length is 256, not 4"),
    ],
}


@pytest.mark.parametrize("family", PROCESSORS)
def test_a_processor_file_that_is_missing_or_of_another_model_is_named(tmp_path: Path, family: str) -> None:
    folder = build_family(tmp_path / "pico", family)
    file = folder / "preprocessor_config.json"
    content = json.loads(file.read_text())
    (folder / "processor_config.json").unlink(missing_ok=True)  # it has the last word
    for changes, message in PROCESSORS[family]:
        file.write_text(json.dumps(content | changes))
        checkpoint = Checkpoint.open(folder)
        with pytest.raises(CheckpointError, match=f"preprocessor_config.json of .*{message}.*another model"):
            find_family(checkpoint.config, checkpoint)
    file.unlink()
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(CheckpointError, match=r"pico has no preprocessor_config\.json"):
        find_family(checkpoint.config, checkpoint)


def test_an_adapter_is_told_to_be_merged(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(CheckpointError, match=r"is a LoRA adapter.*merge_and_unload"):
        Checkpoint.open(tmp_path)
