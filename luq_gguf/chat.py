"""Chat templates: messages in, prompt text out, in a child process with limits.

The child (`chat_worker`) is started once for many prompts. Knows nothing of tokenizers.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from luq_gguf.children import child_environment
from luq_gguf.errors import CheckpointError

SECONDS = 10.0
"""What a request may take, and for each of its prompts SECONDS_EACH more."""
SECONDS_EACH = 0.02
HINT = "take the model's own template"

Messages = Sequence[Mapping[str, Any]]


class ChatRenderer:
    """Renders with one template; use as a context manager. The child starts with the first prompt."""

    def __init__(self, template: str, *, seconds: float | None = None) -> None:
        self.template = template
        self.seconds = SECONDS if seconds is None else seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        process.wait()

    def render(self, chats: Sequence[Messages], *, answer_next: bool = True) -> list[str]:
        """The prompt of every chat; `answer_next` opens the assistant's turn.

        Raises CheckpointError where there is no template, it fails, or it takes too much time or memory.
        """
        if not self.template:
            raise CheckpointError("the model has no chat template", hint="take an instruction-tuned model")
        seconds = self.seconds + SECONDS_EACH * len(chats)
        request = {"template": self.template, "chats": chats, "answer_next": answer_next, "seconds": seconds}
        try:
            answer = self._exchange(json.dumps(request).encode() + b"\n", seconds)
        except BaseException:
            self.close()
            raise
        if "error" in answer:
            raise CheckpointError(f"the model's chat template fails: {answer['error']}", hint=HINT)
        texts: list[str] = answer["texts"]
        return texts

    def _exchange(self, request: bytes, seconds: float) -> dict[str, Any]:
        """The child's answer; one that takes too long is killed."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()
        timer = threading.Timer(seconds, _end, (process, late))
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(request)
                process.stdin.flush()
            line = process.stdout.readline()
        finally:
            timer.cancel()
        if not line.endswith(b"\n"):
            self.close()
            why = f"it takes longer than {seconds:.0f} seconds" if late.is_set() else "it takes too much memory or time"
            return {"error": why}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "luq_gguf.chat_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches the owner only, which then kills the child
                env=child_environment(),
            )
        return self._process


def _end(process: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    process.kill()


def render_chats(template: str, chats: Sequence[Messages], *, answer_next: bool = True) -> list[str]:
    """The prompts of many chats at once; errors as `ChatRenderer.render`."""
    with ChatRenderer(template) as renderer:
        return renderer.render(chats, answer_next=answer_next)


def render_chat(template: str, messages: Messages, *, answer_next: bool = True) -> str:
    """The prompt of one chat; errors as `ChatRenderer.render`."""
    return render_chats(template, [messages], answer_next=answer_next)[0]
