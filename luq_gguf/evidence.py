"""What tells how much damage a plan will do before it is made: weight errors, what layers add, a few measured files.

Pure. The model: a tensor's relative output error is that of its weights, weighted by importance; it disturbs what flows
through by the share that its block adds there; disturbances of many tensors add up, and divergence grows with their
squares (HIGGS' linearity, Malinovskii et al. 2024). A coefficient for each kind of tensors is fitted to measured files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from luq_gguf.artifacts import LayerScores, Record
from luq_gguf.changes import ATTENTION, FFN
from luq_gguf.errors import RequestError
from luq_gguf.planning import layer_of, mean_changes
from luq_gguf.type_names import UNQUANTIZED, bits_of

EVIDENCE = "evidence.json"
BLOCKS = {"query_key": ATTENTION, "value_output": ATTENTION, "gate_up": FFN, "down": FFN}
"""Groups of a layer's weights that get one type together, and the block that each belongs to."""
TABLES = {"embedding": "token_embd.weight", "output": "output.weight"}
"""Groups outside the layers, of one weight each: all that flows comes from it or goes through it."""
GROUPS = (*BLOCKS, *TABLES)
PATTERNS = {
    "query_key": r"attn_(q|k)", "value_output": r"attn_(v|qkv|output)", "gate_up": r"ffn_(gate|up)",
    "down": r"ffn_down",
}  # fmt: skip
OFFSET = "offset"
"""The coefficient of what all files of a model share: the types outside the layers."""
FINE_BITS = 8.0
"""Types of so many bits lose nothing that matters here."""
SPREAD = 5.0
LEAST = 1e-12
LIMITS = 0.5, 5.0
"""A measured layer or type is taken to do at least and at most so many times the predicted damage."""
CODEBOOKS = ("IQ1_M", "IQ2_XXS", "IQ3_XXS")
"""Types that get a factor of their own, measured in some layers."""
DISPUTED = 4
"""So many layers on which entropy and what layers add disagree most are measured by themselves."""
LARGE = 4e9
"""From so many weights on a probe costs minutes: fewer layers are lowered, and none is measured by itself."""


class Probe(Record):
    """A file that was measured: the types of its tensors, and its divergence in nats a token."""

    types: dict[str, str]
    divergence: float


class Evidence(Record):
    """`evidence.json`: what plans by damage are made from, so that they can be made again without measuring.

    `errors` maps weights and types to relative squared errors, those of a type in `type_factors` times its factor;
    `coefficients` are those of the groups and the offset; `factors` corrects each layer; `fit_error` is the median
    relative error, before those factors, over the files that were measured, `probes`. `damage_order` is the order by
    measured damage of `low_type`, where that was asked for.
    """

    format: Literal["luq-gguf evidence 1"] = "luq-gguf evidence 1"
    checkpoint: str
    low_type: str
    damage_order: tuple[int, ...] = ()
    errors: dict[str, dict[str, float]] = Field(default_factory=dict)
    type_factors: dict[str, float] = Field(default_factory=dict)
    coefficients: dict[str, float] = Field(default_factory=dict)
    factors: tuple[float, ...] = ()
    probes: int = 0
    fit_error: float | None = None

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if self.coefficients and self.coefficients.keys() != {*GROUPS, OFFSET}:
            raise ValueError("its coefficients are of other groups")
        if bool(self.coefficients) != bool(self.factors):
            raise ValueError("it has coefficients or factors of layers without the other")
        return self


def probe_count(weights: int) -> int:
    """Files to measure of a model with so many weights: the high type alone, each group, each codebook, single layers.

    Where embeddings and output matrix are one weight it is one less.
    """
    return 1 + len(GROUPS) + len(CODEBOOKS) + (DISPUTED if weights < LARGE else 0)


def group_of(name: str) -> str | None:
    """The group of a weight, None for a norm or a bias."""
    if layer_of(name) is None:
        return next((group for group, table in TABLES.items() if name == table), None)
    return next((group for group, pattern in PATTERNS.items() if re.search(rf"\.{pattern}\.weight$", name)), None)


def error_of(errors: Mapping[str, Mapping[str, float]], name: str, kind: str) -> float:
    """The relative squared error of a weight in a type, 0 of a fine one; raises RequestError where it is not known."""
    if kind in UNQUANTIZED or bits_of(kind) >= FINE_BITS:
        return 0.0
    try:
        return errors[name][kind]
    except KeyError:
        raise RequestError(
            f"what {name} loses as {kind} was not measured", hint="convert the model again with --order mix"
        ) from None


def block_shares(scores: LayerScores) -> dict[str, tuple[float, ...]]:
    """For each block and layer what it adds, squared, beside what flows on; the mean over both kinds of tokens.

    Raises RequestError where the scores do not tell.
    """
    found = {}
    for block in (ATTENTION, FFN):
        means = mean_changes(scores, block, scores.layers)
        if means is None:
            raise RequestError("the scores do not say what layers add", hint="analyze the model again")
        found[block] = means
    return found


