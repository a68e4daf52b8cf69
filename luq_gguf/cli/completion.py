"""What a shell offers for options whose values are known: types, orders, benchmarks and the like.

The names come from the modules that own them, which are loaded only when a shell asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import get_args

Completer = Callable[[str], list[str]]
"""Takes the beginning of a word, gives the words."""


def _low_types() -> Iterable[str]:
    from luq_gguf.speed_budget import AUTO
    from luq_gguf.type_names import LOW_TYPES

    return [*LOW_TYPES, AUTO]


def _high_types() -> Iterable[str]:
    from luq_gguf.type_names import HIGH_TYPES

    return HIGH_TYPES


def _presets() -> Iterable[str]:
    return [*_high_types(), "none"]


def _orders() -> Iterable[str]:
    from luq_gguf.planning import ORDERS

    return ORDERS


def _benchmarks() -> Iterable[str]:
    from luq_gguf.vqa.benchmarks import BENCHMARKS

    return BENCHMARKS


def _compute_types() -> Iterable[str]:
    from luq_gguf.job import COMPUTE_TYPES

    return COMPUTE_TYPES


def _mmproj_types() -> Iterable[str]:
    from luq_gguf.job import MMPROJ_TYPES

    return MMPROJ_TYPES


def _dtypes() -> Iterable[str]:
    from luq_gguf.families.base import Dtype

    return ["auto", *get_args(Dtype)]


def _layouts() -> Iterable[str]:
    from luq_gguf.families.llava_layouts import EXACT, NO_CLASS, STANDARD

    return EXACT, NO_CLASS, STANDARD


def _sets() -> Iterable[str]:
    from luq_gguf.calibration import GENERAL, SHAPES

    return GENERAL, SHAPES


def _completer(values: Callable[[], Iterable[str]]) -> Completer:
    def complete(incomplete: str) -> list[str]:
        small = incomplete.islower()  # types are understood in any case, and who begins in small letters goes on so
        names = (value.lower() if small else value for value in values())
        return [name for name in names if name.startswith(incomplete)]

    return complete


def listed(completer: Completer) -> Completer:
    """A completer of words with commas between them."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{value}" for value in completer(last) if value not in before.split(",")]

    return complete


low_types, high_types, orders = _completer(_low_types), _completer(_high_types), _completer(_orders)
low_type_lists, preset_lists, order_lists = listed(low_types), listed(_completer(_presets)), listed(orders)
benchmarks, compute_types, calibration_sets = _completer(_benchmarks), _completer(_compute_types), _completer(_sets)
mmproj_types, dtypes, layouts = _completer(_mmproj_types), _completer(_dtypes), _completer(_layouts)
