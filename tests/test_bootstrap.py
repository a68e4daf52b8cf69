"""Bootstrap intervals against scipy's and closed forms; what must hold for any groups."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from luq_gguf.bootstrap import CONFIDENCE, Figures, Weights, bootstrap

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)


def mean_of(values: NDArray[np.float64]) -> Figures:
    def figures(weights: Weights) -> Mapping[str, float]:
        return {"mean": float(weights @ values / weights.sum())}

    return figures


@pytest.mark.parametrize("count", [8, 40, 300])
def test_the_interval_of_a_mean_is_scipys(count: int) -> None:
    values = np.random.default_rng(count).lognormal(size=count)
    found = bootstrap(count, mean_of(values), rounds=8000)["mean"]
    wanted = stats.bootstrap(
        (values,), np.mean, confidence_level=CONFIDENCE, method="percentile", n_resamples=8000, rng=1
    )
    width = wanted.confidence_interval.high - wanted.confidence_interval.low
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(wanted.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(wanted.confidence_interval.high, abs=0.05 * width)


def test_the_interval_of_a_ratio_of_sums_is_scipys() -> None:
    """Answers of unlike lengths: the figure is a ratio whose both parts vary from draw to draw."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(1, 12, 60).astype(np.float64)
    same = np.floor(tokens * rng.uniform(0.3, 1, 60))

    def figures(weights: Weights) -> Mapping[str, float]:
        return {"agreement": float(weights @ same) / float(weights @ tokens)}

    found = bootstrap(60, figures, rounds=6000)["agreement"]
    wanted = stats.bootstrap(
        (same, tokens), lambda part, whole, axis=-1: part.sum(axis) / whole.sum(axis), paired=True,
        confidence_level=CONFIDENCE, method="percentile", n_resamples=6000, rng=1,
    )  # fmt: skip
    assert found.value == pytest.approx(same.sum() / tokens.sum())
    assert (found.low, found.high) == pytest.approx(tuple(wanted.confidence_interval), abs=0.005)


@settings(max_examples=30, deadline=None)
@given(VALUES, st.integers(0, 3))
def test_it_lies_within_the_values_and_does_not_change(values: list[float], seed: int) -> None:
    array = np.array(values)
    found = bootstrap(len(values), mean_of(array), rounds=50, seed=seed)
    assert found == bootstrap(len(values), mean_of(array), rounds=50, seed=seed)
    estimate = found["mean"]
    slack = 1e-9 * max(1.0, np.abs(array).max())
    assert estimate.value == pytest.approx(array.mean(), abs=slack)
    assert array.min() - slack <= estimate.low <= estimate.high <= array.max() + slack


def test_another_seed_draws_other_groups() -> None:
    values = np.random.default_rng(0).normal(size=20)
    first, other = (bootstrap(20, mean_of(values), rounds=200, seed=seed)["mean"] for seed in (0, 1))
    assert first.value == other.value
    assert (first.low, first.high) != (other.low, other.high)


def test_what_is_the_same_in_every_group_has_no_width() -> None:
    found = bootstrap(17, mean_of(np.full(17, 2.5)))["mean"]
    assert (found.value, found.low, found.high) == (2.5, 2.5, 2.5)


def test_one_group_tells_nothing_of_the_spread() -> None:
    found = bootstrap(1, mean_of(np.array([7.0])))["mean"]
    assert (found.value, found.low, found.high) == (7.0, 7.0, 7.0)


def test_the_more_groups_the_narrower() -> None:
    draw = np.random.default_rng(5)
    widths = []
    for count in (25, 100, 400):
        found = bootstrap(count, mean_of(draw.normal(size=count)))["mean"]
        widths.append(found.high - found.low)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.35)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.35)


def test_a_figure_that_is_undefined_is_left_out_altogether() -> None:
    def figures(weights: Weights) -> Mapping[str, float]:
        return {"sum": float(weights.sum()), "nothing": float("nan"), "endless": float("inf")}

    assert bootstrap(5, figures).keys() == {"sum"}


def test_draws_without_a_rare_group_do_not_count() -> None:
    """The share among the rare ones is not defined where none of them was drawn."""
    rare, right = np.array([0, 0, 0, 0, 1, 1], np.float64), np.array([0, 0, 0, 0, 1, 0], np.float64)
    undefined = 0

    def figures(weights: Weights) -> Mapping[str, float]:
        nonlocal undefined
        drawn = float(weights @ rare)
        undefined += drawn == 0
        return {"share": float(weights @ right) / drawn if drawn else float("nan")}

    found = bootstrap(6, figures)["share"]
    assert undefined > 100
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
