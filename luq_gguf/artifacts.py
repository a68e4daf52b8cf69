"""The frozen records that stages hand on, and how files reach their final names.

A file is written under a temporary name in its folder, flushed to the disk, and renamed: whatever
stands under a final name is whole. JSON records carry their format's name and version and are
validated on reading.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self, TypeVar

import psutil
from filelock import FileLock, Timeout
from gguf.constants import GGMLQuantizationType
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from luq_gguf.errors import ArtifactError, BusyError, DiskSpaceError
from luq_gguf.small_files import read_small

MODALITIES = ("image", "multimodal_text", "text")
"""Kinds of tokens: of an image; text in a sample that has an image; text of a text-only sample."""


MAX_LAYERS = 512
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
LEAST_FREE = 1 << 16
"""A disk with less than this is full for those who write in blocks."""
ZEROS = 1 << 20
LEFT_OVER = ".*.partial"
LOCK = "lock"
"""The file that a run holds locked in a folder that it works in; it stays there, empty."""


class Record(BaseModel):
    """Base of all records: frozen, closed, no silent conversion of what is not there."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EntropyRow(Record):
    """Entropy of one layer's token vectors, in bits: mean, standard deviation and values over the K-means seeds."""

    mean: float
    spread: float
    by_seed: tuple[float, ...]
    vectors: int
    clusters: int


class LayerScores(Record):
    """`scores.json`: what the analysis says of every decoder layer, in the order of the layers.

    `entropy` maps "<site>_<tokens>" to one row a layer; sites are "output" (the layer's output, the
    paper's choice) and "input" (its input norm's output), tokens are "multimodal" (image and text tokens
    of samples with an image) and "text" (text-only samples). `stability` gives, under the same keys,
    the mean Kendall's tau between the orders of two seeds. `changes` gives a figure a layer: "cosine_<tokens>" of its
    input and output, "attention_<tokens>" and "ffn_<tokens>" how large what those blocks add is, squared, beside the
    output. Images had at least `least_image_tokens` and at most `image_tokens`.
    """

    format: Literal["luq-gguf scores 1"] = "luq-gguf scores 1"
    checkpoint: str
    layers: int = Field(ge=1, le=MAX_LAYERS)
    entropy: dict[str, tuple[EntropyRow, ...]]
    stability: dict[str, float]
    changes: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    tokens: dict[str, int]
    samples: int
    held_out: int
    compute_type: str
    seed: int
    least_image_tokens: int | None = Field(default=None, ge=1)
    image_tokens: int | None = Field(default=None, ge=1)
    warnings: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        from luq_gguf.notebook import scores_html

        return scores_html(self)


class Plan(Record):
    """`plan.json`: a type for every tensor of the text GGUF, and the size that follows.

    `order` lists all layers from the first to become low to the last; `types` maps tensor names to ggml
    type names; sizes are bytes of the whole text GGUF. `fallbacks` names the tensors whose rows the
    wanted type cannot take, with the type that llama.cpp takes instead.
    """

    format: Literal["luq-gguf plan 1"] = "luq-gguf plan 1"
    checkpoint: str
    layers: int = Field(ge=1, le=MAX_LAYERS)
    order_name: str
    order: tuple[int, ...]
    low_layers: tuple[int, ...]
    low_type: str
    high_type: str
    types: dict[str, str]
    size_bytes: int = Field(ge=1)
    high_size_bytes: int = Field(ge=1)
    f16_size_bytes: int = Field(ge=0)
    bits_per_weight: float
    fallbacks: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if sorted(self.order) != list(range(self.layers)):
            raise ValueError(f"its order is none of {self.layers} layers")
        if not set(self.low_layers) <= set(self.order) or len(set(self.low_layers)) != len(self.low_layers):
            raise ValueError("its low layers are none of the model's")
        if unknown := set(self.types.values()) - GGMLQuantizationType.__members__.keys():
            raise ValueError(f"there is no type {min(unknown)}")
        return self

    def _repr_html_(self) -> str:
        from luq_gguf.notebook import plan_html

        return plan_html(self)


RecordT = TypeVar("RecordT", bound=Record)


