"""The child process that reads parquet files: a line of JSON in, lines of JSON and the bytes of images out.

pyarrow ends its process on some damaged files, and a small file may unpack to any size: here it may take
little more memory and time than the file is large. Images stay here until one is asked for; rows carry their hashes.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luq_gguf.children import limit

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

MIB = 1 << 20
BATCH = 16
IMAGES = ("image", "images")
BYTES = "luq:bytes"
"""The key under which a row has the SHA-256 of an image instead of its bytes."""
LEAST_TEXT = 64 * MIB
EXPANSION = 64
"""A file may hold so many times its own size as text: repeated texts are stored once."""
LEAST_MEMORY = 1 << 30
SECONDS, BYTES_A_SECOND = 30, 4 * MIB


class BadFileError(Exception):
    """What is wrong with the file."""


def serve() -> None:
    """Answer requests until the owner closes the pipe."""
    cells: _ImageCells | None = None
    for line in sys.stdin:
        request = json.loads(line)
        path = Path(request["path"])
        try:
            _bound(path.stat().st_size)
            if "row" not in request:
                for content in _rows(path, request["columns"]):
                    _say({"row": content})
                _say({"end": True})
                continue
            cells = cells if cells is not None and cells.path == path else _ImageCells(path)
            image = cells.find(request["row"], request["name"], request["number"])
            _say({"bytes": len(image)})
            sys.stdout.buffer.write(image)
            sys.stdout.buffer.flush()
        except Exception as error:  # pyarrow's many kinds; a damaged file can have any
            cells = None
            _say({"error": " ".join(str(error).split()) or type(error).__name__})


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(answer, default=lambda _: {}).encode() + b"\n")
    sys.stdout.buffer.flush()


def _bound(size: int) -> None:
    """Memory and processor time from here on."""
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # the others reserve a GiB at once, threads an eighth each
    import psutil
    import pyarrow
    from pyarrow import parquet  # noqa: F401 - what it takes itself does not count

    pyarrow.set_io_thread_count(1)
    pyarrow.set_cpu_count(1)
    process = psutil.Process()
    limit("RLIMIT_AS", process.memory_info().vms + LEAST_MEMORY + 2 * size)
    used = process.cpu_times()
    limit("RLIMIT_CPU", int(used.user + used.system) + SECONDS + size // BYTES_A_SECOND)


def _opened(path: Path) -> ParquetFile:
    """The file, read as a stream; raises BadFileError where it claims what no file of its size holds."""
    from pyarrow import parquet

    file = parquet.ParquetFile(path, buffer_size=MIB, pre_buffer=False)
    size, rows = path.stat().st_size, file.metadata.num_rows
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    if not 0 <= rows <= size or sum(group.num_rows for group in groups) != rows or any(g.num_rows < 0 for g in groups):
        raise BadFileError(f"it claims {rows:,} rows in {size:,} bytes")
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    largest = max((column.total_uncompressed_size for column in columns), default=0)
    if largest > LEAST_TEXT + EXPANSION * size:
        raise BadFileError(f"it claims {largest:,} bytes in one of its columns")
    return file


def _rows(path: Path, wanted: list[str]) -> Iterator[dict[str, Any]]:
    file = _opened(path)
    columns = [name for name in file.schema_arrow.names if name in wanted]
    if not columns:
        raise BadFileError(f"it has none of the columns {', '.join(wanted)}")
    room = LEAST_TEXT + EXPANSION * path.stat().st_size
    for batch in file.iter_batches(batch_size=BATCH, columns=columns, use_threads=False):
        for content in batch.to_pylist():
            for name in IMAGES:
                if name in content:
                    content[name] = _hashed(content[name])
            room -= sum(len(value) for value in content.values() if isinstance(value, str | list))
            if room < 0:
                raise BadFileError("its texts are too many for its size")
            yield content


def _hashed(value: Any) -> list[Any]:
    """The images of a row with hashes in the place of bytes."""
    hashed = []
    for one in value if isinstance(value, list) else [value]:
        content = one.get("bytes") if isinstance(one, dict) else one
        hashed.append({BYTES: hashlib.sha256(content).hexdigest()} if isinstance(content, bytes) and content else one)
    return hashed


class _ImageCells:
    """The encoded images of a file; cheap where rows are asked for in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: Iterator[tuple[int, dict[str, Any]]] | None = None
        self._ends: list[int] = []
        self._last = -1
        self._content: dict[str, Any] = {}

    def find(self, row: int, name: str, number: int) -> bytes:
        """The bytes of an image: that of the row, column and place of this number."""
        if self._rows is None or row < self._last or self._group(row) > self._group(self._last) + 1:
            self._rows, self._last = self._from(row), -1
        while self._last != row:
            self._last, self._content = next(self._rows)
        value = self._content[name]
        one = value[number] if isinstance(value, list) else value
        content: bytes = one["bytes"] if isinstance(one, dict) else one
        if not isinstance(content, bytes):
            raise BadFileError("there is no image any more")
        return content

    def _group(self, row: int) -> int:
        """The group of rows in which a row is."""
        return bisect.bisect_right(self._ends, row)

    def _from(self, row: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows from the beginning of the group in which a row is."""
        file = _opened(self.path)
        counts = (file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups))
        self._ends = list(accumulate(counts))
        group = self._group(row)
        number = self._ends[group - 1] if group else 0
        groups = list(range(group, len(self._ends)))
        columns = [name for name in IMAGES if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=BATCH, row_groups=groups, columns=columns, use_threads=False):
            for content in batch.to_pylist():
                yield number, content
                number += 1


if __name__ == "__main__":
    serve()
