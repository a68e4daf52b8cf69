"""Chooses a type for every tensor: from the order of the layers, exact sizes and a budget.

Pure: no weights, no files, no llama.cpp. Takes what `quantize.resolve_types` found out about each tensor,
gives a `Plan` whose predicted size is the size of the file to the byte.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

from gguf.constants import GGMLQuantizationType

from luq_gguf.artifacts import LayerScores, Plan
from luq_gguf.errors import BudgetError, RequestError
from luq_gguf.gguf_file import DEFAULT_ALIGNMENT, align, tensor_bytes
from luq_gguf.type_names import UNQUANTIZED

DAMAGE, MIX = "damage", "mix"
ORDERS = ("entropy", "entropy-input", "depth", "reverse", "random", "cosine", "change", DAMAGE, MIX)
"""depth: last layer first; reverse: highest entropy first; cosine: layers first whose output is most like their input;
change: whose blocks add least; damage: whose measured damage is least for the bytes that they save; mix is no order: it
gives each group of tensors a type of its own."""
MEASURED = (DAMAGE, MIX)
"""Orders that need more than the scores."""
MIXED = "MIX"
"""The low type of a plan that has several."""
DEFAULT_LOW_SHARE = 3 / 7
"""The paper's 12 of Qwen2.5-VL-7B's 28 layers."""
TRAINED_ONLY = frozenset({"TQ1_0", "TQ2_0", "Q1_0", "MXFP4", "NVFP4"})
"""Types for models that were trained for them; an ordinary model breaks."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor and the types it may get; `shape` in ggml's order, `source` is its type in the 16-bit file."""

    name: str
    shape: tuple[int, ...]
    high: GGMLQuantizationType
    low: GGMLQuantizationType
    source: GGMLQuantizationType

    @property
    def layer(self) -> int | None:
        """The decoder layer it belongs to, None outside the layers."""
        return layer_of(self.name)

    @property
    def quantizable(self) -> bool:
        """Whether llama.cpp's quantizer may change its type."""
        return len(self.shape) > 1 and is_weight(self.name)

    def bytes_as(self, kind: GGMLQuantizationType) -> int:
        """Bytes in the file when stored as `kind`, with the padding that follows."""
        return align(type_size(kind, self.shape), DEFAULT_ALIGNMENT)


@dataclass(frozen=True)
class Budget:
    """What the file may be; all that is given must hold, nothing given means 3/7 of the layers low."""

    low_layers: int | None = None
    max_size: int | None = None


@dataclass(frozen=True)
class PlanInputs:
    """What names a plan beside sizes and order: digest of the checkpoint, the types asked for, the order's name.

    `high_fallbacks` names the tensors that cannot take what the high type would give them, with what they
    get instead; `source_bytes` is the size of the 16-bit file.
    """

    checkpoint: str
    high_type: str
    low_type: str
    order_name: str
    high_fallbacks: Mapping[str, GGMLQuantizationType]
    source_bytes: int


def layer_of(name: str) -> int | None:
    """The number in "blk.<number>.", None for any other name."""
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else None


def type_size(kind: GGMLQuantizationType, shape: Iterable[int]) -> int:
    """Bytes of a tensor's data without padding; `shape` in ggml's order, row length first."""
    return tensor_bytes(kind, shape)


def tensor_order(names: Iterable[str]) -> list[str]:
    """Names in the order in which llama.cpp's quantizer writes them: outside the layers first, then by layer."""

    def key(name: str) -> tuple[int, bytes]:
        layer = layer_of(name)
        return (-1 if layer is None else layer, name.encode())

    return sorted(names, key=key)


def choose_order(scores: LayerScores | None, order_name: str, layers: int, seed: int = 0) -> tuple[int, ...]:
    """All layers, from the first to become low to the last; among equals the later layer comes first.

    Raises RequestError for an unknown name, or where the order needs scores that are not there.
    """
    if order_name not in ORDERS:
        raise RequestError(f"unknown order {order_name!r}", hint=f"known are {', '.join(ORDERS)}")
    depth = tuple(reversed(range(layers)))
    if order_name == "depth":
        return depth
    if order_name == "random":
        return tuple(random.Random(seed).sample(range(layers), layers))
    if order_name in MEASURED:
        raise RequestError(f"the order {order_name!r} is measured", hint="convert the model with it")
    if order_name in CHANGES:
        figures = change_scores(scores, order_name, layers)
        return tuple(sorted(depth, key=lambda layer: figures[layer]))
    means = entropy_means(scores, layers, "input" if order_name == "entropy-input" else "output")
    sign = -1 if order_name == "reverse" else 1
    return tuple(sorted(depth, key=lambda layer: sign * means[layer]))


