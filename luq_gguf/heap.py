"""How the C library's heap treats large blocks, where it is glibc's.

Products of large matrices want some hundred megabytes for each result. By default each comes fresh from the system and
goes back at once, and every page of it is faulted in and cleared again: an eighth of the time of a decoder layer.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX."""
NEVER = (1 << 31) - 1
DEFAULTS = {TRIM_THRESHOLD: 128 << 10, MMAP_MAX: 1 << 16}


@contextlib.contextmanager
def reused_heap() -> Iterator[None]:
    """Let freed blocks serve again for the length of the block, then give them back to the system."""
    library = _library()
    if library is None:
        yield
        return
    for option, value in ((TRIM_THRESHOLD, NEVER), (MMAP_MAX, 0)):
        library.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in DEFAULTS.items():
            library.mallopt(option, value)
        library.malloc_trim(0)


def _library() -> Any:
    """The C library of this process where it has glibc's functions."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
