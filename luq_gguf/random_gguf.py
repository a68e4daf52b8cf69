"""GGUFs of a real model's shapes and types with random blocks: for measuring speed without the model.

The bytes are what llama.cpp's own quantizer makes of random rows, repeated: every scale is sane, and a kernel works as
hard on them as on a trained model's. What such a file says means nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from numpy.typing import NDArray

from luq_gguf.artifacts import atomic_path, require_space
from luq_gguf.families.base import Family
from luq_gguf.families.metadata import MetadataRecorder
from luq_gguf.gguf_file import DEFAULT_ALIGNMENT, align, tensor_bytes
from luq_gguf.progress import Progress, silent

ROWS = 32
"""Random rows that are quantized; a matrix repeats them."""
DEVIATION = 0.02
CHUNK = 1 << 24
FLOATS = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}


class RandomBlocks:
    """Rows of random weights in any ggml type, made once for each type and length."""

    def __init__(self, seed: int = 0) -> None:
        from llama_cpp._ggml import libggml  # its symbols are found in the libraries that it needs, too

        self._library = libggml
        self._library.ggml_quantize_chunk.restype = ctypes.c_size_t
        self._library.ggml_quantize_chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p,
        ]  # fmt: skip
        self._random = np.random.default_rng(seed)
        self._made: dict[tuple[GGMLQuantizationType, int], bytes] = {}

    def rows(self, kind: GGMLQuantizationType, length: int) -> bytes:
        """ROWS rows of `length` weights; the length must be a multiple of the type's block."""
        if (kind, length) not in self._made:
            self._made[kind, length] = self._quantize(kind, length)
        return self._made[kind, length]

    def _quantize(self, kind: GGMLQuantizationType, length: int) -> bytes:
        values = (self._random.standard_normal((ROWS, length)) * DEVIATION).astype(np.float32)
        if kind in FLOATS:
            return values.astype(FLOATS[kind]).tobytes()
        block, size = GGML_QUANT_SIZES[kind]
        made = np.zeros(ROWS * length // block * size, np.uint8)
        importance = np.ones(length, np.float32)
        self._library.ggml_quantize_chunk(
            int(kind), values.ctypes.data, made.ctypes.data, 0, ROWS, length, importance.ctypes.data
        )
        return made.tobytes()


def write_random_gguf(
    path: Path,
    family: Family,
    types: Mapping[str, GGMLQuantizationType],
    *,
    layers: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Path:
    """Write the text model of a family with every tensor in its type; with `layers` only so many of them.

    It has no vocabulary: tokens are numbers. Raises DiskSpaceError where it does not fit.
    """
    kept = [tensor for tensor in family.text_tensors() if _within(tensor.name, layers)]
    sizes = {tensor.name: tensor_bytes(types[tensor.name], tuple(reversed(tensor.shape))) for tensor in kept}
    total, done = sum(sizes.values()), 0
    require_space(path.parent, total, f"writing {path.name}")
    blocks = RandomBlocks(seed)
    with atomic_path(path) as partial:
        writer = _header(family, layers)
        for tensor in kept:
            kind = types[tensor.name]
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), sizes[tensor.name], raw_dtype=kind)
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        with partial.open("ab") as handle:
            handle.write(bytes(-handle.tell() % DEFAULT_ALIGNMENT))
            for tensor in kept:
                content = _vector(tensor.name, tensor.shape) if len(tensor.shape) == 1 else None
                rows = content.tobytes() if content is not None else blocks.rows(types[tensor.name], tensor.shape[-1])
                left = sizes[tensor.name]
                repeated = rows * max(1, CHUNK // len(rows))
                while left:
                    left -= handle.write(repeated[: min(left, len(repeated))])
                size = sizes[tensor.name]
                handle.write(bytes(align(size, DEFAULT_ALIGNMENT) - size))
                done += size
                progress("write random weights", done, total)
    return path


def _within(name: str, layers: int | None) -> bool:
    return layers is None or not name.startswith("blk.") or int(name.split(".")[1]) < layers


def _vector(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Norms are one, biases nothing."""
    return np.zeros(shape, np.float32) if name.endswith(".bias") else np.ones(shape, np.float32)


def _header(family: Family, layers: int | None) -> GGUFWriter:
    recorder = MetadataRecorder(family.architecture)
    family.add_sizes(recorder.writer)
    writer = GGUFWriter(path=None, arch=family.architecture)
    for key, value, kind, item_kind in recorder.entries()[1:]:
        writer.add_key_value(key, layers if layers and key.endswith(".block_count") else value, kind, item_kind)
    writer.add_name("random weights")
    writer.add_tokenizer_model("no_vocab")
    if f"{family.architecture}.vocab_size" not in writer.kv_data[0]:
        writer.add_vocab_size(family.hparams["vocab_size"])
    return writer
