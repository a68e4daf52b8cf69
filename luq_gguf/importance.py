"""What the quantizer takes from an importance matrix file: a mean per input channel, and what it notes of it.

The arithmetic is that of llama.cpp's tools/quantize (float32 sums over rounded counts), so that a file
quantized here equals one that `llama-quantize --imatrix` makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luq_gguf.errors import ArtifactError
from luq_gguf.gguf_file import GGUFFile

MAX_TEXT = 127
"""llama.cpp keeps an overriding text in 128 bytes, the last of them zero."""
SUMS, COUNTS = ".in_sum2", ".counts"
"""What llama.cpp appends to a weight's name for the sums of its squared inputs and for their number."""
HINT = "make it again with `luq-gguf analyze`"

Row = np.ndarray[Any, np.dtype[np.float32]]


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
        chunks = matrix.metadata.get("imatrix.chunk_count", 0)
        return cls(path.name, dataset_of(matrix), len(weights_in(matrix)), chunks if isinstance(chunks, int) else 0)

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


def dataset_of(matrix: GGUFFile) -> str:
    """The first dataset that the file names; empty where it names none."""
    datasets = matrix.metadata.get("imatrix.datasets")
    return str(datasets[0]) if isinstance(datasets, list) and datasets else ""


def weights_in(matrix: GGUFFile) -> list[str]:
    """The weights that the file has sums of."""
    return [name.removesuffix(SUMS) for name in matrix.tensors if name.endswith(SUMS)]


def read_means(path: Path, weights: Iterable[str]) -> Mapping[str, Row]:
    """The mean squared input per channel of those `weights` that the file covers.

    Raises GGUFError where it is no GGUF, ArtifactError where an entry is incomplete or not sound.
    """
    matrix = GGUFFile.open(path)
    return {name: read_mean(matrix, name) for name in weights if f"{name}{SUMS}" in matrix.tensors}


def read_mean(matrix: GGUFFile, name: str) -> Row:
    """One weight's means; where several matrices stand in it (experts), one after the other, each over its own count.

    What no token reached counts evenly. Raises ArtifactError for missing counts and for NaN, infinite or
    negative values.
    """
    if f"{name}{COUNTS}" not in matrix.tensors:
        raise ArtifactError(f"{matrix.path} has sums but no counts of {name}", path=matrix.path, hint=HINT)
    sums = matrix.read_float32(f"{name}{SUMS}").reshape(-1)
    counts = matrix.read_float32(f"{name}{COUNTS}").reshape(-1, 1)
    require_sound(matrix.path, name, sums)
    require_sound(matrix.path, f"{name} (counts)", counts)
    if sums.size % counts.size:
        raise ArtifactError(
            f"{matrix.path} has {sums.size} sums but {counts.size} counts of {name}", path=matrix.path, hint=HINT
        )
    rounded = np.floor(counts.astype(np.float64) + 0.5).astype(np.float32)
    means = sums.reshape(counts.size, -1) / np.where(rounded > 0, rounded, np.float32(1))
    return np.where(rounded > 0, means, np.float32(1)).astype(np.float32).reshape(-1)


def require_sound(path: Path, what: str, values: np.ndarray[Any, np.dtype[Any]]) -> None:
    """Raise ArtifactError where a value is NaN, infinite or negative."""
    if not np.isfinite(values).all() or (values < 0).any():
        raise ArtifactError(
            f"the importance of {what} in {path} holds NaN, infinite or negative values", path=path, hint=HINT
        )
