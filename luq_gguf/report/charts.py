"""Numbers -> charts as SVG text. Pure: no files, no records; colours are classes that the page's style gives them.

Every mark has a `data-tip` that the page shows while the pointer is on it; texts are escaped by `Markup.format`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, LEFT, RIGHT = 1000.0, 108.0, 14.0
PLOT, CELL, BARS = 210.0, 20.0, 46.0
CLASSES = ((2.0, "b1"), (3.0, "b2"), (4.0, "b3"), (5.0, "b4"), (6.0, "b5"), (8.0, "b6"), (16.0, "b8"))
"""Colours by bits a weight: below so many the class of that name, else "b16"."""
TICKS = 5
DOT = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:.1f}" class="dot {}" data-tip="{}" data-from="{}" data-value="{}"/>')
_Height = Callable[[float], float]


@dataclass(frozen=True)
class Mark:
    """A value with what its deviation is, where it comes from on the records, and what is said of it."""

    value: float
    tip: str
    spread: float = 0.0
    source: str = ""


@dataclass(frozen=True)
class Series:
    """Marks of every layer, drawn as a line of a class."""

    name: str
    style: str
    marks: Sequence[Mark]


@dataclass(frozen=True)
class Tile:
    """A tensor in the map: its colour's class and what is said of it; `size` in bytes."""

    style: str
    tip: str
    size: int


@dataclass(frozen=True)
class Point:
    """A file on the frontier: bytes, divergence, what it is; `style` is its class, `label` a short text beside it."""

    size: float
    divergence: float
    tip: str
    style: str
    label: str = ""
    source: str = ""


_Place = Callable[[Point], tuple[float, float]]


def bits_class(bits: float) -> str:
    """The colour's class of a type with so many bits a weight."""
    return next((name for limit, name in CLASSES if bits < limit), "b16")


def ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Round numbers from `low` to `high`, about so many."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def layers_chart(
    series: Sequence[Series], rows: Sequence[tuple[str, Sequence[Tile | None]]], low: Iterable[int], label: str
) -> Markup:
    """Entropy by layer, and below it on the same axis the type of every tensor and the bytes of every layer.

    `rows` are the kinds of tensors with a tile a layer; `low` the layers that are marked, `label` what they are.
    """
    layers = len(rows[0][1]) if rows else len(series[0].marks)
    axis = _Axis(layers)
    drawn_plot = _entropies(series, axis) if series else []
    top = PLOT + 34 if series else 24.0
    height = top + CELL * len(rows) + 14 + BARS + 26
    bands = _bands(sorted(low), axis, height - 22, label)
    body = [*bands, *drawn_plot, *_map(rows, axis, top), *_bars(rows, axis, top + CELL * len(rows) + 14)]
    body += _layer_numbers(axis, height - 6)
    return _svg(height, body, "Entropy, types and bytes of every layer")


class _Axis:
    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.width = (WIDTH - LEFT - RIGHT) / layers

    def start(self, layer: int) -> float:
        return LEFT + layer * self.width

    def middle(self, layer: int) -> float:
        return LEFT + (layer + 0.5) * self.width


def _svg(height: float, body: Iterable[Markup], title: str) -> Markup:
    head = Markup('<svg viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">').format(WIDTH, height, title)
    return head + Markup("\n").join(body) + Markup("</svg>")


