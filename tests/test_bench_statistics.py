"""Intervals and ratios against brute force and scipy; what must hold for any samples."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from luq_gguf.bench_statistics import (
    CONFIDENCE,
    EXACT_PAIRS,
    LEAST_ROUNDS,
    NOISE,
    TOO_FEW,
    Interval,
    median_interval,
    paired_ratio,
    rank_counts,
    unpaired_ratio,
    verdict,
)

TIMES = st.integers(1, 10**12)
SAMPLES = st.lists(TIMES, min_size=1, max_size=40)
PAIRS = st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=40)
OPPOSITE = {"faster": "slower", "slower": "faster", NOISE: NOISE, TOO_FEW: TOO_FEW}


@given(SAMPLES)
def test_the_interval_holds_the_median(values: list[int]):
    found = median_interval(values)
    assert found.median == np.median(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    assert (found.confidence >= CONFIDENCE) == (len(values) >= LEAST_ROUNDS)


@pytest.mark.parametrize("count", range(1, 13))
def test_the_confidence_by_all_outcomes(count: int):
    """Every sample lies above or below the true median, 0, with the same probability: all cases are counted."""
    found = median_interval(range(count))
    low, high = int(found.low), int(found.high)
    inside = 0
    for signs in itertools.product((-1, 1), repeat=count):
        ordered = sorted(signs)
        inside += ordered[low] < 0 < ordered[high]
    assert found.confidence == pytest.approx(inside / 2**count)


@pytest.mark.parametrize("count", [6, 9, 12, 20, 63, 200, 1000])
def test_the_interval_is_scipys(count: int):
    values = np.random.default_rng(count).lognormal(size=count)
    rank = int(stats.binom.ppf((1 - CONFIDENCE) / 2, count, 0.5))  # that many may lie outside at each end
    rank -= stats.binom.cdf(rank - 1, count, 0.5) * 2 > 1 - CONFIDENCE
    ordered = np.sort(values)
    found = median_interval(list(values))
    assert (found.low, found.high) == (ordered[rank - 1], ordered[-rank])
    assert found.confidence == pytest.approx(1 - 2 * stats.binom.cdf(rank - 1, count, 0.5))


def test_it_covers_as_often_as_it_says():
    draw = random.Random(7)
    intervals = [median_interval([draw.expovariate(1.0) for _ in range(9)]) for _ in range(2000)]
    covered = sum(found.low <= math.log(2) <= found.high for found in intervals) / len(intervals)
    assert covered == pytest.approx(intervals[0].confidence, abs=0.02)


@given(PAIRS)
def test_a_paired_ratio_exchanged_is_the_reciprocal(pairs: list[tuple[int, int]]):
    first, other = zip(*pairs, strict=True)
    check_exchanged(paired_ratio(first, other), paired_ratio(other, first))


@given(SAMPLES, SAMPLES)
def test_an_unpaired_ratio_exchanged_is_the_reciprocal(first: list[int], other: list[int]):
    check_exchanged(unpaired_ratio(first, other), unpaired_ratio(other, first))


def check_exchanged(ratio: Interval, back: Interval) -> None:
    assert ratio.low <= ratio.median <= ratio.high
    assert back.median == pytest.approx(1 / ratio.median)
    assert (back.low, back.high) == pytest.approx((1 / ratio.high, 1 / ratio.low))
    assert back.confidence == ratio.confidence
    assert verdict(back) == OPPOSITE[verdict(ratio)]


@given(SAMPLES)
def test_the_same_samples_do_not_differ(values: list[int]):
    for ratio in (paired_ratio(values, values), unpaired_ratio(values, values)):
        assert ratio.median == pytest.approx(1)
        assert verdict(ratio) == (NOISE if ratio.confidence >= CONFIDENCE else TOO_FEW)


@pytest.mark.parametrize(("first", "other"), [(1, 1), (1, 4), (2, 3), (3, 2), (4, 4), (5, 3)])
def test_the_orders_of_two_samples_by_listing_them(first: int, other: int):
    listed: Counter[int] = Counter()
    for places in itertools.combinations(range(first + other), first):
        rest = [place for place in range(first + other) if place not in places]
        listed[sum(place > another for place in places for another in rest)] += 1
    assert rank_counts(first, other) == [listed[value] for value in range(first * other + 1)]


@pytest.mark.parametrize(("first", "other"), [(4, 4), (6, 6), (6, 9), (30, 40)])
def test_the_unpaired_interval_is_where_scipys_test_gives_way(first: int, other: int):
    """A ratio within the interval is not refused by the exact test of Mann and Whitney, one beyond it is."""
    draw = np.random.default_rng(first * other)
    old, new = draw.lognormal(0, 0.2, first), draw.lognormal(0.5, 0.2, other)
    found = unpaired_ratio(list(old), list(new))
    for ratio, inside in ((found.low, True), (found.high, True), (found.low, False), (found.high, False)):
        nearer = (ratio < found.median) == inside
        tried = old * ratio * (1 + 1e-9 if nearer else 1 - 1e-9)
        p = stats.mannwhitneyu(tried, new, method="exact").pvalue
        assert (p > 1 - CONFIDENCE) == inside
    assert found.median == pytest.approx(math.exp(statistics.median(np.log(np.divide.outer(new, old)).ravel())))


def test_many_pairs_go_by_the_normal_approximation():
    draw = np.random.default_rng(3)
    just, more = (50, 50), (50, 51)
    assert just[0] * just[1] == EXACT_PAIRS
    widths = []
    for first, other in (just, more):
        found = unpaired_ratio(list(np.exp(draw.normal(size=first))), list(np.exp(draw.normal(size=other))))
        assert found.confidence == pytest.approx(CONFIDENCE, abs=0.002)
        widths.append(math.log(found.high / found.low))
    assert widths[1] == pytest.approx(widths[0], rel=0.3)


def test_verdicts():
    rounds = [100.0] * 6
    assert verdict(paired_ratio(rounds, [130.0] * 6)) == "faster"
    assert verdict(paired_ratio(rounds, [70.0] * 6)) == "slower"
    assert verdict(paired_ratio(rounds, [130.0] * 5 + [99.0])) == NOISE
    assert verdict(paired_ratio(rounds[:5], [130.0] * 5)) == TOO_FEW
    assert verdict(unpaired_ratio(rounds[:4], [130.0] * 4)) == "faster"
    assert verdict(unpaired_ratio(rounds[:3], [130.0] * 3)) == TOO_FEW


def test_what_slows_a_round_slows_both():
    slowed = [1.0, 2.0, 4.0, 1.5, 3.0, 8.0]
    ratio = paired_ratio(slowed, [1.1 * value for value in slowed])
    assert (ratio.low, ratio.high) == pytest.approx((1.1, 1.1))
    assert verdict(ratio) == "faster"
    assert verdict(unpaired_ratio(slowed, [1.1 * value for value in slowed])) == NOISE


def test_unequal_rounds_are_no_pairs():
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0, 2.0], [1.0])


@given(SAMPLES, st.floats(1e-3, 1e3))
def test_a_changed_quantity_keeps_its_order(values: list[int], factor: float):
    found = median_interval(values).map(lambda value: factor / value)
    assert found.low <= found.median <= found.high
