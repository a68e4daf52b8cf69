"""A model folder: its config, its side files, and its tensors, read by offset from safetensors.

Opening reads headers only. Pickles are never loaded and code of a checkpoint is never run. Knows
nothing of model families or GGUF.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luq_gguf import safetensors_index as index
from luq_gguf.artifacts import sha256_of
from luq_gguf.errors import CheckpointError, TensorError
from luq_gguf.safetensors_index import TensorInfo
from luq_gguf.small_files import MAX_BYTES

__all__ = ["Checkpoint", "TensorInfo", "read_config", "resolve_model"]

STORED: dict[str, np.dtype[Any]] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
"""numpy's type of the stored values; bf16 as raw bits."""
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DOWNLOADED = ["*.safetensors", "*.json", "*.txt", "*.jinja", "tokenizer.model", "README.md"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
CHUNK = 1 << 20
"""Elements that are read at once where a tensor need not be whole."""
SAMPLED_BYTES = 64


@dataclass(frozen=True)
class Checkpoint:
    """An opened model folder; make it with `open`.

    `tensors` has the names as they stand in the files. `digest` is a SHA-256 over all small text files
    of the folder, the shards' headers and sizes, and a few bytes of every tensor: it stays the same when the folder
    moves, and changes when the model is trained further. `fingerprint` also changes with the shards' times of change
    (or, where `open` was told to check all, with any byte): what is reused on this machine goes by it.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    digest: str
    fingerprint: str = ""

    @classmethod
    def open(cls, folder: Path, *, check_all: bool = False) -> Checkpoint:
        """Read config and headers; raises CheckpointError with what is wrong with the folder.

        `check_all` reads and hashes every byte of the shards, where times of change cannot be trusted.
        """
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder", hint="give a model folder or a hub id like owner/name")
        config = read_config(folder)
        shards = find_shards(folder)
        tensors = index.collect_tensors(folder, shards)
        digest = _digest(folder, shards, tensors)
        return cls(folder, config, tensors, digest, _fingerprint(digest, folder, shards, check_all=check_all))

    def read(self, name: str) -> NDArray[Any]:
        """One whole tensor as it is stored: float32, float16, or bf16's raw bits as uint16."""
        info = self.info(name)
        return self._read(info, 0, _elements(info)).reshape(info.shape)

    def read_float32(self, name: str) -> NDArray[np.float32]:
        """One whole tensor, widened exactly; raises TensorError if NaN or infinity is in it."""
        info = self.info(name)
        values = np.empty(_elements(info), dtype=np.float32)
        for start in range(0, values.size, CHUNK):
            part = values[start : start + CHUNK]
            part[...] = widen(self._read(info, start, part.size))
            require_finite(part, name)
        return values.reshape(info.shape)

    def read_rows(self, name: str, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Rows of a matrix as float32, without reading the rest."""
        info = self.info(name)
        if len(info.shape) != 2:
            raise TensorError(f"tensor {name} has shape {info.shape}, not that of a matrix", tensor=name)
        wanted = np.asarray(rows, dtype=np.int64).ravel()
        if wanted.size and not 0 <= int(wanted.min()) <= int(wanted.max()) < info.shape[0]:
            raise TensorError(f"tensor {name} has {info.shape[0]} rows, row {int(wanted.max())} was asked", tensor=name)
        matrix = np.memmap(info.path, STORED[info.dtype], mode="r", offset=info.offset, shape=info.shape)
        values = widen(matrix[wanted])
        require_finite(values, name)
        return values

    def read_ahead(self, names: Iterable[str]) -> None:
        """Have the system read tensors into its page cache in the background, where it takes such hints."""
        if not hasattr(os, "posix_fadvise"):
            return
        for info in map(self.info, names):
            with info.path.open("rb") as handle:
                os.posix_fadvise(handle.fileno(), info.offset, info.nbytes, os.POSIX_FADV_WILLNEED)

    def chunks(self, name: str, start: int, stop: int, size: int = CHUNK) -> Iterator[NDArray[Any]]:
        """Stored elements `start` to `stop` of a flattened tensor, at most `size` at a time."""
        info = self.info(name)
        for begin in range(start, stop, size):
            yield self._read(info, begin, min(size, stop - begin))

    def side_file(self, name: str) -> Path | None:
        """A regular file of the folder itself (tokenizer.json, say), or None where there is none.

        Raises CheckpointError where it is a link out of the folder, or too large to be what its name says.
        """
        path = self.folder / name
        if Path(name).name != name or not path.exists():
            return None
        index.require_inside(self.folder, path)
        if not path.is_file():
            raise CheckpointError(f"{path} is no regular file", hint="download the checkpoint's original files again")
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(
                f"{path} has {path.stat().st_size:,} bytes, at most {MAX_BYTES:,} are read",
                hint="download the checkpoint's original files again",
            )
        return path

    def side_json(self, name: str) -> dict[str, Any]:
        """A JSON object of the folder; empty where the file is missing."""
        path = self.side_file(name)
        return index.read_json(path) if path else {}

    def info(self, name: str) -> TensorInfo:
        """Where a tensor lies; raises TensorError where it is missing or of a type that is not read."""
        info = self.tensors.get(name)
        if info is None:
            raise TensorError(
                f"tensor {name} is missing from {self.folder}", tensor=name, hint="download the checkpoint again"
            )
        if info.dtype not in STORED:
            raise TensorError(
                f"tensor {name} is stored as {info.dtype}, which is not one of {', '.join(STORED)}",
                tensor=name,
                hint="give the original 16- or 32-bit checkpoint, not a quantized one",
            )
        return info

    def _read(self, info: TensorInfo, start: int, count: int) -> NDArray[Any]:
        stored = STORED[info.dtype]
        values = np.fromfile(info.path, stored, count=count, offset=info.offset + start * stored.itemsize)
        if values.size != count:
            raise TensorError(
                f"tensor {info.name} ends early in {info.path}", tensor=info.name, hint="download the file again"
            )
        return values


def widen(values: NDArray[Any]) -> NDArray[np.float32]:
    """Stored values (bf16 as uint16 bits) as float32, exactly."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def require_finite(values: NDArray[Any], name: str) -> None:
    """Raise TensorError if a stored or widened value is NaN or infinite."""
    finite = (values & 0x7F80) != 0x7F80 if values.dtype == np.uint16 else np.isfinite(values)
    bad = values.size - int(np.count_nonzero(finite))
    if bad:
        raise TensorError(
            f"tensor {name} holds {bad} values that are NaN or infinite",
            tensor=name,
            hint="the checkpoint is damaged or was saved from a diverged training",
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json; raises CheckpointError where there is none that can be read."""
    path = folder / "config.json"
    if not path.exists() and (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder} is a LoRA adapter, not a model",
            hint="merge it into its base model (peft: merge_and_unload, then save_pretrained) and give that folder",
        )
    if not path.exists():
        raise CheckpointError(
            f"{folder} has no config.json", hint="give the folder of a Hugging Face checkpoint, as downloaded"
        )
    index.require_inside(folder, path)
    return index.read_json(path)


def find_shards(folder: Path) -> dict[str, list[str] | None]:
    """Safetensors files of a folder, each with the tensors that an index promises in it (None: no index)."""
    index_path = folder / INDEX
    if index_path.exists():
        index.require_inside(folder, index_path)
        return index.read_weight_map(index_path)
    names = sorted(path.name for path in folder.glob("model*.safetensors"))
    if names:
        index.require_complete(folder, names)
        return dict.fromkeys(names)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder} has its weights only as a pickle ({pickles[0]}), never loaded since it can run programs",
            hint="convert it to safetensors first (transformers: save_pretrained in a place you trust)",
        )
    raise CheckpointError(f"{folder} has no model*.safetensors", hint="download the checkpoint's weights too")


def resolve_model(model: str) -> Path:
    """The folder of a model: `model` itself, or the snapshot of a hub id, downloaded where needed."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists() or not HUB_ID.fullmatch(model):
        raise CheckpointError(
            f"{model} is neither a folder nor a hub id", hint="give a model folder or a hub id like owner/name"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=DOWNLOADED))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"cannot get {model} from the hub: {reason}",
            hint="check the name and the network, log in with `hf auth login` for gated models, or give a folder",
        ) from error


def _elements(info: TensorInfo) -> int:
    return info.nbytes // STORED[info.dtype].itemsize


def _digest(folder: Path, shards: dict[str, list[str] | None], tensors: dict[str, TensorInfo]) -> str:
    digest = hashlib.sha256()
    texts = [path for pattern in ("*.json", "*.txt", "*.jinja", "README.md") for path in folder.glob(pattern)]
    for path in sorted(path for path in texts if path.is_file()):
        index.require_inside(folder, path)
        small = path.stat().st_size <= MAX_BYTES  # what is larger is none of the files that are read
        content = bytes.fromhex(sha256_of(path)) if small else str(path.stat().st_size).encode()
        digest.update(os.fsencode(path.name) + b"\0" + content)
    for shard in sorted(shards):
        path = folder / shard
        digest.update(f"{shard}\0{path.stat().st_size}\0".encode())
        digest.update(index.header_bytes(path))
        with path.open("rb") as handle:
            for info in (info for info in tensors.values() if info.path == path):
                for place in (0, info.nbytes // 2, max(0, info.nbytes - SAMPLED_BYTES)):
                    handle.seek(info.offset + place)
                    digest.update(handle.read(min(SAMPLED_BYTES, info.nbytes - place)))
    return digest.hexdigest()


def _fingerprint(digest: str, folder: Path, shards: Iterable[str], *, check_all: bool) -> str:
    made = hashlib.sha256(digest.encode())
    for shard in sorted(shards):
        state = sha256_of(folder / shard) if check_all else (folder / shard).stat().st_mtime_ns
        made.update(f"\0{shard}\0{state}".encode())
    return made.hexdigest()
