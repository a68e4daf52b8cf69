"""Passages, chats and code in many languages, from texts.jsonl; all of them were written for this set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

from luq_gguf.samples import Sample


def rows() -> Iterator[dict[str, Any]]:
    """The rows of texts.jsonl: `id`, `language`, and `text` or `turns` (pairs of a question and its answer)."""
    file = resources.files("luq_gguf.calibration_set") / "texts.jsonl"
    for line in file.read_text("utf-8").splitlines():
        yield json.loads(line)


def samples(origin: str) -> list[Sample]:
    """A sample a row: a plain text, or the last question with the turns before it."""
    found = []
    for row in rows():
        if "text" in row:
            found.append(Sample(f"text-{row['id']}", text=row["text"], origin=origin))
        else:
            *earlier, (question, answer) = row["turns"]
            turns = tuple((asked, said) for asked, said in earlier)
            found.append(Sample(f"text-{row['id']}", question, answer, turns=turns, origin=origin))
    return found