def write_record(path: Path, record: Record) -> None:
    """Write a record as JSON under its final name."""
    write_text(path, record.model_dump_json(indent=2) + "\n")


def read_record(path: Path, kind: type[RecordT]) -> RecordT:
    """Read and validate a record.

    Raises ArtifactError where the file is missing, no JSON, of another format or version, or edited into
    something else.
    """
    try:
        return kind.model_validate_json(read_small(path))
    except OSError as error:
        raise ArtifactError(
            f"cannot read {path}: {error.strerror}", path=path, hint="run the stage that writes it again"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise ArtifactError(
            f"{path} is no valid {kind.__name__}: {where}: {first['msg']}",
            path=path,
            hint="delete it and make it again",
        ) from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success flush it and rename, else remove it.

    Raises DiskSpaceError where the disk ran full meanwhile, whatever the writer made of that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{threading.get_ident():x}.{os.getpid()}.partial")
    try:
        with naming_full_disk(path):
            yield partial
            with partial.open("rb") as handle:
                os.fsync(handle.fileno())
            partial.replace(path)
            _flush_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Raise DiskSpaceError where the disk runs full while `path` is written, whatever the writer makes of that."""
    try:
        yield
    except Exception as error:
        if _is_full(path.parent, error):
            raise _disk_full(path) from error
        raise


def move_file(source: Path, target: Path) -> None:
    """Give a flushed file its final name, on another disk by a copy."""
    try:
        source.replace(target)
        _flush_folder(target.parent)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with atomic_path(target) as partial:
            shutil.copyfile(source, partial)
        source.unlink()


def _is_full(folder: Path, error: Exception) -> bool:
    """Whether an error came of a full disk; llama.cpp and safetensors have words of their own for it."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return not isinstance(error, DiskSpaceError) and shutil.disk_usage(folder).free < LEAST_FREE


def _disk_full(path: Path) -> DiskSpaceError:
    free = shutil.disk_usage(path.parent).free
    return DiskSpaceError(
        f"the disk of {path.parent} ran full while {path.name} was written",
        needed=free + 1,
        free=free,
        hint="free some space and run the same command again: it goes on from what was finished",
    )


@contextlib.contextmanager
def scratch_folder(parent: Path, what: str) -> Iterator[Path]:
    """A folder for half-finished work in `parent`, gone at the end of the block."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=f".{what}.", suffix=f".{os.getpid()}.partial") as folder:
        yield Path(folder)


def remove_stale(folder: Path, *, below: bool = False) -> None:
    """Remove what `atomic_path` and `scratch_folder` of processes that are gone left in a folder, or `below` it too."""
    for path in list(folder.rglob(LEFT_OVER) if below else folder.glob(LEFT_OVER)):
        owner = re.search(r"\.(\d+)\.partial$", path.name)
        if owner is None or _is_running(int(owner[1])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    """Whether a process does anything still; a dead one that nobody waited for does not."""
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder for the length of the block; the lock ends with the process.

    Raises BusyError where another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BusyError(
            f"another run is working in {folder}", path=folder, hint="wait for it to end, or give another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file under its final name."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write plain JSON under its final name."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fill_space(path: Path, nbytes: int) -> None:
    """Make a file of so many bytes whose blocks are there: who maps it must not meet a full disk."""
    with path.open("wb") as handle:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle.fileno(), 0, max(nbytes, 1))
        else:
            for start in range(0, nbytes, ZEROS):
                handle.write(bytes(min(ZEROS, nbytes - start)))


def cache_folder() -> Path:
    """Where this program keeps what belongs to no model's folder, below the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "luq-gguf"


def existing_folder(folder: Path) -> Path:
    """The folder, or the first one above it that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise DiskSpaceError unless the disk of `folder` has `needed` bytes free for `what`."""
    free = shutil.disk_usage(existing_folder(folder)).free
    if free < needed:
        raise DiskSpaceError(
            f"{what} needs {needed:,} bytes in {folder}, which has {free:,} bytes free",
            needed=needed,
            free=free,
            hint="free some space or give another folder with --out or --work",
        )
