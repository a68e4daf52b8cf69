"""A small validated reader of GGUF headers, and the writer of a header.

Takes a path, gives metadata (decoded when asked for, and as raw bytes) and where every tensor lies. Each
count, length and offset is held against the size of the file before anything is allocated, so a broken
file ends in a GGUFError. It never reads tensor data and knows nothing of models.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from luq_gguf.errors import GGUFError
from luq_gguf.small_files import require_regular

MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MOST_BYTES = 1 << 42
"""Of a file whose data are not there: what its header may claim."""
MAX_NAME = 63
"""ggml keeps tensor names in 64 bytes, the last of them zero."""

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_WIDTHS = {kind: struct.calcsize(code) for kind, code in _SCALARS.items()}
_UINT32, _STRING, _ARRAY = 4, 8, 9
_SMALLEST_ENTRY = 8 + 4 + 1
_SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor: `shape` in ggml's order (row length first), `offset` from the start of the file, in bytes."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    nbytes: int


@dataclass(frozen=True)
class _Entry:
    kind: int
    start: int
    end: int


class Metadata(Mapping[str, Any]):
    """The key-value pairs of a header in file order; values are decoded when they are asked for."""

    def __init__(self, header: bytes, entries: dict[str, _Entry]) -> None:
        self._header = header
        self._entries = entries

    def __getitem__(self, key: str) -> Any:
        entry = self._entries[key]
        return _decode(self._header, entry.kind, entry.start + 4)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def raw(self, key: str) -> bytes:
        """The bytes of a value with the type number before it, as they stand in the file."""
        entry = self._entries[key]
        return self._header[entry.start : entry.end]


@dataclass(frozen=True)
class GGUFFile:
    """A GGUF whose header is sound and whose tensors lie, apart from each other, within the file."""

    path: Path
    size: int
    alignment: int
    data_start: int
    metadata: Metadata
    tensors: dict[str, GGUFTensor]

    @classmethod
    def open(cls, path: Path, *, size: int | None = None, header_only: bool = False) -> GGUFFile:
        """Read the header of `path`; with `size` as if the file ended there.

        With `header_only` the tensors' data need not be there. Raises GGUFError where the file cannot be read, is
        cut, or contradicts itself.
        """
        try:
            require_regular(path)
            with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                end = len(mapped) if size is None else min(size, len(mapped))
                return _Parser(path, mapped, end, MOST_BYTES if header_only else end).parse()
        except OSError as error:
            raise GGUFError(
                f"cannot read {path}: {error.strerror or error}", path=path, hint="give the path of a GGUF file"
            ) from error
        except ValueError as error:  # an empty file cannot be mapped
            raise GGUFError(f"{path} is empty", path=path, hint="make or download it again") from error

    @property
    def data_end(self) -> int:
        """Where the last tensor ends, with its padding: the whole file's size as llama.cpp writes it."""
        ends = [tensor.offset + tensor.nbytes for tensor in self.tensors.values()]
        return align(max(ends, default=self.data_start), self.alignment)

    def read_raw(self, name: str) -> bytes:
        """The bytes of one tensor; raises GGUFError where there is none of that name."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise GGUFError(f"{self.path} has no tensor {name}", path=self.path)
        with self.path.open("rb") as handle:
            handle.seek(tensor.offset)
            return handle.read(tensor.nbytes)

    def read_float32(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """An F32 tensor in numpy's order; raises GGUFError where it is missing or of another type."""
        data = self.read_raw(name)
        tensor = self.tensors[name]
        if tensor.type != GGMLQuantizationType.F32:
            raise GGUFError(f"{name} in {self.path} is {tensor.type.name}, not F32", path=self.path)
        return np.frombuffer(data, np.dtype("<f4")).reshape(tensor.shape[::-1])


