"""Three ways to lay LLaVA-1.5's vision tower out as an mmproj.

llama.cpp's graph for CLIP towers (projector "mlp"; since May 2025) appends the class embedding behind the patches, adds
row i of the position embedding to token i, runs all layers of the file but the last, and projects tokens 1, 2, ... In
the checkpoint the class token is token 0; a change that puts it there again is proposed (its pull request 25844).

    standard   the tensors as they are: what the checkpoint means where the class token comes first. As it is, every
               patch gets its neighbour's position, patch 0 is lost, and the class token is taken for a patch.
    no-class   the patches in order, in either graph, but no token attends to the class token.
    exact      every state and the patches in order, in either graph: the tower is widened by some channels, and two
               layers in front see where the class token is, give every token its own position row and bring it to where
               the projector looks for it.

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

Parts = Mapping[str, Array | Callable[[ReadTensor], Array]]
"""Tensors of a layer by part: values, or how they are made."""

EXACT, NO_CLASS, STANDARD = "exact", "no-class", "standard"
LAYOUTS = (EXACT, NO_CLASS, STANDARD)
"""The default first."""
CLASS, PATCH, POSITION = "v.class_embd", "v.patch_embd.weight", "v.position_embd.weight"
CLASS_SOURCE = f"{PREFIX}embeddings.class_embedding"
PATCH_SOURCE = f"{PREFIX}embeddings.patch_embedding.weight"
POSITION_SOURCE = f"{PREFIX}embeddings.position_embedding.weight"
FIRST_NORM = f"{PREFIX}pre_layrnorm"
IN_FRONT = 2
"""Layers that the exact layout has before those of the checkpoint; its last one is never run and left out."""
TINY = 2.0**-24
"""Scale of the residual stream in those layers, against its scale behind them."""
WORD = 2.0**-7
"""Size of the token codes and marks against the deviation of an embedding."""
LARGE = 2.0**17
"""Size of the constants, beside which a norm is linear, against the deviation of an embedding."""
SCORE = 2048.0
"""By how much one matching bit of a code raises an attention score, the embeddings being of typical size."""
UP = 16.0
"""A neuron's value where it is on: exact in float16, in which llama.cpp looks quick_gelu up."""
BLOCK = 32
"""Rows of a feed-forward part are a multiple of this."""


def lay_out(layout: str, standard: list[TensorSource], sizes: Mapping[str, Any]) -> list[TensorSource]:
    """The tensors of a layout, made from those of the standard one."""
    if layout == NO_CLASS:
        return _without_class(standard)
    return _Exact(sizes).tensors(standard) if layout == EXACT else standard


