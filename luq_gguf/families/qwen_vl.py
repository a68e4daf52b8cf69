"""Qwen2.5-VL: names, shapes, metadata and image rule of its checkpoints, in both forms of config.json.

The hub's checkpoints have a flat config; transformers 5 writes a nested `text_config` with
`rope_parameters`. Both are brought to one form here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import gguf
from gguf import GGMLQuantizationType

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import UnsupportedModelError
from luq_gguf.families.base import ConfigReader, Dtype, Family, ImageGrid, MetadataEntry, TensorSource, plain_type
from luq_gguf.families.metadata import MetadataRecorder, add_byte_level_bpe, add_general

if TYPE_CHECKING:
    from types import ModuleType

PRE_TOKENIZER = "qwen2"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
IMAGE_SIZE = 560
VISION_EPSILON = 1e-6
FULL_ATTENTION = [7, 15, 23, 31]
MIN_PIXELS = 4 * 28 * 28
MAX_PIXELS = 16384 * 28 * 28
MOST_PIXELS = 1 << 40
LARGEST_LEAST = 1 << 24
"""Every image is enlarged to `min_pixels`."""
MOST_FACTOR = 128
MOST_LAYERS = 512
"""llama.cpp's own limit; beyond it the process is aborted."""
MOST_CHANNELS = 1 << 18
MOST_TOKENS = 1 << 20
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


