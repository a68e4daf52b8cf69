"""The search for the smallest file within a drop: what it returns was measured, whatever the curve."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from luq_gguf.quality_budget import NEIGHBOURS, furthest_within

CURVES = st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=40)


@given(CURVES, st.floats(0, 1, allow_nan=False))
def test_what_it_returns_was_measured_and_its_neighbours_failed(curve: list[float], limit: float) -> None:
    asked: list[int] = []

    def drop(place: int) -> float:
        asked.append(place)
        return curve[place]

    found = furthest_within(len(curve), drop, limit)
    assert len(asked) == len(set(asked))
    if isinstance(found, dict):
        assert set(found) == set(asked)
        assert all(value > limit and value == curve[place] for place, value in found.items())
        assert set(range(min(NEIGHBOURS, len(curve)))) <= set(asked)
    else:
        assert curve[found] <= limit
        following = range(found + 1, min(found + 1 + NEIGHBOURS, len(curve)))
        assert all(place in asked and curve[place] > limit for place in following)
        assert all(place <= found for place in asked if curve[place] <= limit)


@given(CURVES, st.floats(0, 1, allow_nan=False))
def test_on_a_rising_curve_it_finds_the_furthest(curve: list[float], limit: float) -> None:
    rising = sorted(curve)
    found = furthest_within(len(rising), rising.__getitem__, limit)
    within = [place for place, value in enumerate(rising) if value <= limit]
    assert found == within[-1] if within else isinstance(found, dict)


@given(st.integers(1, 500), st.floats(0, 1, allow_nan=False))
def test_it_measures_no_more_than_a_bracket_and_its_neighbours(count: int, limit: float) -> None:
    asked = []
    furthest_within(count, lambda place: asked.append(place) or place / count, limit)  # type: ignore[func-returns-value]
    assert len(asked) <= count.bit_length() + 1 + NEIGHBOURS