def disturbances(
    types: Mapping[str, str], errors: Mapping[str, Mapping[str, float]], shares: Mapping[str, Sequence[float]]
) -> dict[tuple[str, int | None], float]:
    """By group and layer how much a file's types disturb what flows through, before coefficients."""
    found: dict[tuple[str, int | None], float] = {}
    for name, kind in types.items():
        group, layer = group_of(name), layer_of(name)
        if group is not None:
            share = 1.0 if layer is None else shares[BLOCKS[group]][layer]
            key = group, layer
            found[key] = found.get(key, 0.0) + share * error_of(errors, name, kind)
    return found


def fit_coefficients(
    probes: Sequence[Probe], errors: Mapping[str, Mapping[str, float]], shares: Mapping[str, Sequence[float]]
) -> dict[str, float]:
    """Coefficients that leave the least relative squared error in the probes' divergences.

    Few answers judge a probe, and a group that seems to do nothing would be given away: none is further from the one
    coefficient that fits all groups best than SPREAD times.
    """
    from scipy.optimize import lsq_linear, nnls

    names = (*GROUPS, OFFSET)
    rows = []
    for probe in probes:
        sums = dict.fromkeys(GROUPS, 0.0)
        for (group, _), value in disturbances(probe.types, errors, shares).items():
            sums[group] += value
        rows.append([*(sums[group] for group in GROUPS), 1.0])
    divergence = np.maximum([probe.divergence for probe in probes], 1e-9)
    parts, wanted = np.array(rows) / divergence[:, None], np.ones(len(rows))
    common, _ = nnls(np.column_stack([parts[:, :-1].sum(axis=1), parts[:, -1]]), wanted)
    middle = max(float(common[0]), LEAST)
    lowest, highest = np.full(len(names), middle / SPREAD), np.full(len(names), middle * SPREAD)
    lowest[-1], highest[-1] = 0.0, np.inf
    found = lsq_linear(parts, wanted, bounds=(lowest, highest)).x
    return dict(zip(names, map(float, found), strict=True))


def predict_divergence(evidence: Evidence, shares: Mapping[str, Sequence[float]], types: Mapping[str, str]) -> float:
    """The divergence of a file with these types, in nats a token."""
    return evidence.coefficients[OFFSET] + sum(
        factor_of(evidence, group, layer) * value
        for (group, layer), value in disturbances(types, evidence.errors, shares).items()
    )


def factor_of(evidence: Evidence, group: str, layer: int | None) -> float:
    """Nats a token for a unit of disturbance by a group of a layer, or outside the layers."""
    return evidence.coefficients[group] * (1.0 if layer is None else evidence.factors[layer])


def type_factor(
    kind: str, base: Probe, lowered: Probe, evidence: Evidence, shares: Mapping[str, Sequence[float]]
) -> float:
    """How many times the predicted damage a type did: `lowered` has it in some layers of `base`.

    Codebook types do more than their errors tell: what they round off is no independent noise.
    """
    without = evidence.model_copy(update={"errors": scale_errors(evidence.errors, {kind: 0.0})})
    others = predict_divergence(without, shares, lowered.types)
    predicted = predict_divergence(evidence, shares, lowered.types) - others
    missed = base.divergence - predict_divergence(evidence, shares, base.types)
    return _within_limits((lowered.divergence - missed - others) / predicted) if predicted > 0 else 1.0


def scale_errors(
    errors: Mapping[str, Mapping[str, float]], factors: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Errors with those of some types multiplied."""
    return {
        name: {kind: error * factors.get(kind, 1.0) for kind, error in kinds.items()} for name, kinds in errors.items()
    }


def _within_limits(factor: float) -> float:
    return min(max(factor, LIMITS[0]), LIMITS[1])


def layer_factors(
    layers: int, base: Probe, singles: Mapping[int, Probe], evidence: Evidence, shares: Mapping[str, Sequence[float]]
) -> tuple[float, ...]:
    """How many times the predicted damage each layer of `singles` did, which differ from `base` in it; 1 for others."""
    factors = [1.0] * layers
    before = predict_divergence(evidence, shares, base.types)
    for layer, probe in singles.items():
        predicted = predict_divergence(evidence, shares, probe.types) - before
        measured = probe.divergence - base.divergence
        if predicted > 0:
            factors[layer] = _within_limits(measured / predicted)
    return tuple(factors)


def most_disputed(scores: Sequence[float], others: Sequence[float], count: int) -> list[int]:
    """The layers on whose place two scores disagree most, the later layer first among equals."""
    first, second = (np.argsort(np.argsort(values, kind="stable")) for values in (scores, others))
    apart = np.abs(first - second)
    return sorted(range(len(scores)), key=lambda layer: (-apart[layer], -layer))[:count]
