"""Orders layers by the damage that was measured for each, per byte that it saves: greedy, measured again as it grows.

Pure: measuring is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

REMEASURED = 2
"""At so many points on the way damages are measured again, on top of the layers that are low by then."""


def order_by_damage(
    saved: Mapping[int, int], damage: Callable[[frozenset[int]], float], *, points: int = REMEASURED
) -> tuple[int, ...]:
    """All layers, from the first to become low to the last; `saved` are the bytes that each saves.

    `damage` measures the file with a set of low layers. Damages do not add up: at `points` places, evenly spaced, every
    remaining layer is measured anew on top of those before it. Among equals the later layer comes first.
    """
    remaining = set(saved)
    places = {round(len(saved) * number / (points + 1)) for number in range(1, points + 1)} - {0}
    singles = _singles(frozenset(), remaining, damage)
    order: list[int] = []
    while remaining:
        layer = min(remaining, key=lambda each: (singles[each] / saved[each], -each))
        order.append(layer)
        remaining.discard(layer)
        if remaining and len(order) in places:
            singles = _singles(frozenset(order), remaining, damage)
    return tuple(order)


def _singles(low: frozenset[int], layers: set[int], damage: Callable[[frozenset[int]], float]) -> dict[int, float]:
    """What each layer adds to the damage of the low ones."""
    before = damage(low)
    return {layer: damage(low | {layer}) - before for layer in sorted(layers)}
