"""Qwen2.5-VL: a tower with windowed attention, RMS norms and a gated feed-forward part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import gguf

from luq_gguf.families.base import ConfigReader, TensorSource
from luq_gguf.families.qwen_vl import QwenVL

if TYPE_CHECKING:
    from luq_gguf.families.decoder_modules import DecoderModules

IMAGE_SIZE = 560
FULL_ATTENTION = [7, 15, 23, 31]


class Qwen25VL(QwenVL):
    """Qwen2.5-VL of any size."""

    name: ClassVar[str] = "qwen2.5-vl"
    architecture: ClassVar[str] = "qwen2vl"
    arch: ClassVar[gguf.MODEL_ARCH] = gguf.MODEL_ARCH.QWEN2VL
    biased: ClassVar[tuple[str, ...]] = ("q", "k", "v")
    projector: ClassVar[str] = gguf.VisionProjectorType.QWEN25VL

    def read_tower_widths(self, reader: ConfigReader) -> dict[str, Any]:
        """Also which blocks attend to the whole image."""
        blocks = reader.integers("fullatt_block_indexes", FULL_ATTENTION, maximum=1000)
        step = blocks[0] + 1
        if blocks != [step * (rank + 1) - 1 for rank in range(len(blocks))]:
            raise reader.wrong("fullatt_block_indexes", blocks, "evenly spaced, as llama.cpp needs it")
        return super().read_tower_widths(reader) | {
            "window_size": reader.integer("window_size", 112),
            "image_size": reader.integer("image_size", IMAGE_SIZE),
            "fullatt_block_indexes": blocks,
        }

    def vision_tensors(self) -> list[TensorSource]:
        """All tensors of the mmproj; fused q/k/v and the two frames of the patch convolution are split."""
        sizes = self.vision
        hidden, ffn = sizes["hidden_size"], sizes["intermediate_size"]
        tensors = self.patch_tensors()
        for block in range(sizes["depth"]):
            prefix = f"visual.blocks.{block}."
            tensors += [self.vision_tensor(f"{prefix}{norm}.weight", (hidden,)) for norm in ("norm1", "norm2")]
            tensors += self.split_attention(prefix)
            tensors += self.linear(f"{prefix}attn.proj", (hidden, hidden))
            for name in ("gate_proj", "up_proj"):
                tensors += self.linear(f"{prefix}mlp.{name}", (ffn, hidden))
            tensors += self.linear(f"{prefix}mlp.down_proj", (hidden, ffn))
        merged = hidden * sizes["spatial_merge_size"] ** 2
        tensors.append(self.vision_tensor("visual.merger.ln_q.weight", (hidden,)))
        tensors += self.linear("visual.merger.mlp.0", (merged, merged))
        return tensors + self.linear("visual.merger.mlp.2", (self.hidden_size, merged))

    def add_tower(self, writer: gguf.GGUFWriter) -> None:
        """Add the activation and the spacing of the blocks with full attention."""
        super().add_tower(writer)
        writer.add_vision_use_silu(True)
        writer.add_vision_n_wa_pattern(self.vision["fullatt_block_indexes"][0] + 1)

    def modules(self) -> type[DecoderModules]:
        """This family's parts in torch."""
        from luq_gguf.families.qwen25_vl_modules import Modules

        return Modules
