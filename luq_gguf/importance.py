"""Importance matrix files in both of llama.cpp's forms -> sums and counts a weight, and what the quantizer takes of it.

The arithmetic is that of llama.cpp's tools/quantize (float32 sums over rounded counts), so that a file
quantized here equals one that `llama-quantize --imatrix` makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luq_gguf.errors import ArtifactError, GGUFError
from luq_gguf.gguf_file import MAGIC, GGUFFile
from luq_gguf.imatrix_dat import DatEntry, DatFile, read_dat

MAX_TEXT = 127
"""llama.cpp keeps an overriding text in 128 bytes, the last of them zero."""
SUMS, COUNTS = ".in_sum2", ".counts"
"""What llama.cpp appends to a weight's name for the sums of its squared inputs and for their number."""
CHUNK_TOKENS = 512
"""llama-imatrix's default; a .dat file counts in chunks and does not say how long they were."""
MOST_TOKENS = 1 << 53
HINT = "make it again, with `luq-gguf analyze` or with llama-imatrix"

Row = NDArray[np.float32]


@dataclass(frozen=True)
class WeightSums:
    """Squared inputs of one weight, summed by channel, and over how many tokens.

    Where several matrices stand in the weight (experts), their channels follow each other in `sums` and each has a
    number in `counts`; else that has one.
    """

    sums: NDArray[np.float32]
    counts: NDArray[np.int64]

    @property
    def means(self) -> Row:
        """The mean squared input by channel; what no token reached counts evenly."""
        counts = self.counts.astype(np.float32).reshape(-1, 1)
        means = self.sums.reshape(counts.size, -1) / np.where(counts > 0, counts, np.float32(1))
        return np.where(counts > 0, means, np.float32(1)).astype(np.float32).reshape(-1)


@dataclass(frozen=True)
class ImportanceMatrix:
    """Sums by weight, and what they were collected from; `path` is what messages call it."""

    weights: Mapping[str, WeightSums]
    datasets: tuple[str, ...]
    path: Path = Path("imatrix.gguf")

    @property
    def rows(self) -> dict[str, Row]:
        """The mean squared input by weight and channel."""
        return {name: entry.means for name, entry in self.weights.items()}

    @property
    def dataset(self) -> str:
        """The data set that a quantized file names: the first."""
        return self.datasets[0] if self.datasets else ""

    @property
    def tokens(self) -> int:
        """How many tokens reached the weight that most of them reached."""
        return max((int(entry.counts.max()) for entry in self.weights.values()), default=0)


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
        if not is_gguf(path):
            dat = read_dat(path)
            return cls(path.name, _printable(dat.dataset), len(dat.entries), dat.chunks)
        matrix = GGUFFile.open(path)
        chunks = matrix.metadata.get("imatrix.chunk_count", 0)
        dataset = next(iter(_datasets(matrix)), "")
        return cls(path.name, dataset, len(_weights_in(matrix)), chunks if isinstance(chunks, int) else 0)

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
    return text.encode(errors="replace")[:MAX_TEXT].decode(errors="ignore")


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF does; raises ArtifactError where it cannot be read."""
    try:
        with path.open("rb") as handle:
            return handle.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise ArtifactError(
            f"cannot read {path}: {error.strerror or error}", path=path, hint="give an importance matrix file"
        ) from error


def read_importance(path: Path) -> ImportanceMatrix:
    """Read an importance matrix, GGUF or .dat; one that names no data set is called by its file's name.

    Raises GGUFError where it is a GGUF of another kind or a broken one, ArtifactError where it is no importance
    matrix at all or an entry is not sound.
    """
    if not is_gguf(path):
        dat = read_dat(path)
        weights = {name: _from_dat(path, name, entry) for name, entry in dat.entries.items()}
        return ImportanceMatrix(weights, (_printable(dat.dataset) or _printable(path.name),), path)
    file = GGUFFile.open(path)
    names = _weights_in(file)
    if file.metadata.get("general.type") != "imatrix" or not names:
        raise GGUFError(f"{path} is no importance matrix", path=path, hint=HINT)
    weights = {name: _from_gguf(file, name) for name in names}
    return ImportanceMatrix(weights, _datasets(file) or (_printable(path.name),), path)


def read_means(path: Path, weights: Iterable[str]) -> Mapping[str, Row]:
    """The mean squared input per channel of those `weights` that the file, GGUF or .dat, covers.

    Raises GGUFError where it is a broken GGUF, ArtifactError where an entry is incomplete or not sound.
    """
    if not is_gguf(path):
        dat: DatFile = read_dat(path)
        return {name: _from_dat(path, name, dat.entries[name]).means for name in weights if name in dat.entries}
    file = GGUFFile.open(path)
    return {name: _from_gguf(file, name).means for name in weights if f"{name}{SUMS}" in file.tensors}


def _printable(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable())


def _datasets(matrix: GGUFFile) -> tuple[str, ...]:
    """The data sets that the file names."""
    datasets = matrix.metadata.get("imatrix.datasets")
    if not isinstance(datasets, list):
        return ()
    return tuple(name for dataset in datasets if (name := _printable(str(dataset))))


def _weights_in(matrix: GGUFFile) -> list[str]:
    """The weights that the file has sums of."""
    return [name.removesuffix(SUMS) for name in matrix.tensors if name.endswith(SUMS)]


def _from_dat(path: Path, name: str, entry: DatEntry) -> WeightSums:
    """As llama-imatrix takes it on merging: every chunk stands for 512 tokens."""
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        sums = entry.values * np.float32(CHUNK_TOKENS)
    require_sound(path, name, sums)
    return WeightSums(sums, np.array([entry.chunks * CHUNK_TOKENS], np.int64))


def _from_gguf(matrix: GGUFFile, name: str) -> WeightSums:
    """One weight's entry; raises ArtifactError for missing counts and for what cannot be a sum or a count."""
    if f"{name}{COUNTS}" not in matrix.tensors:
        raise ArtifactError(f"{matrix.path} has sums but no counts of {name}", path=matrix.path, hint=HINT)
    sums = matrix.read_float32(f"{name}{SUMS}").reshape(-1)
    counts = matrix.read_float32(f"{name}{COUNTS}").reshape(-1).astype(np.float64)
    require_sound(matrix.path, name, sums)
    require_sound(matrix.path, f"{name} (counts)", counts)
    if sums.size % counts.size or counts.max() > MOST_TOKENS:
        raise ArtifactError(
            f"{matrix.path} has {sums.size} sums but {counts.size} counts of {name}, up to {counts.max():g}",
            path=matrix.path,
            hint=HINT,
        )
    return WeightSums(sums, np.floor(counts + 0.5).astype(np.int64))


def require_sound(path: Path, what: str, values: NDArray[Any]) -> None:
    """Raise ArtifactError where a value is NaN, infinite or negative."""
    if not np.isfinite(values).all() or (values < 0).any():
        raise ArtifactError(
            f"the importance of {what} in {path} holds NaN, infinite or negative values", path=path, hint=HINT
        )
