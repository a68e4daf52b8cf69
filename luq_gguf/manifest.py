"""`manifest.json`: what a finished conversion was asked for, from which model, and the hash of every file.

A conversion whose request stands in the manifest of its folder, with all files there, has nothing to do.
"""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from luq_gguf import __version__
from luq_gguf.artifacts import Record, sha256_of, write_record
from luq_gguf.job import MANIFEST

PACKAGES = ("gguf", "llama-cpp-python", "numpy", "scikit-learn", "torch", "transformers")


class FileRecord(Record):
    """One result: size in bytes, SHA-256, and the time of its last change (ns), to notice a change cheaply."""

    bytes: int
    sha256: str
    changed_ns: int


class Manifest(Record):
    """What made the files of a folder."""

    format: Literal["luq-gguf manifest 1"] = "luq-gguf manifest 1"
    request: str
    checkpoint: str
    name: str
    settings: dict[str, str | int | float | bool | None]
    versions: dict[str, str]
    files: dict[str, FileRecord]
    layer_bytes: tuple[int, ...]
    seconds: dict[str, float]


def versions() -> dict[str, str]:
    """Versions of everything that the results depend on."""
    found = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {"luq-gguf": __version__, "python": platform.python_version(), **found}


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
    """The manifest of a finished conversion with this request whose files are all as they were left."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return None
    whole = all(_is_as_left(folder / name, record) for name, record in manifest.files.items())
    return manifest if manifest.request == request and whole else None


def _is_as_left(path: Path, record: FileRecord) -> bool:
    if not path.is_file():
        return False
    now = path.stat()
    return now.st_size == record.bytes and now.st_mtime_ns == record.changed_ns
