"""What pico checkpoints of every family are made of: drawn weights, shards and byte-level BPE tokenizers.

Everything is derived from the arguments alone (numpy's PCG64, a vocabulary spelled out here), so that
golden files made on another machine hold here too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

WORDS = (
    "system user assistant You are a helpful assistant. What is in the picture? red green blue yellow purple black "
    "circle square triangle cross star top left right bottom how many things yes no one two three four where"
)
PRETOKENIZE_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TORCH_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
UNSCALED = ("embed_tokens.weight", "class_embedding", "position_embedding.weight", "pos_embed.weight")


def write_checkpoint(
    folder: Path, weights: Iterable[tuple[str, np.ndarray]], files: dict[str, Any], dtype: str, shards: int
) -> Path:
    """Write float32 weights in a stored type, and files: bytes and texts as they are, anything else as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    write_shards(folder, {name: encode(value, dtype) for name, value in weights}, dtype, shards)
    for name, content in files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
            continue
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def draw_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """float32 values, scaled so that activations stay of order one."""
    for number, (name, shape) in enumerate(shapes.items()):
        draw = draw_uniform([seed, number], shape)
        if name.endswith("bias"):
            value = draw * np.float32(0.1)
        elif name.endswith(UNSCALED):
            value = draw
        elif len(shape) == 1:
            value = 1 + draw * np.float32(0.1)
        else:
            value = draw * np.float32(1 / math.sqrt(math.prod(shape[1:])))
        yield name, value.astype(np.float32)


def draw_uniform(seed: list[int], shape: tuple[int, ...]) -> np.ndarray:
    """Unit variance, from the generator's raw bits: numpy keeps those the same in all versions."""
    bits = np.random.PCG64(seed).random_raw(math.prod(shape)) >> np.uint64(40)
    return ((bits.astype(np.float32) / np.float32(1 << 23) - 1) * np.float32(math.sqrt(3))).reshape(shape)


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


def byte_level_vocabulary(added: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """GPT-2's byte alphabet and the merges that spell out WORDS, then the added tokens."""
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
    for token in added:
        vocabulary[token] = len(vocabulary)
    return vocabulary, merges


def added_token(token: str, special: bool) -> dict[str, Any]:
    """What the tokenizer files say of a token that no merge makes."""
    return {
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def tokenizer_json(
    ids: dict[str, int], merges: list[tuple[str, str]], added: dict[str, bool], pattern: str = PRETOKENIZE_REGEX
) -> dict[str, Any]:
    """A byte-level BPE tokenizer; `added` says of each added token whether it is special."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[token]} | added_token(token, special) for token, special in added.items()],
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
            "vocab": {token: rank for token, rank in ids.items() if token not in added},
            "merges": [list(pair) for pair in merges],
        },
    }


def vocabulary_files(ids: dict[str, int], merges: list[tuple[str, str]], added: Iterable[str]) -> dict[str, str]:
    """The vocabulary once more in the form before tokenizer.json, as Qwen's checkpoints have it."""
    plain = {token: rank for token, rank in ids.items() if token not in added}
    lines = "".join(f"{left} {right}\n" for left, right in merges)
    return {"vocab.json": json.dumps(plain, ensure_ascii=False), "merges.txt": "#version: 0.2\n" + lines}
