"""Vision-language models as mixed-precision GGUF: ultra-low bits where the activations bear them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
TOOL = f"luq-gguf {__version__}"
"""What files say they were made by."""
__all__ = ["TOOL", "__version__", "open_model"]

if TYPE_CHECKING:
    from luq_gguf.runtime import open_model as open_model


def __getattr__(name: str) -> Any:
    if name == "open_model":
        from luq_gguf.runtime import open_model

        return open_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
