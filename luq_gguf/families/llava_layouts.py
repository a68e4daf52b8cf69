"""Three ways to lay LLaVA-1.5's vision tower out as an mmproj.

llama.cpp's graph for CLIP towers (projector "mlp"; since May 2025) appends the class embedding behind the patches, adds
row i of the position embedding to token i, runs all layers of the file but the last, and projects tokens 1, 2, ... In
the checkpoint the class token is token 0. With P patches that graph therefore computes

    standard   what the checkpoint means only where the class token comes first again: as it is, every patch gets its
               neighbour's position, patch 0 is lost, and the class token is taken for a patch;
    no-class   the patches in order, but no token attends to the class token;
    exact      every state and the patches in order: the tower is widened by some channels, in which a layer in front
               moves every token on by one, the class token to the front.

Takes sizes, gives the tensors with what they are computed from, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luq_gguf.families.base import ReadTensor, TensorSource
from luq_gguf.families.clip_tower import PREFIX, patches_a_side

Array = NDArray[np.float32]
Make = Callable[[ReadTensor], Array]

EXACT, NO_CLASS, STANDARD = "exact", "no-class", "standard"
LAYOUTS = (EXACT, NO_CLASS, STANDARD)
"""The default first."""
CLASS, PATCH, POSITION = "v.class_embd", "v.patch_embd.weight", "v.position_embd.weight"
PATCH_SOURCE, POSITION_SOURCE = (
    f"{PREFIX}embeddings.patch_embedding.weight",
    f"{PREFIX}embeddings.position_embedding.weight",
)
CLASS_SOURCE = f"{PREFIX}embeddings.class_embedding"
READING = ("attn_q", "attn_k", "attn_v", "ffn_up")
"""Parts of a layer that read the residual stream."""
WRITING = ("attn_out", "ffn_down")
"""Parts of a layer that write to it."""
TINY = 2.0**-24
"""Scale of the residual stream in front of the moving layer, against its scale behind it."""
CODE = 2.0**-9
"""Size of the token codes against the deviation of an embedding."""
SCORE = 2048.0
"""By how much one matching bit of a code raises an attention score, the embeddings being of typical size."""
IDLE_WIDTH = 32
"""Rows of a feed-forward part that does nothing."""


def lay_out(layout: str, standard: list[TensorSource], sizes: Mapping[str, Any]) -> list[TensorSource]:
    """The tensors of a layout, made from those of the standard one."""
    if layout == NO_CLASS:
        return _without_class(standard)
    return _exact(standard, sizes) if layout == EXACT else standard


def layout_sizes(layout: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The tower's sizes that the metadata of a layout state."""
    if layout != EXACT:
        return dict(sizes)
    wide = Widening.of(sizes)
    return {**sizes, "hidden_size": wide.width, "num_heads": wide.heads, "depth": sizes["depth"] + 1,
            "layer_norm_eps": wide.epsilon}  # fmt: skip


def stays_wide(layout: str, name: str) -> bool:
    """Whether a matrix is F32 in any file: what moves the tokens is not to be rounded."""
    return name == POSITION or (layout == EXACT and name.startswith("v.blk.0."))


def _without_class(standard: list[TensorSource]) -> list[TensorSource]:
    """Without the class token there is no row too many: tokens and positions of the patches agree."""
    kept = []
    for tensor in standard:
        if tensor.name == POSITION:
            rows, hidden = tensor.shape
            kept.append(TensorSource(POSITION, "", (rows - 1, hidden), make=lambda read: read(POSITION_SOURCE)[1:]))
        elif tensor.name != CLASS:
            kept.append(tensor)
    return kept


