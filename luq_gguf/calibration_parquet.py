"""Calibration rows in parquet, the form of the hub's data sets, some rows at a time.

Of an image in a row its number is kept. When it is looked at, its bytes go into a temporary file (in memory up to
SPOOLED), from where they are read again: parquet can only be read from the beginning of a group of rows.
"""

from __future__ import annotations

import bisect
import hashlib
import tempfile
import weakref
from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from luq_gguf.calibration_images import StoredImage
from luq_gguf.calibration_json import Found
from luq_gguf.calibration_rows import KEYS, draft_of
from luq_gguf.errors import CalibrationError, ImageError
from luq_gguf.small_files import MIB

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

BATCH = 16
SPOOLED = 64 * MIB
IMAGES = ("image", "images")
LEAST_TEXT = 64 * MIB
EXPANSION = 64
"""A file may hold so many times its own size as text: repeated texts are stored once."""
AGAIN = "export it again"


def read_parquet(path: Path, handle: BinaryIO) -> Found:
    """Rows of a parquet file."""
    try:
        file = _opened(path, handle)
        columns = [name for name in file.schema_arrow.names if name in KEYS]
        if not columns:
            raise CalibrationError(f"{path} has none of the columns {', '.join(KEYS)}", hint="rename its columns")
        yield from _rows(path, file, columns, path.stat().st_size)
    except CalibrationError as error:
        yield error
    except Exception as error:  # pyarrow's many kinds; a damaged file can have any
        yield _broken(path, error)


def _broken(path: Path, error: Exception) -> CalibrationError:
    what = " ".join(str(error).split()) or type(error).__name__
    return CalibrationError(f"{path} is no parquet file that can be read: {what}", hint=AGAIN)


def _opened(path: Path, handle: BinaryIO) -> ParquetFile:
    """The file, read as a stream; raises CalibrationError where it claims what no file of its size holds."""
    from pyarrow import parquet

    file = parquet.ParquetFile(handle, buffer_size=MIB, pre_buffer=False)
    size, rows = path.stat().st_size, file.metadata.num_rows
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    if not 0 <= rows <= size or sum(group.num_rows for group in groups) != rows or any(g.num_rows < 0 for g in groups):
        raise CalibrationError(f"{path} claims {rows:,} rows in {size:,} bytes", hint=AGAIN)
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    largest = max((column.total_uncompressed_size for column in columns), default=0)
    if largest > LEAST_TEXT + EXPANSION * size:
        raise CalibrationError(f"{path} claims {largest:,} bytes in one of its columns", hint=AGAIN)
    return file


def _rows(path: Path, file: ParquetFile, columns: list[str], size: int) -> Found:
    cells = _ImageCells(path)
    row, room = 0, LEAST_TEXT + EXPANSION * size
    for batch in file.iter_batches(batch_size=BATCH, columns=columns):
        for content in batch.to_pylist():
            for name in IMAGES:
                content[name] = _lazy(content.get(name), cells, row, name)
            row += 1
            room -= _length(content)
            if room < 0:
                raise CalibrationError(f"{path}, row {row}: its texts are too many for its size", hint=AGAIN)
            yield draft_of(content, f"{path}, row {row}", path.parent)


def _length(content: dict[str, Any]) -> int:
    return sum(len(value) for value in content.values() if isinstance(value, str | list))


def _lazy(value: Any, cells: _ImageCells, row: int, name: str) -> Any:
    """The value of an image column with promises in the place of bytes."""
    values = value if isinstance(value, list) else [value]
    lazy = []
    for number, one in enumerate(values):
        content = one.get("bytes") if isinstance(one, dict) else one
        if isinstance(content, bytes) and content:
            identity = f"bytes:{hashlib.sha256(content).hexdigest()}"
            one = StoredImage("its image", identity, partial(cells.read, row, name, number))  # noqa: PLW2901
        lazy.append(one)
    return lazy


class _ImageCells:
    """The encoded images of a file; cheap where rows are asked for in order, or again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spool = tempfile.SpooledTemporaryFile(max_size=SPOOLED)  # noqa: SIM115 - closed with this object
        self._places: dict[tuple[int, str, int], tuple[int, int]] = {}
        self._rows: Iterator[tuple[int, dict[str, Any]]] | None = None
        self._ends: list[int] = []
        self._last = -1
        self._content: dict[str, Any] = {}
        weakref.finalize(self, self._spool.close)

    def read(self, row: int, name: str, number: int) -> bytes:
        """The bytes of an image; raises ImageError where the file is not what it was."""
        place = (row, name, number)
        if place not in self._places:
            content = self._find(row, name, number)
            self._places[place] = (self._spool.seek(0, 2) or self._spool.tell(), len(content))
            self._spool.write(content)
        start, length = self._places[place]
        self._spool.seek(start)
        return self._spool.read(length)

    def _find(self, row: int, name: str, number: int) -> bytes:
        try:
            if self._rows is None or row < self._last or self._group(row) > self._group(self._last) + 1:
                self._rows, self._last = self._from(row), -1
            while self._last != row:
                self._last, self._content = next(self._rows)
            value = self._content[name]
            one = value[number] if isinstance(value, list) else value
            content: bytes = one["bytes"] if isinstance(one, dict) else one
            if not isinstance(content, bytes):
                raise TypeError
        except Exception as error:
            self._rows = None
            what = f"{self._path} has changed since it was looked at"
            raise ImageError(what, path=str(self._path), hint="run the command again") from error
        return content

    def _group(self, row: int) -> int:
        """The group of rows in which a row is."""
        return bisect.bisect_right(self._ends, row)

    def _from(self, row: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows from the beginning of the group in which a row is."""
        with self._path.open("rb") as handle:
            file = _opened(self._path, handle)
            self._ends = _ends(file)
            group = self._group(row)
            number = self._ends[group - 1] if group else 0
            groups = list(range(group, len(self._ends)))
            columns = [name for name in IMAGES if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=BATCH, row_groups=groups, columns=columns):
                for content in batch.to_pylist():
                    yield number, content
                    number += 1


def _ends(file: ParquetFile) -> list[int]:
    """The number of rows up to the end of each group."""
    groups = range(file.metadata.num_row_groups)
    return list(accumulate(file.metadata.row_group(index).num_rows for index in groups))
