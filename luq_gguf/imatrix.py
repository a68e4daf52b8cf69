"""Sums of squared inputs by modality -> importance matrix at a ratio; matrices of several files -> one.

`Sums` holds each distinct input once: q, k and v share theirs, so do gate and up. Knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from luq_gguf.artifacts import MODALITIES, atomic_path
from luq_gguf.errors import ArtifactError, RequestError
from luq_gguf.gguf_file import GGUFFile
from luq_gguf.importance import (
    CHUNK_TOKENS,
    COUNTS,
    SUMS,
    ImportanceMatrix,
    WeightSums,
    read_importance,
    require_sound,
)
from luq_gguf.tensor_record import read_arrays, write_arrays

FLOOR = 1e-5
"""The least importance of a channel, relative to its row's mean: the IQ1 quantizers divide by it."""
AT_FLOOR = 1 + 1e-4
"""Up to this multiple of the floor a channel stands at it: raising some of them moves the row's mean."""
SUMS_FORMAT = "luq-gguf sums 1"
SUMS_FILE = Path("sums.safetensors")
"""What messages call sums that are in memory."""
SHARED = {"attn_k": "attn_q", "attn_v": "attn_q", "ffn_up": "ffn_gate"}
"""Weights that read the same input as another one."""


@dataclass(frozen=True)
class Sums:
    """Per input (named by the first weight that reads it) and modality: squared sums (channels,) and token counts."""

    squares: Mapping[str, Mapping[str, NDArray[np.float64]]]
    counts: Mapping[str, Mapping[str, int]]
    dataset: str


def input_of(weight: str) -> str:
    """The weight under whose name the input of `weight` is kept."""
    head, _, tail = weight.removesuffix(".weight").rpartition(".")
    return f"{head}.{SHARED.get(tail, tail)}.weight" if head else weight


def weights_of(name: str) -> list[str]:
    """All weights that read the input kept under `name`."""
    head, _, tail = name.removesuffix(".weight").rpartition(".")
    others = [f"{head}.{weight}.weight" for weight, first in SHARED.items() if head and first == tail]
    return [name, *others]


def mix_importance(sums: Sums, alpha: float) -> ImportanceMatrix:
    """alpha x mean over tokens of samples with an image + (1 - alpha) x mean over text-only tokens.

    Where one kind is absent all comes from the other; every channel is floored at 1e-5 of its row's mean. Raises
    ArtifactError for NaN, infinite or negative sums and for an input without any token, RequestError for
    an alpha outside of 0 to 1.
    """
    if not 0 <= alpha <= 1:
        raise RequestError(f"alpha is {alpha:g}", hint="give a number from 0 to 1")
    tokens = max((sum(counts.values()) for counts in sums.counts.values()), default=0)
    weights: dict[str, WeightSums] = {}
    for name, squares in sums.squares.items():
        for modality, values in squares.items():
            require_sound(SUMS_FILE, f"{name} ({modality})", values)
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large becomes infinite, and is refused
            mean = _mixed(name, squares, sums.counts[name], alpha)
            entry = sums_of_means(np.maximum(mean, _floor_of(mean)), tokens)
        require_sound(SUMS_FILE, name, entry.sums)
        weights |= dict.fromkeys(weights_of(name), entry)
    return ImportanceMatrix(weights, (sums.dataset,))


def sums_of_means(means: NDArray[Any], tokens: int) -> WeightSums:
    """The entry of a weight whose channels have these means over so many tokens."""
    return WeightSums((means.astype(np.float64) * tokens).astype(np.float32), np.array([tokens], np.int64))


def _mixed(
    name: str, squares: Mapping[str, NDArray[np.float64]], counts: Mapping[str, int], alpha: float
) -> NDArray[np.float64]:
    seen, read = counts["image"] + counts["multimodal_text"], counts["text"]
    if not seen and not read:
        raise ArtifactError(
            f"no token reached the input of {name}", path=SUMS_FILE, hint="analyze the model with more samples"
        )
    multimodal = (squares["image"] + squares["multimodal_text"]) / max(seen, 1)
    text = squares["text"] / max(read, 1)
    if not seen or not read:
        return multimodal if seen else text
    return alpha * multimodal + (1 - alpha) * text


