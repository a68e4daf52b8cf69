"""Mixed plans: every group of a layer's tensors in a type of its own, by predicted damage, within a budget of bytes.

Pure. Takes the layouts of a model for several types and the evidence; the knapsack is that of `mix`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from gguf import GGMLQuantizationType

from luq_gguf.artifacts import LayerScores, Plan
from luq_gguf.errors import BudgetError
from luq_gguf.evidence import TABLES, Evidence, block_shares, disturbances, factor_of, group_of
from luq_gguf.layout import Layout
from luq_gguf.mix import Knapsack, Option
from luq_gguf.planning import TensorSpec

MIX_TYPES = ("IQ1_M", "IQ2_XXS", "Q2_K", "IQ3_XXS", "Q3_K", "IQ4_XS", "Q5_K", "Q6_K")
"""What groups may get beside what the high type gives them. IQ2_S brought nothing beside Q2_K and takes long."""
TABLE_TYPES = ("Q2_K", "Q3_K", "IQ4_XS", "Q5_K", "Q6_K")
"""The same for weights outside the layers, of which no importance is known."""
HIGH = "high"
SIZES = 12
"""So many sizes are tried where a plan is chosen by something else than its bytes."""


@dataclass(frozen=True)
class Mixer:
    """Makes mixed plans of one model; `layouts` by the type that its low tensors get."""

    layouts: Mapping[str, Layout]
    scores: LayerScores
    evidence: Evidence

    @property
    def layout(self) -> Layout:
        """Any of the layouts: they differ in low types only."""
        return next(iter(self.layouts.values()))

    def plan(self, most_bytes: int) -> Plan:
        """The plan with the least predicted damage of at most so many bytes; raises BudgetError where there is none."""
        mixed = self._knapsack.fill(most_bytes - self._fixed_bytes)
        if mixed is None:
            smallest = self._fixed_bytes + self._knapsack.smallest
            raise BudgetError(
                f"no mixture has at most {most_bytes:,} bytes",
                nearest_bytes=smallest,
                hint=f"the smallest has {smallest:,} bytes",
            )
        types: dict[str, GGMLQuantizationType] = {}
        for group, place in zip(self._groups, mixed.choice, strict=True):
            types |= group.types[place]
        return self.layout.mixed_plan(self.scores.layers, types)

    def sizes(self) -> list[int]:
        """Bytes of files from the largest to the smallest that are worth trying."""
        options = [[option.bytes for option in group.options] for group in self._groups]
        fixed = self._fixed_bytes
        largest, smallest = fixed + sum(map(max, options)), fixed + sum(map(min, options))
        ratio = (smallest / largest) ** (1 / (SIZES - 1))
        return [round(largest * ratio**step) for step in range(SIZES - 1)] + [smallest]

    @cached_property
    def _fixed_bytes(self) -> int:
        """Bytes of the header and of what is in no group."""
        fixed = (spec.bytes_as(spec.high) for spec in self.layout.specs if _place(spec) is None)
        return self.layout.header_bytes + sum(fixed)

    @cached_property
    def _knapsack(self) -> Knapsack:
        return Knapsack([group.options for group in self._groups])

    @cached_property
    def _groups(self) -> list[_Group]:
        shares = block_shares(self.scores)
        places: dict[tuple[int | None, str], list[TensorSpec]] = {}
        for spec in self.layout.specs:
            if (place := _place(spec)) is not None:
                places.setdefault(place, []).append(spec)
        lows = {kind: {spec.name: spec.low for spec in layout.specs} for kind, layout in self.layouts.items()}
        found = []
        for (layer, name), specs in places.items():
            factor = factor_of(self.evidence, name, layer)
            kinds = [kind for kind in lows if name not in TABLES or kind in TABLE_TYPES]
            types = [{spec.name: spec.high for spec in specs}]
            types += [{spec.name: lows[kind][spec.name] for spec in specs} for kind in kinds]
            options = []
            for kind, each in zip((HIGH, *kinds), types, strict=True):
                named = {tensor: found_type.name for tensor, found_type in each.items()}
                damage = factor * sum(disturbances(named, self.evidence.errors, shares).values())
                options.append(Option(kind, sum(spec.bytes_as(each[spec.name]) for spec in specs), damage))
            found.append(_Group(types, options))
        return found


@dataclass(frozen=True)
class _Group:
    """The types of a group's tensors and what they cost, option by option."""

    types: list[dict[str, GGMLQuantizationType]]
    options: list[Option]


def _place(spec: TensorSpec) -> tuple[int | None, str] | None:
    """The layer, if any, and group of a tensor that a mixture gives a type."""
    group = group_of(spec.name)
    return None if group is None or not spec.quantizable else (spec.layer, group)
