"""Charts as SVG: sound XML whatever the numbers and names, marks where the numbers say."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from gguf.constants import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from luq_gguf.amounts import format_bytes
from luq_gguf.report.charts import (
    LEFT,
    RIGHT,
    WIDTH,
    Mark,
    Point,
    Series,
    Tile,
    bits_class,
    frontier_chart,
    interval_chart,
    layers_chart,
    ticks,
)
from luq_gguf.report.numbers import Numbers, computed, show_change
from luq_gguf.type_names import bits_of

EVIL = '"/><script>alert(1)</script>{0.__class__}'
FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def drawn(text: str) -> ET.Element:
    return ET.fromstring(str(text))


@settings(deadline=None)
@given(FINITE, st.floats(1e-6, 1e6))
def test_ticks_are_few_rise_and_lie_within(low: float, span: float) -> None:
    high = low + span
    found = ticks(low, high)
    assert len(found) <= 12
    assert all(a < b for a, b in pairwise(found))
    assert all(low - 1e-6 * span - 1e-9 <= tick <= high + 1e-6 * span + 1e-9 for tick in found)


def test_every_type_has_a_colour_that_rises_with_its_bits() -> None:
    order = ["b1", "b2", "b3", "b4", "b5", "b6", "b8", "b16"]
    kinds = sorted((kind.name for kind in GGMLQuantizationType), key=bits_of)
    places = [order.index(bits_class(bits_of(kind))) for kind in kinds]
    assert places == sorted(places)
    named = {kind: bits_class(bits_of(kind)) for kind in ("IQ1_M", "Q2_K", "IQ3_XXS", "Q4_K", "Q6_K", "Q8_0", "F16")}
    assert list(named.values()) == ["b1", "b2", "b3", "b4", "b6", "b8", "b16"]


@pytest.mark.parametrize("layers", [1, 3, 80, 512])
def test_layers_are_columns_that_charts_share(layers: int) -> None:
    marks = [Mark(6 + layer / layers, f"layer {layer}{EVIL}", 0.01, f"scores.json#/{layer}") for layer in range(layers)]
    tiles = [Tile("b1" if layer % 2 else "b4", f"tensor {layer}", 100 + layer) for layer in range(layers)]
    text = layers_chart([Series("a", "m", marks)], [("attn_q", tiles), (EVIL, [None] * layers)], [0, layers - 1], EVIL)
    root = drawn(text)
    dots = list(root.iter("circle"))
    cells = [mark for mark in root.iter("rect") if "tile" in mark.get("class", "")]
    assert len(dots) == layers
    assert len(cells) == 2 * layers
    for dot, cell, mark in zip(dots, cells, marks, strict=False):
        left, width = float(cell.get("x", "nan")), float(cell.get("width", "nan"))
        assert left - 0.1 <= float(dot.get("cx", "nan")) <= left + width + 1.2
        assert dot.get("data-value") == str(mark.value)
    assert all(LEFT - 0.1 <= float(cell.get("x", "nan")) <= WIDTH - RIGHT for cell in cells)
    heights = [float(dot.get("cy", "nan")) for dot in dots]
    assert heights == sorted(heights, reverse=True)
    assert len(text) < 500_000


@settings(deadline=None)
@given(FINITE, FINITE, FINITE, FINITE)
def test_intervals_stay_on_their_axis(value: float, low: float, start: float, end: float) -> None:
    root = drawn(interval_chart(value, min(low, value), max(low, value), (min(start, end), max(start, end)), EVIL))
    (dot,) = root.iter("circle")
    assert 5.9 <= float(dot.get("cx", "nan")) <= 174.1
    assert root.get("data-tip") == EVIL


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10**12), st.floats(0, 10)), min_size=1, max_size=30))
def test_the_frontier_takes_any_files(files: list[tuple[int, float]]) -> None:
    points = [Point(size, divergence, EVIL, "preset", EVIL) for size, divergence in files]
    root = drawn(frontier_chart(points))
    dots = list(root.iter("circle"))
    assert len(dots) == len(points)
    for dot in dots:
        assert LEFT - 1 <= float(dot.get("cx", "nan")) <= WIDTH
        assert 0 <= float(dot.get("cy", "nan")) <= 380
    assert "<script" not in frontier_chart(points)


def test_numbers_keep_where_they_come_from() -> None:
    numbers = Numbers({"a.json": {"x/y": [1, {"z~": 2048}], "text": EVIL}})
    assert numbers.show("a.json#/x~1y/1/z~0", "bytes") == (
        '<data value="2048" data-from="a.json#/x~1y/1/z~0">2.00 KiB</data>'
    )
    assert "<script" not in numbers.show("a.json#/text", "text")
    with pytest.raises(KeyError):
        numbers.at("a.json#/none")
    assert computed(0.5, "share") == '<data value="0.5">50.0 %</data>'
    assert (format_bytes(3), format_bytes(5 * 2**30), show_change(0.8)) == ("3 B", "5.00 GiB", "\N{MINUS SIGN}20.0 %")
