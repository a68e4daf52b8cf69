"""CLIP and SigLIP towers: the names, shapes and metadata that the families with one of them share."""

from __future__ import annotations

from math import prod
from typing import Any

import gguf

from luq_gguf.families.base import ConfigReader, ImageGrid, TensorSource
from luq_gguf.families.decoder import MOST_CHANNELS, MOST_LAYERS, gguf_name

PREFIX = "vision_tower.vision_model."
MOST_SIDE = 1 << 13


def read_tower(reader: ConfigReader) -> dict[str, Any]:
    """The sizes of a tower, checked; raises CheckpointError with the key that cannot be."""
    sizes: dict[str, Any] = {
        "depth": reader.integer("num_hidden_layers", maximum=MOST_LAYERS),
        "hidden_size": reader.integer("hidden_size", maximum=MOST_CHANNELS),
        "intermediate_size": reader.integer("intermediate_size", maximum=MOST_CHANNELS),
        "num_heads": reader.integer("num_attention_heads"),
        "in_channels": reader.integer("num_channels", 3, maximum=16),
        "image_size": reader.integer("image_size", maximum=MOST_SIDE),
        "patch_size": reader.integer("patch_size", maximum=128),
        "layer_norm_eps": reader.number("layer_norm_eps", maximum=1.0),
    }
    reader.require_unlike(sizes)
    if sizes["hidden_size"] % sizes["num_heads"]:
        raise reader.wrong("num_attention_heads", sizes["num_heads"], f"a divisor of {sizes['hidden_size']}")
    if sizes["image_size"] < sizes["patch_size"]:
        raise reader.wrong("image_size", sizes["image_size"], f"at least patch_size, {sizes['patch_size']}")
    if sizes["in_channels"] != 3:
        raise reader.wrong("num_channels", sizes["in_channels"], "3, red, green and blue")
    return sizes


def patches_a_side(sizes: dict[str, Any]) -> int:
    """How many patches stand side by side in an image."""
    return int(sizes["image_size"] // sizes["patch_size"])


def tower_tensor(sizes: dict[str, Any], source: str, shape: tuple[int, ...]) -> TensorSource:
    """The mmproj's tensor that is made of `source`."""
    return TensorSource(gguf_name(gguf.MODEL_ARCH.MMPROJ, max(sizes["depth"], 3), source), source, shape)


def tower_pairs(sizes: dict[str, Any], source: str, shape: tuple[int, ...]) -> list[TensorSource]:
    """Weight and bias of a linear layer or norm."""
    return [tower_tensor(sizes, f"{source}.weight", shape), tower_tensor(sizes, f"{source}.bias", shape[:1])]


def block_tensors(sizes: dict[str, Any]) -> list[TensorSource]:
    """The tensors of all blocks."""
    hidden, ffn = sizes["hidden_size"], sizes["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {"layer_norm1": (hidden,), "layer_norm2": (hidden,)}
    shapes |= {f"self_attn.{part}_proj": (hidden, hidden) for part in ("q", "k", "v", "out")}
    shapes |= {"mlp.fc1": (ffn, hidden), "mlp.fc2": (hidden, ffn)}
    return [
        tensor
        for block in range(sizes["depth"])
        for name, shape in shapes.items()
        for tensor in tower_pairs(sizes, f"{PREFIX}encoder.layers.{block}.{name}", shape)
    ]


def add_tower(writer: gguf.GGUFWriter, sizes: dict[str, Any], grid: ImageGrid, projection: int) -> None:
    """Add the metadata of a tower."""
    writer.add_clip_has_vision_encoder(True)
    writer.add_vision_projection_dim(projection)
    writer.add_vision_image_size(sizes["image_size"])
    writer.add_vision_patch_size(sizes["patch_size"])
    writer.add_vision_embedding_length(sizes["hidden_size"])
    writer.add_vision_feed_forward_length(sizes["intermediate_size"])
    writer.add_vision_block_count(sizes["depth"])
    writer.add_vision_head_count(sizes["num_heads"])
    writer.add_vision_attention_layernorm_eps(sizes["layer_norm_eps"])
    writer.add_vision_image_mean(list(grid.mean))
    writer.add_vision_image_std(list(grid.std))


def names_of_tower(source: str) -> tuple[str, ...]:
    """The names under which checkpoints store a tensor of the tower, hub form first."""
    short = source.replace(PREFIX, "vision_tower.", 1)
    return (source, f"model.{source}", f"model.{short}", short)


def count_parameters(tensors: list[TensorSource]) -> int:
    """The numbers in all tensors."""
    return sum(prod(tensor.shape) for tensor in tensors)
