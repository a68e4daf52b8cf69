"""Qwen3-VL, dense: learned positions, and features that are added to the first decoder layers too (deepstack)."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, Any, ClassVar

import gguf

from luq_gguf.families.base import ConfigReader, TensorSource
from luq_gguf.families.decoder import MOST_TOKENS
from luq_gguf.families.qwen_vl import QwenVL

if TYPE_CHECKING:
    from luq_gguf.families.decoder_modules import DecoderModules

LEAST_PIXELS, MOST_PIXELS = 1 << 16, 1 << 24
TOWER_ACTIVATIONS = ("gelu_pytorch_tanh", "gelu")


class Qwen3VL(QwenVL):
    """Qwen3-VL of any size, without experts."""

    name: ClassVar[str] = "qwen3-vl"
    architecture: ClassVar[str] = "qwen3vl"
    arch: ClassVar[gguf.MODEL_ARCH] = gguf.MODEL_ARCH.QWEN3VL
    text_defaults: ClassVar[dict[str, Any]] = {"head_dim": 128}
    head_norms: ClassVar[bool] = True
    free_heads: ClassVar[bool] = True
    projector: ClassVar[str] = gguf.VisionProjectorType.QWEN3VL
    mean: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)
    std: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)

    def read_tower_widths(self, reader: ConfigReader) -> dict[str, Any]:
        """Also the learned positions, and the blocks whose features go to the first decoder layers."""
        if (activation := reader.content.get("hidden_act", TOWER_ACTIVATIONS[0])) not in TOWER_ACTIVATIONS:
            raise reader.wrong("hidden_act", activation, "gelu, the one that llama.cpp computes for this family")
        positions = reader.integer("num_position_embeddings", 2304, maximum=MOST_TOKENS)
        if isqrt(positions) ** 2 != positions:
            raise reader.wrong("num_position_embeddings", positions, "a square")
        deep = reader.integers("deepstack_visual_indexes", [8, 16, 24], maximum=1000)
        if deep != sorted(set(deep)) or deep[-1] >= reader.integer("depth") or len(deep) >= self.layers:
            raise reader.wrong("deepstack_visual_indexes", deep, "rising numbers of blocks, fewer than decoder layers")
        return super().read_tower_widths(reader) | {
            "num_position_embeddings": positions,
            "deepstack_visual_indexes": deep,
            "image_size": isqrt(positions) * reader.integer("patch_size", 16, maximum=128),
        }

    def vision_tensors(self) -> list[TensorSource]:
        """All tensors of the mmproj; q, k and v stay one matrix."""
        sizes = self.vision
        hidden, ffn = sizes["hidden_size"], sizes["intermediate_size"]
        tensors = self.patch_tensors()
        tensors.append(self.vision_tensor("visual.patch_embed.proj.bias", (hidden,)))
        tensors.append(self.vision_tensor("visual.pos_embed.weight", (sizes["num_position_embeddings"], hidden)))
        for block in range(sizes["depth"]):
            prefix = f"visual.blocks.{block}."
            for norm in ("norm1", "norm2"):
                tensors += [self.vision_tensor(f"{prefix}{norm}.{kind}", (hidden,)) for kind in ("weight", "bias")]
            tensors += self.linear(f"{prefix}attn.qkv", (3 * hidden, hidden))
            tensors += self.linear(f"{prefix}attn.proj", (hidden, hidden))
            tensors += self.linear(f"{prefix}mlp.linear_fc1", (ffn, hidden))
            tensors += self.linear(f"{prefix}mlp.linear_fc2", (hidden, ffn))
        tensors += self._merger("visual.merger", {"norm": "v.post_ln", "linear_fc1": "mm.0", "linear_fc2": "mm.2"})
        for rank, block in enumerate(sizes["deepstack_visual_indexes"]):
            names = {"norm": "norm", "linear_fc1": "fc1", "linear_fc2": "fc2"}
            names = {ours: f"v.deepstack.{block}.{theirs}" for ours, theirs in names.items()}
            tensors += self._merger(f"visual.deepstack_merger_list.{rank}", names)
        return tensors

    def _merger(self, source: str, names: dict[str, str]) -> list[TensorSource]:
        """Four patches to one token; those for deeper layers norm all four together."""
        merged = self.vision["hidden_size"] * self.vision["spatial_merge_size"] ** 2
        norm = self.vision["hidden_size"] if source == "visual.merger" else merged
        shapes: dict[str, tuple[int, ...]] = {"norm": (norm,), "linear_fc1": (merged, merged)}
        shapes["linear_fc2"] = (self.hidden_size, merged)
        return [
            TensorSource(f"{names[part]}.{kind}", f"{source}.{part}.{kind}", shape if kind == "weight" else shape[:1])
            for part, shape in shapes.items()
            for kind in ("weight", "bias")
        ]

    def add_sizes(self, writer: gguf.GGUFWriter) -> None:
        """Also how many decoder layers take features."""
        super().add_sizes(writer)
        writer.add_num_deepstack_layers(len(self.vision["deepstack_visual_indexes"]))

    def add_tower(self, writer: gguf.GGUFWriter) -> None:
        """Add the activation, the merge size, and the blocks whose features go deeper."""
        deep = set(self.vision["deepstack_visual_indexes"])
        writer.add_vision_use_gelu(True)
        writer.add_vision_spatial_merge_size(self.vision["spatial_merge_size"])
        writer.add_vision_attention_layernorm_eps(self.hparams["rms_norm_eps"])
        writer.add_vision_is_deepstack_layers([block in deep for block in range(self.vision["depth"])])

    def modules(self) -> type[DecoderModules]:
        """This family's parts in torch."""
        from luq_gguf.families.qwen3_vl_modules import Modules

        return Modules
