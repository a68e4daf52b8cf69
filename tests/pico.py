"""Pico Qwen2.5-VL checkpoints with seeded random weights, in both forms in which they are found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.pico_files import (
    TORCH_DTYPES,
    added_token,
    byte_level_vocabulary,
    draw_weights,
    tokenizer_json,
    vocabulary_files,
    write_checkpoint,
)
from tests.pico_shapes import Decoder, Shapes, decoder_shapes, with_bias

HIDDEN = 256
FFN = 512
HEADS = 4
KV_HEADS = 2
VOCABULARY = 512
VISION_HIDDEN = 64
VISION_FFN = 96
VISION_HEADS = 2
VISION_DEPTH = 3
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
PLAIN_ADDED_TOKENS = ("<tool_call>", "</tool_call>")
ADDED_TOKENS = dict.fromkeys(SPECIAL_TOKENS, True) | dict.fromkeys(PLAIN_ADDED_TOKENS, False)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_pico(
    folder: Path,
    *,
    dtype: str = "bf16",
    tied: bool = False,
    shards: int = 1,
    form: str = "hub",
    seed: int = 0,
    layers: int = 3,
) -> Path:
    """Write a checkpoint into `folder` and return it; the same arguments give the same bytes.

    `dtype` is bf16, f16 or f32; `form` is "hub" (flat config) or "transformers5" (nested config).
    """
    vocabulary, merges = byte_level_vocabulary(ADDED_TOKENS)
    files = side_files(vocabulary, merges, form)
    config = hub_config(vocabulary, layers, tied, dtype)
    files["config.json"] = config if form == "hub" else nested_config(config)
    return write_checkpoint(folder, pico_weights(seed=seed, layers=layers, tied=tied), files, dtype, shards)


def pico_weights(*, seed: int, layers: int, tied: bool = False) -> Iterator[tuple[str, np.ndarray]]:
    """Hub names and float32 values."""
    return draw_weights(pico_shapes(layers, tied), seed)


def pico_shapes(layers: int, tied: bool) -> Shapes:
    size = Decoder(HIDDEN, FFN, HEADS, KV_HEADS, HIDDEN // HEADS, VOCABULARY, qkv_bias=True)
    return decoder_shapes(size, layers, head=None if tied else "lm_head.weight") | _vision_shapes()


def _vision_shapes() -> Shapes:
    shapes: Shapes = {"visual.patch_embed.proj.weight": (VISION_HIDDEN, 3, 2, 14, 14)}
    for block in range(VISION_DEPTH):
        prefix = f"visual.blocks.{block}."
        shapes |= with_bias({
            f"{prefix}attn.qkv": (3 * VISION_HIDDEN, VISION_HIDDEN),
            f"{prefix}attn.proj": (VISION_HIDDEN, VISION_HIDDEN),
            f"{prefix}mlp.gate_proj": (VISION_FFN, VISION_HIDDEN),
            f"{prefix}mlp.up_proj": (VISION_FFN, VISION_HIDDEN),
            f"{prefix}mlp.down_proj": (VISION_HIDDEN, VISION_FFN),
        })  # fmt: skip
        shapes |= {f"{prefix}norm1.weight": (VISION_HIDDEN,), f"{prefix}norm2.weight": (VISION_HIDDEN,)}
    merged = 4 * VISION_HIDDEN
    shapes["visual.merger.ln_q.weight"] = (VISION_HIDDEN,)
    return shapes | with_bias({"visual.merger.mlp.0": (merged, merged), "visual.merger.mlp.2": (HIDDEN, merged)})


def hub_config(ids: dict[str, int], layers: int, tied: bool, dtype: str) -> dict[str, Any]:
    """The flat `config.json` of the hub's Qwen2.5-VL checkpoints, at pico size."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": FFN,
        "max_position_embeddings": 1024,
        "max_window_layers": layers,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 1024,
        "tie_word_embeddings": tied,
        "torch_dtype": TORCH_DTYPES[dtype],
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": VISION_DEPTH,
            "hidden_act": "silu",
            "hidden_size": VISION_HIDDEN,
            "intermediate_size": VISION_FFN,
            "num_heads": VISION_HEADS,
            "in_chans": 3,
            "out_hidden_size": HIDDEN,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "vocab_size": VOCABULARY,
    }


