"""The text side that all families share: a LLaMA-like decoder, its tensors and its metadata.

What differs from one decoder to the next is a handful of class attributes; a family with a vision tower adds the
tower to a class of this module. Both forms of config.json are read: flat, or with a nested `text_config`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import prod
from typing import Any, ClassVar

import gguf
from gguf import GGMLQuantizationType

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import UnsupportedModelError
from luq_gguf.families.base import ConfigReader, Dtype, Family, ImageGrid, MetadataEntry, TensorSource
from luq_gguf.families.metadata import MetadataRecorder, add_byte_level_bpe, add_general

MOST_LAYERS = 512
"""llama.cpp's own limit; beyond it the process is aborted."""
MOST_CHANNELS = 1 << 18
MOST_TOKENS = 1 << 20
MOST_CONTEXT = 1 << 31
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NO_IMAGES = ImageGrid(1, 1, 1, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class DecoderFamily(Family):
    """A decoder without vision; `vision` is None."""

    arch: ClassVar[gguf.MODEL_ARCH]
    pre_tokenizer: str = "qwen2"
    """llama.cpp's name for how `tokenizer_pattern` splits."""
    tokenizer_pattern: str | None = QWEN_PATTERN
    text_defaults: ClassVar[Mapping[str, Any]] = {}
    """What transformers takes where config.json does not say."""
    biased: ClassVar[tuple[str, ...]] = ()
    """The projections with a bias: of q, k, v."""
    head_norms: ClassVar[bool] = False
    """Whether queries and keys are normed, head by head."""
    free_heads: ClassVar[bool] = False
    """Whether a head's size is a number of its own, not hidden_size / num_attention_heads."""
    rotary_rows: ClassVar[bool] = False
    """Whether llama.cpp wants the rows of q and k in the order of the original LLaMA."""
    rope_kinds: ClassVar[tuple[str, ...]] = ("default",)

    vision: dict[str, Any] | None = None
    image_grid: ImageGrid = NO_IMAGES

    def __init__(self, config: dict[str, Any], checkpoint: Checkpoint | None = None) -> None:
        self.hparams = self.read_text_sizes(config)
        self.layers: int = self.hparams["num_hidden_layers"]
        self.hidden_size: int = self.hparams["hidden_size"]
        self.tied_embeddings: bool = self.hparams["tie_word_embeddings"]

    def read_text_sizes(self, config: dict[str, Any]) -> dict[str, Any]:
        """The text model's sizes, checked; raises CheckpointError with the key that cannot be."""
        reader = ConfigReader(self.with_defaults(config), "config.json")
        if config.get("text_config") is not None:
            nested = config | reader.section("text_config").content
            reader = ConfigReader(self.with_defaults(nested), "config.json: text_config")
        sizes: dict[str, Any] = {
            "num_hidden_layers": reader.integer("num_hidden_layers", maximum=MOST_LAYERS),
            "hidden_size": reader.integer("hidden_size", maximum=MOST_CHANNELS),
            "intermediate_size": reader.integer("intermediate_size", maximum=MOST_CHANNELS),
            "num_attention_heads": reader.integer("num_attention_heads", maximum=MOST_CHANNELS),
            "num_key_value_heads": reader.integer("num_key_value_heads", maximum=MOST_CHANNELS),
            "vocab_size": reader.integer("vocab_size", maximum=MOST_TOKENS),
            "max_position_embeddings": reader.integer("max_position_embeddings", maximum=MOST_CONTEXT),
            "rms_norm_eps": reader.number("rms_norm_eps", maximum=1.0),
        }
        sizes["head_dim"] = self._head_size(reader, sizes)
        self.check_activation(reader)
        return sizes | self.read_rope(reader, sizes) | {"tie_word_embeddings": self._tied(config)}

    def with_defaults(self, content: dict[str, Any]) -> dict[str, Any]:
        """The config with what transformers takes where it does not say."""
        return {**self.text_defaults, **{key: value for key, value in content.items() if value is not None}}

    def check_activation(self, reader: ConfigReader) -> None:
        """Raise CheckpointError unless the feed-forward part is what llama.cpp computes."""
        if (activation := reader.content.get("hidden_act", "silu")) != "silu":
            raise reader.wrong("hidden_act", activation, "silu, the one that llama.cpp computes for this family")

    def _head_size(self, reader: ConfigReader, sizes: dict[str, Any]) -> int:
        hidden, heads, kv_heads = sizes["hidden_size"], sizes["num_attention_heads"], sizes["num_key_value_heads"]
        stated = self.free_heads and reader.content.get("head_dim") is not None
        if not stated and hidden % heads:
            raise reader.wrong("num_attention_heads", heads, f"a divisor of hidden_size {hidden}")
        if heads % kv_heads:
            raise reader.wrong("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads {heads}")
        if stated:
            size = reader.integer("head_dim", maximum=1 << 12)
            if size % 2:
                raise reader.wrong("head_dim", size, "an even number")
            return size
        if (found := reader.content.get("head_dim")) not in (None, hidden // heads):
            raise reader.wrong("head_dim", found, f"hidden_size / num_attention_heads, {hidden // heads}")
        return int(hidden // heads)

    def read_rope(self, reader: ConfigReader, sizes: dict[str, Any]) -> dict[str, Any]:
        """Rotary positions: `rope_parameters` (transformers 5) or `rope_scaling` + `rope_theta`."""
        key = "rope_parameters" if reader.content.get("rope_parameters") is not None else "rope_scaling"
        rope = reader.section(key) if reader.content.get(key) is not None else ConfigReader({}, reader.place)
        kind = rope.content.get("rope_type") or rope.content.get("type", "default")
        if kind not in self.rope_kinds:
            raise rope.wrong("rope_type", kind, f"one that this version handles: {', '.join(self.rope_kinds)}")
        theta = rope if rope.content.get("rope_theta") is not None else reader
        found = {"rope_theta": theta.number("rope_theta"), "rope_type": kind}
        return found | _scaling(rope, kind)

    def _tied(self, config: dict[str, Any]) -> bool:
        """Whether the output uses the embedding's matrix; the outer config decides where both state it."""
        nested = config.get("text_config")
        default = self.text_defaults.get("tie_word_embeddings", False)
        inner = nested.get("tie_word_embeddings", default) if isinstance(nested, dict) else default
        value = config.get("tie_word_embeddings", inner)
        if not isinstance(value, bool):
            raise ConfigReader(config, "config.json").wrong("tie_word_embeddings", value, "true or false")
        return value

    def text_tensors(self) -> list[TensorSource]:
        """All tensors of the text GGUF: those outside of the layers first, each group by name."""
        table = (self.hparams["vocab_size"], self.hidden_size)
        outside = [self.text_tensor("model.norm.weight", (self.hidden_size,))]
        outside.append(self.text_tensor("model.embed_tokens.weight", table))
        if not self.tied_embeddings:
            outside.append(self.text_tensor("lm_head.weight", table))
        ordered = sorted(outside + self.made_tensors(), key=lambda tensor: tensor.name)
        shapes = self.layer_shapes()
        for layer in range(self.layers):
            block = [self.text_tensor(f"model.layers.{layer}.{name}", shape) for name, shape in shapes.items()]
            ordered += sorted(block, key=lambda tensor: tensor.name)
        return ordered

    def made_tensors(self) -> list[TensorSource]:
        """Tensors that come from the config, not from the checkpoint."""
        return []

    def layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of a layer's tensors, by their names in transformers' decoder layer."""
        sizes = self.hparams
        hidden, ffn, head = self.hidden_size, sizes["intermediate_size"], sizes["head_dim"]
        rows = {"q": sizes["num_attention_heads"] * head} | dict.fromkeys("kv", sizes["num_key_value_heads"] * head)
        shapes: dict[str, tuple[int, ...]] = {}
        for name, count in rows.items():
            shapes[f"self_attn.{name}_proj.weight"] = (count, hidden)
            if name in self.biased:
                shapes[f"self_attn.{name}_proj.bias"] = (count,)
        if self.head_norms:
            shapes |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
        return shapes | {
            "self_attn.o_proj.weight": (hidden, rows["q"]),
            "mlp.gate_proj.weight": (ffn, hidden),
            "mlp.up_proj.weight": (ffn, hidden),
            "mlp.down_proj.weight": (hidden, ffn),
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }

    def text_tensor(self, source: str, shape: tuple[int, ...]) -> TensorSource:
        """The GGUF tensor that is made of `source`."""
        transform = ""
        if self.rotary_rows and (".q_proj." in source or ".k_proj." in source):
            heads = "num_attention_heads" if ".q_proj." in source else "num_key_value_heads"
            transform = f"rotary:{self.hparams[heads]}"
        return TensorSource(gguf_name(self.arch, self.layers, source), source, shape, transform)

    def vision_tensors(self) -> list[TensorSource]:
        """None: this model takes no images."""
        return []

    def vision_type(self, tensor: TensorSource, dtype: Dtype) -> GGMLQuantizationType:
        """Never asked of a model that takes no images."""
        raise UnsupportedModelError(f"{self.name} takes no images: it has no tensor {tensor.name}")

    def vision_metadata(self, checkpoint: Checkpoint, *, dtype: Dtype) -> list[MetadataEntry]:
        """Never asked of a model that takes no images."""
        raise UnsupportedModelError(f"{checkpoint.folder} takes no images: it has no mmproj")

    def names_in_files(self, source: str) -> Sequence[str]:
        """Hub form, then the names of the modules of transformers 5, then language_model.model.* of others."""
        if source.startswith("model."):
            inner = source.removeprefix("model.")
            return (source, f"model.language_model.{inner}", f"language_model.model.{inner}")
        return (source, f"language_model.{source}", f"model.{source}")

    def text_metadata(self, checkpoint: Checkpoint, *, dtype: Dtype, tokenizer: bool = True) -> list[MetadataEntry]:
        """Metadata of the text GGUF as llama.cpp's converter writes it."""
        recorder = MetadataRecorder(self.architecture)
        writer = recorder.writer
        parameters = sum(prod(tensor.shape) for tensor in self.text_tensors())
        add_general(writer, checkpoint, gguf.GGUFType.MODEL, parameters, dtype)
        self.add_sizes(writer)
        if tokenizer:
            self.add_tokenizer(writer, checkpoint)
        return recorder.entries()

    def add_sizes(self, writer: gguf.GGUFWriter) -> None:
        """Add the keys of the architecture."""
        sizes = self.hparams
        writer.add_block_count(self.layers)
        writer.add_context_length(sizes["max_position_embeddings"])
        writer.add_embedding_length(self.hidden_size)
        writer.add_feed_forward_length(sizes["intermediate_size"])
        writer.add_head_count(sizes["num_attention_heads"])
        writer.add_head_count_kv(sizes["num_key_value_heads"])
        if self.free_heads:
            writer.add_key_length(sizes["head_dim"])
            writer.add_value_length(sizes["head_dim"])
        writer.add_layer_norm_rms_eps(sizes["rms_norm_eps"])
        self.add_rope(writer)

    def add_rope(self, writer: gguf.GGUFWriter) -> None:
        """Add the keys of the rotary positions; of kind llama3 they are tensors instead."""
        sizes = self.hparams
        writer.add_rope_freq_base(sizes["rope_theta"])
        if "mrope_section" in sizes:
            writer.add_rope_dimension_sections([*sizes["mrope_section"], 0])
        if sizes["rope_type"] in ("linear", "yarn"):
            writer.add_rope_scaling_type(gguf.RopeScalingType(sizes["rope_type"]))
            writer.add_rope_scaling_factor(sizes["rope_factor"])
        if sizes["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(sizes["rope_context"])

    def read_tokenizer_kind(self, checkpoint: Checkpoint) -> None:
        """Take from the checkpoint's tokenizer what differs within the family: here nothing does."""

    def add_tokenizer(self, writer: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
        """Add the vocabulary with its special tokens and the chat template."""
        assert self.tokenizer_pattern is not None
        add_byte_level_bpe(
            writer, checkpoint, self.hparams["vocab_size"], pre=self.pre_tokenizer, pattern=self.tokenizer_pattern
        )


def read_mrope_sections(reader: ConfigReader, head_size: int) -> list[int]:
    """How many pairs of a head turn with time, height and width; raises CheckpointError."""
    key = "rope_parameters" if reader.content.get("rope_parameters") is not None else "rope_scaling"
    rope = reader.section(key)
    sections = rope.integers("mrope_section")
    if len(sections) != 3 or sum(sections) != head_size // 2:
        raise rope.wrong("mrope_section", sections, f"three numbers with the sum {head_size // 2}, half a head")
    return sections


def _scaling(rope: ConfigReader, kind: str) -> dict[str, Any]:
    """What the kinds that stretch the positions need."""
    if kind not in ("linear", "llama3", "yarn"):
        return {}
    found: dict[str, Any] = {"rope_factor": rope.number("factor", maximum=1e6)}
    if kind != "linear":
        found["rope_context"] = rope.integer("original_max_position_embeddings", maximum=MOST_CONTEXT)
    if kind == "llama3":
        low, high = rope.number("low_freq_factor", maximum=1e6), rope.number("high_freq_factor", maximum=1e6)
        if low >= high:
            raise rope.wrong("high_freq_factor", high, f"more than low_freq_factor, {low:g}")
        found |= {"rope_low": low, "rope_high": high}
    return found


@cache
def _name_map(architecture: gguf.MODEL_ARCH, blocks: int) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(architecture, blocks)


def gguf_name(architecture: gguf.MODEL_ARCH, blocks: int, source: str) -> str:
    """The GGUF name from gguf's own tables, which know `mm.N` only up to the number of blocks."""
    found = _name_map(architecture, blocks).get_name(source, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise UnsupportedModelError(f"gguf has no name for tensor {source}", hint="install gguf 0.19")
    return str(found)
