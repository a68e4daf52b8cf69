"""Bytes and shares, as people write them."""

from __future__ import annotations

import re
from decimal import Decimal

from luq_gguf.errors import RequestError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Bytes of a size such as 3.4GiB, 900MB or 12345; raises RequestError otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise RequestError(f"{text!r} is no size", hint="write for example 3.4GiB, 900MB or a number of bytes")
    return int(Decimal(match[1]) * _UNITS[match[2].upper()])


def parse_share(text: str) -> float:
    """The share that 10% or 0.1 says; raises RequestError otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if match is None:
        raise RequestError(f"{text!r} is no share", hint="write for example 10% or 0.1")
    return float(match[1]) / (100 if match[2] else 1)


def format_bytes(count: float) -> str:
    """Bytes in the unit people read."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
