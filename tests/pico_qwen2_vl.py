"""Pico Qwen2-VL checkpoints in the form in which the hub has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.pico import ADDED_TOKENS, HIDDEN, hub_config, side_files
from tests.pico_files import byte_level_vocabulary, draw_weights, write_checkpoint
from tests.pico_shapes import Decoder, Shapes, decoder_shapes, with_bias

VISION_HIDDEN = 96
VISION_HEADS = 3
VISION_DEPTH = 3
MLP_RATIO = 4


def build_qwen2_vl(
    folder: Path, *, dtype: str = "bf16", tied: bool = False, shards: int = 1, seed: int = 0, layers: int = 3
) -> Path:
    """Write a checkpoint into `folder` and return it; the same arguments give the same bytes."""
    vocabulary, merges = byte_level_vocabulary(ADDED_TOKENS)
    files = side_files(vocabulary, merges, "hub")
    files["preprocessor_config.json"] |= {"processor_class": "Qwen2VLProcessor"}
    files["config.json"] = qwen2_vl_config(vocabulary, layers, tied, dtype)
    return write_checkpoint(folder, draw_weights(qwen2_vl_shapes(layers, tied), seed), files, dtype, shards)


def qwen2_vl_shapes(layers: int, tied: bool) -> Shapes:
    text = decoder_shapes(Decoder(qkv_bias=True), layers, head=None if tied else "lm_head.weight")
    return text | {"visual.patch_embed.proj.weight": (VISION_HIDDEN, 3, 2, 14, 14)} | with_bias(_vision_layers())


def _vision_layers() -> Shapes:
    ffn, merged = MLP_RATIO * VISION_HIDDEN, 4 * VISION_HIDDEN
    linears: Shapes = {}
    for block in range(VISION_DEPTH):
        prefix = f"visual.blocks.{block}."
        linears |= {f"{prefix}norm1": (VISION_HIDDEN,), f"{prefix}norm2": (VISION_HIDDEN,)}
        linears[f"{prefix}attn.qkv"] = (3 * VISION_HIDDEN, VISION_HIDDEN)
        linears[f"{prefix}attn.proj"] = (VISION_HIDDEN, VISION_HIDDEN)
        linears |= {f"{prefix}mlp.fc1": (ffn, VISION_HIDDEN), f"{prefix}mlp.fc2": (VISION_HIDDEN, ffn)}
    linears["visual.merger.ln_q"] = (VISION_HIDDEN,)
    return linears | {"visual.merger.mlp.0": (merged, merged), "visual.merger.mlp.2": (HIDDEN, merged)}


def qwen2_vl_config(ids: dict[str, int], layers: int, tied: bool, dtype: str) -> dict[str, Any]:
    """The flat `config.json` of the hub; its hidden_size of the vision model is that of the text model."""
    vision = {
        "depth": VISION_DEPTH,
        "embed_dim": VISION_HIDDEN,
        "mlp_ratio": MLP_RATIO,
        "num_heads": VISION_HEADS,
        "in_chans": 3,
        "hidden_size": HIDDEN,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    }
    return hub_config(ids, layers, tied, dtype) | {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "vision_config": vision,
    }
