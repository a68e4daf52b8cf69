"""The names of a conversion's model files: given when the files are made, and told apart when a folder is read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from luq_gguf.artifacts import Plan

MMPROJ = "mmproj-"
TEXT = re.compile(r".*-LUQ-\d+of\d+-\w+(?P<bundle>-bundle)?\.gguf", re.DOTALL)
"""A model may be called anything, so that only the end tells."""


def text_name(name: str, plan: Plan) -> str:
    """The text model's file name."""
    return f"{name}-LUQ-{len(plan.low_layers)}of{plan.layers}-{plan.low_type}.gguf"


def mmproj_name(name: str, kind: str) -> str:
    """The vision part's file name."""
    return f"{MMPROJ}{name}-{kind.upper()}.gguf"


def bundle_name(text: str) -> str:
    """The file name of the bundle that begins with a text model."""
    return text.removesuffix(".gguf") + "-bundle.gguf"


@dataclass(frozen=True)
class ModelFiles:
    """The text model of a folder, its vision part, and the bundle of both; None where there is none."""

    text: str | None
    mmproj: str | None
    bundle: str | None

    @classmethod
    def among(cls, names: Iterable[str]) -> Self:
        """The model files among the names of all results of one conversion."""
        text = mmproj = bundle = None
        for name in names:
            found = TEXT.fullmatch(name)
            if found is None:
                mmproj = name if name.startswith(MMPROJ) else mmproj
            elif found["bundle"]:
                bundle = name
            else:
                text = name
        return cls(text, mmproj, bundle)