def _floor_of(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """The floor of each row; a row that is always zero counts evenly."""
    least = np.maximum(FLOOR * means.mean(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    return np.where(means.any(axis=-1, keepdims=True), least, 1.0)


def floor_importance(matrix: ImportanceMatrix) -> ImportanceMatrix:
    """The matrix with every channel raised to the floor of its row; a floored matrix stays as it is, bit by bit."""
    return replace(matrix, weights={name: _floored(entry) for name, entry in matrix.weights.items()})


def _floored(entry: WeightSums) -> WeightSums:
    tokens = np.maximum(entry.counts, 1).astype(np.float64).reshape(-1, 1)
    sums = entry.sums.reshape(tokens.size, -1)
    means = sums / tokens
    least = _floor_of(means)
    raised = np.where(means < least / AT_FLOOR, (least * tokens).astype(np.float32), sums)
    return WeightSums(raised.reshape(-1), entry.counts)


def count_floored(matrix: ImportanceMatrix) -> tuple[int, int]:
    """How many channels of a floored matrix stand at the floor of their row, and how many there are."""
    low, total = 0, 0
    for entry in matrix.weights.values():
        means = entry.means.astype(np.float64).reshape(entry.counts.size, -1)
        even = (means == 1).all(axis=1, keepdims=True)
        low += int(((means <= _floor_of(means) * AT_FLOOR) | even).sum())
        total += means.size
    return low, total


def floored_channels(path: Path) -> tuple[int, int]:
    """How many channels of one of our importance matrices stand at the floor of their row, and how many there are."""
    return count_floored(read_importance(path))


def merge_importance(matrices: Sequence[ImportanceMatrix]) -> ImportanceMatrix:
    """Sums and counts added by weight, as `llama-imatrix --in-file A --in-file B` does; data sets follow each other.

    What only one of them has is kept. Raises ArtifactError where two have a weight with other numbers of channels.
    """
    merged: dict[str, WeightSums] = {}
    for matrix in matrices:
        for name, entry in matrix.weights.items():
            merged[name] = _added(matrix.path, name, merged[name], entry) if name in merged else entry
    datasets = tuple(dataset for matrix in matrices for dataset in matrix.datasets)
    names = " + ".join(matrix.path.name for matrix in matrices)
    return ImportanceMatrix(merged, datasets, matrices[0].path if len(matrices) == 1 else Path(names))


def _added(path: Path, name: str, first: WeightSums, second: WeightSums) -> WeightSums:
    """A count for the whole weight (of a .dat) beside one a matrix of it counts for each of them."""
    if first.sums.size != second.sums.size or (
        first.counts.size != second.counts.size and 1 not in (first.counts.size, second.counts.size)
    ):
        raise ArtifactError(
            f"{path} has {second.sums.size} channels in {second.counts.size} matrices of {name}, those merged with it "
            f"{first.sums.size} in {first.counts.size}",
            path=path,
            hint="merge importance matrices of one model",
        )
    with np.errstate(over="ignore"):
        sums = first.sums + second.sums
    require_sound(path, f"{name}, merged,", sums)
    return WeightSums(sums, first.counts + second.counts)


def read_brought(files: Sequence[Path]) -> ImportanceMatrix | None:
    """The importance matrix that the user brought, several merged, raised to its floor; None where there is none."""
    return floor_importance(merge_importance([read_importance(path) for path in files])) if files else None


def check_importance(matrix: ImportanceMatrix, weights: Iterable[str], model: Path) -> None:
    """Raise ArtifactError where a matrix lacks one of `weights`, or is not of the model with this 16-bit header."""
    check_coverage(matrix, weights)
    tensors = GGUFFile.open(model).tensors.values()
    check_widths(matrix, {row.name: math.prod((row.shape[0], *row.shape[2:])) for row in tensors if len(row.shape) > 1})


def check_coverage(matrix: ImportanceMatrix, weights: Iterable[str]) -> None:
    """Raise ArtifactError where the matrix has nothing on one of the weights that are to be quantized."""
    missing = [name for name in weights if name not in matrix.weights or not matrix.weights[name].counts.any()]
    if missing:
        raise ArtifactError(
            f"{matrix.path} has nothing on {len(missing)} weights, the first is {missing[0]}",
            path=matrix.path,
            hint="take an importance matrix of this model, or merge one that has them",
        )


def check_widths(matrix: ImportanceMatrix, widths: Mapping[str, int]) -> None:
    """Raise ArtifactError where a weight of the model has another number of input channels in the matrix."""
    for name, width in widths.items():
        found = matrix.weights[name].sums.size if name in matrix.weights else width
        if found != width:
            raise ArtifactError(
                f"{matrix.path} has {found} channels of {name}, this model has {width}",
                path=matrix.path,
                hint="take an importance matrix of this model",
            )


def write_sums(path: Path, sums: Sums) -> None:
    """Write sums as safetensors: "<weight>|<modality>" in float64, counts beside them as "...|count"."""
    tensors: dict[str, NDArray[Any]] = {}
    for name, by_modality in sums.squares.items():
        for modality, values in by_modality.items():
            tensors[f"{name}|{modality}"] = values
            tensors[f"{name}|{modality}|count"] = np.array([sums.counts[name][modality]], dtype=np.int64)
    write_arrays(path, SUMS_FORMAT, tensors, {"dataset": sums.dataset})


def read_sums(path: Path) -> Sums:
    """Read sums; raises ArtifactError where the file is missing, cut, incomplete or of another kind."""
    try:
        tensors, note = read_arrays(path, SUMS_FORMAT)
    except ValueError as error:
        raise _broken_sums(path, str(error)) from error
    squares: dict[str, dict[str, NDArray[np.float64]]] = {}
    counts: dict[str, dict[str, int]] = {}
    for name in sorted({key.partition("|")[0] for key in tensors}, key=_natural):
        squares[name] = {key: _take(path, tensors, f"{name}|{key}", np.float64) for key in MODALITIES}
        found = {key: _take(path, tensors, f"{name}|{key}|count", np.int64) for key in MODALITIES}
        counts[name] = {key: int(count[0]) for key, count in found.items()}
        if len({row.size for row in squares[name].values()}) != 1 or min(counts[name].values()) < 0:
            raise _broken_sums(path, f"the rows of {name} contradict each other")
    if not squares:
        raise _broken_sums(path, "it is empty")
    return Sums(squares, counts, str(note.get("dataset", "")))


def _take(path: Path, tensors: Mapping[str, NDArray[Any]], key: str, kind: type[np.generic]) -> NDArray[Any]:
    row = tensors.get(key)
    if row is None or row.dtype != kind or row.ndim != 1 or not row.size:
        raise _broken_sums(path, f"{key} is missing or has another form")
    return row


def _natural(name: str) -> list[tuple[int, str]]:
    """blk.2 before blk.10."""
    return [(int(part), "") if part.isdecimal() and len(part) < 10 else (-1, part) for part in name.split(".")]


def _broken_sums(path: Path, why: str) -> ArtifactError:
    return ArtifactError(f"cannot read {path} as sums: {why}", path=path, hint="analyze the model again")


def write_imatrix(path: Path, matrix: ImportanceMatrix) -> None:
    """Write llama.cpp's GGUF form: per weight the sums of squared inputs and the numbers of tokens."""
    with atomic_path(path) as partial:
        writer = gguf.GGUFWriter(partial, arch="")
        writer.kv_data[0].clear()  # such files have no general.architecture
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", list(matrix.datasets))
        writer.add_uint32("imatrix.chunk_count", max(1, matrix.tokens // CHUNK_TOKENS))
        writer.add_uint32("imatrix.chunk_size", CHUNK_TOKENS)
        for name, entry in matrix.weights.items():
            counts = entry.counts.astype(np.float32).reshape(-1, 1)
            writer.add_tensor(f"{name}{SUMS}", entry.sums.reshape(counts.size, -1))
            writer.add_tensor(f"{name}{COUNTS}", counts)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
