"""What quantizing loses in a few rows of a weight, through ggml's own quantizers; runs in `quantize_worker`.

The measure is that of llama.cpp's quantizers: squared errors weighted by the importance of their channel.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from luq_gguf.gguf_file import GGUFFile
from luq_gguf.importance import read_means

LEAST = 1e-30


def measure_row_errors(
    source: Path, types: Sequence[GGMLQuantizationType], rows: int, imatrix: Path | None
) -> dict[str, dict[str, float]]:
    """By weight and type: the importance-weighted squared error of some evenly spaced rows, as a share of their square.

    `source` is a 16-bit GGUF of any weights; a type whose blocks do not fill a weight's rows is left out, and so is one
    that cannot do without importance where there is none.
    """
    file = GGUFFile.open(source)
    weights = [tensor for tensor in file.tensors.values() if len(tensor.shape) == 2 and tensor.name.endswith("weight")]
    means = read_means(imatrix, [tensor.name for tensor in weights]) if imatrix else {}
    requires = _ggml().ggml_quantize_requires_imatrix
    found: dict[str, dict[str, float]] = {}
    for tensor in weights:
        columns, count = tensor.shape
        chosen = np.unique(np.linspace(0, count - 1, min(rows, count)).astype(np.int64))
        stored = np.memmap(source, mode="r", offset=tensor.offset, shape=(tensor.nbytes,), dtype=np.uint8)
        values = gguf.quants.dequantize(stored.reshape(count, -1)[chosen], tensor.type).astype(np.float32)
        mean = means.get(tensor.name)
        importance = None if mean is None else np.ascontiguousarray(mean, np.float32)
        found[tensor.name] = {
            kind.name: _error(values, importance, kind)
            for kind in types
            if columns % GGML_QUANT_SIZES[kind][0] == 0 and (importance is not None or not requires(kind))
        }
    return found


def _error(values: NDArray[np.float32], importance: NDArray[np.float32] | None, kind: GGMLQuantizationType) -> float:
    stored = quantize_rows(values, importance, kind)
    restored = gguf.quants.dequantize(stored, kind).astype(np.float64)
    weights = 1.0 if importance is None else importance
    whole = float((np.square(values, dtype=np.float64) * weights).sum())
    return float((np.square(restored - values) * weights).sum()) / max(whole, LEAST)


def quantize_rows(
    values: NDArray[np.float32], importance: NDArray[np.float32] | None, kind: GGMLQuantizationType
) -> NDArray[np.uint8]:
    """The blocks of rows (rows, columns), on one thread; `importance` (columns,) is that of their channels."""
    values = np.ascontiguousarray(values)
    rows, columns = values.shape
    block, size = GGML_QUANT_SIZES[kind]
    stored = np.zeros((rows, columns // block * size), np.uint8)
    call = _ggml().ggml_quantize_chunk
    call(kind, _pointer(values), stored.ctypes.data_as(ctypes.c_void_p), 0, rows, columns, _pointer(importance))
    return stored


def _pointer(array: NDArray[np.float32] | None) -> Any:
    return None if array is None else array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


def _ggml() -> Any:
    """The library that llama_cpp has loaded, with the signatures of two functions (ggml.h)."""
    from llama_cpp._ggml import libggml

    floats = ctypes.POINTER(ctypes.c_float)
    libggml.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, floats, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, floats,
    ]  # fmt: skip
    libggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    libggml.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    libggml.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    return libggml


def answer_of(job: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The errors that a job of the child asks for."""
    types = [GGMLQuantizationType[name] for name in job["types"]]
    imatrix = Path(job["imatrix"]) if job["imatrix"] else None
    return measure_row_errors(Path(job["source"]), types, job["rows"], imatrix)
