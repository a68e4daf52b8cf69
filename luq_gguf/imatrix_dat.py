"""A reader of llama.cpp's older form of importance matrices, `.dat`.

Takes a path, gives what stands in it, number by number; what the numbers mean is known to `importance`. Every
count and length is held against the bytes that are left, so a broken file ends in an ArtifactError.

All numbers are little-endian int32, all values float32: the number of entries; for each its name (length, bytes), how
many chunks it was collected from, and its values (how many, values); then, where the file does not end before,
the number of chunks and the name of the data set (length, bytes).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luq_gguf.errors import ArtifactError
from luq_gguf.gguf_file import MAX_NAME

LONGEST_NAME = MAX_NAME - len(".in_sum2")
"""No weight that has a place in the GGUF form has a longer name."""
_INT = struct.Struct("<i")
_SMALLEST_ENTRY = 3 * _INT.size + 1 + 4
"""Length of the name, a letter, two numbers, a value."""


@dataclass(frozen=True)
class DatEntry:
    """One weight: the number of chunks, and per input channel the mean squared input times that number."""

    chunks: int
    values: NDArray[np.float32]


@dataclass(frozen=True)
class DatFile:
    """A whole file; `chunks` is 0 and `dataset` empty where it does not say."""

    entries: Mapping[str, DatEntry]
    chunks: int
    dataset: str


def read_dat(path: Path) -> DatFile:
    """Read the file; raises ArtifactError where it is missing, cut, contradicts itself, or goes on after its end."""
    try:
        with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _Parser(path, mapped).parse()
    except OSError as error:
        raise ArtifactError(
            f"cannot read {path}: {error.strerror or error}", path=path, hint="give a file of llama-imatrix"
        ) from error
    except ValueError as error:  # an empty file cannot be mapped
        raise ArtifactError(f"{path} is empty", path=path, hint="make or download it again") from error


class _Parser:
    """One pass over the file; `position` only moves forward and never past the end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.position = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def parse(self) -> DatFile:
        count = self._number("the number of entries")
        if not 0 < count * _SMALLEST_ENTRY <= self.left:
            raise self._broken(f"{count} entries do not fit into its {len(self.data)} bytes")
        entries: dict[str, DatEntry] = {}
        for number in range(1, count + 1):
            name = self._name(number)
            if name in entries:
                raise self._broken(f"{name} stands in it twice")
            entries[name] = self._entry(name)
        chunks = self._number("the number of chunks") if self.left else 0
        dataset = self._text("the name of the data set", self.left).decode(errors="replace") if self.left else ""
        if self.left or chunks < 0:
            raise self._broken(f"{self.left} bytes follow its end" if self.left else f"it is of {chunks} chunks")
        return DatFile(entries, chunks, dataset)

    def _broken(self, what: str) -> ArtifactError:
        return ArtifactError(
            f"{self.path} is neither a GGUF nor a sound .dat importance matrix: {what}",
            path=self.path,
            hint="make or download it again",
        )

    def _take(self, count: int, what: str) -> int:
        start = self.position
        if not 0 <= count <= self.left:
            raise self._broken(f"{what} takes {count} bytes at byte {start}, of which {self.left} are there")
        self.position = start + count
        return start

    def _number(self, what: str) -> int:
        value: int = _INT.unpack_from(self.data, self._take(_INT.size, what))[0]
        return value

    def _text(self, what: str, longest: int) -> bytes:
        length = self._number(f"the length of {what}")
        if length > longest:
            raise self._broken(f"{what} has {length} bytes")
        start = self._take(length, what)
        return self.data[start : start + length]

    def _name(self, number: int) -> str:
        raw = self._text(f"the name of entry {number}", LONGEST_NAME)
        name = raw.decode(errors="replace")
        if not raw or "\ufffd" in name or not name.isprintable():
            raise self._broken(f"entry {number} has the name {raw!r}")
        return name

    def _entry(self, name: str) -> DatEntry:
        chunks, count = self._number(f"the chunks of {name}"), self._number(f"the size of {name}")
        if chunks < 1 or count < 1:
            raise self._broken(f"{name} has {count} values from {chunks} chunks")
        start = self._take(4 * count, name)
        values: NDArray[Any] = np.frombuffer(self.data, np.dtype("<f4"), count, start).astype(np.float32)
        return DatEntry(chunks, values)
