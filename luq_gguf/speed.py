"""How fast a plan will be on a CPU, from the shapes and types of its tensors and a profile of that CPU.

Pure: no files, no llama.cpp. A token's time is the time of its matrix products, each at the rate that its type was
measured at with data out of the cache (so the slower of arithmetic and memory is in it); of attention to the tokens
before it, whose keys and values are read; and of what comes between, which grows with the model's width. Times are in
nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from gguf.constants import GGMLQuantizationType
from pydantic import Field

from luq_gguf.artifacts import Record
from luq_gguf.errors import RequestError
from luq_gguf.planning import TensorSpec, layer_of, type_size

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
QUERIES, UNITS = ".attn_q.weight", ".ffn_up.weight"
"""Whose rows are the channels of the queries, and the units of a feed-forward part."""
FLOAT_BYTES, ROUNDED_BYTES = {"F32": 4.0, "F16": 2.0, "BF16": 2.0}, 292 / 256
"""What a number takes that a row is multiplied with, by the row's type: as it is, or rounded to 8 bits (Q8_K)."""
COLUMNS, LONG_COLUMNS = 4096, 16384
"""Rows that are common in 7B models, and in their ffn_down."""
RAMP = (0.36, 0.54)
"""Shares of the first cache from which on rows are long in part, and wholly. Measured with 32 KiB: 12 and 17."""


class Rates(Record):
    """Of one type with one number of threads, nanoseconds: for one token a row and a weight, and for a prompt a weight.

    For one token a weight has two rates: `weight` where the numbers that a row is multiplied with stay in the first
    cache, beside the weights that stream through it, and `long_weight` where they do not. `prompt` is for each of many
    tokens.
    """

    row: float = Field(ge=0)
    weight: float = Field(gt=0)
    long_weight: float = Field(gt=0)
    prompt: float = Field(gt=0)

    def of_row(self, kind: str, columns: int, cache: int) -> float:
        """For one token, a row of so many weights, with a first cache of so many bytes."""
        low, high = (share * cache for share in RAMP)
        bytes_each = FLOAT_BYTES.get(kind, ROUNDED_BYTES)
        long = min(1.0, max(0.0, (columns * bytes_each - low) / (high - low)))
        return self.row + columns * ((1 - long) * self.weight + long * self.long_weight)


class OtherCosts(Record):
    """Nanoseconds beside the products with weights, with one number of threads; each is for a token.

    `*_channel` are for a channel of a layer's queries (attention to a short context, norms, rotation), `*_unit` for a
    unit of a layer's feed-forward part, `*_token` once. `context_channel` is for a channel, too, when generating, and a
    token of the context beyond the profile's prompt.
    """

    generate_channel: float = Field(ge=0)
    generate_unit: float = Field(ge=0)
    generate_token: float = Field(ge=0)
    prompt_channel: float = Field(ge=0)
    prompt_unit: float = Field(ge=0)
    prompt_token: float = Field(ge=0)
    context_channel: float = Field(ge=0)


class Profile(Record):
    """What was measured once on a CPU; `rates` by type and threads, `bandwidth` in bytes a second by threads.

    `prompt` is the number of tokens of the prompts that were measured, and of the context when generating; `cache` the
    size of a core's first data cache in bytes.
    """

    format: Literal["luq-gguf profile 1"] = "luq-gguf profile 1"
    cpu: str
    llama_cpp: str
    prompt: int = Field(ge=1)
    cache: int = Field(ge=1)
    rates: dict[str, dict[int, Rates]]
    other: dict[int, OtherCosts]
    bandwidth: dict[int, float]
    busy: bool = False

    @property
    def threads(self) -> tuple[int, ...]:
        """The numbers of threads that were measured, rising."""
        return tuple(sorted(self.other))

    def weight_time(self, kind: str, threads: int, columns: int = COLUMNS) -> float:
        """Nanoseconds a weight takes for one token, in rows of so many."""
        return self.rates[kind][threads].of_row(kind, columns, self.cache) / columns


