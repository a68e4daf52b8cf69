"""Chat templates: messages in, prompt text out, in a sandbox.

A template comes with the model and may come from anyone: it runs in jinja2's immutable sandbox,
with the few functions that transformers offers to templates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from luq_gguf.errors import CheckpointError


def render_chat(template: str, messages: Sequence[Mapping[str, Any]], *, answer_next: bool = True) -> str:
    """Render messages; `answer_next` opens the assistant's turn.

    Raises CheckpointError where there is no template or it fails.
    """
    if not template:
        raise CheckpointError("the model has no chat template", hint="take an instruction-tuned model")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    try:
        return environment.from_string(template).render(messages=messages, add_generation_prompt=answer_next)
    except Exception as error:  # a template may fail in any way that Python knows
        raise CheckpointError(
            f"the model's chat template fails: {' '.join(str(error).split())}", hint="take the model's own template"
        ) from error


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
