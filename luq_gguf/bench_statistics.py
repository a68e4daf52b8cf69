"""Medians with their intervals, and ratios with a verdict, from few samples and without assuming a distribution.

Pure. A sample is one round: within a round times depend on each other, so rounds are what is counted. Intervals are
made of order statistics and hold the true median with at least 95 %, or say with what where rounds are too few.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
LEAST_ROUNDS = 6
"""With fewer, not even the range of all samples holds the median with 95 %."""
EXACT_PAIRS = 2500
"""Up to so many pairs of two samples the ranks are counted; beyond, their normal approximation is exact enough."""
NOISE = "no difference beyond noise"
TOO_FEW = "too few rounds to tell"


@dataclass(frozen=True)
class Interval:
    """A median, the interval that holds the true one, and with what probability it does."""

    median: float
    low: float
    high: float
    confidence: float

    def map(self, change: Callable[[float], float]) -> Interval:
        """The interval of a changed quantity; `change` must rise or fall throughout."""
        low, high = sorted((change(self.low), change(self.high)))
        return Interval(change(self.median), low, high, self.confidence)


def median_interval(values: Sequence[float]) -> Interval:
    """The median of samples and the narrowest symmetric order statistics around it that hold it with 95 %."""
    ordered = sorted(values)
    rank, confidence = _rank([math.comb(len(ordered), below) for below in range(len(ordered) + 1)])
    return Interval(statistics.median(ordered), ordered[rank - 1], ordered[-rank], confidence)


def paired_ratio(first: Sequence[float], other: Sequence[float]) -> Interval:
    """`other` / `first`, of samples that were taken in turn: what slowed a round slowed both.

    The median is that of the logarithms, so that exchanging both gives the reciprocal.
    """
    logs = [math.log(right / left) for left, right in zip(first, other, strict=True)]
    return median_interval(logs).map(math.exp)


def unpaired_ratio(first: Sequence[float], other: Sequence[float]) -> Interval:
    """`other` / `first`, of samples taken apart: Hodges and Lehmann's estimate, with Mann and Whitney's ranks.

    Holds where both have the same spread in proportion to their size.
    """
    logs = sorted(math.log(right / left) for left in first for right in other)
    rank, confidence = _rank_of_pairs(len(first), len(other))
    return Interval(statistics.median(logs), logs[rank - 1], logs[-rank], confidence).map(math.exp)


def verdict(ratio: Interval) -> str:
    """What a ratio of speeds says: faster, slower, or nothing."""
    if ratio.confidence < CONFIDENCE:
        return TOO_FEW
    if ratio.low <= 1 <= ratio.high:
        return NOISE
    return "faster" if ratio.low > 1 else "slower"


def rank_counts(first: int, other: int) -> list[int]:
    """In how many orders of two samples Mann and Whitney's U is 0, 1, 2, ...: the Gaussian binomial's coefficients."""
    counts = [1] + [0] * (first * other)
    for step in range(1, other + 1):
        for place in range(len(counts) - 1, first + step - 1, -1):
            counts[place] -= counts[place - first - step]
        for place in range(step, len(counts)):
            counts[place] += counts[place - step]
    return counts


def _rank_of_pairs(first: int, other: int) -> tuple[int, float]:
    pairs = first * other
    if pairs <= EXACT_PAIRS:
        return _rank(rank_counts(first, other))
    spread = math.sqrt(pairs * (first + other + 1) / 12)
    quantile = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return int(pairs / 2 - quantile * spread), CONFIDENCE


def _rank(counts: Sequence[int]) -> tuple[int, float]:
    """The highest rank, counted from both ends, that leaves 5 % outside, and the probability inside.

    `counts` are in how many of all cases so many samples lie below the true value. The rank is 1 at least.
    """
    total, outside = sum(counts), 2 * counts[0]
    rank = 1
    while (more := outside + 2 * counts[rank]) <= (1 - CONFIDENCE) * total and 2 * rank < len(counts) - 1:
        rank, outside = rank + 1, more
    return rank, max(0.0, 1 - outside / total)
