"""Pico checkpoints without a vision part: Qwen2.5, Qwen3 and Llama 3.x in the form in which the hub has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.pico import ADDED_TOKENS, hub_config, side_files, tokenizer_config
from tests.pico_files import (
    TORCH_DTYPES,
    added_token,
    byte_level_vocabulary,
    draw_weights,
    tokenizer_json,
    vocabulary_files,
    write_checkpoint,
)
from tests.pico_qwen3_vl import THINKING
from tests.pico_shapes import Decoder, decoder_shapes

QWEN25 = Decoder(qkv_bias=True)
QWEN3 = Decoder(heads=8, qk_norm=True)
QWEN25_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' -%}{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' -}}"
    "{%- else -%}{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}{%- endif -%}"
    "{%- for message in messages -%}{%- if message.role != 'system' or not loop.first -%}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
QWEN3_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.content is string -%}{%- set content = message.content -%}"
    "{%- else -%}{%- set content = '' -%}{%- endif -%}"
    "{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}"
    "{%- endif -%}"
)
LLAMA_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' -}}"
    "{{- message['content'] | trim + '<|eot_id|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}"
)
LLAMA_TOKENS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
)  # fmt: skip
LLAMA_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
VISION_KEYS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id")


def build_qwen25(
    folder: Path, *, dtype: str = "bf16", tied: bool = False, shards: int = 1, seed: int = 0, layers: int = 3
) -> Path:
    """Write a Qwen2.5 checkpoint into `folder` and return it; the same arguments give the same bytes."""
    ids, merges = byte_level_vocabulary(ADDED_TOKENS)
    files = _qwen_files(ids, merges, QWEN25_TEMPLATE, {})
    files["config.json"] = _text_config(ids, layers, tied, dtype) | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
    }
    shapes = decoder_shapes(QWEN25, layers, head=None if tied else "lm_head.weight")
    return write_checkpoint(folder, draw_weights(shapes, seed), files, dtype, shards)


def build_qwen3(
    folder: Path, *, dtype: str = "bf16", tied: bool = False, shards: int = 1, seed: int = 0, layers: int = 3
) -> Path:
    """Write a Qwen3 checkpoint into `folder` and return it; the same arguments give the same bytes."""
    ids, merges = byte_level_vocabulary(ADDED_TOKENS | THINKING)
    files = _qwen_files(ids, merges, QWEN3_TEMPLATE, THINKING)
    files["config.json"] = _text_config(ids, layers, tied, dtype) | {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": QWEN3.head,
        "model_type": "qwen3",
        "num_attention_heads": QWEN3.heads,
        "rope_scaling": None,
        "sliding_window": None,
    }
    shapes = decoder_shapes(QWEN3, layers, head=None if tied else "lm_head.weight")
    return write_checkpoint(folder, draw_weights(shapes, seed), files, dtype, shards)


def _text_config(ids: dict[str, int], layers: int, tied: bool, dtype: str) -> dict[str, Any]:
    """What Qwen's flat configs have without their vision part."""
    dropped = (*VISION_KEYS, "vision_config", "rope_scaling")
    return {key: value for key, value in hub_config(ids, layers, tied, dtype).items() if key not in dropped}


def _qwen_files(
    ids: dict[str, int], merges: list[tuple[str, str]], template: str, more: dict[str, bool]
) -> dict[str, Any]:
    added = ADDED_TOKENS | more
    return vocabulary_files(ids, merges, added) | {
        "tokenizer.json": tokenizer_json(ids, merges, added),
        "tokenizer_config.json": tokenizer_config(ids, "hub", template, more),
        "generation_config.json": side_files(ids, merges, "hub")["generation_config.json"],
    }


def build_llama(
    folder: Path, *, dtype: str = "bf16", tied: bool = False, shards: int = 1, seed: int = 0, layers: int = 3
) -> Path:
    """Write a Llama 3.x checkpoint into `folder` and return it; the same arguments give the same bytes."""
    ids, merges = byte_level_vocabulary(LLAMA_TOKENS)
    files = llama_files(ids, merges)
    files["config.json"] = llama_config(ids, layers, tied, dtype)
    shapes = decoder_shapes(Decoder(vocabulary=len(ids)), layers, head=None if tied else "lm_head.weight")
    return write_checkpoint(folder, draw_weights(shapes, seed), files, dtype, shards)


def llama_config(ids: dict[str, int], layers: int, tied: bool, dtype: str) -> dict[str, Any]:
    """The `config.json` of Llama 3.x, with the factors by which it stretches long wavelengths."""
    size = Decoder()
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|begin_of_text|>"],
        "eos_token_id": [ids["<|end_of_text|>"], ids["<|eom_id|>"], ids["<|eot_id|>"]],
        "head_dim": size.head,
        "hidden_act": "silu",
        "hidden_size": size.hidden,
        "initializer_range": 0.02,
        "intermediate_size": size.ffn,
        "max_position_embeddings": 1024,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": size.heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": size.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 128,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": TORCH_DTYPES[dtype],
        "transformers_version": "4.45.0.dev0",
        "use_cache": True,
        "vocab_size": len(ids),
    }


def llama_files(ids: dict[str, int], merges: list[tuple[str, str]]) -> dict[str, Any]:
    """Llama 3's byte-level tokenizer: it begins every text by a token of its own."""
    begin = "<|begin_of_text|>"
    special = dict.fromkeys(LLAMA_TOKENS, True)
    tokenizer = tokenizer_json(ids, merges, special, LLAMA_REGEX)
    tokenizer["normalizer"] = None
    tokenizer["model"]["ignore_merges"] = True
    first, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    opening, reopening = ({"SpecialToken": {"id": begin, "type_id": number}} for number in (0, 1))
    template = {
        "type": "TemplateProcessing",
        "single": [opening, first],
        "pair": [opening, first, reopening, second],
        "special_tokens": {begin: {"id": begin, "ids": [ids[begin]], "tokens": [begin]}},
    }
    tokenizer["post_processor"] = {"type": "Sequence", "processors": [tokenizer["post_processor"], template]}
    config = {
        "added_tokens_decoder": {str(ids[token]): added_token(token, True) for token in LLAMA_TOKENS},
        "bos_token": begin,
        "chat_template": LLAMA_TEMPLATE,
        "clean_up_tokenization_spaces": True,
        "eos_token": "<|eot_id|>",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": config,
        "special_tokens_map.json": {
            "bos_token": added_token(begin, True),
            "eos_token": added_token("<|eot_id|>", True),
        },
        "generation_config.json": {
            "bos_token_id": ids[begin],
            "do_sample": True,
            "eos_token_id": [ids["<|end_of_text|>"], ids["<|eom_id|>"], ids["<|eot_id|>"]],
            "temperature": 0.6,
            "top_p": 0.9,
        },
    }
