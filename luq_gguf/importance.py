"""What the quantizer takes from an importance matrix file: a mean per input channel, and what it notes of it.

The arithmetic is that of llama.cpp's tools/quantize (float32 sums over rounded counts), so that a file
quantized here equals one that `llama-quantize --imatrix` makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any

import numpy as np

from luq_gguf.errors import ArtifactError
from luq_gguf.gguf_file import GGUFFile

MAX_TEXT = 127
"""llama.cpp keeps an overriding text in 128 bytes, the last of them zero."""


@dataclass(frozen=True)
class ImatrixNote:
    """What a quantized file says of its importance matrix."""

    file: str
    dataset: str
    entries: int
    chunks: int

    @classmethod
    def of(cls, path: Path) -> ImatrixNote:
        """From an importance matrix file; only the file's name is noted, not where it lay."""
        matrix = GGUFFile.open(path)
        datasets = matrix.metadata.get("imatrix.datasets") or [""]
        entries = sum(name.endswith(".in_sum2") for name in matrix.tensors)
        return cls(path.name, str(datasets[0]), entries, int(matrix.metadata.get("imatrix.chunk_count", 0)))

    def pairs(self) -> list[tuple[str, int | str]]:
        """Metadata keys and values in the order in which llama-quantize appends them."""
        pairs: list[tuple[str, int | str]] = [("quantize.imatrix.file", _cut(self.file))]
        if self.dataset:
            pairs.append(("quantize.imatrix.dataset", _cut(self.dataset)))
        pairs.append(("quantize.imatrix.entries_count", self.entries))
        if self.chunks > 0:
            pairs.append(("quantize.imatrix.chunks_count", self.chunks))
        return pairs


def _cut(text: str) -> str:
    return text.encode()[:MAX_TEXT].decode(errors="ignore")


def read_means(path: Path, weights: Iterable[str]) -> Mapping[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """The mean squared input per channel of those `weights` that the file covers.

    Raises GGUFError where it is no GGUF, ArtifactError where an entry is incomplete.
    """
    matrix = GGUFFile.open(path)
    return {name: _mean(matrix, name) for name in weights if f"{name}.in_sum2" in matrix.tensors}


def _mean(matrix: GGUFFile, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    if f"{name}.counts" not in matrix.tensors:
        raise ArtifactError(f"{matrix.path} has sums but no counts of {name}", path=matrix.path)
    sums = matrix.read_float32(f"{name}.in_sum2").reshape(-1)
    counts = matrix.read_float32(f"{name}.counts").reshape(-1)
    if counts.size != 1 or not np.isfinite(counts).all():
        raise ArtifactError(f"{matrix.path} has no single finite count of {name}", path=matrix.path)
    count = np.float32(floor(float(counts[0]) + 0.5))
    return sums / count if count > 0 else np.ones_like(sums)
