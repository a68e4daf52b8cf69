"""Diagrams as a hand draws them: a flow chart, a floor plan, maps, formulas, a family, a game, circuits."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

from luq_gguf.calibration_set import ink
from luq_gguf.calibration_set.item import Item, chance, listed

PEN = (30, 40, 90)
CHALK = (238, 240, 232)
RED = (190, 40, 40)


def items() -> list[Item]:
    """Ten sketches."""
    makers = (_flow, _rooms, _map, _board, _family, _game, _triangle, _mind, _timeline, _circuit)
    return [maker(f"sketch-{number:02}") for number, maker in enumerate(makers, start=1)]


def _paper(size: tuple[int, int], squares: int = 0) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A sheet of a pad, with squares of that many pixels where it has some."""
    image, pen = ink.sheet(size, (252, 250, 244))
    if squares:
        for x in range(squares, size[0], squares):
            pen.line([(x, 0), (x, size[1])], fill=(216, 228, 238))
        for y in range(squares, size[1], squares):
            pen.line([(0, y), (size[0], y)], fill=(216, 228, 238))
    return image, pen


def _label(image: Image.Image, at: ink.Point, text: str, rng: random.Random, size: int = 25,
           color: ink.Color = PEN) -> None:  # fmt: skip
    """A word around a point."""
    ink.hand_write(image, (at[0], at[1] - size * 0.62), text, rng, size, color, center=True)


def _flow(name: str) -> Item:
    facts = chance(name)
    wait, tries = facts.choice([5, 10, 30]), facts.choice([2, 3, 4])

    def draw() -> Image.Image:
        rng = chance(name + " hand")
        image, pen = _paper((616, 700))
        for y, text in ((50, "Start"), (170, "Send the message"), (480, f"Wait {wait} minutes")):
            if text == "Start":
                ink.hand_ellipse(pen, (120, 18, 300, 82), rng, PEN)
            else:
                ink.hand_box(pen, (80, y - 34, 340, y + 34), rng, PEN)
            _label(image, (210, y), text, rng)
        ink.hand_line(pen, [(210, 250), (330, 325), (210, 400), (90, 325), (210, 250)], rng, PEN)
        _label(image, (210, 325), "Answer?", rng)
        for start, end in (((210, 84), (210, 134)), ((210, 206), (210, 250)), ((210, 400), (210, 445))):
            ink.hand_arrow(pen, start, end, rng, PEN)
        _label(image, (240, 422), "no", rng, 23, RED)
        ink.hand_arrow(pen, (330, 325), (430, 325), rng, PEN)
        _label(image, (375, 300), "yes", rng, 23, RED)
        ink.hand_box(pen, (432, 290, 580, 360), rng, PEN)
        _label(image, (506, 325), "Done", rng)
        ink.hand_line(pen, [(80, 480), (36, 480), (36, 170)], rng, PEN)
        ink.hand_arrow(pen, (36, 170), (78, 170), rng, PEN)
        ink.hand_arrow(pen, (210, 516), (210, 588), rng, PEN)
        ink.hand_box(pen, (80, 590, 340, 656), rng, RED)
        _label(image, (210, 623), "Call them", rng, 25, RED)
        _label(image, (360, 552), f"after {tries} tries", rng, 23, RED)
        return ink.grain(image, rng, 12)

    asked = (
        ("What happens when there is no answer?", f"One waits {wait} minutes and then sends the message again."),
        ("After how many tries should one call?", f"After {tries} tries."),
    )
    return Item(name, asked, draw)


