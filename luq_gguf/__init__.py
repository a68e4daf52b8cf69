"""Vision-language models as mixed-precision GGUF: ultra-low bits where the activations bear them.

`analyze`, `plan`, `convert`, `evaluate` and `benchmark` do what the commands do, `open_model` opens what they make.
Importing the package imports nothing heavy: each function brings what it needs when it is called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
TOOL = f"luq-gguf {__version__}"
"""What files say they were made by."""
__all__ = [
    "TOOL", "LuqError", "__version__", "analyze", "benchmark", "convert", "evaluate", "open_model", "plan", "sizes",
]  # fmt: skip

if TYPE_CHECKING:
    from luq_gguf.api import analyze, benchmark, convert, evaluate, plan, sizes
    from luq_gguf.errors import LuqError
    from luq_gguf.runtime import open_model

_HOMES = {"LuqError": "luq_gguf.errors", "open_model": "luq_gguf.runtime"}
"""Modules of the names that are not in `api`; no module of the package may be called like one of the names."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(_HOMES.get(name, "luq_gguf.api")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
