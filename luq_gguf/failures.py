"""What a user is told of an error: one line, what to do next, and the exit code.

Callers from Python get it as a LuqError.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from luq_gguf.artifacts import FULL
from luq_gguf.errors import LuqError, RunError
from luq_gguf.progress import Progress

FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
TOO_MANY_FILES = {errno.EMFILE, errno.ENFILE}
OUT_OF_MEMORY = (
    "cannot allocate memory", "can't allocate memory", "not enough memory", "bad_alloc", "out of memory",
    "failed to map segment", "can't start new thread", "error return without exception set",
    "returned null without setting an exception",
)  # fmt: skip
"""How the system, torch and the loader of libraries say it, and Python of an extension that got none and is silent."""
MEMORY_LINE = (
    "out of memory; close other programs, raise `ulimit -v` where it is set, or calibrate with fewer --samples, then "
    "run the same command again: it goes on from what was finished"
)


def describe_failure(error: BaseException) -> tuple[str, int]:
    """The line for an error of any kind, and the exit code."""
    if _is_memory(error):
        return MEMORY_LINE, 1
    if isinstance(error, LuqError):
        return str(error), error.exit_code
    if isinstance(error, ImportError):
        return f"a library is missing or broken: {error}; `luq-gguf doctor` says which, and how to mend it", 1
    if isinstance(error, OSError):
        return _describe_system(error), 1
    return f"{_unexpected(error)}; run again with --debug and report what it prints", 1


@contextlib.contextmanager
def luq_errors(progress: Progress) -> Iterator[Progress]:
    """Give a listener; what fails in the block leaves it as a LuqError, chained, whatever it was.

    What the listener itself raises, and interruptions, leave it as they are.
    """
    told: list[BaseException] = []

    def listen(what: str, done: int, total: int) -> None:
        try:
            progress(what, done, total)
        except BaseException as error:
            told.append(error)
            raise

    try:
        yield listen
    except (LuqError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # panics of Rust libraries are no Exception
        if any(error is own for own in told):
            raise
        raise _as_luq_error(error) from error


def _as_luq_error(error: BaseException) -> LuqError:
    if _is_memory(error) or isinstance(error, OSError):
        return RunError(describe_failure(error)[0])
    return RunError(_unexpected(error), hint="report it with its traceback")


def _unexpected(error: BaseException) -> str:
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _is_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, here or in what led to this error."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if not isinstance(error, LuqError) and any(words in str(error).lower() for words in OUT_OF_MEMORY):
            return True
        error = error.__cause__
    return False


def _describe_system(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename is not None else ""
    reason = error.strerror or " ".join(str(error).split())
    if error.errno in FULL:
        return f"{place}the disk is full; free some space and run the same command again, it goes on where it was"
    if error.errno in TOO_MANY_FILES:
        return f"{place}{reason}; raise the limit, for example with `ulimit -n 1024`, and run the same command again"
    if error.errno in FORBIDDEN:
        return f"{place}{reason}; give another folder, or the right to read and write in this one"
    return f"{place}{reason}; check that it exists and that its disk works"
