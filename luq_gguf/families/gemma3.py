"""Gemma 3 with vision: norms around every part, sliding windows in most layers, and images seen in both directions.

Its tower is SigLIP; every image becomes the same number of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import TYPE_CHECKING, Any, ClassVar

import gguf
from gguf import GGMLQuantizationType

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.families.base import ConfigReader, Dtype, ImageGrid, MetadataEntry, TensorSource, plain_type
from luq_gguf.families.clip_tower import (
    PREFIX,
    add_tower,
    block_tensors,
    count_parameters,
    names_of_tower,
    patches_a_side,
    read_tower,
    tower_pairs,
    tower_tensor,
)
from luq_gguf.families.decoder import DecoderFamily
from luq_gguf.families.metadata import MetadataRecorder, add_general
from luq_gguf.families.processor_file import read_processor, require_fit, square_side
from luq_gguf.families.sentencepiece import add_sentencepiece

if TYPE_CHECKING:
    from luq_gguf.families.decoder_modules import DecoderModules

ACTIVATION = "gelu_pytorch_tanh"
WINDOW_EVERY = 6
"""Every sixth layer sees everything; llama.cpp knows no other pattern."""
LOCAL_BASE = 10000.0
"""Base frequency of the layers with a window; llama.cpp knows no other."""
LARGE_LAYERS = 62
"""Of the 27B model, for which llama.cpp scales by the hidden size instead of the head's."""
USUAL_MERGE = 4
HALF = (0.5, 0.5, 0.5)
TOWER_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6,
}  # fmt: skip
"""What transformers takes where a SigLIP tower's config does not say."""


