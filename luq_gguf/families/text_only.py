"""Decoders without vision: the same as those of the vision-language families, in checkpoints of their own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import gguf
import numpy as np
from numpy.typing import NDArray

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.families.base import TensorSource
from luq_gguf.families.decoder import DecoderFamily
from luq_gguf.families.sentencepiece import add_sentencepiece
from luq_gguf.tokenizer_file import is_sentencepiece, text_of_token

if TYPE_CHECKING:
    from luq_gguf.families.decoder_modules import DecoderModules

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Qwen2(DecoderFamily):
    """Qwen2 and Qwen2.5."""

    name: ClassVar[str] = "qwen2"
    architecture: ClassVar[str] = "qwen2"
    arch: ClassVar[gguf.MODEL_ARCH] = gguf.MODEL_ARCH.QWEN2
    biased: ClassVar[tuple[str, ...]] = ("q", "k", "v")
    rope_kinds: ClassVar[tuple[str, ...]] = ("default", "linear", "yarn")
    turn_end = "<|im_end|>"

    def modules(self) -> type[DecoderModules]:
        """This family's parts in torch."""
        from luq_gguf.families.text_only_modules import Qwen2Modules

        return Qwen2Modules


class Qwen3(DecoderFamily):
    """Qwen3 without experts."""

    name: ClassVar[str] = "qwen3"
    architecture: ClassVar[str] = "qwen3"
    arch: ClassVar[gguf.MODEL_ARCH] = gguf.MODEL_ARCH.QWEN3
    text_defaults: ClassVar[dict[str, Any]] = {"head_dim": 128}
    head_norms: ClassVar[bool] = True
    free_heads: ClassVar[bool] = True
    rope_kinds: ClassVar[tuple[str, ...]] = ("default", "linear", "yarn")
    turn_end = "<|im_end|>"

    def modules(self) -> type[DecoderModules]:
        """This family's parts in torch."""
        from luq_gguf.families.text_only_modules import Qwen3Modules

        return Qwen3Modules


class Llama(DecoderFamily):
    """LLaMA 1 to 3 and what has their form; tokenized by SentencePiece (1, 2, Vicuna) or byte-level BPE (3)."""

    name: ClassVar[str] = "llama"
    architecture: ClassVar[str] = "llama"
    arch: ClassVar[gguf.MODEL_ARCH] = gguf.MODEL_ARCH.LLAMA
    free_heads: ClassVar[bool] = True
    rotary_rows: ClassVar[bool] = True
    rope_kinds: ClassVar[tuple[str, ...]] = ("default", "linear", "llama3", "yarn")
    text_defaults: ClassVar[dict[str, Any]] = {"rope_theta": 10000.0}
    turn_end = "</s>"
    pre_tokenizer = "llama-bpe"
    tokenizer_pattern: str | None = LLAMA3_PATTERN

    def __init__(self, config: dict[str, Any], checkpoint: Checkpoint | None = None) -> None:
        super().__init__(config)
        self.turn_end = "</s>"
        if checkpoint is not None:
            self.read_tokenizer_kind(checkpoint)

    def read_tokenizer_kind(self, checkpoint: Checkpoint) -> None:
        """Take from the checkpoint how it splits texts, and what ends a turn."""
        if is_sentencepiece(checkpoint):
            self.tokenizer_pattern = None
        self.turn_end = text_of_token(checkpoint, "eos_token") or self.turn_end

    def with_defaults(self, content: dict[str, Any]) -> dict[str, Any]:
        """Where nothing else is said, every head has its own keys and values."""
        completed = super().with_defaults(content)
        return {"num_key_value_heads": completed.get("num_attention_heads")} | completed

    def made_tensors(self) -> list[TensorSource]:
        """The factors by which LLaMA 3 slows its rotations down."""
        if self.hparams["rope_type"] != "llama3":
            return []
        shape = (self.hparams["head_dim"] // 2,)
        return [TensorSource("rope_freqs.weight", "", shape, make=lambda _: llama3_factors(self.hparams))]

    def add_sizes(self, writer: gguf.GGUFWriter) -> None:
        """Also the number of tokens and of rotated channels."""
        super().add_sizes(writer)
        writer.add_vocab_size(self.hparams["vocab_size"])
        writer.add_rope_dimension_count(self.hparams["head_dim"])

    def add_tokenizer(self, writer: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
        """Add the vocabulary, of either kind."""
        stated = checkpoint.side_json("tokenizer_config.json").get("add_prefix_space")
        if isinstance(stated, bool):
            writer.add_add_space_prefix(stated)
        if self.tokenizer_pattern is None:
            add_sentencepiece(writer, checkpoint, self.hparams["vocab_size"])
        else:
            super().add_tokenizer(writer, checkpoint)

    def modules(self) -> type[DecoderModules]:
        """This family's parts in torch."""
        from luq_gguf.families.text_only_modules import LlamaModules

        return LlamaModules


def llama3_factors(sizes: dict[str, Any]) -> NDArray[np.float32]:
    """What LLaMA 3 divides each rotation's frequency by, float32 (head / 2,): 1 for fast ones, `factor` for slow ones.

    Source: transformers' rope type "llama3". In torch, since llama.cpp's converter rounds as torch does.
    """
    import torch

    factor, low, high, context = (sizes[key] for key in ("rope_factor", "rope_low", "rope_high", "rope_context"))
    exponents = torch.arange(0, sizes["head_dim"], 2, dtype=torch.float32) / sizes["head_dim"]
    waves = 2 * math.pi / (1.0 / (sizes["rope_theta"] ** exponents))
    smooth = (context / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    slow = torch.where(waves > context / low, torch.tensor(float(factor)), between)
    factors: NDArray[np.float32] = torch.where(waves < context / high, torch.tensor(1.0), slow).numpy()
    return factors