def _rooms(name: str) -> Item:
    facts = chance(name)
    names = facts.sample(["Kitchen", "Bath", "Bedroom", "Study"], 4)
    sizes = facts.sample(range(6, 24), 4)
    living = facts.randrange(26, 38)

    def draw() -> Image.Image:
        rng = chance(name + " hand")
        image, pen = _paper((728, 532), 28)
        ink.hand_box(pen, (40, 40, 688, 492), rng, PEN, 6)
        for points in ([(40, 210), (688, 210)], [(250, 40), (250, 210)], [(470, 40), (470, 210)],
                       [(470, 210), (470, 492)]):  # fmt: skip
            ink.hand_line(pen, points, rng, PEN, 5)
        middles = ((145, 120), (360, 120), (580, 120), (580, 350))
        for (x, y), room, size in zip(middles, names, sizes, strict=True):
            _label(image, (x, y - 16), room, rng, 30)
            _label(image, (x, y + 22), f"{size} m2", rng, 25)
        _label(image, (255, 330), "Living room", rng, 34)
        _label(image, (255, 376), f"{living} m2", rng, 26)
        for x in (140, 340, 560):
            pen.rectangle([x, 203, x + 48, 217], fill=(252, 250, 244))
            ink.hand_line(pen, [(x, 210), (x + 40, 246)], rng, RED, 3)
        pen.rectangle([463, 330, 477, 380], fill=(252, 250, 244))
        ink.hand_line(pen, [(470, 380), (430, 344)], rng, RED, 3)
        _label(image, (255, 512), "garden side", rng, 22, RED)
        return ink.grain(image, rng, 12)

    total = sum(sizes) + living
    asked = (
        ("Which room is in the lower right corner of this plan, and how large is it?",
         f"The {names[3].lower()}, with {sizes[3]} m²."),
        ("How large are all rooms together?",
         f"{total} m²: {' + '.join(map(str, [*sizes, living]))}."),
    )  # fmt: skip
    return Item(name, asked, draw)


def _map(name: str) -> Item:
    facts = chance(name)
    places = ["School", "Bakery", "Station", "Pond"]
    facts.shuffle(places)
    corners = ((130, 110), (510, 110), (130, 400), (510, 400))
    where = dict(zip(places, ("top left", "top right", "bottom left", "bottom right"), strict=True))

    def draw() -> Image.Image:
        rng = chance(name + " hand")
        image, pen = _paper((644, 504))
        for shift in (-16, 16):
            ink.hand_line(pen, [(0, 250 + shift), (320 - 16, 250 + shift)], rng, ink.GRAY)
            ink.hand_line(pen, [(320 + 16, 250 + shift), (644, 250 + shift)], rng, ink.GRAY)
            ink.hand_line(pen, [(320 + shift, 0), (320 + shift, 234)], rng, ink.GRAY)
            ink.hand_line(pen, [(320 + shift, 266), (320 + shift, 504)], rng, ink.GRAY)
        for (x, y), place in zip(corners, places, strict=True):
            if place == "Pond":
                ink.hand_ellipse(pen, (x - 86, y - 46, x + 86, y + 46), rng, (40, 110, 180))
            else:
                ink.hand_box(pen, (x - 76, y - 40, x + 76, y + 40), rng, PEN)
            _label(image, (x, y), place, rng, 28)
        _label(image, (200, 222), "Long Street", rng, 21, ink.GRAY)
        ink.hand_line(pen, [(596, 66), (620, 26), (634, 70)], rng, RED)
        _label(image, (614, 88), "N", rng, 26, RED)
        return ink.grain(image, rng, 12)

    start = places[0]
    asked = (
        (f"In which corner of this map is the {places[3].lower()}?", f"In the {where[places[3]]}."),
        (
            f"North is up. In which direction is the {places[1].lower()} seen from the {start.lower()}?",
            f"To the east: the {start.lower()} is at the top left and the {places[1].lower()} at the top right.",
        ),
    )
    return Item(name, asked, draw)


def _board(name: str) -> Item:
    facts = chance(name)
    a, root, b = facts.randrange(2, 7), facts.randrange(3, 12), facts.randrange(2, 20)
    lines = [f"{a}x + {b} = {a * root + b}", f"{a}x = {a * root}", "x = ?"]

    def draw() -> Image.Image:
        rng = chance(name + " hand")
        image, pen = ink.sheet((700, 420), (38, 66, 54))
        for _ in range(12):
            x, y = rng.randrange(700), rng.randrange(420)
            pen.ellipse([x - 90, y - 30, x + 90, y + 30], fill=(42, 71, 59))
        pen.rectangle([0, 0, 699, 419], outline=(140, 100, 60), width=14)
        for row, line in enumerate(lines):
            ink.hand_write(image, (60, 60 + 96 * row), line, rng, 56, CHALK)
        ink.hand_line(pen, [(420, 340), (650, 340)], rng, CHALK)
        ink.hand_arrow(pen, (440, 360), (440, 90), rng, CHALK)
        ink.hand_line(pen, [(450, 330), (540, 230), (620, 120)], rng, (250, 220, 120), 4)
        ink.hand_write(image, (628, 344), "x", rng, 34, CHALK)
        ink.hand_write(image, (456, 70), "y", rng, 34, CHALK)
        return ink.grain(image, rng, 18)

    asked = (
        ("Solve the equation on the board.", f"{a}x + {b} = {a * root + b}, so {a}x = {a * root} and x = {root}."),
        ("What is drawn at the right?", "Two axes, x and y, and a line that rises from the left to the right."),
    )
    return Item(name, asked, draw)