def layout_sizes(layout: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The tower's sizes that the metadata of a layout state."""
    if layout != EXACT:
        return dict(sizes)
    wide = Widening.of(sizes)
    return {
        **sizes,
        "hidden_size": wide.width,
        "num_heads": wide.heads,
        "depth": sizes["depth"] + IN_FRONT,
        "layer_norm_eps": wide.epsilon * TINY**2,
    }


def stays_wide(layout: str, name: str) -> bool:
    """Whether a matrix is F32 in any file: what moves the tokens is not to be rounded."""
    in_front = tuple(f"v.blk.{number}." for number in range(IN_FRONT))
    return name == POSITION or (layout == EXACT and name.startswith(in_front))


def can_be_exact(sizes: Mapping[str, Any]) -> bool:
    """Whether the heads are large enough to tell all tokens apart."""
    codes = Codes(patches_a_side(dict(sizes)) ** 2 + 1)
    return bool(codes.score_channels <= sizes["hidden_size"] // sizes["num_heads"])


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

    def balanced(self, rows: Array) -> Array:
        """Rows of channels as rows of all extra channels of mean zero: differences stay, LayerNorm's mean too."""
        padded = np.pad(rows, ((0, 0), (0, self.extra - rows.shape[1])))
        found: Array = padded - padded.mean(axis=1, keepdims=True)
        return found

    def apart(self, values: Array) -> Array:
        """Rows, or a vector, with zeros for what is extra."""
        return np.concatenate([values, np.zeros((self.extra, *values.shape[1:]), np.float32)])


@dataclass(frozen=True)
class Codes:
    """Words of +-1 that name tokens, marks and constants, and the extra channels that hold them.

    `own` names the token and `before` the one whose state it is to take, a channel per bit; `one` is 1 for every
    token; `none` holds the mean alone, to be subtracted from the others; `marked` is 1 for the class token and `first`
    for token 0; `flag` is raised where these are one; `plus` and `minus` are constants.
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
        """The channels that name the token to look at."""
        return slice(self.bits, 2 * self.bits)

    def _after_words(self, number: int) -> int:
        return 2 * self.bits + number

    @property
    def one(self) -> int:
        """The channel that is 1."""
        return self._after_words(0)

    @property
    def none(self) -> int:
        """The channel that holds the mean alone."""
        return self._after_words(1)

    @property
    def marked(self) -> int:
        """The class token's mark."""
        return self._after_words(2)

    @property
    def first(self) -> int:
        """Token 0's mark."""
        return self._after_words(3)

    @property
    def flag(self) -> int:
        """Raised where the class token is token 0."""
        return self._after_words(4)

    @property
    def plus(self) -> int:
        """The positive constant."""
        return self._after_words(5)

    @property
    def minus(self) -> int:
        """The negative constant."""
        return self._after_words(6)

    @property
    def channels(self) -> int:
        """How many channels all this takes."""
        return self._after_words(7)

    @property
    def score_channels(self) -> int:
        """A head's channels that make up a score: the bits, and bits - 1 times the constant."""
        return 2 * self.bits - 1

    def rows(self, *, class_first: bool) -> Array:
        """Channels of every token, (tokens, channels), by where the class token is.

        Behind the patches: every token is to take the state of the one before it, token 0 that of the last. In
        front: its own.
        """
        tokens = np.arange(self.tokens)
        rows = np.zeros((self.tokens, self.channels), np.float32)
        rows[:, self.own] = self.words(tokens)
        rows[:, self.before] = self.words(tokens if class_first else (tokens - 1) % self.tokens)
        rows[:, self.one] = rows[0, self.first] = 1
        rows[:, self.plus], rows[:, self.minus] = LARGE / WORD, -LARGE / WORD
        return rows

    def words(self, numbers: NDArray[np.int64]) -> Array:
        """The word of each number, (numbers, bits)."""
        return ((numbers[:, None] >> np.arange(self.bits) & 1) * 2 - 1).astype(np.float32)


class _Exact:
    """The exact layout of a tower.

    The first norm makes the embeddings TINY. Layer 0 sees which graph it is and gives every token its right position
    row; layer 1's first norm is the checkpoint's, and its attention takes what that gives to its place. Attention does
    not see the order of tokens, so all states behind them are those of the checkpoint.
    """

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        self.depth: int = sizes["depth"]
        self.kernel: tuple[int, int, int] = (sizes["in_channels"], sizes["patch_size"], sizes["patch_size"])
        self.wide = Widening.of(sizes)
        self.codes = Codes(patches_a_side(dict(sizes)) ** 2 + 1)
        self.neurons = _rows_unlike(self.wide.width, self.codes.tokens)

    def tensors(self, standard: list[TensorSource]) -> list[TensorSource]:
        """All tensors of the layout."""
        made = [
            *self._embeddings(),
            *self._layer(0, self._placing_layer()),
            *self._layer(1, self._opening_layer()),
        ]
        for tensor in standard:
            layer = _layer_of(tensor.name)
            if layer is not None and layer < self.depth - 1:
                made.append(self._widened(tensor, layer))
            elif tensor.name == "mm.0.weight":
                shape = (tensor.shape[0], self.wide.width)
                made.append(_computed(tensor.name, tensor.source, self.wide.reading, shape))
            elif tensor.name.startswith("mm."):
                made.append(tensor)
        return made + self._layer(self.depth - 1 + IN_FRONT, {})

    def _layer(self, number: int, parts: Parts) -> list[TensorSource]:
        """A layer that adds nothing to the residual stream but what these parts say: values, or how they are made."""
        width = self.wide.width
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), (width, width))
        rows = self.neurons if "ffn_up.weight" in parts else _rows_unlike(width, 1)
        shapes |= {"ffn_up": (rows, width), "ffn_down": (width, rows), "ln1": (width,), "ln2": (width,)}
        made = []
        for part, whole in shapes.items():
            for kind, shape in (("weight", whole), ("bias", whole[:1])):
                given = parts.get(f"{part}.{kind}")
                make = given if callable(given) else partial(_values, np.zeros(shape, np.float32), given)
                made.append(TensorSource(f"v.blk.{number}.{part}.{kind}", "", shape, make=make))
        return made

    def _embeddings(self) -> list[TensorSource]:
        """Embeddings y, of which the first norm makes TINY (y - mean(y)).

        The constants are LARGE against all else, so that they alone are the variance, and LayerNorm is linear.
        """
        width = self.wide.width
        return [
            TensorSource(CLASS, "", (width,), make=self._class),
            TensorSource(PATCH, "", (width, *self.kernel), make=lambda read: self.wide.writing(read(PATCH_SOURCE))),
            TensorSource(POSITION, "", (self.codes.tokens, width), make=partial(self._positions, class_first=False)),
            TensorSource("v.pre_ln.weight", "", (width,), make=self._shrinking),
            TensorSource("v.pre_ln.bias", "", (width,), make=lambda _: np.zeros(width, np.float32)),
        ]

    def _class(self, read: ReadTensor) -> Array:
        mark = np.zeros((1, self.codes.channels), np.float32)
        mark[0, self.codes.marked] = WORD * self._unit(read)
        token = self.wide.writing(read(CLASS_SOURCE))
        token[self.wide.real :] += self.wide.balanced(mark)[0]
        return token

    def _positions(self, read: ReadTensor, *, class_first: bool) -> Array:
        """Position rows by token where the class token is the first one, or the last, with codes and marks."""
        own = read(POSITION_SOURCE)
        own = own if class_first else np.roll(own, -1, axis=0)
        table = self.wide.writing(own.T).T.copy()
        codes = self.wide.balanced(self.codes.rows(class_first=class_first))
        table[:, self.wide.real :] += np.float32(WORD * self._unit(read)) * codes
        return table

    def _shrinking(self, read: ReadTensor) -> Array:
        return np.full(self.wide.width, TINY * self._spread * self._unit(read), np.float32)

    @staticmethod
    def _unit(read: ReadTensor) -> float:
        """The typical deviation of an embedding: a patch is taken to have unit variance within and unit mean per color.

        It is off by a patch's contrast, which the scores' room allows for.
        """
        kernel = read(PATCH_SOURCE)
        patch = np.square(kernel).sum(axis=(1, 2, 3)).mean() + np.square(kernel.sum(axis=(2, 3))).sum(axis=1).mean()
        return float(np.sqrt(patch + read(POSITION_SOURCE).var()))

    @property
    def _spread(self) -> float:
        """Deviation of a residual stream that holds the constants, in units."""
        return float(LARGE * np.sqrt(2 / self.wide.width))

    def _placing_layer(self) -> Parts:
        """A layer that gives every token the position row of the other graph where the class token is token 0.

        Both its norms are linear, as the one before is, and give y, in words of +-1. All tokens look at the marked one,
        and raise their flag where that one is the first. The feed-forward part has a neuron for each token: UP for it
        where the flag is raised, below -UP else, of which quick_gelu is UP and 0. It also takes the constants off.
        """
        real, width, codes, step = self.wide.real, self.wide.width, self.codes, self.wide.head_size
        query, key, value = np.zeros(width, np.float32), *np.zeros((2, width, width), np.float32)
        query[::step] = key[::step, real + codes.marked] = np.sqrt(SCORE * np.sqrt(step))
        key[::step, real + codes.none] = -key[::step, real + codes.marked]
        value[0, real + codes.first], value[0, real + codes.none] = 1, -1
        up = np.zeros((self.neurons, self.wide.extra), np.float32)
        up[: codes.tokens, codes.own] = codes.words(np.arange(codes.tokens))
        up[: codes.tokens, codes.one] = 1 - codes.bits
        up[: codes.tokens, codes.flag] = 2 * codes.bits
        up[:, codes.none] = -up.sum(axis=1)
        norm = np.full(width, self._spread / WORD, np.float32)
        return {
            "ln1.weight": norm,
            "ln2.weight": norm,
            "attn_q.bias": query,
            "attn_k.weight": key,
            "attn_v.weight": value,
            "attn_out.weight": self._raising,
            "ffn_up.weight": np.pad(up * np.float32(UP), ((0, 0), (real, 0))),
            "ffn_up.bias": np.full(self.neurons, -UP * 2 * codes.bits, np.float32),
            "ffn_down.weight": self._other_rows,
            "ffn_down.bias": self._without_constants,
        }

    def _raising(self, read: ReadTensor) -> Array:
        matrix = np.zeros((self.wide.width, self.wide.width), np.float32)
        matrix[self.wide.real + self.codes.flag, 0] = TINY * WORD * self._unit(read)
        return matrix

    def _other_rows(self, read: ReadTensor) -> Array:
        last, first = (self._positions(read, class_first=where) for where in (False, True))
        change = (first - last).T * np.float32(TINY / UP)
        return np.pad(change, ((0, 0), (0, self.neurons - self.codes.tokens)))

    def _without_constants(self, read: ReadTensor) -> Array:
        bias = np.zeros(self.wide.width, np.float32)
        constant = TINY * LARGE * self._unit(read)
        bias[self.wide.real + self.codes.plus], bias[self.wide.real + self.codes.minus] = -constant, constant
        return bias

    def _opening_layer(self) -> Parts:
        """A layer of which the first norm is the checkpoint's first; its attention takes what that gives to its place.

        The file's epsilon is TINY**2 of the checkpoint's, which is right for this norm and nothing for those behind it.
        For these, two extra channels have constants that make up for it.

        The score of a token for another is its `before` word times the other's `own` word, less (bits - 1) times both
        their constants: above 0 for the one to look at, below 0 for all others, whatever positive factors the norm gave
        to either. SCORE makes the softmax that token's alone. Adding x to TINY x is x, to float32's precision.
        """
        real, width, codes = self.wide.real, self.wide.width, self.codes
        query, key = np.zeros((2, self.wide.head_size, width), np.float32)
        bits, score = np.arange(codes.bits), np.arange(codes.score_channels)
        key[bits, real + bits + codes.own.start] = query[bits, real + bits + codes.before.start] = 1
        key[codes.bits : codes.score_channels, real + codes.one] = 1
        query[codes.bits : codes.score_channels, real + codes.one] = -1
        key[score, real + codes.none] = -key[score].sum(axis=1)
        query[score, real + codes.none] = -query[score].sum(axis=1)
        unit = np.float32(np.sqrt(SCORE * np.sqrt(self.wide.head_size)))
        value = np.eye(width, dtype=np.float32)
        value[real:] = 0
        bias = np.zeros(width, np.float32)
        constant = np.sqrt(self.wide.real_epsilon * real / 2)
        bias[real + codes.plus], bias[real + codes.minus] = constant, -constant
        return {
            "ln1.weight": self._opening_weight,
            "ln1.bias": lambda read: self.wide.apart(read(f"{FIRST_NORM}.bias")),
            "attn_q.weight": np.tile(query * unit, (self.wide.heads, 1)),
            "attn_k.weight": np.tile(key * unit, (self.wide.heads, 1)),
            "attn_v.weight": value,
            "attn_out.weight": self.wide.writing(np.eye(real, width, dtype=np.float32)),
            "attn_out.bias": bias,
        }

    def _opening_weight(self, read: ReadTensor) -> Array:
        weight = np.full(self.wide.width, 1 / WORD, np.float32)
        weight[: self.wide.real] = read(f"{FIRST_NORM}.weight") * self.wide.gain
        return weight

    def _widened(self, tensor: TensorSource, layer: int) -> TensorSource:
        """A tensor of one of the checkpoint's layers, which stand further back."""
        part, _, kind = tensor.name.removeprefix(f"v.blk.{layer}.").rpartition(".")
        width, name = self.wide.width, f"v.blk.{layer + IN_FRONT}.{part}.{kind}"
        rows = tensor.shape[0] if part == "ffn_up" else width
        columns = tensor.shape[-1] if part == "ffn_down" else width
        shape = (rows, columns) if len(tensor.shape) > 1 else (rows,)
        return _computed(name, tensor.source, partial(_widened_part, part, kind, self.wide), shape)


def _widened_part(part: str, kind: str, wide: Widening, values: Array) -> Array:
    """A part of one of the checkpoint's layers: it reads the real channels and keeps the extra ones at their mean."""
    if part.startswith("ln"):
        return wide.apart(values * wide.gain if kind == "weight" else values)
    if part in ("attn_out", "ffn_down"):
        values = wide.writing(values)
    elif part != "ffn_up":
        values = wide.apart(values)
    return wide.reading(values) if kind == "weight" and part != "ffn_down" else values


def _rows_unlike(width: int, least: int) -> int:
    """Rows of a feed-forward part in whole blocks; where they were `width`, llama.cpp would take up for down."""
    rows = -(-least // BLOCK) * BLOCK
    return rows + BLOCK if rows == width else rows


def _layer_of(name: str) -> int | None:
    return int(name.split(".")[2]) if name.startswith("v.blk.") else None


def _computed(name: str, source: str, change: Callable[[Array], Array], shape: tuple[int, ...]) -> TensorSource:
    return TensorSource(name, "", shape, make=lambda read: change(read(source)))


def _values(nothing: Array, given: Array | None, _: ReadTensor) -> Array:
    return nothing if given is None else given