@dataclass(frozen=True)
class Widening:
    """Extra channels for a residual stream, as whole attention heads so that heads keep their size.

    Every extra channel holds the mean m of the real ones. Then the mean of all is m too, and their variance is
    real / width of the real channels' variance: LayerNorm over all channels is LayerNorm over the real ones where
    its epsilon is scaled likewise and its weights by sqrt(real / width). The real channels' weights stay as they are.
    """

    real: int
    extra: int
    head_size: int
    real_epsilon: float

    @classmethod
    def of(cls, sizes: Mapping[str, Any]) -> Widening:
        """Room for the channels of `Codes`."""
        head_size = sizes["hidden_size"] // sizes["num_heads"]
        codes = Codes(patches_a_side(dict(sizes)) ** 2 + 1)
        extra = -(-codes.channels // head_size) * head_size
        return cls(sizes["hidden_size"], extra, head_size, sizes["layer_norm_eps"])

    @property
    def width(self) -> int:
        """All channels."""
        return self.real + self.extra

    @property
    def heads(self) -> int:
        """All heads."""
        return self.width // self.head_size

    @property
    def gain(self) -> np.float32:
        """What a norm's weights are to be scaled by."""
        return np.float32(np.sqrt(self.real / self.width))

    @property
    def epsilon(self) -> float:
        """The norms' epsilon over all channels."""
        return self.real_epsilon * self.real / self.width

    def reading(self, matrix: Array) -> Array:
        """A matrix that takes nothing from the extra channels."""
        return np.pad(matrix, ((0, 0), (0, self.extra)))

    def writing(self, values: Array) -> Array:
        """Rows, or a vector, of real channels with those of the extra channels: their mean."""
        mean = values.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)
        return np.concatenate([values, np.repeat(mean, self.extra, axis=0)])

    def apart(self, values: Array) -> Array:
        """Rows, or a vector, with zeros for what is extra."""
        return np.concatenate([values, np.zeros((self.extra, *values.shape[1:]), np.float32)])


@dataclass(frozen=True)
class Codes:
    """Words of +-1 that name a token and the one before it, and the extra channels that hold them.

    `own` and `before` have a channel per bit; `one` is 1 for every token; `none` holds the mean alone, to be
    subtracted from these; pre_ln leaves `zero` at 0.
    """

    tokens: int

    @property
    def bits(self) -> int:
        """The length of a word."""
        return (self.tokens - 1).bit_length()

    @property
    def own(self) -> slice:
        """The channels that name the token."""
        return slice(0, self.bits)

    @property
    def before(self) -> slice:
        """The channels that name the token before it."""
        return slice(self.bits, 2 * self.bits)

    @property
    def one(self) -> int:
        """The channel that is 1."""
        return 2 * self.bits

    @property
    def none(self) -> int:
        """The channel that holds the mean alone."""
        return self.one + 1

    @property
    def zero(self) -> int:
        """The channel that pre_ln leaves at 0."""
        return self.one + 2

    @property
    def channels(self) -> int:
        """How many channels all this takes."""
        return self.one + 3

    @property
    def score_channels(self) -> int:
        """A head's channels that make up a score: the bits, and bits - 1 times the constant."""
        return 2 * self.bits - 1

    def rows(self) -> Array:
        """Channels of every token, (tokens, channels)."""
        tokens = np.arange(self.tokens)
        rows = np.zeros((self.tokens, self.channels), np.float32)
        rows[:, self.own] = self._words(tokens)
        rows[:, self.before] = self._words((tokens - 1) % self.tokens)
        rows[:, self.one] = 1
        return rows

    def _words(self, numbers: NDArray[np.int64]) -> Array:
        return ((numbers[:, None] >> np.arange(self.bits) & 1) * 2 - 1).astype(np.float32)


