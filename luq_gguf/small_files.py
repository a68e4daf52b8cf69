"""Small files that others made (configs, tokenizers, records), read whole within bounds.

Nothing but a regular file is opened, since a pipe or device may never end; the size, and for JSON the number of
values, is held against a limit first. Knows nothing of what the files mean.
"""

from __future__ import annotations

import errno
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

MIB = 1 << 20
MAX_BYTES = 64 * MIB
"""The largest side file in use is tokenizer.json, with up to 35 MB."""
MAX_VALUES = 4_000_000
"""Python needs about a hundred bytes for each; the largest tokenizers have 1.5 million."""

Pairs = list[tuple[str, Any]]


def require_regular(path: Path) -> int:
    """The size of a regular file in bytes; raises OSError for a pipe, a device or a folder."""
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return found.st_size


def read_small(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file; raises OSError where there is none or it is larger than `limit`."""
    size = require_regular(path)
    if size > limit:
        raise OSError(errno.EINVAL, f"it has {size:,} bytes, at most {limit:,} are read", str(path))
    with path.open("rb") as handle:
        return handle.read(size)


def parse_json(content: bytes, pairs: Callable[[Pairs], Any] | None = None) -> Any:
    """JSON of bounded size as plain values; raises ValueError for what is none, NaN and Infinity included."""
    values = sum(content.count(mark) for mark in (b",", b"[", b"{"))
    if values > MAX_VALUES:
        raise ValueError(f"it has about {values:,} values, at most {MAX_VALUES:,} are read")
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=pairs, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