CHANGES = {"cosine": {"cosine": -1.0}, "change": {"attention": 1.0, "ffn": 1.0}}
"""The figures that orders by change add up, and with which sign."""


def change_scores(scores: LayerScores | None, order_name: str, layers: int) -> list[float]:
    """What an order by change sorts by, the least first: the mean over multimodal and text tokens."""
    found = [0.0] * layers
    for figure, sign in CHANGES[order_name].items():
        means = mean_changes(scores, figure, layers)
        if means is None:
            raise RequestError(f"the scores do not give the order {order_name!r}", hint="analyze the model again")
        found = [total + sign * mean for total, mean in zip(found, means, strict=True)]
    return found


def mean_changes(scores: LayerScores | None, figure: str, layers: int) -> tuple[float, ...] | None:
    """A figure of what every layer changes, the mean over multimodal and text tokens; None where it is not there."""
    keys = (f"{figure}_multimodal", f"{figure}_text")
    rows = [scores.changes[key] for key in keys if scores is not None and key in scores.changes]
    if not rows or any(len(row) != layers for row in rows):
        return None
    return tuple(sum(values) / len(rows) for values in zip(*rows, strict=True))


def entropy_means(scores: LayerScores | None, layers: int, site: str = "output") -> list[float]:
    """The entropy of every layer in bits, of image and text tokens where they were measured, else of texts."""
    rows = None
    if scores is not None:
        rows = scores.entropy.get(f"{site}_multimodal") or scores.entropy.get(f"{site}_text")
    if not rows:
        raise RequestError(f"no entropies of the layers' {site}", hint="analyze the model, or take --order depth")
    if len(rows) != layers:
        raise RequestError(
            f"the scores are of {len(rows)} layers, the model has {layers}", hint="analyze this model again"
        )
    return [row.mean for row in rows]


def size_table(specs: Sequence[TensorSpec], header_bytes: int, order: Sequence[int]) -> tuple[int, ...]:
    """Bytes of the file with the first 0, 1, ... all layers of `order` low."""
    everything_high = header_bytes + sum(spec.bytes_as(spec.high) for spec in specs)
    change = dict.fromkeys(order, 0)
    for spec in specs:
        if spec.layer is not None:
            change[spec.layer] += spec.bytes_as(spec.low) - spec.bytes_as(spec.high)
    return tuple(accumulate((change[layer] for layer in order), initial=everything_high))


def make_plan(
    specs: Sequence[TensorSpec],
    header_bytes: int,
    order: Sequence[int],
    budget: Budget,
    inputs: PlanInputs,
    *,
    strict: bool = False,
) -> Plan:
    """The plan with the fewest low layers that keeps the budget, or with the number that it names.

    `header_bytes` is the size of the final file's header with its padding. Raises BudgetError where no plan
    fits, RequestError where the budget is malformed or, when `strict`, where a tensor cannot take the low type.
    """
    _check_layers(specs, order)
    sizes = size_table(specs, header_bytes, order)
    count, notes = _choose_count(sizes, budget)
    low_layers = frozenset(order[:count])
    types = {spec.name: spec.low if spec.layer in low_layers else spec.high for spec in specs}
    fallbacks = dict(_fallbacks(specs, low_layers, inputs))
    refused = [name for name in fallbacks if layer_of(name) in low_layers]
    if strict and refused:
        raise RequestError(
            f"{len(refused)} tensors cannot take {inputs.low_type}, the first is {refused[0]} "
            f"(it would be {fallbacks[refused[0]]})",
            hint="leave out --strict to accept llama.cpp's substitutes, or choose another low type",
        )
    if count and inputs.low_type in TRAINED_ONLY:
        notes = (*notes, f"{inputs.low_type} is for models trained for it: expect this model to break")
    bits = 8 * sum(type_size(types[spec.name], spec.shape) for spec in specs)
    return Plan(
        checkpoint=inputs.checkpoint,
        layers=len(order),
        order_name=inputs.order_name,
        order=tuple(order),
        low_layers=tuple(sorted(low_layers)),
        low_type=inputs.low_type,
        high_type=inputs.high_type,
        types={name: types[name].name for name in tensor_order(types)},
        size_bytes=sizes[count],
        high_size_bytes=sizes[0],
        f16_size_bytes=inputs.source_bytes,
        bits_per_weight=bits / sum(prod(spec.shape) for spec in specs),
        fallbacks=fallbacks,
        notes=notes,
    )


