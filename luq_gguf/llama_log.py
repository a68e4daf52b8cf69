"""What llama.cpp prints, kept instead of shown while a run of ours is in it.

llama.cpp has one log for the whole process: every run that is open hears all of it, and the last one to end gives
it back to llama-cpp-python.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Iterator
from typing import Any

KEPT_LINES = 20
_lock = threading.Lock()
_listening: list[LlamaLog] = []


class LlamaLog:
    """The last lines that llama.cpp printed."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, text: bytes | None) -> None:
        """Keep what was printed, and forget what is older."""
        self.lines += (text or b"").decode(errors="replace").strip().splitlines()
        del self.lines[:-KEPT_LINES]

    def last(self) -> str:
        """The line that tells most of why something failed."""
        telling = [line for line in self.lines if "error" in line.lower() or "fail" in line.lower()]
        return (telling or self.lines or ["it gave no reason"])[0]


@contextlib.contextmanager
def quiet_llama() -> Iterator[LlamaLog]:
    """Keep what llama.cpp prints instead of letting it reach the terminal; several threads may do so at once."""
    log = LlamaLog()
    with _lock:
        if not _listening:
            _send_to(_listener())
        _listening.append(log)
    try:
        yield log
    finally:
        with _lock:
            _listening.remove(log)
            if not _listening:
                from llama_cpp._logger import llama_log_callback

                _send_to(llama_log_callback)


def _send_to(callback: Any) -> None:
    import llama_cpp
    from llama_cpp import mtmd_cpp

    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    mtmd_cpp.mtmd_helper_log_set(callback, ctypes.c_void_p(0))


@functools.cache
def _listener() -> Any:
    """One for the process, which stays: a thread of llama.cpp's may hold it when the last run has ended."""
    import llama_cpp

    def hear(level: int, text: bytes | None, data: Any) -> None:
        for log in tuple(_listening):
            log.add(text)

    return llama_cpp.llama_log_callback(hear)
