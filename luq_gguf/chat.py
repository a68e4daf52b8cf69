"""Chat templates: messages in, prompt text out, in a child process with limits.

The child (`chat_worker`) is started once for many prompts. Knows nothing of tokenizers.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from luq_gguf.children import Child
from luq_gguf.errors import CheckpointError

SECONDS = 10.0
"""What a request may take, and for each of its prompts SECONDS_EACH more."""
SECONDS_EACH = 0.02
HINT = "take the model's own template"

Messages = Sequence[Mapping[str, Any]]


class ChatRenderer(Child):
    """Renders with one template; use as a context manager. The child starts with the first prompt.

    `tokens` are the texts that a template knows as bos_token and eos_token.
    """

    def __init__(self, template: str, *, tokens: Mapping[str, str] | None = None, seconds: float | None = None) -> None:
        super().__init__("luq_gguf.chat_worker", stderr=subprocess.DEVNULL)
        self.template = template
        self.tokens = dict(tokens or {})
        self.seconds = SECONDS if seconds is None else seconds

    def render(self, chats: Sequence[Messages], *, answer_next: bool = True) -> list[str]:
        """The prompt of every chat; `answer_next` opens the assistant's turn.

        Raises CheckpointError where there is no template, it fails, or it takes too much time or memory.
        """
        if not self.template:
            raise CheckpointError("the model has no chat template", hint="take an instruction-tuned model")
        seconds = self.seconds + SECONDS_EACH * len(chats)
        request = {
            "template": self.template, "tokens": self.tokens, "chats": chats, "answer_next": answer_next,
            "seconds": seconds,
        }  # fmt: skip
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
        late = threading.Event()
        timer = threading.Timer(seconds, self._end, (late,))
        timer.start()
        try:
            line = self.send(request).readline()
        finally:
            timer.cancel()
        if not line.endswith(b"\n"):
            self.close()
            why = f"it takes longer than {seconds:.0f} seconds" if late.is_set() else "it takes too much memory or time"
            return {"error": why}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end(self, late: threading.Event) -> None:
        late.set()
        self.kill()


def render_chats(
    template: str, chats: Sequence[Messages], *, tokens: Mapping[str, str] | None = None, answer_next: bool = True
) -> list[str]:
    """The prompts of many chats at once; errors as `ChatRenderer.render`."""
    with ChatRenderer(template, tokens=tokens) as renderer:
        return renderer.render(chats, answer_next=answer_next)


def render_chat(template: str, messages: Messages, *, answer_next: bool = True) -> str:
    """The prompt of one chat; errors as `ChatRenderer.render`."""
    return render_chats(template, [messages], answer_next=answer_next)[0]
