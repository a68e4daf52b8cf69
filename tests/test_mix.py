"""The knapsack over types: never above its budget, and what brute force finds."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luq_gguf import mix
from luq_gguf.mix import Knapsack, Mixed, Option

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


def checked(groups: list[list[Option]], budget: int) -> Mixed | None:
    """What fills a budget, once it is known to keep it, to be what its choice says, and to be found again."""
    found = Knapsack(groups).fill(budget)
    if found is not None:
        chosen = [group[place] for group, place in zip(groups, found.choice, strict=True)]
        assert sum(option.bytes for option in chosen) == found.bytes <= budget
        assert abs(sum(option.damage for option in chosen) - found.damage) < 1e-9
        assert Knapsack(groups).fill(found.bytes) == found
    return found


@given(GROUPS, st.integers(0, 250))
def test_it_is_the_optimum(rows: list[list[tuple[int, float]]], budget: int) -> None:
    groups = options_of(rows)
    found, optimum = checked(groups, budget), best(groups, budget)
    assert (found is None) == (optimum is None)
    if found is not None and optimum is not None:
        assert abs(found.damage - optimum) < 1e-9


@given(GROUPS, st.integers(0, 250), st.integers(1, 40))
def test_in_few_steps_it_keeps_the_budget_and_comes_near(
    rows: list[list[tuple[int, float]]], budget: int, steps: int
) -> None:
    """As near as the optimum of what is left when every group's bytes are rounded up to a step."""
    groups = options_of(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mix, "MOST_STEPS", steps)
        found = checked(groups, budget)
        lost = len(groups) * (Knapsack(groups)._step - 1)
    assert (found is None) == (best(groups, budget) is None)
    modest = best(groups, budget - lost)
    if found is not None and modest is not None:
        assert found.damage <= modest + 1e-9


def test_a_large_group_does_not_keep_the_budget_from_being_used() -> None:
    """What saves most damage a byte comes first, and then the large step does not fit: steps alone are not enough."""
    groups = options_of([[(1, 1.0), (2, 0.5)], [(10, 10.0), (20, 6.0)]])
    found = checked(groups, 21)
    assert found is not None
    assert found.choice == (0, 1)


def test_with_room_for_all_the_least_damage_is_taken() -> None:
    groups = options_of([[(10, 5.0), (20, 1.0), (40, 0.5)], [(10, 2.0), (30, 2.5)]])
    found = checked(groups, 1000)
    assert found is not None
    assert found.choice == (2, 0)
    assert found.damage == 2.5


def test_equal_layers_with_convex_damages_share_the_bytes_evenly() -> None:
    """Error grows steeply towards one bit, so that spending bits evenly is best where layers do not differ."""
    groups = options_of([[(1, 8.0), (2, 4.0), (3, 2.0), (4, 1.0)]] * 6)
    found = checked(groups, 6 * 3)
    assert found is not None
    assert set(found.choice) == {2}


def test_a_sensitive_layer_gets_the_bytes_of_an_insensitive_one() -> None:
    groups = options_of([[(1, 80.0), (2, 40.0), (3, 20.0)], [(1, 0.8), (2, 0.4), (3, 0.2)]])
    found = checked(groups, 4)
    assert found is not None
    assert found.choice == (2, 0)
