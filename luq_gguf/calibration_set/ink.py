"""What the drawn pictures share: fonts, paper, wrapped text and lines that a hand might have drawn.

The fonts are those in matplotlib's package, so that a picture looks the same on every machine.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Point = tuple[float, float]

FACES = {
    "sans": "DejaVuSans",
    "bold": "DejaVuSans-Bold",
    "oblique": "DejaVuSans-Oblique",
    "mono": "DejaVuSansMono",
    "mono bold": "DejaVuSansMono-Bold",
    "serif": "DejaVuSerif",
    "serif bold": "DejaVuSerif-Bold",
    "roman": "STIXGeneral",
    "roman bold": "STIXGeneralBol",
    "italic": "STIXGeneralItalic",
}
BLACK: Color = (25, 25, 28)
WHITE: Color = (255, 255, 255)
GRAY: Color = (120, 122, 128)
PALE: Color = (226, 228, 233)
INK: Color = (24, 38, 110)


@contextlib.contextmanager
def quiet_matplotlib() -> Iterator[None]:
    """Keep matplotlib from telling, where no home folder can be written, that its font cache is a temporary one."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@functools.cache
def fonts_folder() -> Path:
    """Where matplotlib keeps its fonts."""
    with quiet_matplotlib():
        import matplotlib

        return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@functools.cache
def font(face: str, size: int) -> ImageFont.FreeTypeFont:
    """One of FACES, `size` pixels high."""
    path = fonts_folder() / f"{FACES[face]}.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def sheet(size: tuple[int, int], color: Color = WHITE) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture and its pen."""
    image = Image.new("RGB", size, color)
    return image, ImageDraw.Draw(image)


def grain(image: Image.Image, rng: random.Random, strength: int = 10) -> Image.Image:
    """The picture as a camera or scanner gives it: with fine noise of up to `strength` / 2 levels."""
    noise = Image.frombytes("L", image.size, rng.randbytes(image.width * image.height))
    noise = noise.point([round((level - 128) / 256 * strength) + 128 for level in range(256)])
    noise = Image.merge("RGB", (noise, noise, noise))
    return Image.blend(image, noise, 0.5).point([max(0, min(255, 2 * level - 128)) for level in range(256)] * 3)


def shade(size: tuple[int, int], top: Color, bottom: Color) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A picture that goes from one color to another, downwards, and its pen."""
    image, pen = sheet(size)
    for row in range(size[1]):
        pen.line([(0, row), (size[0], row)], fill=mix(top, bottom, row / max(1, size[1] - 1)))
    return image, pen


def mix(first: Color, second: Color, share: float) -> Color:
    """The color that lies `share` of the way from the first to the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def wrap(text: str, face: str, size: int, width: float) -> list[str]:
    """Lines of whole words no wider than `width`; line breaks of the text stay."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if line and font(face, size).getlength(longer) > width:
                lines.append(line)
                line = word
            else:
                line = longer
        lines.append(line)
    return lines


def write(
    pen: ImageDraw.ImageDraw,
    at: Point,
    text: str,
    face: str = "sans",
    size: int = 16,
    color: Color = BLACK,
    *,
    width: float | None = None,
    anchor: str = "la",
    leading: float = 1.35,
) -> float:
    """Write text, wrapped at `width`, and return where the next line's top is."""
    x, y = at
    for line in [text] if width is None else wrap(text, face, size, width):
        pen.text((x, y), line, fill=color, font=font(face, size), anchor=anchor)
        y += round(size * leading)
    return y


def shrink_to(text: str, face: str, size: int, width: float) -> int:
    """The largest size up to `size` at which a text is no wider than `width`."""
    while size > 8 and font(face, size).getlength(text) > width:
        size -= 1
    return size


def hand_line(
    pen: ImageDraw.ImageDraw,
    points: Sequence[Point],
    rng: random.Random,
    color: Color = INK,
    width: int = 3,
    shake: float = 1.6,
) -> None:
    """A line through points as a hand draws it: not quite straight and not quite there."""
    path: list[Point] = []
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        length = math.hypot(x1 - x0, y1 - y0)
        bow = rng.uniform(-shake, shake) * min(4.0, length / 60)
        steps = max(2, round(length / 14))
        for step in range(steps + 1):
            t = step / steps
            off = bow * math.sin(math.pi * t) + rng.uniform(-shake, shake) / 2.5
            across = (-(y1 - y0) / max(length, 1), (x1 - x0) / max(length, 1))
            path.append((x0 + (x1 - x0) * t + across[0] * off, y0 + (y1 - y0) * t + across[1] * off))
    pen.line(path, fill=color, width=width, joint="curve")


def hand_box(
    pen: ImageDraw.ImageDraw,
    box: tuple[float, float, float, float],
    rng: random.Random,
    color: Color = INK,
    width: int = 3,
) -> None:
    """A rectangle as a hand draws it: four strokes that miss each other a little."""
    left, top, right, bottom = box
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    for start, end in itertools.pairwise(corners):
        over = [(x + rng.uniform(-3, 3), y + rng.uniform(-3, 3)) for x, y in (start, end)]
        hand_line(pen, over, rng, color, width)


def hand_ellipse(
    pen: ImageDraw.ImageDraw,
    box: tuple[float, float, float, float],
    rng: random.Random,
    color: Color = INK,
    width: int = 3,
) -> None:
    """An ellipse as a hand draws it: a round that ends a little beside its start."""
    left, top, right, bottom = box
    turn = rng.uniform(0, math.tau)
    path = []
    for step in range(45):
        angle = turn + step / 42 * math.tau
        wide = 1 + 0.02 * math.sin(2 * angle + turn) + step * 0.0006
        path.append(
            (
                (left + right) / 2 + math.cos(angle) * (right - left) / 2 * wide,
                (top + bottom) / 2 + math.sin(angle) * (bottom - top) / 2 * wide,
            )
        )
    pen.line(path, fill=color, width=width, joint="curve")


def hand_arrow(
    pen: ImageDraw.ImageDraw,
    start: Point,
    end: Point,
    rng: random.Random,
    color: Color = INK,
    width: int = 3,
) -> None:
    """A line with a head at its end, as a hand draws it."""
    hand_line(pen, [start, end], rng, color, width)
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    for side in (-1, 1):
        back = angle + side * rng.uniform(2.5, 2.75)
        tip = (end[0] + 15 * math.cos(back), end[1] + 15 * math.sin(back))
        hand_line(pen, [end, tip], rng, color, width, shake=0.6)


def hand_write(
    image: Image.Image,
    at: Point,
    text: str,
    rng: random.Random,
    size: int = 24,
    color: Color = INK,
    *,
    center: bool = False,
) -> None:
    """Write a line letter by letter, each a little turned and off the line; `at` is its top, left or in the middle."""
    face = font("italic", size)
    x, y = at
    if center:
        x -= face.getlength(text) / 2
    slope = rng.uniform(-0.012, 0.012)
    for letter in text:
        tile = Image.new("L", (2 * size + 8, 2 * size + 8))
        ImageDraw.Draw(tile).text((size // 2, size // 2), letter, fill=255, font=face, stroke_width=0.4)
        tile = tile.rotate(rng.uniform(-7, 7), Image.Resampling.BICUBIC)
        place = (round(x - size // 2), round(y - size // 2 + rng.uniform(-1.3, 1.3) + slope * (x - at[0])))
        image.paste(color, place, tile)
        x += face.getlength(letter) * 1.0 + rng.uniform(-0.3, 0.6)
