"""How fast a plan will be on a CPU, from the shapes and types of its tensors and a profile of that CPU.

Pure: no files, no llama.cpp. A token's time is the time of its matrix products, each at the rate that its type was
measured at with data out of the cache (so the slower of arithmetic and memory is in it); of attention to the tokens
before it, whose keys and values are read; and of what comes between, which grows with the numbers that the matrices
give ("outputs"). Times are in nanoseconds.
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
from luq_gguf.plan import TensorSpec, layer_of, type_size

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
QUERIES = ".attn_q.weight"


class Rates(Record):
    """Of one type with one number of threads, nanoseconds a weight: for one token, and a token of a long prompt."""

    generate: float = Field(gt=0)
    prompt: float = Field(gt=0)


class OtherCosts(Record):
    """Nanoseconds beside the products with weights, with one number of threads.

    `*_output` are for each token and number that a layer's matrices give, attention to a short context included,
    `*_token` for each token; `context_channel` is for each generated token, channel of a layer's queries, and token of
    the context beyond the profile's prompt.
    """

    generate_output: float = Field(ge=0)
    generate_token: float = Field(ge=0)
    prompt_output: float = Field(ge=0)
    prompt_token: float = Field(ge=0)
    context_channel: float = Field(ge=0)


class Profile(Record):
    """What was measured once on a CPU; `rates` by type and threads, `bandwidth` in bytes a second by threads.

    `prompt` is the number of tokens of the prompts that were measured, and of the context when generating.
    """

    format: Literal["luq-gguf profile 1"] = "luq-gguf profile 1"
    cpu: str
    llama_cpp: str
    prompt: int = Field(ge=1)
    rates: dict[str, dict[int, Rates]]
    other: dict[int, OtherCosts]
    bandwidth: dict[int, float]
    busy: bool = False

    @property
    def threads(self) -> tuple[int, ...]:
        """The numbers of threads that were measured, rising."""
        return tuple(sorted(self.other))


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


@dataclass(frozen=True)
class Workload:
    """What a token costs: weights that it is multiplied with, by type, and numbers that the layers' matrices give."""

    weights: dict[str, float]
    outputs: float


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
    other, once, each = profile.other[threads], workload(tensors, 1), workload(tensors, profile.prompt)
    rates = {kind: _rates(profile, kind, threads) for kind in once.weights}
    beyond = 0 if context is None else max(0, context - profile.prompt)
    channels = sum(tensor.outputs for tensor in tensors if tensor.name.endswith(QUERIES))
    generate = sum(weights * rates[kind].generate for kind, weights in once.weights.items())
    prompt = sum(weights * rates[kind].prompt for kind, weights in each.weights.items())
    generate += once.outputs * other.generate_output + beyond * channels * other.context_channel
    return Speed(
        generate=1e9 / (generate + other.generate_token),
        prompt=1e9 / (prompt + each.outputs * other.prompt_output + other.prompt_token),
        read_bytes=sum(type_size(_kind(tensor), tensor.shape) for tensor in multiplied(tensors)),
    )


def workload(tensors: Sequence[Tensor], prompt: int) -> Workload:
    """What a token of a prompt of so many tokens costs on average; with one token, what a generated one does."""
    used = multiplied(tensors)
    last = max((layer_of(tensor.name) or 0 for tensor in used), default=0)
    weights: dict[str, float] = {}
    outputs = 0.0
    for tensor in used:
        share = 1 / prompt if _of_last_token(tensor.name, last) else 1.0
        weights[tensor.kind] = weights.get(tensor.kind, 0) + share * tensor.weights
        outputs += share * tensor.outputs if layer_of(tensor.name) is not None else 0
    return Workload(weights, outputs)


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