class Gemma3(DecoderFamily):
    """Gemma 3 of 4B, 12B and 27B."""

    name: ClassVar[str] = "gemma-3"
    architecture: ClassVar[str] = "gemma3"
    arch: ClassVar[gguf.MODEL_ARCH] = gguf.MODEL_ARCH.GEMMA3
    text_defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "sliding_window": 4096, "tie_word_embeddings": True,
    }  # fmt: skip
    head_norms: ClassVar[bool] = True
    free_heads: ClassVar[bool] = True
    rope_kinds: ClassVar[tuple[str, ...]] = ("default", "linear")
    tokenizer_pattern = None
    turn_end = "<end_of_turn>"
    image_piece: ClassVar[str] = "<image_soft_token>"
    image_place: ClassVar[str] = "<start_of_image>"

    vision: dict[str, Any]

    def __init__(self, config: dict[str, Any], checkpoint: Checkpoint | None = None) -> None:
        super().__init__(config)
        reader = ConfigReader(config, "config.json")
        tower = reader.section("vision_config")
        self.vision = read_tower(ConfigReader({**TOWER_DEFAULTS, **tower.content}, tower.place))
        if (activation := tower.content.get("hidden_act", ACTIVATION)) != ACTIVATION:
            raise tower.wrong(
                "hidden_act", activation, f"{ACTIVATION}, the one that llama.cpp computes for this family"
            )
        self.image_tokens = reader.integer("mm_tokens_per_image", 256, maximum=1 << 16)
        side = isqrt(self.image_tokens)
        if side**2 != self.image_tokens or patches_a_side(self.vision) % side:
            raise reader.wrong(
                "mm_tokens_per_image", self.image_tokens, "the square of a divisor of the patches a side"
            )
        self.merge = patches_a_side(self.vision) // side
        self.image_grid = self.read_image_grid(checkpoint) if checkpoint else self._square(HALF, HALF)

    def image_prompt(self, tokens: int) -> str:
        """An image between its marks and empty lines, as the model was trained; llama.cpp adds only the marks."""
        return f"\n\n<start_of_image>{self.image_piece * tokens}<end_of_image>\n\n"

    def check_activation(self, reader: ConfigReader) -> None:
        """Raise CheckpointError unless the text model is what llama.cpp computes, which is one fixed form."""
        fixed: dict[str, Any] = {
            "hidden_activation": ACTIVATION, "attn_logit_softcapping": None, "final_logit_softcapping": None,
            "rope_local_base_freq": LOCAL_BASE, "sliding_window_pattern": WINDOW_EVERY,
            "use_bidirectional_attention": False, "attention_bias": False,
        }  # fmt: skip
        for key, wanted in fixed.items():
            if (stated := reader.content.get(key, wanted)) != wanted:
                raise reader.wrong(key, stated, f"{wanted}, as llama.cpp computes it")
        reader.integer("sliding_window", maximum=1 << 31)
        layers, heads = reader.integer("num_hidden_layers"), reader.integer("num_attention_heads")
        scale = reader.integer("hidden_size") // heads if layers == LARGE_LAYERS else reader.integer("head_dim")
        if (stated := reader.integer("query_pre_attn_scalar", 256)) != scale:
            raise reader.wrong("query_pre_attn_scalar", stated, f"{scale}, as llama.cpp computes it")

    def read_rope(self, reader: ConfigReader, sizes: dict[str, Any]) -> dict[str, Any]:
        """The global layers' rotation; transformers 5 states it for both kinds of layers."""
        stated = reader.content.get("rope_parameters")
        whole = stated.get("full_attention") if isinstance(stated, dict) else None
        if isinstance(whole, dict):
            reader = ConfigReader({**reader.content, "rope_parameters": whole}, reader.place)
        return super().read_rope(reader, sizes) | {"sliding_window": reader.integer("sliding_window")}

    def layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """A norm before and after each of the two parts."""
        hidden = (self.hidden_size,)
        more = {"pre_feedforward_layernorm.weight": hidden, "post_feedforward_layernorm.weight": hidden}
        return super().layer_shapes() | more

    def text_tensor(self, source: str, shape: tuple[int, ...]) -> TensorSource:
        """Norms are stored as what is added to one."""
        found = super().text_tensor(source, shape)
        return TensorSource(found.name, source, shape, "plus:1") if source.endswith("norm.weight") else found

    def add_sizes(self, writer: gguf.GGUFWriter) -> None:
        """Also the window and the rotation of the layers that have one."""
        super().add_sizes(writer)
        writer.add_sliding_window(self.hparams["sliding_window"])
        writer.add_rope_freq_base_swa(LOCAL_BASE)

    def add_tokenizer(self, writer: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
        """Add the vocabulary; no space is put before a text."""
        add_sentencepiece(writer, checkpoint, self.hparams["vocab_size"])
        writer.add_add_space_prefix(False)

    def _square(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> ImageGrid:
        """Images are stretched to squares, as transformers does."""
        side = self.vision["image_size"]
        return ImageGrid(self.vision["patch_size"] * self.merge, side * side, side * side, mean, std, side)

    def read_image_grid(self, checkpoint: Checkpoint) -> ImageGrid:
        """The rule of the processor's files."""
        reader = read_processor(checkpoint)
        square_side(reader, "size", self.vision["image_size"])
        require_fit(reader, "image_seq_length", self.image_tokens)
        return self._square(reader.triple("image_mean"), reader.triple("image_std", positive=True))

    def vision_tensors(self) -> list[TensorSource]:
        """All tensors of the mmproj."""
        sizes = self.vision
        hidden, patch = sizes["hidden_size"], sizes["patch_size"]
        embeddings, rows = f"{PREFIX}embeddings.", patches_a_side(sizes) ** 2
        projector = "multi_modal_projector.mm_"
        return [
            *tower_pairs(sizes, f"{embeddings}patch_embedding", (hidden, sizes["in_channels"], patch, patch)),
            tower_tensor(sizes, f"{embeddings}position_embedding.weight", (rows, hidden)),
            *block_tensors(sizes),
            *tower_pairs(sizes, f"{PREFIX}post_layernorm", (hidden,)),
            TensorSource(
                "mm.input_projection.weight", f"{projector}input_projection_weight", (hidden, self.hidden_size)
            ),
            TensorSource("mm.soft_emb_norm.weight", f"{projector}soft_emb_norm.weight", (hidden,), "plus:1"),
        ]

    def vision_type(self, tensor: TensorSource, dtype: Dtype) -> GGMLQuantizationType:
        """F32 for vectors and embeddings; the projection is always F16."""
        if len(tensor.shape) == 1 or tensor.name in ("v.position_embd.weight", "v.patch_embd.weight"):
            return GGMLQuantizationType.F32
        return GGMLQuantizationType.F16 if tensor.name.startswith("mm.") else plain_type(dtype)

    def names_in_files(self, source: str) -> Sequence[str]:
        """As those of the decoder; the tower's and projector's also under `model`."""
        if source.startswith(("vision_tower.", "multi_modal_projector.")):
            return names_of_tower(source)
        return super().names_in_files(source)

    def vision_metadata(self, checkpoint: Checkpoint, *, dtype: Dtype) -> list[MetadataEntry]:
        """Metadata of the mmproj as llama.cpp's converter writes it."""
        recorder = MetadataRecorder(gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.MMPROJ])
        writer = recorder.writer
        add_general(writer, checkpoint, gguf.GGUFType.MMPROJ, count_parameters(self.vision_tensors()), dtype)
        add_tower(writer, self.vision, self.read_image_grid(checkpoint), self.hidden_size)
        writer.add_clip_projector_type(gguf.VisionProjectorType.GEMMA3)
        writer.add_vision_use_gelu(True)
        if self.merge != USUAL_MERGE:
            writer.add_vision_projector_scale_factor(self.merge)
        return recorder.entries()

    def modules(self) -> type[DecoderModules]:
        """This family's parts in torch."""
        from luq_gguf.families.gemma3_modules import Modules

        return Modules
