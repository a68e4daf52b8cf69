"""The program `luq-gguf`: parses, calls the pipeline, prints. Results go to stdout, progress to stderr."""

from __future__ import annotations

import errno
import sys
import traceback
from typing import NoReturn

import click

from luq_gguf.errors import LuqError

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the program and leave with its exit code: 0 done, 1 failed, 2 cannot be met, 130 interrupted."""
    from luq_gguf.cli.app import app

    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(given, standalone_mode=False, prog_name="luq-gguf")
    except click.exceptions.Abort:
        code = _interrupted()
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except KeyboardInterrupt:
        code = _interrupted()
    except BrokenPipeError:
        code = 1
    except Exception as error:  # the last boundary: a line for the user, the trace only when asked for
        code = _failed(error, debug="--debug" in given)
    sys.exit(code if isinstance(code, int) else 0)


def _interrupted() -> int:
    _say("interrupted; what was finished is kept, the same command goes on from there")
    return INTERRUPTED


def _failed(error: Exception, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    if isinstance(error, LuqError):
        _say(str(error))
        return error.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        _say(f"the disk is full: {error.filename or error.strerror}; free some space and run the same command again")
        return 1
    if isinstance(error, OSError) and error.filename is not None:
        _say(f"{error.filename}: {error.strerror}; check that it exists and that you may use it")
        return 1
    if isinstance(error, MemoryError):
        _say("out of memory; close other programs or calibrate with fewer --samples")
        return 1
    _say(f"unexpected {type(error).__name__}: {_one_line(error)}; run again with --debug and report what it prints")
    return 1


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _say(text: str) -> None:
    print(f"luq-gguf: {text}", file=sys.stderr)  # noqa: T201
