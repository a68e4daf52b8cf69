"""How fast a plan will be on a CPU, from the shapes and types of its tensors and a profile of that CPU.

Pure: no files, no llama.cpp. A token's time is the time of its matrix products, each at the rate that its type was
measured at with data out of the cache (so the slower of arithmetic and memory is in it), and what every layer and token
cost besides. Times are in nanoseconds, rates in nanoseconds a weight.
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


class Rates(Record):
    """Of one type with one number of threads, nanoseconds a weight: for one token, and a token of a long prompt."""

    generate: float = Field(gt=0)
    prompt: float = Field(gt=0)


class FixedCosts(Record):
    """Nanoseconds beside the matrix products, with one number of threads: a layer and a token, by what is decoded.

    `*_layer` is for each layer and token, `*_token` for each token.
    """

    generate_layer: float = Field(ge=0)
    generate_token: float = Field(ge=0)
    prompt_layer: float = Field(ge=0)
    prompt_token: float = Field(ge=0)


class Profile(Record):
    """What was measured once on a CPU; `rates` by type and threads, `bandwidth` in bytes a second by threads."""

    format: Literal["luq-gguf profile 1"] = "luq-gguf profile 1"
    cpu: str
    llama_cpp: str
    prompt: int = Field(ge=1)
    rates: dict[str, dict[int, Rates]]
    fixed: dict[int, FixedCosts]
    bandwidth: dict[int, float]
    busy: bool = False

    @property
    def threads(self) -> tuple[int, ...]:
        """The numbers of threads that were measured, rising."""
        return tuple(sorted(self.fixed))


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


def predict(tensors: Sequence[Tensor], profile: Profile, threads: int) -> Speed:
    """The speed of a model of these matrices; raises RequestError for threads or types that were not measured."""
    if threads not in profile.fixed:
        known = ", ".join(map(str, profile.threads))
        raise RequestError(f"the profile of {profile.cpu} has no {threads} threads", hint=f"it has {known}")
    used, fixed = multiplied(tensors), profile.fixed[threads]
    layers = {layer for tensor in used if (layer := layer_of(tensor.name)) is not None}
    rates = {tensor.name: _rates(profile, tensor.kind, threads) for tensor in used}
    generate = sum(tensor.weights * rates[tensor.name].generate for tensor in used)
    last = max(layers, default=-1)
    shares = {tensor.name: 1 / profile.prompt if _of_last_token(tensor.name, last) else 1.0 for tensor in used}
    prompt = sum(tensor.weights * rates[tensor.name].prompt * shares[tensor.name] for tensor in used)
    return Speed(
        generate=1e9 / (generate + len(layers) * fixed.generate_layer + fixed.generate_token),
        prompt=1e9 / (prompt + len(layers) * fixed.prompt_layer + fixed.prompt_token),
        read_bytes=sum(type_size(_kind(tensor), tensor.shape) for tensor in used),
    )


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
