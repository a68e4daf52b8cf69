"""Every error that luq_gguf raises on purpose, each with the exit code of the command that met it.

    LuqError                     1
    +-- RequestError             2   the request is malformed or cannot be met
    |   +-- BudgetError          2   no plan meets the budget; carries the nearest that can be met
    +-- CheckpointError          1   a model folder that cannot be used
    |   +-- UnsupportedModelError
    |   +-- TensorError              a tensor that is missing, cut, of another shape, or not finite
    +-- CalibrationError         1   samples that cannot be used
    |   +-- ImageError
    +-- ArtifactError            1   one of our own files is broken or belongs to another model
    +-- GGUFError                1   a GGUF that cannot be read or is not what its plan says
    +-- QuantizeError            1   llama.cpp's quantizer failed; carries the end of its log
    +-- RunError                 1   llama.cpp could not run a file
    +-- DiskSpaceError           1   not enough room; carries bytes needed and bytes free
    +-- MemoryLimitError         1   not enough memory; carries bytes needed and bytes available
    +-- BusyError                1   another run works in the same folder

A message says what failed and on what; `hint` says what to do next.
"""

from __future__ import annotations

from pathlib import Path

MAX_MESSAGE = 1000


class LuqError(Exception):
    """Base of all; `str()` gives one printable line: the message, then the hint.

    Messages quote names from files that anyone may have made: line breaks and control characters in them are
    escaped, endless ones cut.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = _one_line(message)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


def _one_line(text: str) -> str:
    if len(text) > MAX_MESSAGE:
        text = f"{text[: MAX_MESSAGE - 200]}...{text[-200:]}"
    return printable(text)


def printable(text: str) -> str:
    """Text that a terminal or a page only shows: what they would act on is escaped."""
    return text if text.isprintable() else "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in text)


class RequestError(LuqError):
    """The request is malformed or cannot be met."""

    exit_code = 2


class BudgetError(RequestError):
    """No plan meets the budget; `nearest_bytes` is the size of the smallest file that can be made."""

    def __init__(self, message: str, *, nearest_bytes: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.nearest_bytes = nearest_bytes


class CheckpointError(LuqError):
    """A model folder that cannot be used."""


class UnsupportedModelError(CheckpointError):
    """An architecture that no family knows."""


class TensorError(CheckpointError):
    """A tensor that is missing, cut, of another shape, or not finite; `tensor` is its name."""

    def __init__(self, message: str, *, tensor: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.tensor = tensor


class CalibrationError(LuqError):
    """Calibration samples that cannot be used."""


class ImageError(CalibrationError):
    """An image that cannot be read; `path` is where it came from."""

    def __init__(self, message: str, *, path: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.path = path


class ArtifactError(LuqError):
    """One of our own files is broken, edited, or belongs to another model; `path` is that file."""

    def __init__(self, message: str, *, path: Path, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.path = path


class GGUFError(LuqError):
    """A GGUF that cannot be read or is not what it should be; `path` is that file."""

    def __init__(self, message: str, *, path: Path, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.path = path


class QuantizeError(LuqError):
    """llama.cpp's quantizer failed; `log` holds the end of what it printed."""

    def __init__(self, message: str, *, log: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log


class RunError(LuqError):
    """llama.cpp could not load or run a file."""


class DiskSpaceError(LuqError):
    """Not enough room on a disk; sizes in bytes."""

    def __init__(self, message: str, *, needed: int, free: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.needed = needed
        self.free = free


class MemoryLimitError(LuqError):
    """More memory is needed than can be had; sizes in bytes."""

    def __init__(self, message: str, *, needed: int, available: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.needed = needed
        self.available = available


class BusyError(LuqError):
    """Another run works in the same folder, `path`."""

    def __init__(self, message: str, *, path: Path, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.path = path
