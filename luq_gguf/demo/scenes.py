"""Seeded drawings with questions: what the demo model was trained on, and fresh ones to judge it by.

A scene is a 112x112 picture with one to four coloured shapes and digits, at most one in each
quadrant. Knows nothing of models or files.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIDE = 112
SHAPES = ("circle", "square", "triangle", "cross", "star")
DIGITS = tuple("0123456789")
KINDS = SHAPES + DIGITS
COLORS = {
    "red": (220, 30, 30),
    "green": (30, 150, 40),
    "blue": (30, 70, 220),
    "yellow": (240, 200, 0),
    "purple": (150, 50, 190),
    "black": (15, 15, 15),
}
PLACES = ("top left", "top right", "bottom left", "bottom right")
QUESTION_KINDS = ("count", "yes/no", "color", "what", "where", "describe")
CLOSED_KINDS = QUESTION_KINDS[:-1]


@dataclass(frozen=True)
class Thing:
    """One drawn object: `kind` from KINDS, `color` from COLORS, `place` from PLACES."""

    kind: str
    color: str
    place: str

    @property
    def name(self) -> str:
        """As questions and answers call it, like "red circle"."""
        return f"{self.color} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """A picture's content, in the order of PLACES, and the seed that fixes how it is drawn."""

    things: tuple[Thing, ...]
    seed: int


@dataclass(frozen=True)
class Question:
    """A question about a scene with its one right answer."""

    kind: str
    text: str
    answer: str


def make_scene(seed: int) -> Scene:
    """Compose the scene of a seed: one to four things of different kinds in different quadrants."""
    rng = random.Random(seed)
    count = rng.randint(1, 4)
    places = sorted(rng.sample(range(4), count))
    kinds = [rng.choice(pool) for pool in rng.choices((SHAPES, DIGITS), weights=(3, 2), k=count * 4)]
    distinct = list(dict.fromkeys(kinds))[:count]
    distinct += [kind for kind in KINDS if kind not in distinct][: count - len(distinct)]
    colors = [rng.choice(tuple(COLORS)) for _ in places]
    things = tuple(
        Thing(kind, color, PLACES[place]) for kind, color, place in zip(distinct, colors, places, strict=True)
    )
    return Scene(things, seed)


def draw_scene(scene: Scene) -> Image.Image:
    """Draw a scene as a 112x112 RGB picture; sizes and positions vary with its seed."""
    rng = random.Random(scene.seed * 7919 + 1)
    ground = tuple(rng.randint(225, 255) for _ in range(3))
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    pen = ImageDraw.Draw(picture)
    for thing in scene.things:
        row, column = divmod(PLACES.index(thing.place), 2)
        radius = rng.uniform(17, 23)
        slack = 28 - radius - 2
        x = column * 56 + 28 + rng.uniform(-slack, slack)
        y = row * 56 + 28 + rng.uniform(-slack, slack)
        _draw_thing(pen, thing, x, y, radius)
    return picture


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, x: float, y: float, r: float) -> None:
    color = COLORS[thing.color]
    if thing.kind == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=color)
    elif thing.kind == "square":
        side = r * 0.88
        pen.rectangle((x - side, y - side, x + side, y + side), fill=color)
    elif thing.kind == "triangle":
        pen.polygon([(x, y - r), (x - r, y + r * 0.85), (x + r, y + r * 0.85)], fill=color)
    elif thing.kind == "cross":
        arm = r * 0.3
        pen.rectangle((x - r, y - arm, x + r, y + arm), fill=color)
        pen.rectangle((x - arm, y - r, x + arm, y + r), fill=color)
    elif thing.kind == "star":
        pen.polygon(_star_points(x, y, r), fill=color)
    else:
        font = ImageFont.load_default(size=r * 2.1)
        pen.text((x, y), thing.kind, fill=color, font=font, anchor="mm", stroke_width=1, stroke_fill=color)


def _star_points(x: float, y: float, r: float) -> list[tuple[float, float]]:
    radii = (r * 1.05, r * 0.42)
    angles = [math.pi * step / 5 - math.pi / 2 for step in range(10)]
    return [(x + radii[i % 2] * math.cos(a), y + radii[i % 2] * math.sin(a)) for i, a in enumerate(angles)]


