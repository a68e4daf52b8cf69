"""The model families that can be converted, found by the architecture that config.json names."""

from __future__ import annotations

from typing import Any

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import CheckpointError, UnsupportedModelError
from luq_gguf.families.base import Family, TensorSource
from luq_gguf.families.qwen_vl import Qwen25VL

__all__ = ["KNOWN", "Family", "TensorSource", "family_from_config", "find_family"]

_FAMILIES: dict[str, type[Qwen25VL]] = {"Qwen2_5_VLForConditionalGeneration": Qwen25VL}
KNOWN = tuple(_FAMILIES)
"""Names of the architectures, as config.json gives them."""


def find_family(config: dict[str, Any], checkpoint: Checkpoint | None = None) -> Family:
    """The family of a config, with the image rule of a checkpoint's own preprocessor files where one is given.

    Raises UnsupportedModelError for an architecture that is not known and a checkpoint that is already
    quantized, CheckpointError for values that cannot be.
    """
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not all(isinstance(name, str) for name in named):
        raise CheckpointError("config.json: architectures is missing or no list of names", hint=_hint())
    family = next((_FAMILIES[name] for name in named if name in _FAMILIES), None)
    if family is None:
        raise UnsupportedModelError(f"the architecture {named[0]} is not supported", hint=_hint())
    if config.get("quantization_config"):
        raise UnsupportedModelError(
            "this checkpoint is already quantized (quantization_config in config.json)",
            hint="give the original 16-bit checkpoint",
        )
    return family(config, checkpoint)


family_from_config = find_family


def _hint() -> str:
    return f"known are: {', '.join(KNOWN)}"