def _family(name: str) -> Item:
    facts = chance(name)
    names = facts.sample(["Ada", "Bo", "Clara", "David", "Emil", "Fatma", "Greta", "Hugo", "Ivo"], 7)
    spots = ((200, 60), (440, 60), (130, 230), (320, 230), (510, 230), (240, 400), (400, 400))

    def draw() -> Image.Image:
        rng = chance(name + " hand")
        image, pen = _paper((640, 476))
        for person, (x, y) in zip(names, spots, strict=True):
            ink.hand_ellipse(pen, (x - 66, y - 34, x + 66, y + 34), rng, PEN)
            _label(image, (x, y), person, rng, 28)
        lines = [
            [(266, 60), (374, 60)],
            [(320, 60), (320, 146)],
            [(130, 146), (510, 146)],
            [(130, 146), (130, 194)],
            [(320, 146), (320, 194)],
            [(510, 146), (510, 194)],
            [(320, 266), (320, 320)],
            [(240, 320), (400, 320)],
            [(240, 320), (240, 364)],
            [(400, 320), (400, 364)],
        ]
        for line in lines:
            ink.hand_line(pen, line, rng, PEN, 2)
        return ink.grain(image, rng, 12)

    asked = (
        (f"How many children do {names[0]} and {names[1]} have in this family tree?", "Three."),
        (
            f"Who are the children of {names[3]}?",
            f"{names[5]} and {names[6]}.",
        ),
    )
    return Item(name, asked, draw)


