"""The model families that can be converted, found by the architecture that config.json names."""

from __future__ import annotations

from typing import Any

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import CheckpointError, UnsupportedModelError
from luq_gguf.families.base import Family, TensorSource
from luq_gguf.families.decoder import DecoderFamily
from luq_gguf.families.gemma3 import Gemma3
from luq_gguf.families.llava import Llava
from luq_gguf.families.qwen2_vl import Qwen2VL
from luq_gguf.families.qwen3_vl import Qwen3VL
from luq_gguf.families.qwen25_vl import Qwen25VL
from luq_gguf.families.text_only import Llama, Qwen2, Qwen3

__all__ = ["KNOWN", "Family", "TensorSource", "family_from_config", "find_family"]

_FAMILIES: dict[str, type[DecoderFamily]] = {
    "Qwen2_5_VLForConditionalGeneration": Qwen25VL,
    "LlavaForConditionalGeneration": Llava,
    "Qwen2VLForConditionalGeneration": Qwen2VL,
    "Qwen3VLForConditionalGeneration": Qwen3VL,
    "Gemma3ForConditionalGeneration": Gemma3,
    "Qwen2ForCausalLM": Qwen2,
    "Qwen3ForCausalLM": Qwen3,
    "LlamaForCausalLM": Llama,
}
KNOWN = tuple(_FAMILIES)
"""Names of the architectures, as config.json gives them."""
HOW_TO_ADD = "docs/adding-a-family.md of the project says how to add one"
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")


def find_family(config: dict[str, Any], checkpoint: Checkpoint | None = None) -> Family:
    """The family of a config, with the image rule of a checkpoint's own preprocessor files where one is given.

    Raises UnsupportedModelError for an architecture that is not known, what no version handles yet, and a checkpoint
    that is already quantized, CheckpointError for values that cannot be.
    """
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not all(isinstance(name, str) for name in named):
        raise CheckpointError("config.json: architectures is missing or no list of names", hint=_hint())
    _require_handled(config, named[0])
    family = next((_FAMILIES[name] for name in named if name in _FAMILIES), None)
    if family is None:
        raise UnsupportedModelError(f"the architecture {named[0]} is not supported", hint=f"{_hint()}; {HOW_TO_ADD}")
    if config.get("quantization_config"):
        raise UnsupportedModelError(
            "this checkpoint is already quantized (quantization_config in config.json)",
            hint="give the original 16-bit checkpoint",
        )
    return family(config, checkpoint)


family_from_config = find_family


def _require_handled(config: dict[str, Any], named: str) -> None:
    """Raise UnsupportedModelError for kinds of models that are known, by name, and not handled."""
    nested = config.get("text_config")
    text = config | nested if isinstance(nested, dict) else config
    kinds = {
        "has experts (a mixture-of-experts text model)": "Moe" in named or any(text.get(key) for key in EXPERT_KEYS),
        "takes audio": "Audio" in named or "Omni" in named or bool(config.get("audio_config")),
        "takes video alone": "Video" in named,
    }
    for what, found in kinds.items():
        if found:
            raise UnsupportedModelError(
                f"the architecture {named} {what}, which this version does not handle", hint=_hint()
            )


def _hint() -> str:
    return f"known are: {', '.join(KNOWN)}"