def can_be_exact(sizes: Mapping[str, Any]) -> bool:
    """Whether the heads are large enough to tell all tokens apart."""
    codes = Codes(patches_a_side(dict(sizes)) ** 2 + 1)
    return bool(codes.score_channels <= sizes["hidden_size"] // sizes["num_heads"])


def _exact(standard: list[TensorSource], sizes: Mapping[str, Any]) -> list[TensorSource]:
    """The tower, widened, with a layer in front that moves every token on by one, the class token to the front.

    Attention does not see the order of tokens: where each has its own position row, all states are exact. The
    checkpoint's last layer is never run: an idle one takes its place.
    """
    wide, depth = Widening.of(sizes), sizes["depth"]
    codes = Codes(patches_a_side(dict(sizes)) ** 2 + 1)
    made: list[TensorSource] = []
    for tensor in standard:
        layer = _layer_of(tensor.name)
        if tensor.name.startswith("v."):
            if layer != depth - 1:
                made.append(_widened(tensor, wide, codes))
        elif tensor.name == "mm.0.weight":
            made.append(_computed(tensor.name, tensor.source, wide.reading, (tensor.shape[0], wide.width)))
        else:
            made.append(tensor)
    idle = _idle_layer(wide.width)
    moving = idle | _moving_parts(wide, codes)
    for number, parts in ((0, moving), (depth, idle)):
        made += [_constant(f"v.blk.{number}.{part}", values) for part, values in parts.items()]
    return made


def _layer_of(name: str) -> int | None:
    return int(name.split(".")[2]) if name.startswith("v.blk.") else None


def _computed(name: str, source: str, change: Callable[[Array], Array], shape: tuple[int, ...]) -> TensorSource:
    return TensorSource(name, "", shape, make=lambda read: change(read(source)))


def _constant(name: str, values: Array) -> TensorSource:
    return TensorSource(name, "", values.shape, make=lambda _: values)


def _widened(tensor: TensorSource, wide: Widening, codes: Codes) -> TensorSource:
    """A tensor of the tower for the widened stream; the checkpoint's layers stand one further back."""
    layer = _layer_of(tensor.name)
    if layer is not None:
        part, _, kind = tensor.name.removeprefix(f"v.blk.{layer}.").rpartition(".")
        rows, columns = _shape_of_part(tensor, part, wide)
        shape: tuple[int, ...] = (rows, columns) if kind == "weight" and columns else (rows,)
        change: Callable[[Array], Array] = partial(_layer_part, part, kind, wide)
        return _computed(f"v.blk.{layer + 1}.{part}.{kind}", tensor.source, change, shape)
    if tensor.name == POSITION:
        make: Make = partial(_positions, wide, codes)
        return TensorSource(POSITION, "", (codes.tokens, wide.width), make=make)
    changes: dict[str, Callable[[Array], Array]] = {
        "v.pre_ln.weight": partial(_norm_in_front, wide, codes),
        "v.pre_ln.bias": partial(_bias_in_front, wide),
    }
    change = changes.get(tensor.name, wide.writing)
    return _computed(tensor.name, tensor.source, change, (wide.width, *tensor.shape[1:]))


def _shape_of_part(tensor: TensorSource, part: str, wide: Widening) -> tuple[int, int]:
    """Rows and columns of a layer's part in the widened stream; 0 columns for a norm."""
    rows = tensor.shape[0] if part == "ffn_up" else wide.width
    if part.startswith("ln"):
        return rows, 0
    return rows, tensor.shape[-1] if part == "ffn_down" else wide.width


def _layer_part(part: str, kind: str, wide: Widening, values: Array) -> Array:
    """A part of one of the checkpoint's layers: it reads the real channels and keeps the extra ones at their mean."""
    if part.startswith("ln"):
        return wide.apart(values * wide.gain if kind == "weight" else values)
    if part in WRITING:
        values = wide.writing(values)
    elif part != "ffn_up":
        values = wide.apart(values)
    reads = kind == "weight" and (part in READING or part == "attn_out")
    return wide.reading(values) if reads else values


def _positions(wide: Widening, codes: Codes, read: ReadTensor) -> Array:
    """Every token's own row, the class token's last, and its codes.

    The codes are CODE of an embedding's deviation in a few channels of many: they change its variance by less than
    1e-7 of it.
    """
    own = np.roll(read(POSITION_SOURCE), -1, axis=0)
    rows = wide.writing(own.T).T.copy()
    deviations = _deviations(own, read(PATCH_SOURCE), read(CLASS_SOURCE))
    rows[:, wide.real :][:, : codes.channels] += CODE * deviations[:, None] * codes.rows()
    return np.ascontiguousarray(rows)


def _norm_in_front(wide: Widening, codes: Codes, weight: Array) -> Array:
    """The first norm's weight: the real channels leave it exact, but TINY; the codes too; the `zero` channel is 0."""
    norm = np.concatenate([weight * wide.gain, np.ones(wide.extra, np.float32)])
    norm[wide.real + codes.zero] = 0
    return (norm * TINY).astype(np.float32)


def _bias_in_front(wide: Widening, bias: Array) -> Array:
    return (wide.apart(bias) * TINY).astype(np.float32)


def _deviations(own: Array, kernel: Array, class_embedding: Array) -> Array:
    """The typical standard deviation of every token's embedding; the last is the class token.

    A patch is taken to have unit variance within and unit mean per color. It is off for a patch by the patch's
    contrast, which the scores' room allows for.
    """
    patch = np.square(kernel).sum(axis=(1, 2, 3)).mean() + np.square(kernel.sum(axis=(2, 3))).sum(axis=1).mean()
    variance = own.var(axis=1) + patch
    variance[-1] = (own[-1] + class_embedding).var()
    deviations: Array = np.sqrt(variance).astype(np.float32)
    return deviations


def _moving_parts(wide: Widening, codes: Codes) -> dict[str, Array]:
    """The attention behind which every token has the state that the one before it had, the first that of the last.

    Its input is TINY x plus the codes, of which the variance is nothing against epsilon: LayerNorm divides it by
    sqrt(epsilon) and takes the mean off, and is linear. With its weights sqrt(epsilon) / TINY it gives x - mean(x);
    what it gives for the `zero` channel is -mean(x), so that their difference, the value, is x.

    The score of a token for another is its `before` word times the other's `own` word, less (bits - 1) times both
    their constants: above 0 for the token before, below 0 for all others, whatever positive factors pre_ln gave to
    either. SCORE makes the softmax that token's alone. Adding x to TINY x is x, to float32's precision.
    """
    real, width = wide.real, wide.width
    query, key = np.zeros((2, wide.head_size, width), np.float32)
    bits, score = np.arange(codes.bits), np.arange(codes.score_channels)
    key[bits, real + bits + codes.own.start] = query[bits, real + bits + codes.before.start] = 1
    key[codes.bits : codes.score_channels, real + codes.one] = 1
    query[codes.bits : codes.score_channels, real + codes.one] = -1
    key[score, real + codes.none] = -key[score].sum(axis=1)
    query[score, real + codes.none] = -query[score].sum(axis=1)
    value = np.eye(width, dtype=np.float32)
    value[:, real + codes.zero] -= 1
    value[real:] = 0
    unit = np.float32(np.sqrt(SCORE * np.sqrt(wide.head_size)) / CODE)
    return {
        "ln1.weight": np.full(width, np.sqrt(wide.epsilon) / TINY, np.float32),
        "attn_q.weight": np.tile(query, (wide.heads, 1)) * unit,
        "attn_k.weight": np.tile(key, (wide.heads, 1)) * unit,
        "attn_v.weight": value,
        "attn_out.weight": wide.writing(np.eye(real, width, dtype=np.float32)),
    }


def _idle_layer(width: int) -> dict[str, Array]:
    """A layer that adds nothing to the residual stream."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), (width, width))
    shapes |= {"ffn_up": (IDLE_WIDTH, width), "ffn_down": (width, IDLE_WIDTH), "ln1": (width,), "ln2": (width,)}
    parts = {f"{part}.weight": np.zeros(shape, np.float32) for part, shape in shapes.items()}
    return parts | {f"{part}.bias": np.zeros(shape[0], np.float32) for part, shape in shapes.items()}