def _game(name: str) -> Item:
    facts = chance(name)
    row = facts.randrange(3)
    cells = [""] * 9
    cells[3 * row : 3 * row + 3] = ["X"] * 3
    for place in facts.sample([place for place in range(9) if place // 3 != row], 3):
        cells[place] = "O"
    if all(cells[place] == "O" for place in range(9) if place // 3 == (row + 1) % 3):
        cells[3 * ((row + 1) % 3)] = ""

    def draw() -> Image.Image:
        rng = chance(name + " hand")
        image, pen = _paper((364, 364), 26)
        for at in (135, 230):
            ink.hand_line(pen, [(at, 40), (at, 325)], rng, PEN, 4)
            ink.hand_line(pen, [(40, at), (325, at)], rng, PEN, 4)
        for place, cell in enumerate(cells):
            x, y = 88 + 95 * (place % 3), 88 + 95 * (place // 3)
            if cell == "X":
                ink.hand_line(pen, [(x - 28, y - 28), (x + 28, y + 28)], rng, RED, 5)
                ink.hand_line(pen, [(x + 28, y - 28), (x - 28, y + 28)], rng, RED, 5)
            elif cell == "O":
                ink.hand_ellipse(pen, (x - 29, y - 29, x + 29, y + 29), rng, (30, 90, 180), 5)
        return ink.grain(image, rng, 12)

    side = ("top", "middle", "bottom")[row]
    asked = (
        ("Who has won this game, and where?", f"X has won, with three in the {side} row."),
        ("How many circles are on the board?", f"{cells.count('O')}."),
    )
    return Item(name, asked, draw)


def _triangle(name: str) -> Item:
    short, long, slope = chance(name).choice([(3, 4, 5), (6, 8, 10), (5, 12, 13), (9, 12, 15)])

    def draw() -> Image.Image:
        rng = chance(name + " hand")
        image, pen = _paper((560, 420), 28)
        ink.hand_line(pen, [(80, 330), (470, 330), (80, 70), (80, 330)], rng, PEN, 4)
        ink.hand_line(pen, [(80, 296), (114, 296), (114, 330)], rng, PEN, 2)
        _label(image, (275, 360), f"{long} cm", rng, 32)
        _label(image, (42, 200), f"{short}", rng, 32)
        _label(image, (330, 170), "c = ?", rng, 36, RED)
        return ink.grain(image, rng, 12)

    asked = (
        (
            "How long is the side c of this triangle with a right angle?",
            f"c = {slope} cm, since {short}² + {long}² = {short**2} + {long**2} = {slope**2}.",
        ),
    )
    return Item(name, asked, draw)


def _mind(name: str) -> Item:
    facts = chance(name)
    ideas = facts.sample(["cheap train", "lake cabin", "rain coats", "card games", "first aid", "big pot"], 5)
    starred = facts.randrange(5)
    spots = ((130, 80), (560, 80), (100, 300), (590, 300), (350, 420))

    def draw() -> Image.Image:
        rng = chance(name + " hand")
        image, pen = _paper((700, 480))
        for idea, (x, y), color in zip(ideas, spots, (PEN, RED, (30, 120, 70), (140, 60, 140), (190, 110, 20)),
                                       strict=True):  # fmt: skip
            ink.hand_line(pen, [(350 + (x - 350) * 0.32, 215 + (y - 215) * 0.4), (x, y)], rng, color, 3)
            pen.rectangle([x - 84, y - 24, x + 84, y + 24], fill=(252, 250, 244))
            ink.hand_box(pen, (x - 84, y - 26, x + 84, y + 26), rng, color, 3)
            _label(image, (x, y), idea, rng, 27, color)
            if ideas[starred] == idea:
                _label(image, (x + 106, y), "*", rng, 54, RED)
        ink.hand_ellipse(pen, (230, 150, 470, 280), rng, PEN, 5)
        _label(image, (350, 215), "Summer trip", rng, 36)
        return ink.grain(image, rng, 12)

    asked = (
        ("What is the topic in the middle of this mind map, and how many ideas are around it?",
         "“Summer trip”, with five ideas around it."),
        ("Which idea is marked with a star?", f"“{ideas[starred]}”."),
    )  # fmt: skip
    return Item(name, asked, draw)


def _timeline(name: str) -> Item:
    facts = chance(name)
    years = sorted(facts.sample(range(1990, 2024), 4))
    events = ["founded", "first shop", "moved", "100 staff"]

    def draw() -> Image.Image:
        rng = chance(name + " hand")
        image, pen = _paper((896, 252))
        ink.hand_arrow(pen, (30, 130), (866, 130), rng, PEN, 4)
        for place, (year, event) in enumerate(zip(years, events, strict=True)):
            x = 120 + 200 * place
            ink.hand_line(pen, [(x, 114), (x, 146)], rng, PEN, 4)
            _label(image, (x, 84), str(year), rng, 33, RED)
            _label(image, (x, 178), event, rng, 29)
        return ink.grain(image, rng, 12)

    asked = (
        ("When did the company move?", f"In {years[2]}."),
        (
            "How many years passed between the founding and the first shop?",
            f"{years[1] - years[0]}, from {years[0]} to {years[1]}.",
        ),
    )
    return Item(name, asked, draw)


def _circuit(name: str) -> Item:
    facts = chance(name)
    volts, ohms = facts.choice([6, 9, 12]), facts.choice([2, 3])
    lamps = facts.choice([2, 3])

    def draw() -> Image.Image:
        rng = chance(name + " hand")
        image, pen = _paper((588, 392), 28)
        ink.hand_line(pen, [(100, 170), (100, 80), (500, 80), (500, 320), (100, 320), (100, 220)], rng, PEN, 3)
        pen.rectangle([90, 176, 110, 214], fill=(252, 250, 244))
        ink.hand_line(pen, [(60, 174), (140, 174)], rng, PEN, 4)
        ink.hand_line(pen, [(80, 216), (120, 216)], rng, PEN, 7)
        _label(image, (46, 236), f"{volts} V", rng, 29, RED)
        for lamp in range(lamps):
            x = 200 + 210 * lamp // (lamps - 1)
            pen.ellipse([x - 28, 52, x + 28, 108], fill=(255, 236, 150))
            ink.hand_ellipse(pen, (x - 28, 52, x + 28, 108), rng, PEN)
            ink.hand_line(pen, [(x - 19, 61), (x + 19, 99)], rng, PEN)
            ink.hand_line(pen, [(x + 19, 61), (x - 19, 99)], rng, PEN)
            _label(image, (x, 134), f"{ohms} ohm", rng, 24)
        pen.rectangle([290, 308, 340, 330], fill=(252, 250, 244))
        ink.hand_line(pen, [(290, 320), (334, 292)], rng, PEN, 4)
        _label(image, (316, 352), "switch", rng, 25)
        return ink.grain(image, rng, 12)

    parts = listed([f"a battery of {volts} V", f"{('two', 'three')[lamps - 2]} lamps of {ohms} ohm", "a switch"])
    asked = (
        ("Is the switch in this circuit open or closed?", "Open."),
        ("Name the parts of this circuit.", f"It has {parts}, all in one loop."),
    )
    return Item(name, asked, draw)
