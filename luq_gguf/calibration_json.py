"""Calibration rows in JSON: a row a line, or one list of rows as LLaVA's instruction data come.

Files are read piece by piece, so that memory is bounded by the largest row; rows that cannot be parsed come as errors
with their line.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from luq_gguf.calibration_rows import HINT, Draft, draft_of
from luq_gguf.errors import CalibrationError
from luq_gguf.small_files import MAX_VALUES, MIB

MAX_ROW = 64 * MIB
"""Bytes, or characters, of one row."""
CHUNK = MIB
WIDE = {b"\xff\xfe", b"\xfe\xff"}
BOM = b"\xef\xbb\xbf"
BLANK = re.compile(r"[ \t\r\n]*")
NUMBER = re.compile(r"[-+.0-9eE]*")
Found = Iterator[Draft | CalibrationError]


def require_narrow(path: Path, handle: BinaryIO) -> None:
    """Leave a UTF-8 file behind its byte order mark; raises CalibrationError for one in UTF-16 or UTF-32."""
    start = handle.read(3)
    if start[:2] in WIDE:
        raise CalibrationError(f"{path} is not UTF-8 but UTF-16", hint="save it as UTF-8")
    handle.seek(len(BOM) if start == BOM else 0)


def read_json(path: Path, handle: BinaryIO) -> Found:
    """Rows of a JSON file: those of its list, or one a line where it begins with an object."""
    require_narrow(path, handle)
    start = handle.tell()
    first = handle.read(CHUNK).lstrip()[:1]
    handle.seek(start)
    yield from read_list(path, handle) if first == b"[" else read_lines(path, handle)


def read_lines(path: Path, handle: BinaryIO) -> Found:
    """Rows of a JSONL file."""
    require_narrow(path, handle)
    number = 0
    while line := handle.readline(MAX_ROW + 1):
        number += 1
        where = f"{path}:{number}"
        if len(line) > MAX_ROW:
            yield _too_long(where)
            while line and not line.endswith(b"\n"):
                line = handle.readline(CHUNK)
        elif line.strip():
            yield _parsed(line, where, path.parent)


def _too_long(where: str) -> CalibrationError:
    return CalibrationError(f"{where} is longer than {MAX_ROW:,} bytes", hint="write a row a line, images as files")


def _parsed(line: bytes, where: str, folder: Path) -> Draft | CalibrationError:
    try:
        text = line.decode("utf-8")
        _require_few(text)
        content = json.loads(text)
    except UnicodeDecodeError as error:
        return CalibrationError(f"{where} is not UTF-8: {error.reason}", hint="save it as UTF-8")
    except RecursionError:
        return CalibrationError(f"{where} is no JSON: it is nested too deeply", hint=HINT)
    except ValueError as error:
        return CalibrationError(f"{where} is no JSON: {error}", hint=HINT)
    return draft_of(content, where, folder)


def _require_few(text: str) -> None:
    """Python needs about a hundred bytes for each value."""
    if len(text) > 2 * MAX_VALUES and sum(text.count(mark) for mark in ",[{") > MAX_VALUES:
        raise ValueError(f"it has more than {MAX_VALUES:,} values")


def read_list(path: Path, handle: BinaryIO) -> Found:
    """Rows of a JSON list; what comes behind an error in its writing is lost."""
    require_narrow(path, handle)
    items = _Items(io.TextIOWrapper(handle, encoding="utf-8", newline=""))
    try:
        for number, (line, content) in enumerate(items, start=1):
            yield draft_of(content, f"{path}:{line}, row {number}", path.parent)
    except UnicodeDecodeError as error:
        yield CalibrationError(f"{path} is not UTF-8 after line {items.line}: {error.reason}", hint="save it as UTF-8")
    except ValueError as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        hint = "everything behind that line is lost: save the file again"
        yield CalibrationError(f"{path}:{items.line} is no JSON: {what}", hint=hint)
    finally:
        items.handle.detach()


class _Items:
    """The items of a JSON list with the lines where they begin, read piece by piece.

    Raises ValueError, with `line` where it is, for what is no list.
    """

    def __init__(self, handle: io.TextIOWrapper) -> None:
        self.handle = handle
        self.line = 1
        self._text = ""
        self._place = self._counted = 0
        self._decoder = json.JSONDecoder()

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        self._expect("[")
        if self._next() == "]":
            self._place += 1
        else:
            mark = ","
            while mark == ",":
                self._next()
                line = self.line
                yield line, self._value()
                mark = self._expect(",]")
        if self._next():
            raise ValueError("something stands behind the list")

    def _expect(self, marks: str) -> str:
        found = self._next()
        if not found or found not in marks:
            raise ValueError(f"{' or '.join(marks)} is missing" if found else "the file ends within the list")
        self._place += 1
        return found

    def _next(self) -> str:
        """The next character that is not blank, or nothing at the end."""
        while True:
            blank = BLANK.match(self._text, self._place)
            self._place = blank.end() if blank else self._place
            self._count()
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._read_on():
                return ""

    def _count(self) -> None:
        self.line += self._text.count("\n", self._counted, self._place)
        self._counted = self._place

    def _read_on(self) -> bool:
        """As much again as is left of what was read; False at the end of the file."""
        self._count()
        more = self.handle.read(max(CHUNK, len(self._text) - self._place))
        self._text = self._text[self._place :] + more
        self._place = self._counted = 0
        return bool(more)

    def _value(self) -> Any:
        while True:
            left = len(self._text) - self._place
            if left > MAX_ROW:
                raise ValueError(f"a row of more than {MAX_ROW:,} characters, or a mark is missing")
            if left > 2 * MAX_VALUES:
                _require_few(self._text)
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
            except RecursionError as error:
                raise ValueError("it is nested too deeply") from error
            except ValueError:
                if not self._read_on():
                    raise
                continue
            length, rest = end - self._place, NUMBER.match(self._text, end)
            at_the_edge = rest is not None and rest.end() == len(self._text)
            if not at_the_edge or not self._read_on():  # a number may go on behind the edge
                self._place += length
                return value
