"""Qwen2.5-VL in torch."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLDecoderLayer,
    Qwen2_5_VLRMSNorm,
    Qwen2_5_VLRotaryEmbedding,
    Qwen2_5_VLVisionRotaryEmbedding,
)

from luq_gguf.families.qwen_vl_modules import QwenVLModules


class Modules(QwenVLModules):
    """The model's parts in one compute type."""

    config_class: ClassVar[Any] = Qwen2_5_VLConfig
    layer_class: ClassVar[Any] = Qwen2_5_VLDecoderLayer
    norm_class: ClassVar[Any] = Qwen2_5_VLRMSNorm
    rotary_class: ClassVar[Any] = Qwen2_5_VLRotaryEmbedding
    tower_class: ClassVar[Any] = Qwen2_5_VisionTransformerPretrainedModel
    tower_rotary_class: ClassVar[Any] = Qwen2_5_VLVisionRotaryEmbedding
