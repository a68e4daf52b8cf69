"""Pico Qwen2.5-VL checkpoints with seeded random weights, in both forms in which they are found.

Everything is derived from the arguments alone (numpy's PCG64, a vocabulary spelled out here), so that
golden files made on another machine hold here too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

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
WORDS = (
    "system user assistant You are a helpful assistant. What is in the picture? red green blue yellow purple black "
    "circle square triangle cross star top left right bottom how many things yes no one two three four where"
)
PRETOKENIZE_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
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
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(pico_weights(seed=seed, layers=layers, tied=tied))
    write_shards(folder, {name: encode(value, dtype) for name, value in tensors.items()}, dtype, shards)
    vocabulary, merges = byte_level_vocabulary()
    files = side_files(vocabulary, merges, form)
    config = hub_config(vocabulary, layers, tied, dtype)
    files["config.json"] = config if form == "hub" else nested_config(config)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def pico_weights(*, seed: int, layers: int, tied: bool = False) -> Iterator[tuple[str, np.ndarray]]:
    """Hub names and float32 values, scaled so that activations stay of order one."""
    for number, (name, shape) in enumerate(pico_shapes(layers, tied).items()):
        draw = draw_uniform([seed, number], shape)
        if name.endswith("bias"):
            value = draw * np.float32(0.1)
        elif len(shape) == 1:
            value = 1 + draw * np.float32(0.1)
        elif name.endswith("embed_tokens.weight"):
            value = draw
        else:
            value = draw * np.float32(1 / math.sqrt(math.prod(shape[1:])))
        yield name, value.astype(np.float32)


def draw_uniform(seed: list[int], shape: tuple[int, ...]) -> np.ndarray:
    """Unit variance, from the generator's raw bits: numpy keeps those the same in all versions."""
    bits = np.random.PCG64(seed).random_raw(math.prod(shape)) >> np.uint64(40)
    return ((bits.astype(np.float32) / np.float32(1 << 23) - 1) * np.float32(math.sqrt(3))).reshape(shape)


def pico_shapes(layers: int, tied: bool) -> dict[str, tuple[int, ...]]:
    head, kv = HIDDEN // HEADS, KV_HEADS * HIDDEN // HEADS
    assert head == 64
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", HIDDEN), ("k", kv), ("v", kv)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (rows, HIDDEN)
            shapes[f"{prefix}self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{prefix}self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{prefix}mlp.gate_proj.weight"] = (FFN, HIDDEN)
        shapes[f"{prefix}mlp.up_proj.weight"] = (FFN, HIDDEN)
        shapes[f"{prefix}mlp.down_proj.weight"] = (HIDDEN, FFN)
        shapes[f"{prefix}input_layernorm.weight"] = (HIDDEN,)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (HIDDEN,)
    shapes["model.norm.weight"] = (HIDDEN,)
    if not tied:
        shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    return shapes | _vision_shapes()


def _vision_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"visual.patch_embed.proj.weight": (VISION_HIDDEN, 3, 2, 14, 14)}
    for block in range(VISION_DEPTH):
        linears = {
            "attn.qkv": (3 * VISION_HIDDEN, VISION_HIDDEN),
            "attn.proj": (VISION_HIDDEN, VISION_HIDDEN),
            "mlp.gate_proj": (VISION_FFN, VISION_HIDDEN),
            "mlp.up_proj": (VISION_FFN, VISION_HIDDEN),
            "mlp.down_proj": (VISION_HIDDEN, VISION_FFN),
        }
        for name, shape in linears.items():
            shapes[f"visual.blocks.{block}.{name}.weight"] = shape
            shapes[f"visual.blocks.{block}.{name}.bias"] = shape[:1]
        for norm in ("norm1", "norm2"):
            shapes[f"visual.blocks.{block}.{norm}.weight"] = (VISION_HIDDEN,)
    merged = 4 * VISION_HIDDEN
    shapes["visual.merger.ln_q.weight"] = (VISION_HIDDEN,)
    shapes["visual.merger.mlp.0.weight"] = (merged, merged)
    shapes["visual.merger.mlp.0.bias"] = (merged,)
    shapes["visual.merger.mlp.2.weight"] = (HIDDEN, merged)
    shapes["visual.merger.mlp.2.bias"] = (HIDDEN,)
    return shapes


def encode(value: np.ndarray, dtype: str) -> np.ndarray:
    """float32 -> the stored array; bf16 as its raw bits (round to nearest even)."""
    if dtype == "f32":
        return value
    if dtype == "f16":
        return value.astype(np.float16)
    bits = value.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_shards(folder: Path, tensors: dict[str, np.ndarray], dtype: str, shards: int) -> None:
    """Write tensors as one file, or dealt out to several with an index."""
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        write_safetensors(folder / file, part, dtype)
        weight_map |= dict.fromkeys(part, file)
    total = sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], dtype: str) -> None:
    """Write a safetensors file by its specification: 8 bytes of header length, JSON, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, value in tensors.items():
        header[name] = {
            "dtype": dtype.upper(),
            "shape": list(value.shape),
            "data_offsets": [offset, offset + value.nbytes],
        }
        offset += value.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for value in tensors.values():
            handle.write(value.tobytes())


def byte_level_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """GPT-2's byte alphabet and the merges that spell out WORDS, then the special tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + rank) for rank, byte in enumerate(others)}
    vocabulary = {letter: rank for rank, letter in enumerate(sorted(letters.values()))}
    merges: list[tuple[str, str]] = []
    for word in WORDS.split():
        for text in (word, " " + word):
            spelled = [letters[byte] for byte in text.encode()]
            built = spelled[0]
            for letter in spelled[1:]:
                if built + letter not in vocabulary and len(vocabulary) < 480:
                    vocabulary[built + letter] = len(vocabulary)
                    merges.append((built, letter))
                built += letter
    for token in (*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS):
        vocabulary[token] = len(vocabulary)
    return vocabulary, merges


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
        "torch_dtype": {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}[dtype],
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
        "tokenizer.json": tokenizer_json(ids, merges),
        "tokenizer_config.json": tokenizer_config(ids, form),
        "generation_config.json": generation,
    }
    if form == "hub":
        plain = {token: rank for token, rank in ids.items() if token not in (*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS)}
        files["vocab.json"] = json.dumps(plain, ensure_ascii=False)
        files["merges.txt"] = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges)
        files["chat_template.json"] = {"chat_template": CHAT_TEMPLATE}
        pixels = {"min_pixels": 3136, "max_pixels": 401408}
        files["preprocessor_config.json"] = pixels | image | {"processor_class": "Qwen2_5_VLProcessor"}
    else:
        files["chat_template.jinja"] = CHAT_TEMPLATE
        files["preprocessor_config.json"] = image | {"size": {"longest_edge": 401408, "shortest_edge": 3136}}
    return files


def added_token(token: str) -> dict[str, Any]:
    return {
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": token in SPECIAL_TOKENS,
    }


def tokenizer_json(ids: dict[str, int], merges: list[tuple[str, str]]) -> dict[str, Any]:
    added = [{"id": ids[token]} | added_token(token) for token in (*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PRETOKENIZE_REGEX}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {
                token: rank for token, rank in ids.items() if token not in (*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS)
            },
            "merges": [list(pair) for pair in merges],
        },
    }


def tokenizer_config(ids: dict[str, int], form: str) -> dict[str, Any]:
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
        added = {str(ids[token]): added_token(token) for token in (*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS)}
        extra = {"additional_special_tokens": list(SPECIAL_TOKENS[1:]), "chat_template": CHAT_TEMPLATE}
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
