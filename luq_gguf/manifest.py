"""`manifest.json`: what a finished conversion was asked for, from which model, and the hash of every file.

A conversion whose request stands in the manifest of its folder, with all files there, has nothing to do.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ValidationError

from luq_gguf import __version__
from luq_gguf.artifacts import Record, sha256_of, write_record
from luq_gguf.checkpoint import INDEX, Checkpoint
from luq_gguf.job import DOCUMENTS, MANIFEST
from luq_gguf.safetensors_index import header_bytes
from luq_gguf.small_files import read_small


def _plain_name(name: str) -> str:
    if Path(name).name != name:
        raise ValueError(f"{name!r} is no name of a file")
    return name


PACKAGES = ("gguf", "llama-cpp-python", "numpy", "scikit-learn", "torch", "transformers")


FileName = Annotated[str, AfterValidator(_plain_name)]


class FileRecord(Record):
    """One result: size in bytes, SHA-256, and the time of its last change (ns), to notice a change cheaply."""

    bytes: int
    sha256: str
    changed_ns: int


class Manifest(Record):
    """What made the files of a folder.

    `checkpoint` names the model by its content, `source` is the hub id and revision it came from, where it did;
    `checkpoint_files` are SHA-256 of its config and index, and of the header of each shard; `calibration` is the digest
    of the samples; `settings` hold the seed of every choice.
    """

    format: Literal["luq-gguf manifest 1"] = "luq-gguf manifest 1"
    request: str
    checkpoint: str
    checkpoint_files: dict[str, str]
    calibration: str
    name: str
    source: str | None = None
    settings: dict[str, str | int | float | bool | None]
    versions: dict[str, str]
    files: dict[FileName, FileRecord]
    layer_bytes: tuple[int, ...]
    seconds: dict[str, float]


def versions() -> dict[str, str]:
    """Versions of everything that the results depend on."""
    found = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {"luq-gguf": __version__, "python": platform.python_version(), **found}


def hash_headers(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of what says which model it is: config and index, and the headers of the shards, by file name."""
    texts = [path for name in ("config.json", INDEX) if (path := checkpoint.side_file(name)) is not None]
    shards = sorted({info.path for info in checkpoint.tensors.values()})
    headers = {path.name: hashlib.sha256(header_bytes(path)).hexdigest() for path in shards}
    return {path.name: sha256_of(path) for path in texts} | headers


def record_files(paths: list[Path]) -> dict[str, FileRecord]:
    """Size and hash of each file, by its name."""
    return {
        path.name: FileRecord(bytes=path.stat().st_size, sha256=sha256_of(path), changed_ns=path.stat().st_mtime_ns)
        for path in paths
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it last: it says that all the files it names are finished."""
    write_record(folder / MANIFEST, manifest)


def find_manifest(folder: Path, request: str) -> Manifest | None:
    """The manifest of a finished conversion with this request whose files are all as they were left.

    Documents may change: a model card is written to be edited.
    """
    try:
        manifest = Manifest.model_validate_json(read_small(folder / MANIFEST))
    except (OSError, ValidationError):
        return None
    files = {name: record for name, record in manifest.files.items() if name not in DOCUMENTS}
    whole = all(_is_as_left(folder / name, record) for name, record in files.items())
    return manifest if manifest.request == request and whole else None


def _is_as_left(path: Path, record: FileRecord) -> bool:
    if not path.is_file():
        return False
    now = path.stat()
    return now.st_size == record.bytes and now.st_mtime_ns == record.changed_ns
