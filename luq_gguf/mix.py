"""Chooses one of several types for every group of tensors: the least predicted damage within a budget of bytes.

Pure: a multiple-choice knapsack, solved by its Lagrangian relaxation (the steps of every group's convex hull, those
that save most damage a byte first) and filled up afterwards. The relaxation bounds how far off the optimum that can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Option:
    """One way to store a group: its name, its bytes, and the damage that it is predicted to do."""

    name: str
    bytes: int
    damage: float


@dataclass(frozen=True)
class Mixed:
    """The option of every group by its place, their bytes and damage, and what no choice in the budget falls below."""

    choice: tuple[int, ...]
    bytes: int
    damage: float
    bound: float


def mix_options(groups: Sequence[Sequence[Option]], budget: int) -> Mixed | None:
    """The options with the least damage that have at most `budget` bytes; None where even the smallest have more."""
    hulls = [_hull(options) for options in groups]
    choice = [hull[0] for hull in hulls]
    room = budget - sum(group[place].bytes for group, place in zip(groups, choice, strict=True))
    if room < 0:
        return None
    bound = _take_steps(groups, hulls, choice, room)
    _fill_up(groups, choice, budget)
    chosen = [group[place] for group, place in zip(groups, choice, strict=True)]
    damage = sum(option.damage for option in chosen)
    return Mixed(tuple(choice), sum(option.bytes for option in chosen), damage, min(bound, damage))


def _hull(options: Sequence[Option]) -> list[int]:
    """The places of the options on the lower convex hull of damage over bytes, from the fewest bytes on."""
    ordered = sorted(range(len(options)), key=lambda place: (options[place].bytes, options[place].damage))
    hull: list[int] = []
    for place in ordered:
        if hull and options[place].damage >= options[hull[-1]].damage:
            continue
        while len(hull) > 1 and _rate(options, hull[-2], hull[-1]) <= _rate(options, hull[-1], place):
            hull.pop()
        hull.append(place)
    return hull


def _rate(options: Sequence[Option], left: int, right: int) -> float:
    """Damage that a step saves a byte."""
    return (options[left].damage - options[right].damage) / (options[right].bytes - options[left].bytes)


def _take_steps(groups: Sequence[Sequence[Option]], hulls: Sequence[list[int]], choice: list[int], room: int) -> float:
    """Take the steps that save most damage a byte, those that do not fit left out; gives the relaxation's damage."""
    steps = [
        (_rate(groups[number], left, right), number, left, right)
        for number, hull in enumerate(hulls)
        for left, right in pairwise(hull)
    ]
    damage = sum(group[place].damage for group, place in zip(groups, choice, strict=True))
    bound: float | None = None
    for rate, number, left, right in sorted(steps, key=lambda step: (-step[0], step[1])):
        size = groups[number][right].bytes - groups[number][left].bytes
        if size > room and bound is None:
            bound = damage - rate * room
        if size <= room and choice[number] == left:
            choice[number], room = right, room - size
            damage -= rate * size
    return damage if bound is None else bound


def _fill_up(groups: Sequence[Sequence[Option]], choice: list[int], budget: int) -> None:
    """Change single groups for the better while something fits, options beside the hull too."""
    room = budget - sum(group[place].bytes for group, place in zip(groups, choice, strict=True))
    while True:
        found = [
            (option.damage - group[choice[number]].damage, number, place)
            for number, group in enumerate(groups)
            for place, option in enumerate(group)
            if option.bytes - group[choice[number]].bytes <= room
        ]
        gain, number, place = min(found, default=(0.0, 0, 0))
        if gain >= 0:
            return
        room -= groups[number][place].bytes - groups[number][choice[number]].bytes
        choice[number] = place
