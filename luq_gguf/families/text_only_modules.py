"""Qwen2, Qwen3 and LLaMA in torch."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import LlamaConfig, Qwen2Config, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm, Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding

from luq_gguf.families.decoder_modules import DecoderModules


class Qwen2Modules(DecoderModules):
    """Qwen2 and Qwen2.5."""

    config_class: ClassVar[Any] = Qwen2Config
    layer_class: ClassVar[Any] = Qwen2DecoderLayer
    norm_class: ClassVar[Any] = Qwen2RMSNorm
    rotary_class: ClassVar[Any] = Qwen2RotaryEmbedding


class Qwen3Modules(DecoderModules):
    """Qwen3."""

    config_class: ClassVar[Any] = Qwen3Config
    layer_class: ClassVar[Any] = Qwen3DecoderLayer
    norm_class: ClassVar[Any] = Qwen3RMSNorm
    rotary_class: ClassVar[Any] = Qwen3RotaryEmbedding


class LlamaModules(DecoderModules):
    """LLaMA."""

    config_class: ClassVar[Any] = LlamaConfig
    layer_class: ClassVar[Any] = LlamaDecoderLayer
    norm_class: ClassVar[Any] = LlamaRMSNorm
    rotary_class: ClassVar[Any] = LlamaRotaryEmbedding