def align(offset: int, alignment: int = DEFAULT_ALIGNMENT) -> int:
    """The next multiple of `alignment` at or after `offset`."""
    return -(-offset // alignment) * alignment


def tensor_bytes(kind: GGMLQuantizationType, shape: Iterable[int]) -> int:
    """Bytes of a tensor's data; the row length is the first of `shape`. Raises ValueError where it cannot be."""
    dimensions = tuple(shape)
    block, width = GGML_QUANT_SIZES[kind]
    if dimensions[0] % block:
        raise ValueError(f"a row of {dimensions[0]} is no multiple of {kind.name}'s block of {block}")
    return int(prod(dimensions) // block * width)


class _Parser:
    """One pass over a header; `position` only moves forward and never past `size`."""

    def __init__(self, path: Path, data: mmap.mmap, size: int, data_size: int) -> None:
        self.path = path
        self.data = data
        self.size = size
        self.data_size = data_size
        self.position = 0

    def parse(self) -> GGUFFile:
        entry_count, tensor_count = self._preamble()
        entries = self._entries(entry_count)
        alignment = self._alignment(entries)
        infos = self._infos(tensor_count)
        data_start = align(self.position, alignment)
        if infos and data_start > self.data_size:
            raise self._broken("it ends before its tensor data")
        header = self.data[: self.position]
        tensors = {info[0]: self._tensor(info, data_start, alignment) for info in infos}
        self._refuse_overlap(tensors)
        return GGUFFile(self.path, self.size, alignment, data_start, Metadata(header, entries), tensors)

    def _broken(self, what: str) -> GGUFError:
        return GGUFError(f"{self.path} is no sound GGUF: {what}", path=self.path, hint="make or download it again")

    def _take(self, count: int, what: str) -> int:
        start = self.position
        if count > self.size - start:
            raise self._broken(f"it ends within {what} at byte {start}")
        self.position = start + count
        return start

    def _number(self, code: str, what: str) -> int:
        value: int = struct.unpack_from(code, self.data, self._take(struct.calcsize(code), what))[0]
        return value

    def _string(self, what: str) -> str:
        length = self._number("<Q", what)
        start = self._take(length, what)
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._broken(f"{what} at byte {start} is not UTF-8") from error

    def _preamble(self) -> tuple[int, int]:
        if self.data[:4] != MAGIC or self.size < len(MAGIC):
            raise self._broken("it does not begin with GGUF")
        self.position = len(MAGIC)
        version = self._number("<I", "the version")
        if version not in (2, VERSION):
            raise self._broken(f"its version is {version}, known are 2 and {VERSION}")
        tensors, entries = self._number("<Q", "the counts"), self._number("<Q", "the counts")
        if entries * _SMALLEST_ENTRY + tensors * _SMALLEST_TENSOR > self.size - self.position:
            raise self._broken(f"{tensors} tensors and {entries} metadata keys do not fit into {self.size} bytes")
        return entries, tensors

    def _entries(self, count: int) -> dict[str, _Entry]:
        entries: dict[str, _Entry] = {}
        for _ in range(count):
            key = self._string("a metadata key")
            if key in entries:
                raise self._broken(f"metadata key {key!r} stands in it twice")
            start = self.position
            kind = self._number("<I", f"metadata {key!r}")
            self._skip_value(kind, key)
            entries[key] = _Entry(kind, start, self.position)
        return entries

    def _skip_value(self, kind: int, key: str) -> None:
        if kind in _WIDTHS:
            self._take(_WIDTHS[kind], f"metadata {key!r}")
        elif kind == _STRING:
            self._string(f"metadata {key!r}")
        elif kind == _ARRAY:
            self._skip_array(key)
        else:
            raise self._broken(f"metadata {key!r} has the unknown type {kind}")

    def _skip_array(self, key: str) -> None:
        kind, count = self._number("<I", f"metadata {key!r}"), self._number("<Q", f"metadata {key!r}")
        if kind in _WIDTHS:
            self._take(count * _WIDTHS[kind], f"metadata {key!r}")
        elif kind == _STRING:
            if count * 8 > self.size - self.position:
                raise self._broken(f"metadata {key!r} claims {count} strings")
            self._skip_strings(count, key)
        else:
            raise self._broken(f"metadata {key!r} is an array of type {kind}, which llama.cpp does not read")

    def _skip_strings(self, count: int, key: str) -> None:
        """A vocabulary has 150,000 of them, so this loop does nothing but add."""
        data, size, position, length_of = self.data, self.size, self.position, struct.Struct("<Q").unpack_from
        for _ in range(count):
            if position + 8 > size:
                raise self._broken(f"it ends within metadata {key!r} at byte {position}")
            position += 8 + length_of(data, position)[0]
        if position > size:
            raise self._broken(f"it ends within metadata {key!r} at byte {size}")
        self.position = position

    def _alignment(self, entries: dict[str, _Entry]) -> int:
        entry = entries.get("general.alignment")
        if entry is None:
            return DEFAULT_ALIGNMENT
        value = struct.unpack_from("<I", self.data, entry.start + 4)[0] if entry.kind == _UINT32 else 0
        if value == 0 or value & (value - 1):
            raise self._broken("general.alignment is no power of two")
        return int(value)

    def _infos(self, count: int) -> list[tuple[str, tuple[int, ...], int, int]]:
        infos: list[tuple[str, tuple[int, ...], int, int]] = []
        seen: set[str] = set()
        for _ in range(count):
            name = self._string("a tensor's name")
            if name in seen:
                raise self._broken(f"tensor {name!r} stands in it twice")
            if len(name.encode()) > MAX_NAME:
                raise self._broken(f"tensor name {name[:40]!r}... is longer than {MAX_NAME} bytes")
            seen.add(name)
            dimensions = self._number("<I", f"tensor {name!r}")
            if not 1 <= dimensions <= MAX_DIMENSIONS:
                raise self._broken(f"tensor {name!r} has {dimensions} dimensions")
            start = self._take(8 * dimensions, f"tensor {name!r}")
            shape = struct.unpack_from(f"<{dimensions}Q", self.data, start)
            kind, offset = self._number("<I", f"tensor {name!r}"), self._number("<Q", f"tensor {name!r}")
            infos.append((name, shape, kind, offset))
        return infos

    def _tensor(self, info: tuple[str, tuple[int, ...], int, int], data_start: int, alignment: int) -> GGUFTensor:
        name, shape, kind, offset = info
        try:
            known = GGMLQuantizationType(kind)
            nbytes = tensor_bytes(known, shape)
        except ValueError as error:
            raise self._broken(f"tensor {name!r}: {error}") from error
        if nbytes == 0 or offset % alignment or data_start + offset + nbytes > self.data_size:
            raise self._broken(
                f"tensor {name!r} of {nbytes} bytes at {data_start + offset} is empty, unaligned, or past its "
                f"end at {self.data_size}"
            )
        return GGUFTensor(name, shape, known, data_start + offset, nbytes)

    def _refuse_overlap(self, tensors: dict[str, GGUFTensor]) -> None:
        end, before = 0, ""
        for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                raise self._broken(f"tensors {before!r} and {tensor.name!r} overlap")
            end, before = tensor.offset + tensor.nbytes, tensor.name


def _decode(header: bytes, kind: int, position: int) -> Any:
    """A value of a header that the parser has already walked over."""
    if kind in _SCALARS:
        return struct.unpack_from(_SCALARS[kind], header, position)[0]
    if kind == _STRING:
        return _decode_string(header, position)[0]
    item, count = struct.unpack_from("<IQ", header, position)
    position += 12
    if item != _STRING:
        return list(struct.unpack_from(f"<{count}{_SCALARS[item][1]}", header, position))
    strings = []
    for _ in range(count):
        text, position = _decode_string(header, position)
        strings.append(text)
    return strings


def _decode_string(header: bytes, position: int) -> tuple[str, int]:
    length = struct.unpack_from("<Q", header, position)[0]
    end = position + 8 + length
    return header[position + 8 : end].decode("utf-8", errors="replace"), end


def encode_string(text: str) -> bytes:
    """A string as it stands in a GGUF: its length, then its bytes."""
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def raw_value(value: int | str) -> bytes:
    """A uint32 or a string in the form of `Metadata.raw`."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + encode_string(value)
    return struct.pack("<II", _UINT32, value)


def encode_header(
    entries: Mapping[str, bytes],
    tensors: Iterable[tuple[str, tuple[int, ...], GGMLQuantizationType]],
    alignment: int = DEFAULT_ALIGNMENT,
) -> bytes:
    """A header with its padding: metadata (raw values by key), then tensors (name, ggml shape, type) in file order."""
    infos, offset, count = [], 0, 0
    for name, shape, kind in tensors:
        infos.append(encode_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset))
        offset += align(tensor_bytes(kind, shape), alignment)
        count += 1
    pairs = [encode_string(key) + value for key, value in entries.items()]
    header = b"".join([MAGIC, struct.pack("<IQQ", VERSION, count, len(pairs)), *pairs, *infos])
    return header.ljust(align(len(header), alignment), b"\0")


def write_padding(handle: BinaryIO, alignment: int = DEFAULT_ALIGNMENT) -> None:
    """Fill with zeros up to the next multiple of `alignment`."""
    position = handle.tell()
    handle.write(b"\0" * (align(position, alignment) - position))
