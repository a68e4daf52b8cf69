"""Calibration data on disk -> rows: JSONL, LLaVA's JSON, VLMEvalKit's TSV, parquet, a folder of images.

Every row carries its place. Memory is bounded by one row, for JSON by the file and for tables with
images in them by what is kept of those. Knows nothing of samples beyond what `calibration_rows` makes.
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from luq_gguf.calibration_rows import HINT, KEYS, Row
from luq_gguf.errors import CalibrationError
from luq_gguf.small_files import parse_json, require_regular

MIB = 1 << 20
MAX_LINE = 64 * MIB
"""Bytes of a row with an image in it, at most."""
MAX_JSON = 256 * MIB
IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
OPTIONS = "ABCDEFGHIJ"
REFERENCE = 64
"""A shorter text in a table's image column names the row whose image is meant."""
DESCRIBE = "Describe this image."
BATCH = 16
KNOWN = "JSONL (.jsonl), LLaVA's JSON (.json), a table (.tsv, .csv), parquet (.parquet), or a folder of images"

Place = tuple[str, Row | CalibrationError]
"""Where a row stands, and the row or what is wrong with it."""


def read_rows(source: Path) -> Iterator[Row | CalibrationError]:
    """All rows of a file or folder; one that cannot be parsed comes as its error.

    Raises CalibrationError where the whole cannot be read.
    """
    if source.is_dir():
        yield from _folder(source)
        return
    reader = READERS.get(source.suffix.lower())
    if reader is None:
        raise CalibrationError(f"{source} is of no known form", hint=f"give {KNOWN}")
    try:
        require_regular(source)
        yield from reader(source)
    except OSError as error:
        raise CalibrationError(f"cannot read {source}: {error.strerror or error}", hint=f"give {KNOWN}") from error
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{source} is not UTF-8: {error.reason}", hint="save it as UTF-8") from error


def _jsonl(path: Path) -> Iterator[Row | CalibrationError]:
    with path.open(encoding="utf-8-sig") as handle:
        number = 0
        while line := handle.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE and not line.endswith("\n"):
                raise CalibrationError(f"{path}:{number} has more than {MAX_LINE:,} characters", hint=HINT)
            if line.strip():
                yield _parsed(path, f"{path}:{number}", line)


def _parsed(path: Path, where: str, line: str) -> Row | CalibrationError:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        return CalibrationError(f"{where} is no JSON: {error}", hint=HINT)
    return _row(path, where, content)


def _row(path: Path, where: str, content: object) -> Row | CalibrationError:
    if not isinstance(content, dict):
        return CalibrationError(f"{where} is no object", hint=HINT)
    return Row(content, where, path.parent)


def _json(path: Path) -> Iterator[Row | CalibrationError]:
    """A list of rows, as LLaVA's instruction data come."""
    if (size := require_regular(path)) > MAX_JSON:
        raise CalibrationError(
            f"{path} has {size:,} bytes, of JSON at most {MAX_JSON:,} are read", hint="write it as JSONL, a row a line"
        )
    try:
        content = parse_json(path.read_bytes())
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise CalibrationError(f"{path} is no JSON: {error}", hint=HINT) from error
    if not isinstance(content, list):
        raise CalibrationError(f"{path} is no list of rows", hint=HINT)
    for number, row in enumerate(content, start=1):
        yield _row(path, f"{path}, row {number}", row)


