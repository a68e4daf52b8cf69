"""Chat formats that a Go template for Ollama is known for, found by trial: what a model's own template makes of a chat.

Takes a text model's metadata. A format is taken only where it gives, letter for letter, the prompt that the model's own
chat template gives, so that a template which looks familiar but differs is not mistaken for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from luq_gguf.chat import ChatRenderer
from luq_gguf.errors import LuqError
from luq_gguf.samples import chat_messages

QUESTION, ANSWER, AGAIN = "What is this?", "A blue cat.", "And that?"
MOST_SYSTEM = 1000


@dataclass(frozen=True)
class ChatFormat:
    """How turns are written: texts before and after each, what opens an answer, what stops one.

    `system` is written where a chat brings no system message. With `system_in_turn` one stands within the first
    question's turn.
    """

    name: str
    user_before: str
    user_after: str
    answer_before: str
    answer_after: str
    opening: str
    stops: tuple[str, ...]
    system_before: str = ""
    system_after: str = ""
    system: str = ""
    system_in_turn: bool = False

    def prompt(self, turns: tuple[tuple[str, str], ...], question: str) -> str:
        """The prompt of a chat without a system message of its own."""
        head = f"{self.system_before}{self.system}{self.system_after}" if self.system else ""
        past = "".join(
            f"{self.user_before}{asked}{self.user_after}{self.answer_before}{said}{self.answer_after}"
            for asked, said in turns
        )
        return f"{head}{past}{self.user_before}{question}{self.user_after}{self.opening}"

    def go_template(self) -> str:
        """The same as a template for Ollama, in Go's syntax; without "{{-", which would eat line ends."""
        system = f"{self.system_before}{{{{ . }}}}{self.system_after}"
        head, within = f"{{{{ with .System }}}}{system}{{{{ end }}}}", ""
        if self.system_in_turn:
            head, within = (
                "{{ $system := .System }}",
                f'{{{{ with $system }}}}{system}{{{{ end }}}}{{{{ $system = "" }}}}',
            )
        return (
            f'{head}{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}'
            f"{self.user_before}{within}{{{{ .Content }}}}{self.user_after}"
            f'{{{{ else if eq .Role "assistant" }}}}{self.answer_before}{{{{ .Content }}}}{self.answer_after}'
            f"{{{{ end }}}}{{{{ end }}}}{self.opening}"
        )


FORMATS = (
    ChatFormat(
        "ChatML", "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>\n",
        "<|im_start|>assistant\n", ("<|im_end|>",), "<|im_start|>system\n", "<|im_end|>\n",
    ),
    ChatFormat(
        "Gemma", "<start_of_turn>user\n", "<end_of_turn>\n", "<start_of_turn>model\n", "<end_of_turn>\n",
        "<start_of_turn>model\n", ("<end_of_turn>",), "", "\n\n", system_in_turn=True,
    ),
    ChatFormat("LLaVA 1.5", "USER: ", " ", "ASSISTANT: ", " ", "ASSISTANT:", ("</s>", "USER:"), "", " "),
    ChatFormat("Vicuna", "USER: ", " ", "ASSISTANT: ", "</s>", "ASSISTANT:", ("</s>", "USER:"), "", " "),
    ChatFormat(
        "Llama 3", "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n", ("<|eot_id|>",),
        "<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>",
    ),
)  # fmt: skip


def find_format(metadata: Mapping[str, Any]) -> ChatFormat | None:
    """The known format that is the model's own; None for another, or where the model has no chat template."""
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str) or not template:
        return None
    tokens = {name: _token(metadata, f"tokenizer.ggml.{key}_token_id") for name, key in _NAMES.items()}
    for made in _renderings(template, tokens):
        for form in FORMATS:
            spoken = replace(form, system=_system_in(made, form))
            if spoken.prompt(((QUESTION, ANSWER),), AGAIN) == made:
                return spoken
    return None


def _system_in(made: str, form: ChatFormat) -> str:
    """The system message that a template writes by itself; only one that harms no Modelfile."""
    if not form.system_before or not made.startswith(form.system_before):
        return ""
    text = made.removeprefix(form.system_before).partition(form.system_after)[0]
    plain = text.isprintable() and '"' not in text and "\\" not in text and len(text) <= MOST_SYSTEM
    return text if plain else ""


_NAMES = {"bos_token": "bos", "eos_token": "eos"}


def _renderings(template: str, tokens: dict[str, str]) -> list[str]:
    """The model's own prompts, with contents as parts and as plain texts, without the token that begins a text."""
    made = []
    with ChatRenderer(template, tokens=tokens) as renderer:
        for plain in (False, True):
            messages = chat_messages(AGAIN, ((QUESTION, ANSWER),), plain=plain)
            try:
                made.append(renderer.render([messages])[0].removeprefix(tokens["bos_token"]))
            except LuqError:  # a template that takes the other form only, or breaks
                continue
    return made


def _token(metadata: Mapping[str, Any], key: str) -> str:
    number, tokens = metadata.get(key), metadata.get("tokenizer.ggml.tokens")
    known = isinstance(number, int) and isinstance(tokens, list) and 0 <= number < len(tokens)
    return str(tokens[number]) if known and isinstance(tokens, list) and isinstance(number, int) else ""