@dataclass(frozen=True)
class Tensor:
    """A matrix of a model: its name, its shape in ggml's order, its type's name."""

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def weights(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def outputs(self) -> int:
        """How many numbers a product with it gives for a token."""
        return prod(self.shape[1:])


Rows = tuple[str, int]
"""Rows of weights: their type, and how long they are."""


@dataclass(frozen=True)
class Workload:
    """What tokens are multiplied with, weights by their rows; and channels of queries, and feed-forward units.

    `every` and `units` are those of every token of a prompt, `last*` those of its last token alone; a generated token
    has both. Channels are those of all tokens.
    """

    every: dict[Rows, int]
    last: dict[Rows, int]
    channels: int
    units: int
    last_units: int


@dataclass(frozen=True)
class Speed:
    """Tokens a second: generating one by one, and reading a prompt of the profile's length."""

    generate: float
    prompt: float
    read_bytes: int
    """Bytes of weights that are read for a generated token."""


def tensors_of(specs: Iterable[TensorSpec], types: Mapping[str, str]) -> list[Tensor]:
    """The matrices of a plan."""
    return [Tensor(spec.name, spec.shape, types[spec.name]) for spec in specs if len(spec.shape) > 1]


def predict(tensors: Sequence[Tensor], profile: Profile, threads: int, context: int | None = None) -> Speed:
    """The speed of a model of these matrices, generating after `context` tokens, None being the profile's prompt.

    Raises RequestError for threads or types that were not measured.
    """
    if threads not in profile.other:
        known = ", ".join(map(str, profile.threads))
        raise RequestError(f"the profile of {profile.cpu} has no {threads} threads", hint=f"it has {known}")
    work, other = workload(tensors), profile.other[threads]

    def one_token(weights: Mapping[Rows, int]) -> float:
        return sum(
            count / columns * _rates(profile, kind, threads).of_row(kind, columns, profile.cache)
            for (kind, columns), count in weights.items()
        )

    last = one_token(work.last)
    generate = last + one_token(work.every)
    prompt = last / profile.prompt
    prompt += sum(count * _rates(profile, kind, threads).prompt for (kind, _), count in work.every.items())
    beyond = 0 if context is None else max(0, context - profile.prompt)
    generate += work.channels * (other.generate_channel + beyond * other.context_channel)
    generate += (work.units + work.last_units) * other.generate_unit
    prompt += work.channels * other.prompt_channel + work.units * other.prompt_unit
    return Speed(
        generate=1e9 / (generate + other.generate_token),
        prompt=1e9 / (prompt + other.prompt_token),
        read_bytes=sum(type_size(_kind(tensor), tensor.shape) for tensor in multiplied(tensors)),
    )


def workload(tensors: Sequence[Tensor]) -> Workload:
    """What a model of these matrices does for a token."""
    used = multiplied(tensors)
    final = max((layer_of(tensor.name) or 0 for tensor in used), default=0)
    every: dict[Rows, int] = {}
    last: dict[Rows, int] = {}
    units = {False: 0, True: 0}
    for tensor in used:
        of_last = _of_last_token(tensor.name, final)
        weights, rows = last if of_last else every, (tensor.kind, tensor.shape[0])
        weights[rows] = weights.get(rows, 0) + tensor.weights
        units[of_last] += tensor.outputs if tensor.name.endswith(UNITS) else 0
    channels = sum(tensor.outputs for tensor in used if tensor.name.endswith(QUERIES))
    return Workload(every, last, channels, units[False], units[True])


def multiplied(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The matrices that a token is multiplied with: the embeddings only where they are the output matrix, too."""
    tied = all(tensor.name != OUTPUT for tensor in tensors)
    return [tensor for tensor in tensors if tied or tensor.name != EMBEDDING]


def _of_last_token(name: str, last: int) -> bool:
    """Whether only a prompt's last token goes through a matrix: the output's, the last layer's feed-forward part."""
    return name in (EMBEDDING, OUTPUT) or name.startswith(f"blk.{last}.ffn_")


def _kind(tensor: Tensor) -> GGMLQuantizationType:
    return GGMLQuantizationType[tensor.kind]


def _rates(profile: Profile, kind: str, threads: int) -> Rates:
    found = profile.rates.get(kind, {}).get(threads)
    if found is None:
        raise RequestError(
            f"the profile of {profile.cpu} has no {kind} with {threads} threads",
            hint="measure it again: luq-gguf profile",
        )
    return found
