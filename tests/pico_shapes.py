"""Shapes of the parts that several pico families have in common: text decoders and image encoders."""

from __future__ import annotations

from dataclasses import dataclass

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Decoder:
    """Sizes of a text model; every row can be divided into blocks of 256."""

    hidden: int = 256
    ffn: int = 512
    heads: int = 4
    kv_heads: int = 2
    head: int = 64
    vocabulary: int = 512
    qkv_bias: bool = False
    qk_norm: bool = False
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")


def decoder_shapes(size: Decoder, layers: int, prefix: str = "model.", head: str | None = "lm_head.weight") -> Shapes:
    """All tensors of a text model; `head` is None where the embeddings are tied."""
    shapes: Shapes = {f"{prefix}embed_tokens.weight": (size.vocabulary, size.hidden)}
    for layer in range(layers):
        shapes |= {f"{prefix}layers.{layer}.{name}": shape for name, shape in _layer_shapes(size).items()}
    shapes[f"{prefix}norm.weight"] = (size.hidden,)
    return shapes | ({head: (size.vocabulary, size.hidden)} if head else {})


def _layer_shapes(size: Decoder) -> Shapes:
    rows, kv_rows = size.heads * size.head, size.kv_heads * size.head
    shapes: Shapes = {}
    for name, outputs in (("q", rows), ("k", kv_rows), ("v", kv_rows)):
        shapes[f"self_attn.{name}_proj.weight"] = (outputs, size.hidden)
        if size.qkv_bias:
            shapes[f"self_attn.{name}_proj.bias"] = (outputs,)
    shapes["self_attn.o_proj.weight"] = (size.hidden, rows)
    if size.qk_norm:
        shapes |= {"self_attn.q_norm.weight": (size.head,), "self_attn.k_norm.weight": (size.head,)}
    shapes["mlp.gate_proj.weight"] = (size.ffn, size.hidden)
    shapes["mlp.up_proj.weight"] = (size.ffn, size.hidden)
    shapes["mlp.down_proj.weight"] = (size.hidden, size.ffn)
    return shapes | {f"{norm}.weight": (size.hidden,) for norm in size.norms}


def with_bias(linears: Shapes) -> Shapes:
    """The weight of each named linear or layer norm, and its bias."""
    shapes: Shapes = {}
    for name, shape in linears.items():
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]
    return shapes


def encoder_shapes(hidden: int, ffn: int, layers: int) -> Shapes:
    """The layers and the last norm of an image encoder as CLIP and SigLIP name them."""
    linears: Shapes = {}
    for layer in range(layers):
        prefix = f"encoder.layers.{layer}."
        linears[f"{prefix}layer_norm1"] = (hidden,)
        linears |= {
            f"{prefix}self_attn.{name}": (hidden, hidden) for name in ("k_proj", "v_proj", "q_proj", "out_proj")
        }
        linears[f"{prefix}layer_norm2"] = (hidden,)
        linears[f"{prefix}mlp.fc1"] = (ffn, hidden)
        linears[f"{prefix}mlp.fc2"] = (hidden, ffn)
    return with_bias(linears | {"post_layernorm": (hidden,)})
