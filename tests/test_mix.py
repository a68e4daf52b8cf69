"""The knapsack over types: never above its budget, never below what brute force finds, and near it."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from luq_gguf.mix import Option, mix_options

GROUPS = st.lists(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0, 10, allow_nan=False)), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


def options_of(rows: list[list[tuple[int, float]]]) -> list[list[Option]]:
    return [[Option(str(place), *row) for place, row in enumerate(group)] for group in rows]


def best(groups: list[list[Option]], budget: int) -> float | None:
    fitting = [
        sum(option.damage for option in chosen)
        for chosen in product(*groups)
        if sum(option.bytes for option in chosen) <= budget
    ]
    return min(fitting, default=None)


@given(GROUPS, st.integers(0, 250))
def test_it_keeps_the_budget_and_comes_within_a_step_of_the_optimum(
    rows: list[list[tuple[int, float]]], budget: int
) -> None:
    groups = options_of(rows)
    found, optimum = mix_options(groups, budget), best(groups, budget)
    if optimum is None:
        assert found is None
        return
    assert found is not None
    chosen = [group[place] for group, place in zip(groups, found.choice, strict=True)]
    assert sum(option.bytes for option in chosen) == found.bytes <= budget
    assert abs(sum(option.damage for option in chosen) - found.damage) < 1e-9
    largest_step = max(max(option.damage for option in group) - min(o.damage for o in group) for group in groups)
    assert found.bound - 1e-9 <= optimum <= found.damage + 1e-9
    assert found.damage <= optimum + largest_step + 1e-9


def test_with_room_for_all_the_least_damage_is_taken() -> None:
    groups = options_of([[(10, 5.0), (20, 1.0), (40, 0.5)], [(10, 2.0), (30, 2.5)]])
    found = mix_options(groups, 1000)
    assert found is not None
    assert found.choice == (2, 0)
    assert found.damage == found.bound == 2.5


def test_equal_layers_with_convex_damages_share_the_bytes_evenly() -> None:
    """Error grows steeply towards one bit, so that spending bits evenly is best where layers do not differ."""
    groups = options_of([[(1, 8.0), (2, 4.0), (3, 2.0), (4, 1.0)]] * 6)
    found = mix_options(groups, 6 * 3)
    assert found is not None
    assert set(found.choice) == {2}


def test_a_sensitive_layer_gets_the_bytes_of_an_insensitive_one() -> None:
    groups = options_of([[(1, 80.0), (2, 40.0), (3, 20.0)], [(1, 0.8), (2, 0.4), (3, 0.2)]])
    found = mix_options(groups, 4)
    assert found is not None
    assert found.choice == (2, 0)
