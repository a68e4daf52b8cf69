"""Qwen2-VL: a tower with full attention, layer norms and a plain feed-forward part; the decoder is Qwen2.5-VL's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import gguf

from luq_gguf.families.base import ConfigReader, TensorSource
from luq_gguf.families.decoder import MOST_CHANNELS
from luq_gguf.families.qwen_vl import QwenVL

if TYPE_CHECKING:
    from luq_gguf.families.decoder_modules import DecoderModules

IMAGE_SIZE = 560
MOST_RATIO = 64


class Qwen2VL(QwenVL):
    """Qwen2-VL of any size."""

    name: ClassVar[str] = "qwen2-vl"
    architecture: ClassVar[str] = "qwen2vl"
    arch: ClassVar[gguf.MODEL_ARCH] = gguf.MODEL_ARCH.QWEN2VL
    biased: ClassVar[tuple[str, ...]] = ("q", "k", "v")
    projector: ClassVar[str] = gguf.VisionProjectorType.QWEN2VL

    def read_tower_widths(self, reader: ConfigReader) -> dict[str, Any]:
        """Here `embed_dim` is the tower's width and `hidden_size` that of its output."""
        if (activation := reader.content.get("hidden_act", "quick_gelu")) != "quick_gelu":
            raise reader.wrong("hidden_act", activation, "quick_gelu, the one that llama.cpp computes for this family")
        self.require_output(reader, "hidden_size")
        hidden = reader.integer("embed_dim", 1280, maximum=MOST_CHANNELS)
        ratio = reader.number("mlp_ratio", 4, maximum=MOST_RATIO)
        return {
            "hidden_size": hidden,
            "intermediate_size": int(hidden * ratio),
            "image_size": reader.integer("image_size", IMAGE_SIZE),
        }

    def vision_tensors(self) -> list[TensorSource]:
        """All tensors of the mmproj; fused q/k/v and the two frames of the patch convolution are split."""
        sizes = self.vision
        hidden, ffn = sizes["hidden_size"], sizes["intermediate_size"]
        tensors = self.patch_tensors()
        for block in range(sizes["depth"]):
            prefix = f"visual.blocks.{block}."
            for norm in ("norm1", "norm2"):
                tensors += self.norm(f"{prefix}{norm}")
            tensors += self.split_attention(prefix)
            tensors += self.linear(f"{prefix}attn.proj", (hidden, hidden))
            tensors += self.linear(f"{prefix}mlp.fc1", (ffn, hidden))
            tensors += self.linear(f"{prefix}mlp.fc2", (hidden, ffn))
        merged = hidden * sizes["spatial_merge_size"] ** 2
        tensors += self.norm("visual.merger.ln_q")
        tensors += self.linear("visual.merger.mlp.0", (merged, merged))
        return tensors + self.linear("visual.merger.mlp.2", (self.hidden_size, merged))

    def norm(self, source: str) -> list[TensorSource]:
        """Weight and bias of a layer norm."""
        hidden = self.vision["hidden_size"]
        return [self.vision_tensor(f"{source}.{kind}", (hidden,)) for kind in ("weight", "bias")]

    def stated_feed_forward(self) -> int:
        """llama.cpp's converter writes the width of the output here."""
        return self.hidden_size

    def modules(self) -> type[DecoderModules]:
        """This family's parts in torch."""
        from luq_gguf.families.qwen2_vl_modules import Modules

        return Modules
