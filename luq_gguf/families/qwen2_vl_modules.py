"""Qwen2-VL in torch."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import (
    Qwen2VisionTransformerPretrainedModel,
    Qwen2VLDecoderLayer,
    Qwen2VLRMSNorm,
    Qwen2VLRotaryEmbedding,
    Qwen2VLVisionRotaryEmbedding,
)

from luq_gguf.families.qwen_vl_modules import QwenVLModules


class Modules(QwenVLModules):
    """The model's parts in one compute type."""

    config_class: ClassVar[Any] = Qwen2VLConfig
    layer_class: ClassVar[Any] = Qwen2VLDecoderLayer
    norm_class: ClassVar[Any] = Qwen2VLRMSNorm
    rotary_class: ClassVar[Any] = Qwen2VLRotaryEmbedding
    tower_class: ClassVar[Any] = Qwen2VisionTransformerPretrainedModel
    tower_rotary_class: ClassVar[Any] = Qwen2VLVisionRotaryEmbedding
