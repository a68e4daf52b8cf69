"""What Qwen2-VL, Qwen2.5-VL and Qwen3-VL share: M-RoPE, the vision tower's names, and the rule for images.

The hub's checkpoints of the first two have a flat config; transformers 5 writes a nested `text_config` with
`rope_parameters`. Both are brought to one form by `decoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

import gguf
from gguf import GGMLQuantizationType

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.families.base import ConfigReader, Dtype, ImageGrid, MetadataEntry, TensorSource, plain_type
from luq_gguf.families.decoder import MOST_CHANNELS, MOST_LAYERS, DecoderFamily, gguf_name, read_mrope_sections
from luq_gguf.families.metadata import MetadataRecorder, add_general
from luq_gguf.families.processor_file import read_processor, require_fit

VISION_EPSILON = 1e-6
LEAST_TOKENS, MOST_IMAGE_TOKENS = 4, 16384
MOST_PIXELS = 1 << 40
LARGEST_LEAST = 1 << 24
"""Every image is enlarged to `min_pixels`."""
MOST_FACTOR = 128
PATCH_CONVOLUTION = "visual.patch_embed.proj.weight"


class QwenVL(DecoderFamily):
    """A Qwen decoder with a tower whose 2x2 patches become one token; its parts are filled in by each version."""

    rope_kinds: ClassVar[tuple[str, ...]] = ("default", "mrope")
    turn_end = "<|im_end|>"
    image_piece: ClassVar[str] = "<|image_pad|>"
    image_place: ClassVar[str] = "<|image_pad|>"
    projector: ClassVar[str]
    """llama.cpp's name for the part between tower and decoder."""
    mean: ClassVar[tuple[float, float, float]] = (0.48145466, 0.4578275, 0.40821073)
    std: ClassVar[tuple[float, float, float]] = (0.26862954, 0.26130258, 0.27577711)

    vision: dict[str, Any]

    def __init__(self, config: dict[str, Any], checkpoint: Checkpoint | None = None) -> None:
        super().__init__(config)
        self.vision = self.read_vision_sizes(ConfigReader(config, "config.json").section("vision_config"))
        self.image_grid = self.read_image_grid(checkpoint) if checkpoint else self.default_image_grid()

    def read_rope(self, reader: ConfigReader, sizes: dict[str, Any]) -> dict[str, Any]:
        """Base frequency and sections of M-RoPE."""
        rope = super().read_rope(reader, sizes) | {"rope_type": "default"}
        return rope | {"mrope_section": read_mrope_sections(reader, sizes["head_dim"])}

    def read_vision_sizes(self, reader: ConfigReader) -> dict[str, Any]:
        """The tower's sizes, checked; raises CheckpointError with the key that cannot be."""
        channels = "in_chans" if reader.content.get("in_chans") is not None else "in_channels"
        sizes: dict[str, Any] = {
            "depth": reader.integer("depth", maximum=MOST_LAYERS),
            "num_heads": reader.integer("num_heads"),
            "in_channels": reader.integer(channels, 3, maximum=16),
            "patch_size": reader.integer("patch_size", 14, maximum=MOST_FACTOR),
            "spatial_merge_size": reader.integer("spatial_merge_size", 2, maximum=16),
            "temporal_patch_size": reader.integer("temporal_patch_size", 2, maximum=64),
        } | self.read_tower_widths(reader)
        if (factor := sizes["patch_size"] * sizes["spatial_merge_size"]) > MOST_FACTOR:
            raise reader.wrong(
                "patch_size", sizes["patch_size"], f"at most {MOST_FACTOR} with the merge size ({factor})"
            )
        if sizes["temporal_patch_size"] != 2:
            raise reader.wrong("temporal_patch_size", sizes["temporal_patch_size"], "2, as llama.cpp needs it")
        reader.require_unlike(sizes)
        if sizes["hidden_size"] % sizes["num_heads"]:
            raise reader.wrong("num_heads", sizes["num_heads"], f"a divisor of hidden_size {sizes['hidden_size']}")
        return sizes

    def read_tower_widths(self, reader: ConfigReader) -> dict[str, Any]:
        """Hidden and intermediate size of the tower, and what else only this version has."""
        sizes = {
            "hidden_size": reader.integer("hidden_size", maximum=MOST_CHANNELS),
            "intermediate_size": reader.integer("intermediate_size", maximum=MOST_CHANNELS),
        }
        self.require_output(reader, "out_hidden_size")
        return sizes

    def require_output(self, reader: ConfigReader, key: str) -> None:
        """Raise CheckpointError unless the tower's output is as wide as the decoder."""
        if (output := reader.integer(key, self.hidden_size)) != self.hidden_size:
            raise reader.wrong(key, output, f"the text model's hidden_size, {self.hidden_size}")

    def patch_tensors(self) -> list[TensorSource]:
        """The patch convolution, split by frame."""
        sizes = self.vision
        kernel = (sizes["hidden_size"], sizes["in_channels"], sizes["patch_size"], sizes["patch_size"])
        return [
            TensorSource("v.patch_embd.weight", PATCH_CONVOLUTION, kernel, "frame:0"),
            TensorSource("v.patch_embd.weight.1", PATCH_CONVOLUTION, kernel, "frame:1"),
        ]

    def split_attention(self, prefix: str) -> list[TensorSource]:
        """q, k and v of a block, of which the checkpoint has one matrix."""
        hidden = self.vision["hidden_size"]
        made = []
        for kind, shape in (("weight", (hidden, hidden)), ("bias", (hidden,))):
            for third, part in enumerate("qkv"):
                name = self.vision_tensor(f"{prefix}attn.{part}.{kind}", shape).name
                made.append(TensorSource(name, f"{prefix}attn.qkv.{kind}", shape, f"third:{third}"))
        return made

    def linear(self, source: str, shape: tuple[int, int]) -> list[TensorSource]:
        """Weight and bias of a linear layer."""
        return [self.vision_tensor(f"{source}.weight", shape), self.vision_tensor(f"{source}.bias", shape[:1])]

    def vision_tensor(self, source: str, shape: tuple[int, ...]) -> TensorSource:
        """The mmproj's tensor that is made of `source`."""
        blocks = max(self.vision["depth"], 3)
        return TensorSource(gguf_name(gguf.MODEL_ARCH.MMPROJ, blocks, source), source, shape)

    def vision_type(self, tensor: TensorSource, dtype: Dtype) -> GGMLQuantizationType:
        """F32 for vectors and positions; the patch convolution is F16 in an F16 file and F32 in any other."""
        if len(tensor.shape) == 1 or tensor.name == "v.position_embd.weight":
            return GGMLQuantizationType.F32
        if tensor.name.startswith("v.patch_embd.weight") and dtype != "f16":
            return GGMLQuantizationType.F32
        return plain_type(dtype)

    def names_in_files(self, source: str) -> Sequence[str]:
        """As those of the decoder; the tower's under `visual` or `model.visual`."""
        if source.startswith("visual."):
            return (source, f"model.{source}")
        return super().names_in_files(source)

    def vision_metadata(self, checkpoint: Checkpoint, *, dtype: Dtype) -> list[MetadataEntry]:
        """Metadata of the mmproj as llama.cpp's converter writes it."""
        recorder = MetadataRecorder(gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.MMPROJ])
        writer, sizes, grid = recorder.writer, self.vision, self.read_image_grid(checkpoint)
        parameters = sum(prod(tensor.shape) for tensor in self.vision_tensors())
        add_general(writer, checkpoint, gguf.GGUFType.MMPROJ, parameters, dtype)
        writer.add_clip_has_vision_encoder(True)
        writer.add_vision_projection_dim(self.hidden_size)
        writer.add_vision_image_size(sizes["image_size"])
        writer.add_vision_patch_size(sizes["patch_size"])
        writer.add_vision_embedding_length(sizes["hidden_size"])
        writer.add_vision_feed_forward_length(self.stated_feed_forward())
        writer.add_vision_block_count(sizes["depth"])
        writer.add_vision_head_count(sizes["num_heads"])
        writer.add_vision_image_mean(list(grid.mean))
        writer.add_vision_image_std(list(grid.std))
        writer.add_clip_projector_type(self.projector)
        self.add_tower(writer)
        return recorder.entries()

    def stated_feed_forward(self) -> int:
        """The width of the feed-forward part that llama.cpp's converter writes; its graph takes the tensors' own."""
        return int(self.vision["intermediate_size"])

    def add_tower(self, writer: gguf.GGUFWriter) -> None:
        """Add what only this version's tower has."""
        writer.add_vision_attention_layernorm_eps(VISION_EPSILON)

    def default_image_grid(self) -> ImageGrid:
        """The rule that all published checkpoints of this family state."""
        factor = self.vision["patch_size"] * self.vision["spatial_merge_size"]
        area = factor * factor
        return ImageGrid(factor, LEAST_TOKENS * area, MOST_IMAGE_TOKENS * area, self.mean, self.std)

    def read_image_grid(self, checkpoint: Checkpoint) -> ImageGrid:
        """The rule of preprocessor_config.json, with processor_config.json over it; old and new pixel keys."""
        rule, reader = self.default_image_grid(), read_processor(checkpoint)
        for key, ours in (("patch_size", "patch_size"), ("merge_size", "spatial_merge_size")):
            require_fit(reader, key, self.vision[ours])
        size = reader.content.get("size")
        area = ConfigReader(size if isinstance(size, dict) else {}, f"{reader.place}: size")
        smallest = reader.integer(
            "min_pixels", area.integer("shortest_edge", rule.min_pixels, maximum=LARGEST_LEAST), maximum=LARGEST_LEAST
        )
        largest = reader.integer(
            "max_pixels", area.integer("longest_edge", rule.max_pixels, maximum=MOST_PIXELS), maximum=MOST_PIXELS
        )
        if largest < smallest:
            raise reader.wrong("max_pixels", largest, f"at least min_pixels, {smallest}")
        mean, std = reader.triple("image_mean"), reader.triple("image_std", positive=True)
        return ImageGrid(rule.factor, smallest, largest, mean, std)
