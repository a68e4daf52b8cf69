"""A picture of the built-in set: its name, what can be asked about it, and how to draw it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Item:
    """One picture with its questions and answers; `draw` makes it, always the same, when it is needed."""

    name: str
    questions: tuple[tuple[str, str], ...]
    draw: Callable[[], Image.Image]


def chance(name: str) -> random.Random:
    """The source of chance that belongs to a name."""
    return random.Random(f"luq_gguf {name}")


def listed(names: list[str] | tuple[str, ...]) -> str:
    """Names as an answer lists them: "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
