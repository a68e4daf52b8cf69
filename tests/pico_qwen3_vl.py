"""Pico Qwen3-VL checkpoints (dense) in the form in which the hub has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.pico import ADDED_TOKENS, side_files, tokenizer_config
from tests.pico_files import (
    TORCH_DTYPES,
    byte_level_vocabulary,
    draw_weights,
    tokenizer_json,
    vocabulary_files,
    write_checkpoint,
)
from tests.pico_shapes import Decoder, Shapes, decoder_shapes, with_bias

TEXT = Decoder(heads=8, qk_norm=True)
VISION_HIDDEN = 64
VISION_FFN = 96
VISION_HEADS = 2
VISION_DEPTH = 5
DEEPSTACK = (0, 1, 3)
POSITIONS = 64
THINKING = {"<tool_response>": False, "</tool_response>": False, "<think>": False, "</think>": False}
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}"
    "{%- else -%}{%- for content in message.content -%}"
    "{%- if content.type == 'image' or 'image' in content or 'image_url' in content -%}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif 'text' in content -%}{{- content.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def build_qwen3_vl(
    folder: Path, *, dtype: str = "bf16", tied: bool = False, shards: int = 1, seed: int = 0, layers: int = 4
) -> Path:
    """Write a checkpoint into `folder` and return it; the same arguments give the same bytes."""
    added = ADDED_TOKENS | THINKING
    ids, merges = byte_level_vocabulary(added)
    files = side_files(ids, merges, "hub") | vocabulary_files(ids, merges, added) | image_files()
    files["tokenizer.json"] = tokenizer_json(ids, merges, added)
    files["tokenizer_config.json"] = tokenizer_config(ids, "hub", CHAT_TEMPLATE, THINKING)
    files["chat_template.json"] = {"chat_template": CHAT_TEMPLATE}
    files["config.json"] = qwen3_vl_config(ids, layers, tied, dtype)
    return write_checkpoint(folder, draw_weights(qwen3_vl_shapes(layers, tied), seed), files, dtype, shards)


def qwen3_vl_shapes(layers: int, tied: bool) -> Shapes:
    text = decoder_shapes(TEXT, layers, "model.language_model.", None if tied else "lm_head.weight")
    vision = {"pos_embed.weight": (POSITIONS, VISION_HIDDEN)} | with_bias(_vision_layers())
    return text | {f"model.visual.{name}": shape for name, shape in vision.items()}


def _vision_layers() -> Shapes:
    merged = 4 * VISION_HIDDEN
    linears: Shapes = {"patch_embed.proj": (VISION_HIDDEN, 3, 2, 16, 16)}
    for block in range(VISION_DEPTH):
        prefix = f"blocks.{block}."
        linears |= {f"{prefix}norm1": (VISION_HIDDEN,), f"{prefix}norm2": (VISION_HIDDEN,)}
        linears[f"{prefix}attn.qkv"] = (3 * VISION_HIDDEN, VISION_HIDDEN)
        linears[f"{prefix}attn.proj"] = (VISION_HIDDEN, VISION_HIDDEN)
        linears[f"{prefix}mlp.linear_fc1"] = (VISION_FFN, VISION_HIDDEN)
        linears[f"{prefix}mlp.linear_fc2"] = (VISION_HIDDEN, VISION_FFN)
    mergers = {"merger.": VISION_HIDDEN} | {f"deepstack_merger_list.{number}.": merged for number in range(3)}
    for prefix, normed in mergers.items():
        linears[f"{prefix}norm"] = (normed,)
        linears |= {f"{prefix}linear_fc1": (merged, merged), f"{prefix}linear_fc2": (TEXT.hidden, merged)}
    return linears


def qwen3_vl_config(ids: dict[str, int], layers: int, tied: bool, dtype: str) -> dict[str, Any]:
    """The nested `config.json` of the hub."""
    text = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "dtype": TORCH_DTYPES[dtype],
        "eos_token_id": ids["<|im_end|>"],
        "head_dim": TEXT.head,
        "hidden_act": "silu",
        "hidden_size": TEXT.hidden,
        "initializer_range": 0.02,
        "intermediate_size": TEXT.ffn,
        "max_position_embeddings": 1024,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": TEXT.heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": TEXT.kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [12, 10, 10], "rope_type": "default"},
        "rope_theta": 5000000,
        "tie_word_embeddings": tied,
        "use_cache": True,
        "vocab_size": TEXT.vocabulary,
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": ids["<|image_pad|>"],
        "model_type": "qwen3_vl",
        "text_config": text,
        "tie_word_embeddings": tied,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": _vision_config(),
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
    }


def _vision_config() -> dict[str, Any]:
    return {
        "deepstack_visual_indexes": list(DEEPSTACK),
        "depth": VISION_DEPTH,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": VISION_HIDDEN,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": VISION_FFN,
        "model_type": "qwen3_vl",
        "num_heads": VISION_HEADS,
        "num_position_embeddings": POSITIONS,
        "out_hidden_size": TEXT.hidden,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


def image_files() -> dict[str, Any]:
    """What the processor does with images and videos."""
    shared = {
        "size": {"longest_edge": 524288, "shortest_edge": 4096},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    return {
        "preprocessor_config.json": shared | {"image_processor_type": "Qwen2VLImageProcessorFast"},
        "video_preprocessor_config.json": shared | {"video_processor_type": "Qwen3VLVideoProcessor"},
    }
