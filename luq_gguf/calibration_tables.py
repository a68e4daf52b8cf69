"""Calibration rows in tables with a header, TSV as VLMEvalKit writes it or CSV: images as base64, paths or row indices.

Of an image in a row its place in the file is kept, and the row is read again when the image is needed.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import string
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from luq_gguf.calibration_images import StoredImage
from luq_gguf.calibration_json import MAX_ROW, Found, require_narrow
from luq_gguf.calibration_rows import KEYS, MAX_ROWS, ONE_IMAGE, draft_of
from luq_gguf.errors import CalibrationError, ImageError
from luq_gguf.small_files import require_regular

REFERENCE = 64
"""A shorter text in the image column is the index of the row whose image is meant; VLMEvalKit's rule."""
MAX_COLUMNS = 1_000_000
"""Python needs some 60 bytes for each cell."""
QUOTE = "quote tabs and line breaks, or export the table again"
COLUMNS = (*KEYS, "image_path")
KEPT = (*(key for key in KEYS if key != "image"), "hint", *string.ascii_uppercase)


@dataclass(frozen=True)
class _Record:
    """A row's place in the file in bytes, the line where it begins, and its values."""

    start: int
    end: int
    line: int
    values: list[str]


@dataclass(frozen=True)
class TableRow:
    """A row: where it stands, its cells by column, and its image, which may be a path."""

    where: str
    values: dict[str, str]
    image: StoredImage | str | None


def read_table(path: Path, handle: BinaryIO) -> Found:
    """Rows of a table; those whose image is another row's may stand before that one."""
    for row in read_rows(path, handle, KEPT):
        if isinstance(row, CalibrationError):
            yield row
        else:
            yield draft_of(_content(row), row.where, path.parent)


def read_rows(path: Path, handle: BinaryIO, columns: Collection[str]) -> Iterator[TableRow | CalibrationError]:
    """Rows of a table with what stands in some columns, blank cells left out; one that cannot be read as its error."""
    require_narrow(path, handle)
    delimiter = "," if path.suffix.lower() == ".csv" else "\t"
    records = _records(path, handle, delimiter)
    names = _header(path, next(records, None))
    rows: list[TableRow | CalibrationError] = []
    images: dict[str, StoredImage] = {}
    for record in islice(records, MAX_ROWS + 1):
        if isinstance(record, CalibrationError):
            rows.append(record)
            continue
        where = f"{path}:{record.line}"
        if len(record.values) != len(names):
            what = f"{where} has {len(record.values)} columns, the header has {len(names)}"
            rows.append(CalibrationError(what, hint=QUOTE))
            continue
        given = {name: value for name, value in zip(names, record.values, strict=True) if value.strip()}
        embedded = _embedded(given, path, record, delimiter, names)
        if embedded and "index" in given and images.setdefault(given["index"], embedded) != embedded:
            what = f"{where}: another row has the index {given['index'][:REFERENCE]!r} too"
            rows.append(CalibrationError(what, hint="number the rows again"))
            continue
        image = embedded or given.get("image") or given.get("image_path")
        rows.append(TableRow(where, {name: given[name] for name in columns if name in given}, image))
    return (row if isinstance(row, CalibrationError) else _resolved(row, images) for row in rows)


def _records(path: Path, handle: BinaryIO, delimiter: str) -> Iterator[_Record | CalibrationError]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW))
    lines = _Lines(handle, delimiter.encode())
    reader = csv.reader(lines, delimiter=delimiter)
    while True:
        lines.begin()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield CalibrationError(f"{path}:{lines.first} is no row of a table: {error}", hint=QUOTE)
        except _TooLongError:
            what = f"{path}:{lines.first} begins a row of more than {MAX_ROW:,} bytes or {MAX_COLUMNS:,} columns"
            yield CalibrationError(what, hint="check its quotation marks")
        else:
            if values:
                yield _Record(lines.start, lines.end, lines.first, values)


class _TooLongError(Exception):
    pass


