"""Where each tensor lies in the safetensors files of a folder, from their headers and index alone.

Everything that a file claims (lengths, offsets, names of other files) is checked before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from luq_gguf.errors import CheckpointError, TensorError
from luq_gguf.small_files import MIB, parse_json, read_small, require_regular

ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
MAX_HEADER = 32 * MIB
"""Room for 200,000 tensors; parsed it takes up to twenty times its size."""
MAX_DIMENSIONS = 8
MAX_NAME = 1024
AGAIN = "download the file again"


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file: `offset` counts bytes from the file's start, `shape` is (rows, row length)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises CheckpointError where it is none."""
    try:
        content = parse_json(read_small(path))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", hint=AGAIN) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is no valid JSON: {error}", hint=AGAIN) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object", hint=AGAIN)
    return content


def read_weight_map(path: Path) -> dict[str, list[str] | None]:
    """Shard names of an index file with the tensors promised in each; the names are checked, not the files."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map", hint=AGAIN)
    shards: dict[str, list[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or _leads_away(shard):
            raise CheckpointError(
                f"{path.name} names {shard!r} as a shard, which is not a safetensors file of the folder itself",
                hint="do not trust this checkpoint; download it from its original place",
            )
        shards.setdefault(shard, []).append(tensor)
    return dict(sorted(shards.items()))


def require_complete(folder: Path, names: Sequence[str]) -> None:
    """Raise CheckpointError if names like model-00001-of-00003.safetensors say that one is missing."""
    for name in names:
        if match := re.fullmatch(r"(.*)-(\d+)-of-(\d+)(\.safetensors)", name):
            stem, digits, total = match[1], len(match[2]), int(match[3])
            for number in range(1, min(total, 10_000) + 1):
                shard = f"{stem}-{number:0{digits}d}-of-{match[3]}{match[4]}"
                if shard not in names:
                    raise CheckpointError(f"shard {shard} is missing from {folder}", hint="download the missing file")


def collect_tensors(folder: Path, shards: dict[str, list[str] | None]) -> dict[str, TensorInfo]:
    """All tensors of the shards, by name; raises CheckpointError for missing, cut or contradictory files."""
    tensors: dict[str, TensorInfo] = {}
    for shard, promised in shards.items():
        path = folder / shard
        require_inside(folder, path)
        if not path.is_file():
            what = "is no regular file of" if path.exists() else "is missing from"
            raise CheckpointError(f"shard {shard} {what} {folder}", hint="download the missing file")
        found = read_header(path)
        missing = sorted(set(promised or ()) - found.keys())
        if missing:
            raise TensorError(f"tensor {missing[0]} is missing from {path}", tensor=missing[0], hint=AGAIN)
        twice = sorted(found.keys() & tensors.keys())
        if twice:
            raise TensorError(f"tensor {twice[0]} is in two shards of {folder}", tensor=twice[0], hint=AGAIN)
        tensors |= found
    return tensors


def require_inside(folder: Path, path: Path) -> None:
    """Raise CheckpointError if a link leads out of the folder, other than to the hub cache's own blobs."""
    home, target = folder.resolve(), path.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if not any(target.is_relative_to(place) for place in allowed):
        raise CheckpointError(
            f"{path.name} is a link to {target}, outside of {folder}", hint="copy the file into the folder"
        )


def header_bytes(path: Path) -> bytes:
    """The JSON header of a safetensors file, its length checked against the file."""
    try:
        size = require_regular(path)
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > size - 8:
                raise CheckpointError(
                    f"{path} is cut short or no safetensors file: a header of {length:,} bytes in {size:,} bytes",
                    hint=AGAIN,
                )
            if length > MAX_HEADER:
                raise CheckpointError(
                    f"{path} has a header of {length:,} bytes, at most {MAX_HEADER:,} are read",
                    hint="save the model in several shards",
                )
            return handle.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file; every shape and offset is checked."""
    header = header_bytes(path)
    try:
        entries = parse_json(header, pairs=_refuse_twice)
    except ValueError as error:
        raise CheckpointError(f"{path} has a broken header: {error}", hint=AGAIN) from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path} has a broken header: no JSON object", hint=AGAIN)
    entries.pop("__metadata__", None)
    start = 8 + len(header)
    tensors = {name: _tensor(path, name, entry, start) for name, entry in entries.items()}
    _check_extent(path, list(tensors.values()))
    return tensors


def _tensor(path: Path, name: str, entry: object, start: int) -> TensorInfo:
    broken = TensorError(f"tensor {name} has a broken entry in the header of {path}", tensor=name, hint=AGAIN)
    if not isinstance(entry, dict) or len(name) > MAX_NAME:
        raise broken
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise broken
    if len(shape) > MAX_DIMENSIONS:
        raise broken
    begin, end = offsets
    if (dtype in ITEM_BYTES and end - begin != prod(shape) * ITEM_BYTES[dtype]) or end < begin:
        raise TensorError(
            f"tensor {name} in {path}: {end - begin} bytes do not fit shape {tuple(shape)} of {dtype}",
            tensor=name,
            hint=AGAIN,
        )
    return TensorInfo(name, dtype, tuple(shape), path, start + begin, end - begin)


def _check_extent(path: Path, tensors: list[TensorInfo]) -> None:
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors", hint=AGAIN)
    ordered = sorted(tensors, key=lambda info: (info.offset, info.nbytes))
    for before, after in pairwise(ordered):
        if after.offset < before.offset + before.nbytes:
            raise TensorError(
                f"tensors {before.name} and {after.name} overlap in {path}", tensor=after.name, hint=AGAIN
            )
    needed, size = max(info.offset + info.nbytes for info in tensors), path.stat().st_size
    if needed > size:
        raise CheckpointError(f"{path} is cut short: it needs {needed:,} bytes and has {size:,}", hint=AGAIN)


def _counts(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list):
        return False
    return len(value) <= 2 * MAX_DIMENSIONS and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 48 for item in value
    )


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name stands twice")
    return content


def _leads_away(name: str) -> bool:
    plain = name.isprintable() and name == Path(name).name
    return not plain or "/" in name or "\\" in name or name.startswith("..")
