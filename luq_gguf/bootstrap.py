"""Bootstrap intervals of figures that are made of sums over groups: answers, images, whatever was drawn independently.

Pure. A figure is a function of how often each group was drawn; drawing all once gives its value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from luq_gguf.artifacts import Record

Weights = NDArray[np.float64]
"""How often each group was drawn (groups,)."""
Figures = Callable[[Weights], Mapping[str, float]]
ROUNDS = 2000
CONFIDENCE = 0.95


class Estimate(Record):
    """A figure and the interval that holds 95 % of its bootstrap replicates."""

    value: float
    low: float
    high: float


def bootstrap(groups: int, figures: Figures, *, rounds: int = ROUNDS, seed: int = 0) -> dict[str, Estimate]:
    """Every figure with its percentile interval (Efron 1979) over drawing so many groups again.

    A figure that is undefined (NaN) for a draw is left out of that round; one that is for all groups, altogether.
    """
    values = {name: value for name, value in figures(np.ones(groups)).items() if np.isfinite(value)}
    draws = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=rounds).astype(np.float64)
    drawn: dict[str, list[float]] = {name: [] for name in values}
    for weights in draws:
        found = figures(weights)
        for name, replicates in drawn.items():
            if np.isfinite(found.get(name, np.nan)):
                replicates.append(found[name])
    tails = [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)]
    return {name: _estimate(value, drawn[name], tails) for name, value in values.items()}


def _estimate(value: float, replicates: list[float], tails: list[float]) -> Estimate:
    low, high = np.percentile(replicates or [value], tails)
    return Estimate(value=value, low=float(low), high=float(high))
