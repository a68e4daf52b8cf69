"""Qwen3-VL in torch."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextRMSNorm,
    Qwen3VLTextRotaryEmbedding,
    Qwen3VLVisionModel,
    Qwen3VLVisionRotaryEmbedding,
)

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.families.base import Family
from luq_gguf.families.qwen_vl_modules import QwenVLModules


class Modules(QwenVLModules):
    """The model's parts in one compute type."""

    config_class: ClassVar[Any] = Qwen3VLConfig
    layer_class: ClassVar[Any] = Qwen3VLTextDecoderLayer
    norm_class: ClassVar[Any] = Qwen3VLTextRMSNorm
    rotary_class: ClassVar[Any] = Qwen3VLTextRotaryEmbedding
    tower_class: ClassVar[Any] = Qwen3VLVisionModel
    tower_rotary_class: ClassVar[Any] = Qwen3VLVisionRotaryEmbedding

    def __init__(self, checkpoint: Checkpoint, family: Family, dtype: torch.dtype) -> None:
        super().__init__(checkpoint, family, dtype)
        self.deep_layers = len(self.config.vision_config.deepstack_visual_indexes)

    def features_of(self, output: Any) -> torch.Tensor:
        """The merged features, then those for the first, second, ... decoder layer."""
        return torch.cat([output.pooler_output, *output.deepstack_features], dim=-1)