def _text(x: float, y: float, content: str, style: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" class="{}">{}</text>').format(x, y, style, content)


def _bands(low: Sequence[int], axis: _Axis, height: float, label: str) -> list[Markup]:
    """Low layers, neighbours as one band; the widest carries the label."""
    runs: list[list[int]] = []
    for layer in low:
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    shape = Markup('<rect x="{:.1f}" y="16" width="{:.1f}" height="{:.1f}" rx="5" class="band"/>')
    drawn = [shape.format(axis.start(a), (b - a + 1) * axis.width, height - 16) for a, b in runs]
    if runs:
        widest = max(runs, key=lambda run: run[1] - run[0])
        drawn.append(_text((axis.start(widest[0]) + axis.start(widest[1] + 1)) / 2, 11, label, "bandlabel"))
    return drawn


def _entropies(series: Sequence[Series], axis: _Axis) -> list[Markup]:
    values = [mark for each in series for mark in each.marks]
    bottom = min(mark.value - mark.spread for mark in values)
    top = max(mark.value + mark.spread for mark in values)
    room = 0.06 * (top - bottom) or 0.5
    bottom, top = bottom - room, top + room

    def height(value: float) -> float:
        return 24 + (PLOT - 24) * (top - value) / (top - bottom)

    drawn = []
    line = Markup('<line x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}" class="grid"/>')
    for tick in ticks(bottom, top):
        drawn += [line.format(LEFT, WIDTH - RIGHT, height(tick), height(tick))]
        drawn += [_text(LEFT - 10, height(tick) + 4, f"{tick:g}", "tick end")]
    drawn.append(_text(8, 24 + (PLOT - 24) / 2 + 4, "entropy, bits", "row"))
    for each in series:
        drawn += _curve(each, axis, height)
    return drawn


def _curve(series: Series, axis: _Axis, height: _Height) -> list[Markup]:
    places = [(axis.middle(layer), height(mark.value)) for layer, mark in enumerate(series.marks)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    drawn = [Markup('<polyline points="{}" class="line {}"/>').format(path, series.style)]
    stroke = Markup('<line x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}" class="whisker {3}"/>')
    radius = max(1.6, min(5.0, axis.width / 4))
    for (x, y), mark in zip(places, series.marks, strict=True):
        low, high = height(mark.value - mark.spread), height(mark.value + mark.spread)
        drawn.append(stroke.format(x, low, high, series.style))
        drawn.append(DOT.format(x, y, radius, series.style, mark.tip, mark.source, mark.value))
    return drawn


def _map(rows: Sequence[tuple[str, Sequence[Tile | None]]], axis: _Axis, top: float) -> list[Markup]:
    drawn = []
    gap = 2.0 if axis.width > 8 else 0.4
    tile = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="{}" class="tile {}" data-tip="{}"/>')
    for number, (name, tiles) in enumerate(rows):
        y = top + number * CELL
        drawn.append(_text(8, y + CELL / 2 + 4, name, "row"))
        drawn += [
            tile.format(
                axis.start(layer), y, max(0.4, axis.width - gap), CELL - 2, 3 if gap > 1 else 0, it.style, it.tip
            )
            for layer, it in enumerate(tiles)
            if it is not None
        ]
    return drawn


def _bars(rows: Sequence[tuple[str, Sequence[Tile | None]]], axis: _Axis, top: float) -> list[Markup]:
    """The bytes of every layer's matrices, by the colours of their tiles."""
    columns = [[tiles[layer] for _, tiles in rows if tiles[layer] is not None] for layer in range(axis.layers)]
    totals = [sum(tile.size for tile in column if tile is not None) for column in columns]
    most = max(totals, default=0) or 1
    drawn = [_text(8, top + BARS / 2 + 4, "bytes", "row")] if rows else []
    bar = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.2f}" class="tile {}" data-tip="{}"/>')
    gap = 2.0 if axis.width > 8 else 0.4
    for layer, column in enumerate(columns):
        bottom = top + BARS
        for tile in column:
            if tile is None:
                continue
            size = BARS * tile.size / most
            bottom -= size
            tip = f"layer {layer}: {totals[layer]:,} bytes in matrices"
            drawn.append(bar.format(axis.start(layer), bottom, max(0.4, axis.width - gap), size, tile.style, tip))
    return drawn


def _layer_numbers(axis: _Axis, y: float) -> list[Markup]:
    step = next((step for step in (1, 2, 4, 5, 8, 10, 20, 50, 100) if step * axis.width >= 22), 100)
    return [_text(axis.middle(layer), y, str(layer), "tick mid") for layer in range(0, axis.layers, step)] + [
        _text(8, y, "layer", "row")
    ]


def interval_chart(value: float, low: float, high: float, bounds: tuple[float, float], tip: str) -> Markup:
    """A value and its interval on a small axis from `bounds[0]` to `bounds[1]`."""
    start, end = bounds
    span = (end - start) or 1.0

    def place(number: float) -> float:
        return 6 + 168 * (min(max(number, start), end) - start) / span

    return Markup(
        '<svg class="interval" viewBox="0 0 180 18" role="img" aria-label="{tip}" data-tip="{tip}">'
        '<line x1="6" x2="174" y1="9" y2="9" class="grid"/>'
        '<line x1="{low:.1f}" x2="{high:.1f}" y1="9" y2="9" class="reach"/>'
        '<circle cx="{at:.1f}" cy="9" r="5" class="dot m"/></svg>'
    ).format(tip=tip, low=place(low), high=place(high), at=place(value))


def frontier_chart(points: Sequence[Point]) -> Markup:
    """Divergence (log) against bytes; a line joins the points that no other is better than in both."""
    height, bottom, top, right = 380.0, 336.0, 16.0, 40.0
    sizes = [point.size for point in points]
    logs = [math.log10(point.divergence) for point in points if point.divergence > 0]
    low, high = (math.floor(min(logs, default=-3)), math.ceil(max(logs, default=0)))
    high = high if high > low else low + 1
    room = 0.04 * (max(sizes) - min(sizes)) or max(sizes) * 0.1
    left_size, right_size = min(sizes) - room, max(sizes) + room

    def place(point: Point) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - right) * (point.size - left_size) / (right_size - left_size)
        log = math.log10(point.divergence) if point.divergence > 0 else low
        return x, bottom - (bottom - top) * (log - low) / (high - low)

    drawn = []
    line = Markup('<line x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}" class="grid"/>')
    for power in range(low, high + 1):
        y = bottom - (bottom - top) * (power - low) / (high - low)
        drawn += [line.format(LEFT, WIDTH - right, y, y), _text(LEFT - 10, y + 4, f"{10.0**power:g}", "tick end")]
    unit = 2.0**30 if max(sizes) >= 2**30 else 2.0**20
    for tick in ticks(left_size / unit, right_size / unit, 7):
        x = LEFT + (WIDTH - LEFT - right) * (tick * unit - left_size) / (right_size - left_size)
        drawn += [line.format(x, x, top, bottom), _text(x, bottom + 18, f"{tick:g}", "tick mid")]
    name = "size, GiB" if unit == 2.0**30 else "size, MiB"
    drawn += [_text((LEFT + WIDTH) / 2, height - 6, name, "tick mid"), _text(8, top + 4, "KL, nats", "row")]
    drawn.append(_best_line(points, place))
    drawn += [mark for point in points for mark in _frontier_mark(point, *place(point))]
    return _svg(height, drawn, "Divergence from the 16-bit model against size")


def _best_line(points: Sequence[Point], place: _Place) -> Markup:
    best: list[Point] = []
    for point in sorted(points, key=lambda each: (each.size, each.divergence)):
        if not best or point.divergence < best[-1].divergence:
            best.append(point)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, best))
    return Markup('<polyline points="{}" class="line best"/>').format(path)


def _frontier_mark(point: Point, x: float, y: float) -> list[Markup]:
    radius = 9 if "here" in point.style else 5.5
    mark = DOT.format(x, y, radius, point.style, point.tip, point.source, point.divergence)
    return [mark, _text(x + 9, y - 7, point.label, "tick")] if point.label else [mark]