def ask_about(scene: Scene, kind: str, rng: random.Random) -> Question:
    """Make one question of a kind from QUESTION_KINDS about a scene."""
    things = scene.things
    if kind == "count":
        return Question(kind, "How many objects are there?", str(len(things)))
    if kind == "yes/no":
        return _ask_yes_no(scene, rng)
    if kind == "color":
        thing = rng.choice(things)
        return Question(kind, f"What color is the {thing.kind}?", thing.color)
    if kind == "what":
        place = rng.choice(PLACES)
        name = next((f"a {thing.name}" for thing in things if thing.place == place), "nothing")
        return Question(kind, f"What is in the {place}?", name)
    if kind == "where":
        thing = rng.choice(things)
        return Question(kind, f"Where is the {thing.kind}?", thing.place)
    parts = [f"a {thing.name} in the {thing.place}" for thing in things]
    return Question("describe", "Describe the picture.", ", ".join(parts))


def _ask_yes_no(scene: Scene, rng: random.Random) -> Question:
    """Half the answers are yes; a wrong name differs in its color, its kind or both."""
    present = {thing.name for thing in scene.things}
    thing = rng.choice(scene.things)
    name = thing.name
    if rng.random() < 0.5:
        while name in present:
            kind = thing.kind if rng.random() < 0.5 else rng.choice(KINDS)
            name = f"{rng.choice(tuple(COLORS))} {kind}"
    return Question("yes/no", f"Is there a {name}?", "yes" if name in present else "no")


def talk_about(scene: Scene, turns: int = 4) -> list[Question]:
    """Make a seeded conversation about a scene: `turns` questions of different kinds."""
    rng = random.Random(scene.seed * 104729 + 2)
    return [ask_about(scene, kind, rng) for kind in rng.sample(QUESTION_KINDS, k=turns)]


LOOKUP_KINDS = ("yes/no", "color", "where")
"""Questions that name a thing: it has to be found in the picture by what it is."""


def look_up(scene: Scene, turns: int = 6) -> list[Question]:
    """Make a seeded conversation of `turns` questions that name a thing, then one of another kind."""
    rng = random.Random(scene.seed * 224737 + 4)
    questions = [ask_about(scene, rng.choice(LOOKUP_KINDS), rng) for _ in range(turns)]
    others = [kind for kind in QUESTION_KINDS if kind not in LOOKUP_KINDS]
    return [*questions, ask_about(scene, rng.choice(others), rng)]


OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "day": "night", "left": "right", "old": "new",
    "fast": "slow", "open": "closed", "black": "white", "top": "bottom", "yes": "no", "wet": "dry",
}  # fmt: skip
THINGS_BY_COLOR = {
    "grass": "green", "the sky": "blue", "a tomato": "red", "coal": "black", "the sun": "yellow", "snow": "white",
    "a banana": "yellow", "blood": "red", "a leaf": "green", "the sea": "blue", "a plum": "purple",
}  # fmt: skip
CORNERS = {"circle": "none", "square": "four", "triangle": "three", "star": "ten", "cross": "twelve"}


def talk_without_picture(seed: int, turns: int = 3) -> list[Question]:
    """Make a seeded text-only conversation of `turns` small questions."""
    rng = random.Random(seed * 15485863 + 3)
    return [_ask_text(rng) for _ in range(turns)]


def _ask_text(rng: random.Random) -> Question:
    choice = rng.randrange(5)
    if choice == 0:
        a, b = rng.randint(0, 9), rng.randint(0, 9)
        return Question("text", f"What is {a} plus {b}?", str(a + b))
    if choice == 1:
        word = rng.choice(tuple(OPPOSITES))
        return Question("text", f"What is the opposite of {word}?", OPPOSITES[word])
    if choice == 2:
        thing = rng.choice(tuple(THINGS_BY_COLOR))
        return Question("text", f"What color is {thing}?", THINGS_BY_COLOR[thing])
    if choice == 3:
        last = rng.randint(2, 9)
        return Question("text", f"Count to {last}.", " ".join(str(n) for n in range(1, last + 1)))
    shape = rng.choice(SHAPES)
    return Question("text", f"How many corners has a {shape}?", CORNERS[shape])
