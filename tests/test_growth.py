"""The order by measured damage: the known optimum where damages add up, and where they do not."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from luq_gguf.growth import order_by_damage


@given(st.lists(st.floats(0, 5, allow_nan=False), min_size=1, max_size=8))
def test_damages_that_add_up_are_taken_from_the_least_on(damages: list[float]) -> None:
    order = order_by_damage(dict.fromkeys(range(len(damages)), 1), lambda low: sum(damages[layer] for layer in low))
    for count in range(len(damages) + 1):
        least = min(sum(damages[layer] for layer in low) for low in combinations(range(len(damages)), count))
        assert abs(sum(damages[layer] for layer in order[:count]) - least) < 1e-9


def test_a_layer_that_saves_more_may_do_more_damage() -> None:
    assert order_by_damage({0: 10, 1: 1}, lambda low: sum({0: 2.0, 1: 1.0}[layer] for layer in low)) == (0, 1)


def test_what_breaks_together_is_noticed_on_the_way() -> None:
    """Layers 0 and 1 are the gentlest alone and ruinous together: measured again, the second of them goes last."""

    def damage(low: frozenset[int]) -> float:
        return sum({0: 0.1, 1: 0.2, 2: 1.0, 3: 1.1}[layer] for layer in low) + 50 * ({0, 1} <= low)

    saved = dict.fromkeys(range(4), 1)
    assert order_by_damage(saved, damage, points=0) == (0, 1, 2, 3)
    assert order_by_damage(saved, damage, points=3) == (0, 2, 3, 1)


def test_every_set_is_asked_for_once_or_twice() -> None:
    asked: list[frozenset[int]] = []

    def damage(low: frozenset[int]) -> float:
        asked.append(low)
        return float(len(low))

    order_by_damage(dict.fromkeys(range(12), 1), damage, points=2)
    assert len(asked) == (1 + 12) + (1 + 8) + (1 + 4)
