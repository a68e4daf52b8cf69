"""Memory that a text model takes at run time, from its header: weights, and the KV cache by context length.

Pure. The cache is llama.cpp's default: keys and values in 16 bits for every layer and token of the context; layers
with a sliding window keep the window and one batch. llama.cpp's work buffers come on top and are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luq_gguf.artifacts import MAX_LAYERS

CONTEXTS = (4096, 32768)
KV_BYTES = 2
BATCH = 512
"""llama.cpp's default number of tokens in one computation (n_ubatch)."""
CELLS = 256
"""The cache's length is a multiple of so many cells."""
WINDOW_EVERY = {"gemma3": 6}
"""Architectures whose layers have a sliding window, but for every so-manieth."""


@dataclass(frozen=True)
class Cache:
    """The KV cache of a context of so many tokens, in bytes; `whole` says that this is all that the model takes."""

    context: int
    bytes: int
    whole: bool


def caches(metadata: Mapping[str, Any]) -> list[Cache]:
    """The cache at 4k and 32k tokens, or at the model's whole context where that is less; none without its sizes."""
    architecture = metadata.get("general.architecture")
    longest = metadata.get(f"{architecture}.context_length")
    if not isinstance(longest, int) or longest < 1:
        return []
    found = []
    for context in dict.fromkeys(min(context, longest) for context in CONTEXTS):
        size = cache_bytes(metadata, context)
        if size is None:
            return []
        found.append(Cache(context, size, context == longest))
    return found


def cache_bytes(metadata: Mapping[str, Any], context: int) -> int | None:
    """Bytes of the KV cache for a context; None where the header lacks a size."""
    architecture = str(metadata.get("general.architecture"))

    def size(key: str) -> Any:
        return metadata.get(f"{architecture}.{key}")

    layers, heads, width = size("block_count"), size("attention.head_count"), size("embedding_length")
    if not all(isinstance(value, int) and value > 0 for value in (layers, heads, width)) or layers > MAX_LAYERS:
        return None
    shared = size("attention.head_count_kv") or heads
    each = shared if isinstance(shared, list) else [shared] * layers
    keys, values = (size(f"attention.{what}_length") or width // heads for what in ("key", "value"))
    if len(each) != layers or not all(isinstance(value, int) and value >= 0 for value in (*each, keys, values)):
        return None
    cells = _cells(architecture, size("attention.sliding_window"), layers, context)
    total: int = sum(count * (keys + values) * KV_BYTES * length for count, length in zip(each, cells, strict=True))
    return total


def _cells(architecture: str, window: Any, layers: int, context: int) -> list[int]:
    """How many tokens each layer keeps."""
    whole, every = _padded(context), WINDOW_EVERY.get(architecture)
    if every is None or not isinstance(window, int) or window < 1:
        return [whole] * layers
    short = min(whole, _padded(window + BATCH))
    return [whole if (layer + 1) % every == 0 else short for layer in range(layers)]


def _padded(tokens: int) -> int:
    return -(-tokens // CELLS) * CELLS
