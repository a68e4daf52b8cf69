"""Numbers on a page, each with the record and the place in it that it comes from.

A number is read through its JSON pointer (RFC 6901) when the page is made, and the page keeps pointer and value: anyone
can hold the page against the folder's records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup

from luq_gguf.amounts import format_bytes


def show_count(count: float) -> str:
    """A whole number with its thousands apart."""
    return f"{count:,.0f}"


def show_share(share: float) -> str:
    """A share of 1 in percent."""
    return f"{100 * share:.1f} %"


def show_change(ratio: float) -> str:
    """A ratio as what it adds or takes, in percent."""
    return f"{100 * (ratio - 1):+.1f} %".replace("-", "\N{MINUS SIGN}")


def show_seconds(seconds: float) -> str:
    """A time in the unit people read."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def decimals(places: int) -> Callable[[float], str]:
    """Writes a number with so many decimal places."""
    return lambda value: f"{value:,.{places}f}"


FORMS: dict[str, Callable[[Any], str]] = {
    "bytes": format_bytes, "count": show_count, "share": show_share, "change": show_change, "seconds": show_seconds,
    "one": decimals(1), "two": decimals(2), "three": decimals(3), "four": decimals(4), "text": str,
}  # fmt: skip


class Numbers:
    """The records of a folder by file name, and how their values stand on a page."""

    def __init__(self, records: Mapping[str, Any]) -> None:
        self.records = records

    def at(self, pointer: str) -> Any:
        """The value at "<file>#<JSON pointer>"; raises KeyError or IndexError where there is none."""
        name, _, path = pointer.partition("#")
        value = self.records[name]
        for key in path.split("/")[1:]:
            plain = key.replace("~1", "/").replace("~0", "~")
            value = value[int(plain)] if isinstance(value, list) else value[plain]
        return value

    def show(self, pointer: str, form: str = "count") -> Markup:
        """A record's value as it stands on a page."""
        value = self.at(pointer)
        return Markup('<data value="{}" data-from="{}">{}</data>').format(value, pointer, FORMS[form](value))


def key(name: str) -> str:
    """A name as a step of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def computed(value: float, form: str = "count") -> Markup:
    """A value that follows from several records."""
    return Markup('<data value="{}">{}</data>').format(value, FORMS[form](value))
