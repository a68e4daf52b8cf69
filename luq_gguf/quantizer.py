"""The child process behind `quantize`: started when first needed, again after it died, killed with its owner.

One process serves many jobs, since loading llama.cpp takes longer than quantizing a small layer. An
assertion inside llama.cpp costs the job it happened in; the end of its log goes into the error.
"""

from __future__ import annotations

import collections
import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from luq_gguf.children import child_environment
from luq_gguf.errors import QuantizeError

RESULT = "@luq-result "
"""How the child's answer to a job begins; every other line is llama.cpp's log."""
LOG_LINES = 20
_BUILD_FOLDER = re.compile(r"\S*/vendor/(?=llama\.cpp/)")
"""Assertions name their source file where llama-cpp-python was built."""
_TELLING = ("GGML_ASSERT", "failed to quantize", "GGML_ABORT", "fatal error", "Error")


class Quantizer:
    """Runs jobs of `quantize_worker`, one after the other; use as a context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the child; it holds nothing that is worth keeping."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        process.wait()

    def run(self, job: Mapping[str, Any], on_line: Callable[[str], None]) -> None:
        """Do one job, passing every line of llama.cpp's log on.

        Raises QuantizeError where llama.cpp reports an error or takes the child down with it.
        """
        tail: collections.deque[str] = collections.deque(maxlen=LOG_LINES)
        try:
            answer = self._exchange(job, tail, on_line)
        except BaseException:
            self.close()
            raise
        if answer is None:
            raise _failure(job, tail, self._last_words())
        if answer["code"]:
            raise _failure(job, tail, answer.get("error", ""))

    def _exchange(
        self, job: Mapping[str, Any], tail: collections.deque[str], on_line: Callable[[str], None]
    ) -> dict[str, Any] | None:
        """The child's answer, or None where it died; reading the pipe lets Ctrl-C through."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
        for raw in process.stdout:
            line = _BUILD_FOLDER.sub("", raw.decode("utf-8", errors="replace").rstrip())
            if line.startswith(RESULT):
                answer: dict[str, Any] = json.loads(line.removeprefix(RESULT))
                return answer
            if line:
                tail.append(line)
                on_line(line)
        return None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "luq_gguf.quantize_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the owner only, which then kills the child
                env=child_environment(),
            )
        return self._process

    def _last_words(self) -> str:
        process = self._process
        code = process.wait() if process is not None else 0
        self.close()
        return f"its process ended by {signal.Signals(-code).name}" if code < 0 else f"its process ended with {code}"


def _failure(job: Mapping[str, Any], tail: collections.deque[str], reason: str) -> QuantizeError:
    told = next((line for mark in _TELLING for line in reversed(tail) if mark in line), "")
    detail = ": ".join(part for part in (reason, told.partition("failed to quantize: ")[2] or told) if part)
    return QuantizeError(
        f"llama.cpp could not quantize {job['source']}: {detail or 'it gave no reason'}",
        log="\n".join(tail),
        hint="the end of its log is shown with --debug",
    )