class _Lines:
    """Hands out a file's lines as text and knows where the present row began; broken UTF-8 comes as surrogates."""

    def __init__(self, handle: BinaryIO, delimiter: bytes) -> None:
        self._handle, self._delimiter = handle, delimiter
        self._columns = 0
        self.start = self.end = handle.tell()
        self.first = self._line = 1

    def begin(self) -> None:
        """A row begins here."""
        self.start, self.first, self._columns = self.end, self._line, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._handle.readline(MAX_ROW + 1 - (self.end - self.start))
        if not line:
            raise StopIteration
        self.end += len(line)
        self._line += line.endswith(b"\n")
        self._columns += line.count(self._delimiter)
        if self.end - self.start > MAX_ROW or self._columns > MAX_COLUMNS:
            raise _TooLongError
        return line.decode("utf-8", "surrogateescape")


def _header(path: Path, record: _Record | CalibrationError | None) -> list[str]:
    if isinstance(record, CalibrationError):
        raise record
    names = [name.strip() for name in record.values] if record else []
    if not set(names) & set(COLUMNS):
        wanted = ", ".join(COLUMNS)
        raise CalibrationError(f"{path} has none of the columns {wanted}", hint="write them in its first line")
    if len(set(names)) != len(names):
        raise CalibrationError(f"{path} has two columns of one name", hint="rename one of them")
    return names


def choice_text(values: dict[str, str], options: dict[str, str]) -> str:
    """A question with its options by letter, as VLMEvalKit asks it."""
    hint = [f"Hint: {values['hint']}"] if "hint" in values else []
    lines = [*hint, f"Question: {values['question']}", "Options:"]
    lines += [f"{letter}. {text}" for letter, text in options.items()]
    return "\n".join([*lines, "Please select the correct answer from the options above."])


def options_of(values: dict[str, str]) -> dict[str, str]:
    """The options of a choice by letter."""
    return {letter: values[letter] for letter in string.ascii_uppercase if letter in values}


def _content(row: TableRow) -> dict[str, Any]:
    """The row as JSON would give it; the options of a choice stand in the question."""
    content: dict[str, Any] = {key: row.values[key] for key in KEYS if key in row.values}
    options = options_of(row.values)
    if options and "question" in row.values:
        content["question"] = choice_text(row.values, options)
    return content if row.image is None else content | {"image": row.image}


def _resolved(row: TableRow, images: dict[str, StoredImage]) -> TableRow | CalibrationError:
    """The row with the image of the row that is meant in the place of its index, or that there is none."""
    index = row.image
    if not isinstance(index, str) or "." in index:
        return row
    if index.startswith("["):
        return CalibrationError(f"{row.where} has a list of images", hint=ONE_IMAGE)
    if index not in images:
        what = f"{row.where}: no row with an image has the index {index!r}"
        return CalibrationError(what, hint="keep the rows whose image others use")
    return replace(row, image=images[index])


def _embedded(
    given: dict[str, str], path: Path, record: _Record, delimiter: str, names: list[str]
) -> StoredImage | None:
    """The image that stands in the row itself."""
    text = given.get("image", "")
    if len(text) <= REFERENCE or "." in text or text.startswith("["):  # an index, a path, a list
        return None
    identity = f"base64:{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()}"
    column = names.index("image")
    return StoredImage("its image", identity, partial(_read_image, path, record.start, record.end, delimiter, column))


def _read_image(path: Path, start: int, end: int, delimiter: str, column: int) -> bytes:
    """The bytes of the image in the row that stands there."""
    try:
        require_regular(path)
        with path.open("rb") as handle:
            handle.seek(start)
            text = handle.read(end - start).decode("utf-8", "surrogateescape")
        csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW))
        (values,) = csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter)
        encoded = values[column].strip()
    except (OSError, csv.Error, ValueError, IndexError) as error:
        what = f"{path} has changed since it was looked at"
        raise ImageError(what, path=str(path), hint="run the command again") from error
    try:
        return base64.b64decode(encoded.partition(",")[2] if encoded.startswith("data:") else encoded, validate=True)
    except ValueError as error:
        raise ImageError(f"its image is no base64: {error}", path=str(path), hint="export the table again") from error