class Qwen25VL(Family):
    """Qwen2.5-VL of any size."""

    name: ClassVar[str] = "qwen2.5-vl"
    architecture: ClassVar[str] = "qwen2vl"
    tokenizer_pattern: ClassVar[str] = PATTERN

    vision: dict[str, Any]

    def __init__(self, config: dict[str, Any], checkpoint: Checkpoint | None = None) -> None:
        self.hparams = _text_parameters(config)
        self.vision = _vision_parameters(config, self.hparams["hidden_size"])
        self.image_grid = self.read_image_grid(checkpoint) if checkpoint else self.default_image_grid()
        self.layers = self.hparams["num_hidden_layers"]
        self.hidden_size = self.hparams["hidden_size"]
        self.tied_embeddings = self.hparams["tie_word_embeddings"]

    def text_tensors(self) -> list[TensorSource]:
        """All tensors of the text GGUF: those outside of the layers first, each group by name."""
        sizes = self.hparams
        hidden, ffn, heads = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_attention_heads"]
        kv = sizes["num_key_value_heads"] * (hidden // heads)
        table = (sizes["vocab_size"], hidden)
        sources = [self._text("model.norm.weight", (hidden,)), self._text("model.embed_tokens.weight", table)]
        if not self.tied_embeddings:
            sources.append(self._text("lm_head.weight", table))
        shapes = {
            "self_attn.q_proj.weight": (hidden, hidden),
            "self_attn.q_proj.bias": (hidden,),
            "self_attn.k_proj.weight": (kv, hidden),
            "self_attn.k_proj.bias": (kv,),
            "self_attn.v_proj.weight": (kv, hidden),
            "self_attn.v_proj.bias": (kv,),
            "self_attn.o_proj.weight": (hidden, hidden),
            "mlp.gate_proj.weight": (ffn, hidden),
            "mlp.up_proj.weight": (ffn, hidden),
            "mlp.down_proj.weight": (hidden, ffn),
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        ordered = sorted(sources, key=lambda tensor: tensor.name)
        for layer in range(self.layers):
            block = [self._text(f"model.layers.{layer}.{name}", shape) for name, shape in shapes.items()]
            ordered += sorted(block, key=lambda tensor: tensor.name)
        return ordered

    def vision_tensors(self) -> list[TensorSource]:
        """All tensors of the mmproj; fused q/k/v and the two frames of the patch convolution are split."""
        sizes = self.vision
        hidden, ffn, patch = sizes["hidden_size"], sizes["intermediate_size"], sizes["patch_size"]
        kernel = (hidden, sizes["in_channels"], patch, patch)
        source = "visual.patch_embed.proj.weight"
        tensors = [
            TensorSource("v.patch_embd.weight", source, kernel, "frame:0"),
            TensorSource("v.patch_embd.weight.1", source, kernel, "frame:1"),
        ]
        linears = {
            "attn.proj": (hidden, hidden),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }
        for block in range(sizes["depth"]):
            prefix = f"visual.blocks.{block}."
            tensors += [self._vision(f"{prefix}{norm}.weight", (hidden,)) for norm in ("norm1", "norm2")]
            for kind, shape in (("weight", (hidden, hidden)), ("bias", (hidden,))):
                for third, part in enumerate("qkv"):
                    name = self._vision(f"{prefix}attn.{part}.{kind}", shape).name
                    tensors.append(TensorSource(name, f"{prefix}attn.qkv.{kind}", shape, f"third:{third}"))
            for linear, shape in linears.items():
                tensors.append(self._vision(f"{prefix}{linear}.weight", shape))
                tensors.append(self._vision(f"{prefix}{linear}.bias", shape[:1]))
        merged = hidden * sizes["spatial_merge_size"] ** 2
        tensors.append(self._vision("visual.merger.ln_q.weight", (hidden,)))
        for number, rows in ((0, merged), (2, self.hidden_size)):
            tensors.append(self._vision(f"visual.merger.mlp.{number}.weight", (rows, merged)))
            tensors.append(self._vision(f"visual.merger.mlp.{number}.bias", (rows,)))
        return tensors

    def vision_type(self, tensor: TensorSource, dtype: Dtype) -> GGMLQuantizationType:
        """F32 for vectors; the patch convolution is F16 in an F16 file and F32 in any other."""
        if len(tensor.shape) == 1 or (tensor.name.startswith("v.patch_embd.weight") and dtype != "f16"):
            return GGMLQuantizationType.F32
        return plain_type(dtype)

    def names_in_files(self, source: str) -> Sequence[str]:
        """Hub form, then the names of the modules of transformers 5, then language_model.model.* of others."""
        if source.startswith("visual."):
            return (source, f"model.{source}")
        if source.startswith("model."):
            inner = source.removeprefix("model.")
            return (source, f"model.language_model.{inner}", f"language_model.model.{inner}")
        return (source, f"language_model.{source}", f"model.{source}")

    def text_metadata(self, checkpoint: Checkpoint, *, dtype: Dtype, tokenizer: bool = True) -> list[MetadataEntry]:
        """Metadata of the text GGUF as llama.cpp's converter writes it."""
        recorder = MetadataRecorder(self.architecture)
        writer, sizes = recorder.writer, self.hparams
        parameters = sum(prod(tensor.shape) for tensor in self.text_tensors())
        add_general(writer, checkpoint, gguf.GGUFType.MODEL, parameters, dtype)
        writer.add_block_count(self.layers)
        writer.add_context_length(sizes["max_position_embeddings"])
        writer.add_embedding_length(self.hidden_size)
        writer.add_feed_forward_length(sizes["intermediate_size"])
        writer.add_head_count(sizes["num_attention_heads"])
        writer.add_head_count_kv(sizes["num_key_value_heads"])
        writer.add_rope_dimension_sections([*sizes["mrope_section"], 0])
        writer.add_rope_freq_base(sizes["rope_theta"])
        writer.add_layer_norm_rms_eps(sizes["rms_norm_eps"])
        if tokenizer:
            add_byte_level_bpe(writer, checkpoint, sizes["vocab_size"], pre=PRE_TOKENIZER, pattern=PATTERN)
        return recorder.entries()

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
        writer.add_vision_feed_forward_length(sizes["intermediate_size"])
        writer.add_vision_block_count(sizes["depth"])
        writer.add_vision_head_count(sizes["num_heads"])
        writer.add_vision_image_mean(list(grid.mean))
        writer.add_vision_image_std(list(grid.std))
        writer.add_clip_projector_type(gguf.VisionProjectorType.QWEN25VL)
        writer.add_vision_use_silu(True)
        writer.add_vision_n_wa_pattern(sizes["fullatt_block_indexes"][0] + 1)
        writer.add_vision_attention_layernorm_eps(VISION_EPSILON)
        return recorder.entries()

    def default_image_grid(self) -> ImageGrid:
        """The rule that all published checkpoints of this family state."""
        factor = self.vision["patch_size"] * self.vision["spatial_merge_size"]
        return ImageGrid(factor, MIN_PIXELS, MAX_PIXELS, IMAGE_MEAN, IMAGE_STD)

    def read_image_grid(self, checkpoint: Checkpoint) -> ImageGrid:
        """The rule of preprocessor_config.json, with processor_config.json over it; old and new pixel keys."""
        content: dict[str, Any] = {}
        for file in ("preprocessor_config.json", "processor_config.json"):
            found = checkpoint.side_json(file)
            nested = found.get("image_processor")
            content |= found | (nested if isinstance(nested, dict) else {})
        reader = ConfigReader(content, f"preprocessor_config.json of {checkpoint.folder}")
        size = content.get("size")
        area = ConfigReader(size if isinstance(size, dict) else {}, f"{reader.place}: size")
        smallest = reader.integer(
            "min_pixels", area.integer("shortest_edge", MIN_PIXELS, maximum=LARGEST_LEAST), maximum=LARGEST_LEAST
        )
        largest = reader.integer(
            "max_pixels", area.integer("longest_edge", MAX_PIXELS, maximum=MOST_PIXELS), maximum=MOST_PIXELS
        )
        if largest < smallest:
            raise reader.wrong("max_pixels", largest, f"at least min_pixels, {smallest}")
        factor = self.vision["patch_size"] * self.vision["spatial_merge_size"]
        mean, std = reader.triple("image_mean"), reader.triple("image_std", positive=True)
        return ImageGrid(factor, smallest, largest, mean, std)

    def modules(self) -> ModuleType:
        """This family's torch code."""
        return import_module("luq_gguf.families.qwen_vl_modules")

    def _text(self, source: str, shape: tuple[int, ...]) -> TensorSource:
        return TensorSource(_gguf_name(gguf.MODEL_ARCH.QWEN2VL, self.layers, source), source, shape)

    def _vision(self, source: str, shape: tuple[int, ...]) -> TensorSource:
        blocks = max(self.vision["depth"], 3)
        return TensorSource(_gguf_name(gguf.MODEL_ARCH.MMPROJ, blocks, source), source, shape)


@cache
def _name_map(architecture: gguf.MODEL_ARCH, blocks: int) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(architecture, blocks)


def _gguf_name(architecture: gguf.MODEL_ARCH, blocks: int, source: str) -> str:
    """The GGUF name from gguf's own tables, which know `mm.N` only up to the number of blocks."""
    found = _name_map(architecture, blocks).get_name(source, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise UnsupportedModelError(f"gguf has no name for tensor {source}", hint="install gguf 0.19")
    return str(found)


def _text_parameters(config: dict[str, Any]) -> dict[str, Any]:
    reader = ConfigReader(config, "config.json")
    if config.get("text_config") is not None:
        reader = ConfigReader({**config, **reader.section("text_config").content}, "config.json: text_config")
    sizes: dict[str, Any] = {
        "num_hidden_layers": reader.integer("num_hidden_layers", maximum=MOST_LAYERS),
        "hidden_size": reader.integer("hidden_size", maximum=MOST_CHANNELS),
        "intermediate_size": reader.integer("intermediate_size", maximum=MOST_CHANNELS),
        "num_attention_heads": reader.integer("num_attention_heads", maximum=MOST_CHANNELS),
        "num_key_value_heads": reader.integer("num_key_value_heads", maximum=MOST_CHANNELS),
        "vocab_size": reader.integer("vocab_size", maximum=MOST_TOKENS),
        "max_position_embeddings": reader.integer("max_position_embeddings", maximum=1 << 31),
        "rms_norm_eps": reader.number("rms_norm_eps", maximum=1.0),
        "hidden_act": "silu",
    }
    _check_heads(reader, sizes)
    return sizes | _rope_parameters(reader, sizes) | {"tie_word_embeddings": _tied(config)}


def _check_heads(reader: ConfigReader, sizes: dict[str, Any]) -> None:
    hidden, heads, kv_heads = sizes["hidden_size"], sizes["num_attention_heads"], sizes["num_key_value_heads"]
    if hidden % heads:
        raise reader.wrong("num_attention_heads", heads, f"a divisor of hidden_size {hidden}")
    if heads % kv_heads:
        raise reader.wrong("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads {heads}")
    if (activation := reader.content.get("hidden_act", "silu")) != "silu":
        raise reader.wrong("hidden_act", activation, "silu, the one that llama.cpp computes for this family")
    if reader.content.get("head_dim") not in (None, hidden // heads):
        raise reader.wrong(
            "head_dim", reader.content["head_dim"], f"hidden_size / num_attention_heads, {hidden // heads}"
        )


def _rope_parameters(reader: ConfigReader, sizes: dict[str, Any]) -> dict[str, Any]:
    """M-RoPE sections and base frequency: `rope_parameters` (transformers 5) or `rope_scaling` + `rope_theta`."""
    key = "rope_parameters" if reader.content.get("rope_parameters") is not None else "rope_scaling"
    rope = reader.section(key)
    kind = rope.content.get("rope_type") or rope.content.get("type", "default")
    if kind not in ("default", "mrope"):
        raise rope.wrong("type", kind, "mrope or default")
    sections = rope.integers("mrope_section")
    half = sizes["hidden_size"] // sizes["num_attention_heads"] // 2
    if len(sections) != 3 or sum(sections) != half:
        raise rope.wrong("mrope_section", sections, f"three numbers with the sum {half}, half a head")
    theta = rope if rope.content.get("rope_theta") is not None else reader
    return {"mrope_section": sections, "rope_theta": theta.number("rope_theta")}


def _tied(config: dict[str, Any]) -> bool:
    """Whether the output uses the embedding's matrix; the outer config decides where both state it."""
    nested = config.get("text_config")
    inner = nested.get("tie_word_embeddings", False) if isinstance(nested, dict) else False
    value = config.get("tie_word_embeddings", inner)
    if not isinstance(value, bool):
        raise ConfigReader(config, "config.json").wrong("tie_word_embeddings", value, "true or false")
    return value


def _vision_parameters(config: dict[str, Any], text_hidden: int) -> dict[str, Any]:
    reader = ConfigReader(config, "config.json").section("vision_config")
    channels = "in_chans" if reader.content.get("in_chans") is not None else "in_channels"
    sizes: dict[str, Any] = {
        "depth": reader.integer("depth", maximum=MOST_LAYERS),
        "hidden_size": reader.integer("hidden_size", maximum=MOST_CHANNELS),
        "intermediate_size": reader.integer("intermediate_size", maximum=MOST_CHANNELS),
        "num_heads": reader.integer("num_heads"),
        "in_channels": reader.integer(channels, 3, maximum=16),
        "patch_size": reader.integer("patch_size", 14, maximum=MOST_FACTOR),
        "spatial_merge_size": reader.integer("spatial_merge_size", 2, maximum=16),
        "temporal_patch_size": reader.integer("temporal_patch_size", 2, maximum=64),
        "window_size": reader.integer("window_size", 112),
        "image_size": reader.integer("image_size", IMAGE_SIZE),
        "fullatt_block_indexes": reader.integers("fullatt_block_indexes", FULL_ATTENTION, maximum=1000),
    }
    if (factor := sizes["patch_size"] * sizes["spatial_merge_size"]) > MOST_FACTOR:
        raise reader.wrong("patch_size", sizes["patch_size"], f"at most {MOST_FACTOR} with the merge size ({factor})")
    if sizes["temporal_patch_size"] != 2:
        raise reader.wrong("temporal_patch_size", sizes["temporal_patch_size"], "2, as llama.cpp needs it")
    if sizes["hidden_size"] % sizes["num_heads"]:
        raise reader.wrong("num_heads", sizes["num_heads"], f"a divisor of hidden_size {sizes['hidden_size']}")
    output = reader.integer("out_hidden_size", text_hidden)
    if output != text_hidden:
        raise reader.wrong("out_hidden_size", output, f"the text model's hidden_size, {text_hidden}")
    blocks = sizes["fullatt_block_indexes"]
    step = blocks[0] + 1
    if blocks != [step * (rank + 1) - 1 for rank in range(len(blocks))]:
        raise reader.wrong("fullatt_block_indexes", blocks, "evenly spaced, as llama.cpp needs it")
    return sizes