def _table(path: Path) -> Iterator[Row | CalibrationError]:
    """VLMEvalKit's form: a header, then rows with index, image in base64 or image_path, question, A to J, answer."""
    csv.field_size_limit(MAX_LINE)
    images: dict[str, bytes] = {}
    with path.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.DictReader(handle, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", restkey="rest")
        try:
            for values in reader:
                where = f"{path}:{reader.line_num}"
                try:
                    content = _from_table(where, values, images)
                except CalibrationError as error:
                    yield error
                else:
                    yield Row(content, where, path.parent)
        except csv.Error as error:
            raise CalibrationError(f"{path}:{reader.line_num} is no row of a table: {error}", hint=HINT) from error


def _from_table(where: str, values: dict[str, Any], images: dict[str, bytes]) -> dict[str, Any]:
    if "rest" in values:
        raise CalibrationError(f"{where} has more columns than the header", hint="quote tabs and line breaks")
    given = {name: value for name, value in values.items() if value}
    content: dict[str, Any] = {key: given[key] for key in ("question", "answer", "text") if key in given}
    options = [f"{letter}. {given[letter]}" for letter in OPTIONS if letter in given]
    if options and "question" in content:
        hint = [f"Hint: {given['hint']}"] if "hint" in given else []
        lines = [*hint, f"Question: {content['question']}", "Options:", *options]
        content["question"] = "\n".join([*lines, "Please select the correct answer from the options above."])
    if image := given.get("image"):
        content["image"] = _image_of_table(where, image, images)
        if index := given.get("index"):
            images[index] = content["image"]
    elif path := given.get("image_path"):
        content["image"] = path
    return content


def _image_of_table(where: str, value: str, images: dict[str, bytes]) -> bytes:
    if len(value) <= REFERENCE:
        if value not in images:
            raise CalibrationError(f"{where}: no row before has the index {value!r}", hint="put that row first")
        return images[value]
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CalibrationError(f"{where}: its image is no base64: {error}", hint="export the table again") from error


def _parquet(path: Path) -> Iterator[Row | CalibrationError]:
    """The form of the hub's data sets, some rows at a time."""
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in KEYS]
            if not columns:
                raise CalibrationError(f"{path} has none of the columns {', '.join(KEYS)}", hint=HINT)
            for batch in file.iter_batches(batch_size=BATCH, columns=columns):
                for content in batch.to_pylist():
                    number += 1
                    yield Row(content, f"{path}, row {number}", path.parent)
    except (pyarrow.ArrowException, ValueError) as error:
        what = " ".join(str(error).split())
        raise CalibrationError(f"{path} is no parquet file that can be read: {what}", hint="export it again") from error


def _folder(source: Path) -> Iterator[Row | CalibrationError]:
    """Images, each with a description in a .txt of its name where there is one; other .txt are texts."""
    found = sorted(path for path in source.rglob("*") if not any(part.startswith(".") for part in path.parts[1:]))
    files = {path for path in found if path.is_file()}
    images = [path for path in found if path in files and path.suffix.lower() in IMAGES]
    described = {path.with_suffix(".txt") for path in images} & files
    for path in images:
        yield from _described(source, path, path.with_suffix(".txt") if path.with_suffix(".txt") in described else None)
    for path in found:
        if path.suffix.lower() == ".txt" and path in files - described:
            yield _with_text(source, path, lambda text: {"text": text})


def _described(source: Path, image: Path, description: Path | None) -> Iterator[Row | CalibrationError]:
    asked = {"image": str(image.relative_to(source)), "question": DESCRIBE}
    if description is None:
        yield Row(asked, str(image), source)
    else:
        yield _with_text(source, description, lambda text: {**asked, "answer": text})


def _with_text(source: Path, path: Path, row: Callable[[str], dict[str, Any]]) -> Row | CalibrationError:
    try:
        if not path.resolve().is_relative_to(source.resolve()):
            return CalibrationError(f"{path} leads out of the folder", hint="put a copy in its place")
        if (size := require_regular(path)) > MAX_LINE:
            return CalibrationError(f"{path} has {size:,} bytes", hint=f"cut it below {MAX_LINE:,} bytes")
        return Row(row(path.read_text(encoding="utf-8-sig").strip()), str(path), source)
    except OSError as error:
        return CalibrationError(f"cannot read {path}: {error.strerror}", hint="take it out of the folder")
    except UnicodeDecodeError as error:
        return CalibrationError(f"{path} is not UTF-8: {error.reason}", hint="save it as UTF-8")


READERS: dict[str, Callable[[Path], Iterator[Row | CalibrationError]]] = {
    ".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".tsv": _table, ".csv": _table, ".parquet": _parquet,
}  # fmt: skip
