"""The child process that renders chat templates: a line of JSON in, a line of JSON out.

A template comes with the model and may come from anyone. It runs in jinja2's immutable sandbox, in a process
that may take little memory and processor time and opens no files; its owner ends it where it takes too long.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from luq_gguf.children import limit

MEMORY_BYTES = 1 << 29
MAX_TEXT = 1 << 24
"""Characters that all prompts of a request may have."""
LONGEST_REASON = 500


def serve() -> None:
    """Answer requests until the owner closes the pipe."""
    limit("RLIMIT_AS", MEMORY_BYTES)
    limit("RLIMIT_FSIZE", 0)
    for line in sys.stdin:
        request = json.loads(line)
        _allow_seconds(request["seconds"])
        answer = json.dumps(_answer(request))
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"texts": render(**{key: request[key] for key in ("template", "tokens", "chats", "answer_next")})}
    except MemoryError:
        return {"error": "it takes too much memory"}
    except Exception as error:  # a template may fail in any way that Python knows
        reason = " ".join(str(error)[:LONGEST_REASON].split())
        return {"error": reason or type(error).__name__}


def render(
    template: str, tokens: Mapping[str, str], chats: Sequence[Sequence[Mapping[str, Any]]], *, answer_next: bool
) -> list[str]:
    """The prompt of every chat; raises whatever the template makes jinja2 raise."""
    compiled = _compile(template)
    texts: list[str] = []
    room = MAX_TEXT
    for messages in chats:
        texts.append(compiled.render(**tokens, messages=messages, add_generation_prompt=answer_next))
        room -= len(texts[-1])
        if room < 0:
            raise TemplateError(f"it makes prompts of more than {MAX_TEXT:,} characters")
    return texts


class Generation(Extension):
    """`{% generation %}`, by which transformers finds a model's own words in a chat; here it only shows them."""

    tags = {"generation"}  # noqa: RUF012 - declared by jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes between the tag and its end."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(template: str) -> Template:
    extensions = [loopcontrols, Generation]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment.from_string(template)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _allow_seconds(seconds: float) -> None:
    """Processor time for one more request; the owner measures the time on the clock."""
    limit("RLIMIT_CPU", math.ceil(time.process_time() + seconds) + 1)


if __name__ == "__main__":
    serve()
