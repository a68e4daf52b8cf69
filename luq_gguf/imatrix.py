"""Sums of squared inputs by modality -> importance matrix at a ratio, in llama.cpp's file format.

`Sums` holds each distinct input once: q, k and v share theirs, so do gate and up. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from luq_gguf.artifacts import MODALITIES, atomic_path
from luq_gguf.errors import ArtifactError, GGUFError, RequestError
from luq_gguf.gguf_file import GGUFFile
from luq_gguf.importance import COUNTS, HINT, SUMS, dataset_of, read_mean, require_sound, weights_in
from luq_gguf.tensor_record import read_arrays, write_arrays

FLOOR = 1e-5
"""The least importance of a channel, relative to its row's mean: the IQ1 quantizers divide by it."""
CHUNK_TOKENS = 512
"""llama-imatrix's default; other tools show tokens in chunks of it."""
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


@dataclass(frozen=True)
class ImportanceMatrix:
    """Mean squared input per weight and channel, float32 (channels,); from how many tokens; how many were floored."""

    rows: Mapping[str, NDArray[np.float32]]
    tokens: int
    dataset: str
    floored: int = 0


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
    rows: dict[str, NDArray[np.float32]] = {}
    floored = 0
    for name, squares in sums.squares.items():
        for modality, values in squares.items():
            require_sound(SUMS_FILE, f"{name} ({modality})", values)
        row, low = _floor(_mixed(name, squares, sums.counts[name], alpha))
        require_sound(SUMS_FILE, name, row)
        floored += low
        rows |= dict.fromkeys(weights_of(name), row)
    tokens = max((sum(counts.values()) for counts in sums.counts.values()), default=0)
    return ImportanceMatrix(rows, tokens, sums.dataset, floored)


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


def _floor(mean: NDArray[np.float64]) -> tuple[NDArray[np.float32], int]:
    """The row with its floor, and how many channels lay below it; an input that is always zero counts evenly."""
    least = max(FLOOR * float(mean.mean()), float(np.finfo(np.float32).tiny)) if mean.any() else 1.0
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        row = np.maximum(mean, least).astype(np.float32)
    return row, int((mean < least).sum())


def check_coverage(matrix: ImportanceMatrix, weights: Iterable[str]) -> None:
    """Raise ArtifactError where the matrix has no row for one of the weights that are to be quantized."""
    missing = [name for name in weights if name not in matrix.rows]
    if missing:
        raise ArtifactError(
            f"the importance matrix has nothing on {len(missing)} weights, the first is {missing[0]}",
            path=Path("imatrix.gguf"),
            hint="take the importance matrix of this model",
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
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _broken_sums(path: Path, why: str) -> ArtifactError:
    return ArtifactError(f"cannot read {path} as sums: {why}", path=path, hint="analyze the model again")


def write_imatrix(path: Path, matrix: ImportanceMatrix) -> None:
    """Write llama.cpp's GGUF form: per weight the sum of squared inputs and the number of tokens."""
    tokens = max(1, matrix.tokens)
    with atomic_path(path) as partial:
        writer = gguf.GGUFWriter(partial, arch="")
        writer.kv_data[0].clear()  # such files have no general.architecture
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", [matrix.dataset])
        writer.add_uint32("imatrix.chunk_count", max(1, tokens // CHUNK_TOKENS))
        writer.add_uint32("imatrix.chunk_size", CHUNK_TOKENS)
        for name, row in matrix.rows.items():
            writer.add_tensor(f"{name}{SUMS}", (row.astype(np.float64) * tokens).astype(np.float32).reshape(1, -1))
            writer.add_tensor(f"{name}{COUNTS}", np.full((1, 1), tokens, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read llama.cpp's GGUF form; raises GGUFError where it is none, ArtifactError where an entry is not sound."""
    file = GGUFFile.open(path)
    if file.metadata.get("general.type") != "imatrix":
        raise GGUFError(f"{path} is no importance matrix", path=path, hint="make one with `luq-gguf analyze`")
    rows = {name: read_mean(file, name) for name in weights_in(file)}
    counts = {name: file.read_float32(f"{name}{COUNTS}") for name in rows}
    for name, count in counts.items():
        if not count.all():
            raise ArtifactError(f"{path} has no count of {name}: no token reached it", path=path, hint=HINT)
    return ImportanceMatrix(rows, max((int(count.max()) for count in counts.values()), default=0), dataset_of(file))
