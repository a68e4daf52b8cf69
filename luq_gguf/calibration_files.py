"""Calibration data on disk -> drafts of samples: chooses the reader of a file's form, and reads folders itself.

Only regular files are opened; what is wrong with a row comes as an error in its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from luq_gguf.calibration_json import MAX_ROW, Found, read_json, read_lines
from luq_gguf.calibration_parquet import read_parquet
from luq_gguf.calibration_rows import DESCRIBE, MAX_ROWS, draft_of
from luq_gguf.calibration_tables import read_table
from luq_gguf.errors import CalibrationError
from luq_gguf.progress import Progress, silent
from luq_gguf.small_files import MIB, read_small, require_regular

IMAGES = {
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm", ".tga", ".ico",
}  # fmt: skip
KNOWN = "JSONL (.jsonl), LLaVA's JSON (.json), a table (.tsv, .csv), parquet (.parquet), or a folder of images"
LONG = 16 * MIB
"""Reading a smaller file is not worth a bar."""
READERS: dict[str, Callable[[Path, BinaryIO], Found]] = {
    ".jsonl": read_lines, ".ndjson": read_lines, ".json": read_json, ".tsv": read_table, ".csv": read_table,
    ".parquet": read_parquet,
}  # fmt: skip


def read_drafts(source: Path, progress: Progress = silent) -> Found:
    """All rows of a file or folder; one that cannot be used comes as its error.

    Raises CalibrationError where the whole cannot be read, or has more rows than memory may hold.
    """
    for number, row in enumerate(_all_rows(source, progress)):
        if number >= MAX_ROWS:
            raise CalibrationError(f"{source} has more than {MAX_ROWS:,} rows", hint="give a part of it")
        yield row


def _all_rows(source: Path, progress: Progress) -> Found:
    if source.is_dir():
        yield from _folder(source)
        return
    reader = READERS.get(source.suffix.lower())
    if reader is None:
        raise CalibrationError(f"{source} is of no known form", hint=f"give {KNOWN}")
    try:
        size = require_regular(source)
        with source.open("rb") as handle:
            yield from _with_progress(reader(source, handle), handle, size, progress)
    except OSError as error:
        raise CalibrationError(f"cannot read {source}: {error.strerror or error}", hint=f"give {KNOWN}") from error


def _with_progress(found: Found, handle: BinaryIO, size: int, progress: Progress) -> Found:
    """The same, told in MiB while a long file is read."""
    told = -1
    for row in found:
        yield row
        if size >= LONG and (reached := min(handle.tell(), size) // MIB) > told:
            told = reached
            progress("read MiB", told, size // MIB)
    if size >= LONG:
        progress("read MiB", size // MIB, size // MIB)


def _folder(source: Path) -> Found:
    """Images, each with a description in a .txt of its name where there is one; other .txt are texts."""
    files = list(_files(source))
    images = [path for path in files if path.suffix.lower() in IMAGES]
    texts = {path for path in files if path.suffix.lower() == ".txt"}
    described = {path: text for path in images if (text := path.with_suffix(".txt")) in texts}
    for path in images:
        asked = {"image": str(path.relative_to(source)), "question": DESCRIBE}
        description = described.get(path)
        answer = None if description is None else _text(source, description)
        yield (
            answer if isinstance(answer, CalibrationError) else draft_of(asked | {"answer": answer}, str(path), source)
        )
    for path in sorted(texts - set(described.values())):
        content = _text(source, path)
        yield content if isinstance(content, CalibrationError) else draft_of({"text": content}, str(path), source)


def _files(source: Path) -> Iterator[Path]:
    """All files that are not hidden, nor in hidden folders, in order; links to folders are not followed."""
    for home, folders, names in os.walk(source, onerror=partial(_unreadable, source)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and ((path := Path(home) / name).is_file() or path.is_symlink()):
                yield path


def _unreadable(source: Path, error: OSError) -> None:
    what = f"cannot read {error.filename or source}: {error.strerror}"
    raise CalibrationError(what, hint="give yourself the right to read it, or take it out of the folder") from error


def _text(source: Path, path: Path) -> str | CalibrationError:
    """The text of a file below a folder, or why it has none."""
    try:
        if not path.resolve().is_relative_to(source.resolve()):
            return CalibrationError(f"{path} leads out of the folder", hint="put a copy in its place")
        return read_small(path, MAX_ROW).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        return CalibrationError(f"{path} is not UTF-8: {error.reason}", hint="save it as UTF-8")
    except (OSError, RuntimeError) as error:
        what = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return CalibrationError(f"cannot read {path}: {what}", hint="take it out of the folder")