def make_mixed_plan(
    specs: Sequence[TensorSpec],
    header_bytes: int,
    layers: int,
    types: Mapping[str, GGMLQuantizationType],
    inputs: PlanInputs,
) -> Plan:
    """The plan with a type of its own for every tensor; those that `types` does not name get the high one.

    Low are the layers that are smaller than the high type makes them.
    """
    chosen = {spec.name: types.get(spec.name, spec.high) for spec in specs}
    saved = dict.fromkeys(range(layers), 0)
    for spec in specs:
        if spec.layer is not None:
            saved[spec.layer] += spec.bytes_as(spec.high) - spec.bytes_as(chosen[spec.name])
    order = tuple(sorted(saved, key=lambda layer: (-saved[layer], -layer)))
    bits = 8 * sum(type_size(chosen[spec.name], spec.shape) for spec in specs)
    return Plan(
        checkpoint=inputs.checkpoint,
        layers=layers,
        order_name=inputs.order_name,
        order=order,
        low_layers=tuple(sorted(layer for layer in order if saved[layer] > 0)),
        low_type=MIXED,
        high_type=inputs.high_type,
        types={name: chosen[name].name for name in tensor_order(chosen)},
        size_bytes=header_bytes + sum(spec.bytes_as(chosen[spec.name]) for spec in specs),
        high_size_bytes=header_bytes + sum(spec.bytes_as(spec.high) for spec in specs),
        f16_size_bytes=inputs.source_bytes,
        bits_per_weight=bits / sum(prod(spec.shape) for spec in specs),
        fallbacks={name: kind.name for name, kind in inputs.high_fallbacks.items() if chosen.get(name) == kind},
    )


def _check_layers(specs: Sequence[TensorSpec], order: Sequence[int]) -> None:
    present = {spec.layer for spec in specs} - {None}
    if present != set(order) or len(order) != len(set(order)):
        raise RequestError(f"the order names {len(set(order))} layers, the model has {len(present)}")


def _choose_count(sizes: Sequence[int], budget: Budget) -> tuple[int, tuple[str, ...]]:
    layers, limit = len(sizes) - 1, budget.max_size
    if budget.low_layers is not None:
        return _named_count(sizes, budget.low_layers, limit), ()
    if limit is None:
        return round(DEFAULT_LOW_SHARE * layers), ()
    for count, size in enumerate(sizes):
        if size <= limit:
            note = f"the file without low layers, {size:,} bytes, is within {limit:,} already"
            return count, (note,) if count == 0 else ()
    smallest = min(sizes)
    raise BudgetError(
        f"no file of at most {limit:,} bytes can be made",
        nearest_bytes=smallest,
        hint=f"the smallest has {smallest:,} bytes; raise --max-size or choose a smaller type",
    )


def _named_count(sizes: Sequence[int], count: int, limit: int | None) -> int:
    if not 0 <= count < len(sizes):
        raise RequestError(
            f"{count} low layers asked for, the model has {len(sizes) - 1}",
            hint=f"give 0 to {len(sizes) - 1}",
        )
    if limit is not None and sizes[count] > limit:
        fitting = [number for number, size in enumerate(sizes) if size <= limit]
        hint = f"{fitting[0]} low layers fit" if fitting else f"the smallest file has {min(sizes):,} bytes"
        raise BudgetError(
            f"with {count} low layers the file has {sizes[count]:,} bytes, more than {limit:,}",
            nearest_bytes=sizes[fitting[0]] if fitting else min(sizes),
            hint=hint,
        )
    return count


def _fallbacks(
    specs: Sequence[TensorSpec], low_layers: frozenset[int], inputs: PlanInputs
) -> Iterator[tuple[str, str]]:
    for spec in specs:
        if spec.layer in low_layers:
            if spec.quantizable and spec.low != GGMLQuantizationType[inputs.low_type]:
                yield spec.name, spec.low.name
        elif spec.name in inputs.high_fallbacks:
            yield spec.name, spec.high.name


def is_weight(name: str) -> bool:
    """Whether llama.cpp's quantizer may change the type of a decoder's tensor of this name."""
    return name.endswith("weight") and "_norm.weight" not in name


def weights_to_quantize(plan: Plan) -> list[str]:
    """The layers' weights that need importance: everything in them that a plan does not leave in 16 bits."""
    named = ((name, kind) for name, kind in plan.types.items() if layer_of(name) is not None and is_weight(name))
    return [name for name, kind in named if kind not in UNQUANTIZED]


def override_pattern(name: str) -> str:
    """The regular expression that hits this tensor only; ECMAScript's, as llama.cpp uses."""
    return "^" + re.sub(r"([^A-Za-z0-9_])", r"\\\1", name) + "$"


def tensor_types_text(plan: Plan) -> str:
    """The plan as a file for `llama-quantize --tensor-type-file`: one anchored pattern a weight."""
    lines = (f"{override_pattern(name)}={kind.lower()}" for name, kind in plan.types.items() if is_weight(name))
    return "\n".join(lines) + "\n"
