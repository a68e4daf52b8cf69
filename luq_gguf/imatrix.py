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
from luq_gguf.errors import ArtifactError, GGUFError
from luq_gguf.gguf_file import GGUFFile

FLOOR = 1e-5
"""The least importance of a channel, relative to its row's mean: the IQ1 quantizers divide by it."""
CHUNK_TOKENS = 512
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
    """Mean squared input per weight and channel, float32 (channels,), from how many tokens, and what was floored."""

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

    Where one kind is absent all comes from the other. Raises ArtifactError for NaN, infinity, negative sums, or a
    weight without any token.
    """
    rows: dict[str, NDArray[np.float32]] = {}
    floored = 0
    for name, squares in sums.squares.items():
        for modality, values in squares.items():
            _require_sound(name, modality, values)
        mean = _mixed(name, squares, sums.counts[name], alpha)
        row, low = _floor(mean)
        floored += low
        rows |= dict.fromkeys(weights_of(name), row)
    tokens = max((sum(counts.values()) for counts in sums.counts.values()), default=0)
    return ImportanceMatrix(rows, tokens, sums.dataset, floored)


def _mixed(
    name: str, squares: Mapping[str, NDArray[np.float64]], counts: Mapping[str, int], alpha: float
) -> NDArray[np.float64]:
    seen, read = counts["image"] + counts["multimodal_text"], counts["text"]
    multimodal = (squares["image"] + squares["multimodal_text"]) / max(seen, 1)
    text = squares["text"] / max(read, 1)
    if not seen and not read:
        raise ArtifactError(
            f"no token reached the input of {name}", path=Path("sums"), hint="analyze the model with more samples"
        )
    if not seen or not read:
        return multimodal if seen else text
    return alpha * multimodal + (1 - alpha) * text


def _require_sound(name: str, where: str, values: NDArray[Any]) -> None:
    if not np.isfinite(values).all() or (values < 0).any():
        raise ArtifactError(
            f"the importance of {name} ({where}) holds NaN, infinite or negative values",
            path=Path("sums"),
            hint="analyze the model again, with --compute-type f32 if it was bf16",
        )


def _floor(mean: NDArray[np.float64]) -> tuple[NDArray[np.float32], int]:
    least = FLOOR * mean.mean() if mean.any() else 1.0
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
    from safetensors.numpy import save_file

    tensors: dict[str, NDArray[Any]] = {}
    for name, by_modality in sums.squares.items():
        for modality, values in by_modality.items():
            tensors[f"{name}|{modality}"] = values
            tensors[f"{name}|{modality}|count"] = np.array([sums.counts[name][modality]], dtype=np.int64)
    with atomic_path(path) as partial:
        save_file(tensors, partial, {"format": "luq-gguf sums 1", "dataset": sums.dataset})


def read_sums(path: Path) -> Sums:
    """Read sums; raises ArtifactError where the file is missing, cut, or no sums."""
    from safetensors import SafetensorError, safe_open

    squares: dict[str, dict[str, NDArray[np.float64]]] = {}
    counts: dict[str, dict[str, int]] = {}
    try:
        with safe_open(path, framework="numpy") as handle:
            metadata = handle.metadata() or {}
            if metadata.get("format") != "luq-gguf sums 1":
                raise _broken_sums(path, f"its format is {metadata.get('format')!r}")
            for key in handle.keys():  # noqa: SIM118 - not a mapping
                name, modality, *count = key.split("|")
                if count:
                    counts.setdefault(name, {})[modality] = int(handle.get_tensor(key)[0])
                else:
                    squares.setdefault(name, {})[modality] = handle.get_tensor(key)
    except (SafetensorError, OSError, ValueError) as error:
        raise _broken_sums(path, str(error)) from error
    for name in squares:
        if set(squares[name]) != set(MODALITIES) or set(counts.get(name, ())) != set(MODALITIES):
            raise _broken_sums(path, f"{name} is incomplete")
    return Sums(squares, counts, metadata.get("dataset", ""))


def _broken_sums(path: Path, why: str) -> ArtifactError:
    return ArtifactError(f"cannot read {path} as sums: {why}", path=path, hint="analyze the model again")


def write_imatrix(path: Path, matrix: ImportanceMatrix) -> None:
    """Write llama.cpp's GGUF form: per weight the sum of squares and the count; the count is 1, the sum the mean."""
    with atomic_path(path) as partial:
        writer = gguf.GGUFWriter(partial, arch="")
        writer.kv_data[0].clear()
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", [matrix.dataset])
        writer.add_uint32("imatrix.chunk_count", max(1, matrix.tokens // CHUNK_TOKENS))
        writer.add_uint32("imatrix.chunk_size", CHUNK_TOKENS)
        for name, row in matrix.rows.items():
            writer.add_tensor(f"{name}.in_sum2", row.reshape(1, -1))
            writer.add_tensor(f"{name}.counts", np.ones((1, 1), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read llama.cpp's GGUF form; raises GGUFError or ArtifactError where it is none or not sound."""
    file = GGUFFile.open(path)
    if file.metadata.get("general.type") != "imatrix":
        raise GGUFError(f"{path} is no importance matrix", path=path, hint="make one with `luq-gguf analyze`")
    rows: dict[str, NDArray[np.float32]] = {}
    for tensor in file.tensors:
        if not tensor.endswith(".in_sum2"):
            continue
        name = tensor.removesuffix(".in_sum2")
        if f"{name}.counts" not in file.tensors:
            raise ArtifactError(f"{path} has no counts for {name}", path=path, hint="make it again")
        sums, counts = file.read_float32(tensor), file.read_float32(f"{name}.counts")
        rows[name] = (sums / np.maximum(counts.reshape(-1, 1), 1)).reshape(-1)
        _require_sound(name, path.name, rows[name])
    datasets = file.metadata.get("imatrix.datasets") or [""]
    tokens = int(file.metadata.get("imatrix.chunk_count", 0)) * int(file.metadata.get("imatrix.chunk_size", 0))
    return ImportanceMatrix(rows, tokens, str(datasets[0]))
