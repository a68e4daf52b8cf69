"""Which plan is the smallest whose measured drop in quality stays within a limit.

Pure: measuring is handed in, and done as seldom as may be. More low layers mostly mean less quality, but not always.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from luq_gguf.artifacts import Plan
from luq_gguf.errors import BudgetError

NEIGHBOURS = 2
"""So many further plans in a row must fail before the search ends."""


def smallest_within(plans: Sequence[Plan], drop: Callable[[Plan], float], limit: float) -> Plan:
    """Of plans from the largest to the smallest, the furthest that was measured to be within `limit`.

    Brackets the limit as if quality fell from plan to plan, then measures on until two further plans in a row fail.
    Raises BudgetError, with the best that was measured, where none of them is within.
    """
    place = furthest_within(len(plans), lambda index: drop(plans[index]), limit)
    if isinstance(place, int):
        return plans[place]
    best = min(place, key=lambda index: place[index])
    raise BudgetError(
        f"no plan was measured to drop by {limit:.1%} or less",
        nearest_bytes=plans[best].size_bytes,
        hint=f"the best drops by {place[best]:.1%}: {len(plans[best].low_layers)} low layers, "
        f"{plans[best].size_bytes:,} bytes",
    )


def furthest_within(count: int, drop: Callable[[int], float], limit: float) -> int | dict[int, float]:
    """The furthest place of a bracketing search whose drop is within the limit; else everything that was measured."""
    measured: dict[int, float] = {}

    def holds(place: int) -> bool:
        if place not in measured:
            measured[place] = drop(place)
        return measured[place] <= limit

    within, beyond = -1, count
    while beyond - within > 1:
        middle = (within + beyond) // 2
        within, beyond = (middle, beyond) if holds(middle) else (within, middle)
    place, failed = within + 1, 0
    while place < count and failed < NEIGHBOURS:
        within, failed = (place, 0) if holds(place) else (within, failed + 1)
        place += 1
    return within if within >= 0 else measured
