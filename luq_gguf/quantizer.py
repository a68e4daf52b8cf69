"""The child process behind `quantize`: started when first needed, again after it died, killed with its owner.

One process serves many jobs, since loading llama.cpp takes longer than quantizing a small layer. An
assertion inside llama.cpp costs the job it happened in; the end of its log goes into the error.
"""

from __future__ import annotations

import collections
import json
import re
import signal
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

from luq_gguf.children import Child
from luq_gguf.errors import QuantizeError

RESULT = "@luq-result "
"""How the child's answer to a job begins; every other line is llama.cpp's log."""
LOG_LINES = 20
_BUILD_FOLDER = re.compile(r"\S*/vendor/(?=llama\.cpp/)")
"""Assertions name their source file where llama-cpp-python was built."""
_TELLING = ("GGML_ASSERT", "failed to quantize", "GGML_ABORT", "fatal error", "Error")


class Quantizer(Child):
    """Runs jobs of `quantize_worker`, one after the other; use as a context manager."""

    def __init__(self) -> None:
        super().__init__("luq_gguf.quantize_worker", stderr=subprocess.STDOUT)

    def run(self, job: Mapping[str, Any], on_line: Callable[[str], None]) -> dict[str, Any]:
        """Do one job, passing every line of llama.cpp's log on; gives the child's answer.

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
        return answer

    def _exchange(
        self, job: Mapping[str, Any], tail: collections.deque[str], on_line: Callable[[str], None]
    ) -> dict[str, Any] | None:
        """The child's answer, or None where it died; reading the pipe lets Ctrl-C through."""
        for raw in self.send(json.dumps(job).encode() + b"\n"):
            line = _BUILD_FOLDER.sub("", raw.decode("utf-8", errors="replace").rstrip())
            if line.startswith(RESULT):
                answer: dict[str, Any] = json.loads(line.removeprefix(RESULT))
                return answer
            if line:
                tail.append(line)
                on_line(line)
        return None

    def _last_words(self) -> str:
        code = self.wait()
        return f"its process ended by {signal.Signals(-code).name}" if code < 0 else f"its process ended with {code}"


def _failure(job: Mapping[str, Any], tail: collections.deque[str], reason: str) -> QuantizeError:
    told = next((line for mark in _TELLING for line in reversed(tail) if mark in line), "")
    detail = ": ".join(part for part in (reason, told.partition("failed to quantize: ")[2] or told) if part)
    return QuantizeError(
        f"llama.cpp could not quantize {job['source']}: {detail or 'it gave no reason'}",
        log="\n".join(tail),
        hint="the end of its log is shown with --debug",
    )
