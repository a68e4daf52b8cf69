"""Calibration rows in parquet, the form of the hub's data sets, read by a child process (`parquet_worker`).

Of an image in a row its number is kept. When it is looked at, its bytes go into a temporary file (in memory up to
SPOOLED), from where they are read again: parquet can only be read from the beginning of a group of rows.
"""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from luq_gguf.calibration_images import StoredImage
from luq_gguf.calibration_json import Found
from luq_gguf.calibration_rows import KEYS, draft_of
from luq_gguf.children import Child
from luq_gguf.errors import CalibrationError, ImageError
from luq_gguf.parquet_worker import BYTES, IMAGES
from luq_gguf.small_files import MIB

SPOOLED = 64 * MIB
AGAIN = "export it again"


class ParquetReader(Child):
    """Reads parquet files in a child; use as a context manager."""

    def __init__(self) -> None:
        super().__init__("luq_gguf.parquet_worker", stderr=subprocess.DEVNULL)

    def rows(self, path: Path) -> Iterator[dict[str, Any]]:
        """The rows of a file, with hashes in the place of images; raises CalibrationError where it cannot be read."""
        answers = self.send(json.dumps({"path": str(path.absolute()), "columns": KEYS}).encode() + b"\n")
        while "end" not in (answer := self._answer(path, answers)):
            yield answer["row"]

    def image(self, path: Path, row: int, name: str, number: int) -> bytes:
        """The bytes of an image; raises CalibrationError where the file is not what it was."""
        request = {"path": str(path.absolute()), "row": row, "name": name, "number": number}
        answers = self.send(json.dumps(request).encode() + b"\n")
        length = self._answer(path, answers)["bytes"]
        content = answers.read(length)
        if len(content) != length:
            raise self._died(path)
        return content

    def _answer(self, path: Path, answers: BinaryIO) -> dict[str, Any]:
        line = answers.readline()
        if not line.endswith(b"\n"):
            raise self._died(path)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise CalibrationError(f"{path} is no parquet file that can be read: {answer['error']}", hint=AGAIN)
        return answer

    def _died(self, path: Path) -> CalibrationError:
        code = self.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return CalibrationError(f"{path} is no parquet file that can be read: its reader ended by {how}", hint=AGAIN)


def read_parquet(path: Path, handle: BinaryIO, reader: ParquetReader | None = None) -> Found:
    """Rows of a parquet file, read by a child that ends with them or by one that is at hand."""
    own = ParquetReader()
    cells = _ImageCells(path, reader or own)
    with own:
        try:
            for number, content in enumerate((reader or own).rows(path)):
                for name in IMAGES:
                    if name in content:
                        content[name] = [
                            _promised(one, cells, number, name, at) for at, one in enumerate(content[name])
                        ]
                yield draft_of(content, f"{path}, row {number + 1}", path.parent)
        except CalibrationError as error:
            yield error


def _promised(value: Any, cells: _ImageCells, row: int, name: str, number: int) -> Any:
    """A stored image in the place of a hash; paths stay as they are."""
    if not isinstance(value, dict) or BYTES not in value:
        return value
    return StoredImage("its image", f"bytes:{value[BYTES]}", partial(cells.read, row, name, number), cells.close)


class _ImageCells:
    """The encoded images of a file, kept once they were asked for; to be asked for in the order of the rows."""

    def __init__(self, path: Path, reader: ParquetReader) -> None:
        self._path, self._reader = path, reader
        self._spool = tempfile.SpooledTemporaryFile(max_size=SPOOLED)  # noqa: SIM115 - closed with this object
        self._places: dict[tuple[int, str, int], tuple[int, int]] = {}
        weakref.finalize(self, self._spool.close)

    def read(self, row: int, name: str, number: int) -> bytes:
        """The bytes of an image; raises ImageError where the file is not what it was."""
        place = (row, name, number)
        if place not in self._places:
            try:
                content = self._reader.image(self._path, row, name, number)
            except CalibrationError as error:
                raise ImageError(error.message, path=str(self._path), hint=error.hint) from error
            self._spool.seek(0, 2)
            self._places[place] = (self._spool.tell(), len(content))
            self._spool.write(content)
        start, length = self._places[place]
        self._spool.seek(start)
        return self._spool.read(length)

    def close(self) -> None:
        """End the child; it starts again when it is needed."""
        self._reader.close()
