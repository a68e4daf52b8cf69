"""The program as it looks in a terminal: run in a pseudo terminal, everything that it writes there read."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

from tests.program import command

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")
"""Codes that choose a colour of letters or ground."""
CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SILENCING = ("NO_COLOR", "FORCE_COLOR", "PY_COLORS", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES")


def in_terminal(arguments: list[str], *, columns: int = 120, **environment: str) -> tuple[int, str]:
    """Exit code and output of a command whose stdout and stderr are a terminal of so many columns."""
    own, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in SILENCING}
    process = subprocess.Popen(
        arguments, stdin=its, stdout=its, stderr=its, env={**kept, "TERM": "xterm-256color", **environment}
    )
    os.close(its)
    pieces = []
    while True:
        try:
            piece = os.read(own, 1 << 16)
        except OSError:  # so Linux says that nobody has the other end open
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(own)
    return process.wait(), b"".join(pieces).decode()


def program_in_terminal(*arguments: str | int | Path, columns: int = 120, **environment: str) -> tuple[int, str]:
    """The program in a terminal."""
    return in_terminal(command(*arguments), columns=columns, **environment)


def script_in_terminal(code: str, *, columns: int = 120, **environment: str) -> tuple[int, str]:
    """Some Python in a terminal."""
    return in_terminal([sys.executable, "-c", code], columns=columns, **environment)
