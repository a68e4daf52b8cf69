"""Chooses one of several types for every group of tensors: the least predicted damage within a budget of bytes.

Pure: a multiple-choice knapsack, solved by dynamic programming over the bytes beyond the smallest file. Exact where
their common divisor leaves few enough steps; otherwise they are rounded up to steps for the choice, not for the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

MOST_STEPS = 1 << 18


@dataclass(frozen=True)
class Option:
    """One way to store a group: its name, its bytes, and the damage that it is predicted to do."""

    name: str
    bytes: int
    damage: float


@dataclass(frozen=True)
class Mixed:
    """The option of every group by its place, their bytes and damage."""

    choice: tuple[int, ...]
    bytes: int
    damage: float


@dataclass(frozen=True)
class Knapsack:
    """Groups of which each gets one of its options; what is worked out once answers for every budget."""

    groups: Sequence[Sequence[Option]]

    @cached_property
    def smallest(self) -> int:
        """Bytes with the smallest option of every group."""
        return sum(min(option.bytes for option in group) for group in self.groups)

    def fill(self, budget: int) -> Mixed | None:
        """The options of least damage that have at most `budget` bytes; None where even the smallest have more."""
        if budget < self.smallest:
            return None
        last = self._choices.shape[1] - 1
        # Rounded up, a choice may fill a step more a group than its bytes do.
        for steps in range(min(last, (budget - self.smallest) // self._step + len(self.groups)), -1, -1):
            mixed = self._chosen(steps)
            if mixed.bytes <= budget:
                return mixed
        raise AssertionError("the smallest options fit")

    @cached_property
    def _extra(self) -> list[list[int]]:
        """Bytes of every option beyond the smallest of its group."""
        least = [min(option.bytes for option in group) for group in self.groups]
        return [[option.bytes - size for option in group] for group, size in zip(self.groups, least, strict=True)]

    @cached_property
    def _step(self) -> int:
        """Bytes of a step of the budget."""
        room = sum(map(max, self._extra))
        return max(math.gcd(*(size for sizes in self._extra for size in sizes)), -(-room // MOST_STEPS), 1)

    @cached_property
    def _weights(self) -> list[list[int]]:
        """Steps that every option takes."""
        return [[-(-size // self._step) for size in sizes] for sizes in self._extra]

    @cached_property
    def _choices(self) -> NDArray[np.uint8]:
        """For each group (rows) the place of its best option where it and the groups before it have so many steps."""
        steps = sum(map(max, self._weights))
        damage = np.zeros(steps + 1)
        choices = np.zeros((len(self.groups), steps + 1), np.uint8)
        for number, (group, weights) in enumerate(zip(self.groups, self._weights, strict=True)):
            found = np.full(steps + 1, np.inf)
            for place in sorted(range(len(group)), key=lambda place: weights[place]):
                with_it = damage[: steps + 1 - weights[place]] + group[place].damage
                better = with_it < found[weights[place] :]
                found[weights[place] :][better] = with_it[better]
                choices[number, weights[place] :][better] = place
            damage = found
        return choices

    def _chosen(self, steps: int) -> Mixed:
        """What was found best for so many steps."""
        choice = []
        for number in reversed(range(len(self.groups))):
            choice.append(int(self._choices[number, steps]))
            steps -= self._weights[number][choice[-1]]
        choice.reverse()
        options = [group[place] for group, place in zip(self.groups, choice, strict=True)]
        return Mixed(tuple(choice), sum(option.bytes for option in options), sum(option.damage for option in options))
