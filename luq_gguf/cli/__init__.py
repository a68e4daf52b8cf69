"""The program `luq-gguf`: parses, calls the pipeline, prints. Results go to stdout, progress to stderr."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any, NoReturn

import typer

from luq_gguf.failures import describe_failure
from luq_gguf.guard import INTERRUPTED

UsageError = typer.BadParameter.__mro__[1]
"""Of click; typer carries a copy of it in some versions and takes the installed one in others."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the program and leave with its exit code: 0 done, 1 failed, 2 cannot be met, 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        from luq_gguf.cli.app import app

        code = app(given, standalone_mode=False, prog_name="luq-gguf")
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except BrokenPipeError:
        code = 1
    except SystemExit:
        raise
    except BaseException as error:  # the last boundary, for panics of Rust libraries too; the trace only when asked for
        code = _failed(error, debug="--debug" in given)
    if code == INTERRUPTED:
        os._exit(INTERRUPTED)  # at once: where Ctrl-C came during an `exec`, Python would end itself by the signal
    sys.exit(code if isinstance(code, int) else 0)


def _failed(error: BaseException, *, debug: bool) -> int:
    if isinstance(error, UsageError):
        return _misused(error)
    if debug:
        traceback.print_exception(error)
    line, code = describe_failure(error)
    _say(line)
    return code


def _misused(error: Any) -> int:
    """A command line that cannot be parsed; an empty message means that help was shown instead."""
    if message := error.format_message():
        command = error.ctx.command_path if error.ctx is not None else "luq-gguf"
        _say(f"{message.rstrip('.')}; see {command} --help")
    return 2


def _say(text: str) -> None:
    print(f"luq-gguf: {text}", file=sys.stderr)  # noqa: T201
