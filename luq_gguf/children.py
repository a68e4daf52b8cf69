"""How Python children of this program are started, spoken to and ended.

A child imports the modules of its owner, whatever folder that runs in, and holds nothing that is worth keeping.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self


def child_environment() -> dict[str, str]:
    """The environment of a child that imports this package and its dependencies from where its owner did."""
    package_root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join([package_root, *(folder for folder in sys.path if folder)])
    return {**os.environ, "GGML_NO_BACKTRACE": "1", "PYTHONPATH": path}


def limit(name: str, value: int) -> None:
    """Set a soft limit of this process, within the hard one, where the platform has such limits."""
    try:
        import resource
    except ImportError:
        return
    kind = getattr(resource, name)
    hard = resource.getrlimit(kind)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


class Child:
    """A module that runs in a process of its own: started when first needed, again after it died.

    Use as a context manager; requests go to its stdin, answers come from its stdout. Its stderr goes to stdout
    (`subprocess.STDOUT`) or nowhere (`subprocess.DEVNULL`).
    """

    def __init__(self, module: str, *, stderr: int) -> None:
        self._module = module
        self._stderr = stderr
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> int | None:
        """Kill the child; gives how it ended, None where there was none."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        return process.wait()

    def send(self, request: bytes) -> BinaryIO:
        """Write a request to the child, which may die of it, and give the stream of its answers."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request)
            process.stdin.flush()
        return process.stdout  # type: ignore[return-value]

    def kill(self) -> None:
        """End the child from another thread; whoever reads its answers sees their end."""
        if self._process is not None:
            self._process.kill()

    def wait(self) -> int:
        """How a child ended that has closed its answers."""
        code = self._process.wait() if self._process is not None else 0
        self.close()
        return code

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=True,  # Ctrl-C reaches the owner only, which then kills the child
                env=child_environment(),
            )
        return self._process