def nested_config(flat: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` that transformers 5 writes for a model loaded from the flat one."""
    outer = (
        "architectures", "model_type", "image_token_id", "video_token_id", "vision_start_token_id",
        "vision_end_token_id", "vision_token_id", "tie_word_embeddings",
    )  # fmt: skip
    dropped = (*outer, "vision_config", "rope_scaling", "rope_theta", "torch_dtype", "sliding_window")
    text = {key: value for key, value in flat.items() if key not in dropped}
    text |= {
        "dtype": flat["torch_dtype"],
        "layer_types": ["full_attention"] * flat["num_hidden_layers"],
        "model_type": "qwen2_5_vl_text",
        "pad_token_id": None,
        "rope_parameters": {
            "mrope_section": list(flat["rope_scaling"]["mrope_section"]),
            "rope_theta": flat["rope_theta"],
            "rope_type": "default",
            "type": "mrope",
        },
        "sliding_window": None,
    }
    vision = flat["vision_config"] | {
        "dtype": flat["torch_dtype"],
        "in_channels": flat["vision_config"]["in_chans"],
        "initializer_range": 0.02,
        "model_type": "qwen2_5_vl_vision",
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"},
    }
    return {key: flat[key] for key in outer} | {
        "dtype": flat["torch_dtype"],
        "text_config": text,
        "transformers_version": "5.23.0",
        "vision_config": vision,
    }


def side_files(ids: dict[str, int], merges: list[tuple[str, str]], form: str) -> dict[str, Any]:
    """Tokenizer, template, generation and image files, as each form has them."""
    image = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "merge_size": 2,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "image_processor_type": "Qwen2VLImageProcessor",
    }
    generation = {
        "bos_token_id": ids["<|endoftext|>"],
        "do_sample": True,
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "pad_token_id": ids["<|endoftext|>"],
        "repetition_penalty": 1.05,
        "temperature": 0.1,
        "top_k": 1,
        "top_p": 0.001,
    }
    files: dict[str, Any] = {
        "tokenizer.json": tokenizer_json(ids, merges, ADDED_TOKENS),
        "tokenizer_config.json": tokenizer_config(ids, form),
        "generation_config.json": generation,
    }
    if form == "hub":
        files |= vocabulary_files(ids, merges, ADDED_TOKENS)
        files["chat_template.json"] = {"chat_template": CHAT_TEMPLATE}
        pixels = {"min_pixels": 3136, "max_pixels": 401408}
        files["preprocessor_config.json"] = pixels | image | {"processor_class": "Qwen2_5_VLProcessor"}
    else:
        files["chat_template.jinja"] = CHAT_TEMPLATE
        files["preprocessor_config.json"] = image | {"size": {"longest_edge": 401408, "shortest_edge": 3136}}
    return files


def tokenizer_config(
    ids: dict[str, int], form: str, template: str = CHAT_TEMPLATE, more: dict[str, bool] | None = None
) -> dict[str, Any]:
    """Qwen's `tokenizer_config.json`; `more` are added tokens beyond Qwen2.5-VL's, special or not."""
    shared = {
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 1024,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    if form == "hub":
        known = (ADDED_TOKENS | (more or {})).items()
        added = {str(ids[token]): added_token(token, special) for token, special in known}
        extra = {"additional_special_tokens": list(SPECIAL_TOKENS[1:]), "chat_template": template}
        return {"add_bos_token": False, "added_tokens_decoder": added} | extra | shared
    return {"backend": "tokenizers", "extra_special_tokens": list(SPECIAL_TOKENS[1:]), "is_local": True} | shared


CARD = """---
license: apache-2.0
license_link: https://example.org/license
language:
- en
pipeline_tag: image-text-to-text
tags:
- multimodal
base_model:
- example/Pico-VL-Base
library_name: transformers
---

# Pico
"""

GOLDEN_CASES: dict[str, dict[str, Any]] = {
    "pico-bf16": {"folder": "Pico2.5-VL-2M-Instruct", "dtype": "bf16", "shards": 3, "card": True},
    "pico-tied-f16": {"folder": "tied_pico", "dtype": "f16", "tied": True, "layers": 2, "seed": 1},
    "pico-f32": {"folder": "Pico VL f32", "dtype": "f32", "seed": 2, "layers": 4},
    "pico-nested": {"folder": "Pico2.5-VL-2M-Instruct", "dtype": "bf16", "form": "transformers5"},
}
"""Checkpoints for which tests/golden holds what llama.cpp's own converter made of them."""


def build_golden_case(parent: Path, case: str) -> Path:
    """Write one of GOLDEN_CASES into `parent`, under the folder name that its golden file was made with."""
    options = dict(GOLDEN_CASES[case])
    folder, card = parent / options.pop("folder"), options.pop("card", False)
    build_pico(folder, **options)
    if card:
        (folder / "README.md").write_text(CARD)
    return folder
