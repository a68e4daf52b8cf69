"""Screens: windows, dialogs, pages and apps with buttons, lists and messages."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from luq_gguf.calibration_set import ink
from luq_gguf.calibration_set.item import Item, chance, listed

BLUE = (37, 99, 235)
LINE = (214, 218, 226)


def items() -> list[Item]:
    """Six screens."""
    makers = (_dialog, _settings, _terminal, _chat, _editor, _shop)
    return [maker(f"screen-{number:02}") for number, maker in enumerate(makers, start=1)]


def window(size: tuple[int, int], title: str, back: ink.Color = ink.WHITE) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty window with a title bar 36 pixels high and three buttons."""
    image, pen = ink.sheet(size, back)
    pen.rectangle([0, 0, size[0], 36], fill=(226, 229, 235))
    for place, color in enumerate(((237, 106, 94), (245, 191, 79), (98, 197, 84))):
        pen.ellipse([14 + 24 * place, 11, 28 + 24 * place, 25], fill=color)
    pen.text((size[0] / 2, 18), title, fill=ink.BLACK, font=ink.font("sans", 15), anchor="mm")
    pen.rectangle([0, 0, size[0] - 1, size[1] - 1], outline=LINE)
    return image, pen


def button(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], text: str, *, main: bool = False) -> None:
    """A button with its text in the middle; the main one is blue."""
    fill, color = (BLUE, ink.WHITE) if main else ((240, 242, 246), ink.BLACK)
    pen.rounded_rectangle(box, 7, fill=fill, outline=None if main else LINE)
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    pen.text(middle, text, fill=color, font=ink.font("sans", 16), anchor="mm")


def _dialog(name: str) -> Item:
    rng = chance(name)
    file = rng.choice(["report-final.docx", "holiday.mov", "taxes-2023.xlsx"])
    free, needed = rng.randrange(120, 480), rng.randrange(520, 990)

    def draw() -> Image.Image:
        image, pen = window((560, 308), "Save file")
        pen.polygon([(70, 84), (34, 150), (106, 150)], fill=(245, 180, 30))
        pen.text((70, 128), "!", fill=ink.BLACK, font=ink.font("bold", 38), anchor="mm")
        ink.write(pen, (136, 74), "The disk is almost full", "bold", 20)
        body = (
            f"“{file}” needs {needed} MB, but only {free} MB are free. Delete files that you no longer need, or "
            "choose another disk."
        )
        ink.write(pen, (136, 112), body, "sans", 16, width=390)
        button(pen, (136, 246, 256, 284), "Cancel")
        button(pen, (268, 246, 388, 284), "Clean up")
        button(pen, (400, 246, 536, 284), "Other disk", main=True)
        return image

    asked = (
        (
            "Why can the file not be saved?",
            f"The disk is almost full: {needed} MB are needed, only {free} MB are free.",
        ),
        (
            "Which buttons does the window offer, and which one is highlighted?",
            "Cancel, Clean up and Other disk; Other disk is highlighted.",
        ),
    )
    return Item(name, asked, draw)


def _settings(name: str) -> Item:
    rng = chance(name)
    switches = {label: rng.random() < 0.5 for label in ("Wi-Fi", "Bluetooth", "Night light", "Location", "Backup")}
    switches["Night light"] = True
    switches["Location"] = False
    level = rng.randrange(20, 95, 5)

    def draw() -> Image.Image:
        image, pen = ink.sheet((392, 700), (244, 245, 249))
        pen.text((24, 24), "9:41", fill=ink.BLACK, font=ink.font("bold", 17))
        pen.text((368, 24), f"{level} %", fill=ink.BLACK, font=ink.font("sans", 17), anchor="ra")
        pen.text((24, 74), "Settings", fill=ink.BLACK, font=ink.font("bold", 34))
        for row, (label, on) in enumerate(switches.items()):
            y = 144 + 74 * row
            pen.rounded_rectangle([16, y, 376, y + 62], 12, fill=ink.WHITE)
            ink.write(pen, (36, y + 20), label, "sans", 20)
            pen.rounded_rectangle([302, y + 16, 358, y + 46], 15, fill=(52, 199, 89) if on else (200, 203, 210))
            knob = 330 if on else 304
            pen.ellipse([knob, y + 18, knob + 26, y + 44], fill=ink.WHITE)
        ink.write(pen, (24, 532), "Brightness", "sans", 18)
        pen.line([(24, 584), (368, 584)], fill=(200, 203, 210), width=6)
        pen.line([(24, 584), (24 + 3.44 * 70, 584)], fill=BLUE, width=6)
        pen.ellipse([24 + 3.44 * 70 - 13, 571, 24 + 3.44 * 70 + 13, 597], fill=ink.WHITE, outline=ink.GRAY)
        ink.write(pen, (24, 640), "Software is up to date.", "sans", 15, ink.GRAY)
        return image

    on = [label for label, is_on in switches.items() if is_on]
    asked = (
        ("Which of these settings are switched on?", f"{listed(on)}."),
        ("How full is the battery?", f"{level} %."),
    )
    return Item(name, asked, draw)


def _terminal(name: str) -> Item:
    rng = chance(name)
    passed, failed = rng.randrange(140, 420), 1
    line = rng.randrange(20, 190)
    seconds = rng.randrange(31, 99) / 10
    lines = [
        "$ git status --short",
        " M src/parser.py",
        " M tests/test_parser.py",
        "?? notes.txt",
        "$ pytest -q",
        "................F.................... [100%]",
        "=========== FAILURES ===========",
        f"tests/test_parser.py:{line}: in test_empty_line",
        "    assert parse('') == []",
        "E   assert None == []",
        f"{failed} failed, {passed} passed in {seconds} s",
        "$ _",
    ]

    def draw() -> Image.Image:
        image, pen = window((700, 420), "bash - 80x24", (24, 26, 32))
        for row, text in enumerate(lines):
            color = (240, 110, 100) if text.startswith(("E ", "=", f"{failed} f")) else (214, 220, 228)
            ink.write(pen, (22, 52 + 29 * row), text, "mono", 19, (120, 220, 130) if text[0] == "$" else color)
        return image

    asked = (
        ("How many tests passed and how many failed?", f"{passed} passed and {failed} failed."),
        (
            "Why does the test fail, and in which file and line?",
            f"In tests/test_parser.py, line {line}: parse('') returned None, but an empty list was expected.",
        ),
    )
    return Item(name, asked, draw)


def _chat(name: str) -> Item:
    rng = chance(name)
    hour, platform = rng.randrange(5, 9), rng.randrange(2, 14)
    talk = [
        (0, "Are you on the train yet?"),
        (1, f"No, it is 20 minutes late. I will arrive at {hour}:40."),
        (0, "OK. I will wait at the bakery in the station."),
        (1, f"Great! I come in on platform {platform}. Shall I bring the cake?"),
        (0, "Yes please, and candles! Nobody has candles."),
    ]

    def draw() -> Image.Image:
        image, pen = ink.sheet((420, 616), (233, 238, 232))
        pen.rectangle([0, 0, 420, 64], fill=(7, 94, 84))
        pen.ellipse([16, 12, 56, 52], fill=(240, 200, 120))
        pen.text((36, 32), "M", fill=ink.BLACK, font=ink.font("bold", 22), anchor="mm")
        pen.text((72, 20), "Miriam", fill=ink.WHITE, font=ink.font("bold", 21))
        y: float = 84
        for side, text in talk:
            rows = ink.wrap(text, "sans", 17, 250)
            wide = max(ink.font("sans", 17).getlength(row) for row in rows) + 28
            left = 404 - wide if side else 16
            pen.rounded_rectangle([left, y, left + wide, y + 24 * len(rows) + 18], 12,
                                  fill=(214, 246, 198) if side else ink.WHITE)  # fmt: skip
            ink.write(pen, (left + 14, y + 9), text, "sans", 17, width=250)
            y += 24 * len(rows) + 34
        pen.rounded_rectangle([12, 562, 356, 604], 20, fill=ink.WHITE)
        ink.write(pen, (30, 573), "Message", "sans", 16, ink.GRAY)
        pen.ellipse([364, 562, 406, 604], fill=(7, 94, 84))
        pen.polygon([(378, 573), (378, 593), (397, 583)], fill=ink.WHITE)
        return image

    asked = (
        ("Where will Miriam wait?", "At the bakery in the station."),
        (
            "When and where does the train arrive, and what is to be brought along?",
            f"At {hour}:40 on platform {platform}; a cake and candles are to be brought.",
        ),
    )
    return Item(name, asked, draw)


_CODE = (
    ("k", "def median(values):"),
    ("s", '    """The middle of some numbers."""'),
    ("", "    ordered = sorted(values)"),
    ("", "    half = len(ordered) // {divisor}"),
    ("k", "    if len(ordered) % 2 == 1:"),
    ("k", "        return ordered[half]"),
    ("c", "    # two numbers share the middle"),
    ("k", "    return sum(ordered[half - 1:half + 1]) / 2"),
    ("", ""),
    ("", "print(median([{numbers}]))"),
)


def _editor(name: str) -> Item:
    rng = chance(name)
    numbers = rng.sample(range(1, 40), 5)
    colors = {"k": (197, 134, 192), "s": (206, 145, 120), "c": (106, 153, 85), "": (212, 212, 212)}

    def draw() -> Image.Image:
        image, pen = window((756, 392), "median.py - Editor", (30, 30, 30))
        pen.rectangle([0, 36, 150, 392], fill=(37, 37, 38))
        for row, file in enumerate(["PROJECT", "  median.py", "  mode.py", "  README.md"]):
            ink.write(pen, (14, 50 + 30 * row), file, "sans", 15, ink.WHITE if row == 1 else (170, 170, 170))
        for row, (kind, text) in enumerate(_CODE):
            y = 52 + 31 * row
            pen.text((186, y), str(row + 1), fill=(110, 110, 110), font=ink.font("mono", 17), anchor="ra")
            shown = text.format(divisor=2, numbers=", ".join(map(str, numbers))) if "{" in text else text
            ink.write(pen, (204, y), shown, "mono", 18, colors[kind])
        pen.rectangle([0, 366, 756, 392], fill=(0, 122, 204))
        ink.write(pen, (14, 370), "main    0 errors    UTF-8    Python", "sans", 14, ink.WHITE)
        return image

    asked = (
        ("What does the last line of this program print?", f"{sorted(numbers)[2]}."),
        (
            "Explain what the function on the screen does.",
            (
                "It returns the median: it sorts the values and takes the middle one, or the mean of the two middle "
                "ones where their number is even."
            ),
        ),
    )
    return Item(name, asked, draw)


def _shop(name: str) -> Item:
    rng = chance(name)
    goods = rng.sample(["Teapot", "Umbrella", "Lantern", "Backpack", "Notebook", "Scarf"], 3)
    prices = rng.sample(range(9, 80), 3)
    stars = rng.sample([3, 4, 5], 3)
    sale = rng.randrange(3)

    def draw() -> Image.Image:
        image, pen = window((840, 532), "https://shop.example/new")
        ink.write(pen, (28, 56), "Fernweh Store", "bold", 25)
        for place, word in enumerate(["New", "Home", "Travel", "Sale"]):
            ink.write(pen, (430 + 92 * place, 62), word, "sans", 17, BLUE if place == 0 else ink.BLACK)
        pen.line([(0, 104), (840, 104)], fill=LINE)
        for place, (thing, price) in enumerate(zip(goods, prices, strict=True)):
            x = 28 + 268 * place
            pen.rounded_rectangle([x, 126, x + 248, 506], 10, fill=(248, 249, 251), outline=LINE)
            _picture_of(pen, thing, (x + 24, 146, x + 224, 316))
            ink.write(pen, (x + 20, 332), thing, "bold", 20)
            _stars(pen, x + 20, 370, stars[place])
            ink.write(pen, (x + 20, 400), f"{price}.90", "sans", 22, (200, 30, 30) if place == sale else ink.BLACK)
            if place == sale:
                pen.rectangle([x + 150, 126, x + 248, 156], fill=(200, 30, 30))
                pen.text((x + 199, 141), "SALE", fill=ink.WHITE, font=ink.font("bold", 17), anchor="mm")
            button(pen, (x + 20, 448, x + 228, 488), "Add to cart", main=True)
        return image

    best = goods[stars.index(5)]
    asked = (
        (
            "Which article has five stars, and what does it cost?",
            f"The {best.lower()}, for {prices[goods.index(best)]}.90.",
        ),
        (
            "List all articles on this page with their prices.",
            f"{listed([f'{thing} {price}.90' for thing, price in zip(goods, prices, strict=True)])}.",
        ),
    )
    return Item(name, asked, draw)


def _stars(pen: ImageDraw.ImageDraw, x: int, y: int, count: int) -> None:
    for place in range(5):
        color = (245, 170, 30) if place < count else (220, 222, 228)
        pen.regular_polygon((x + 10 + 24 * place, y + 10, 10), 3, fill=color)
        pen.regular_polygon((x + 10 + 24 * place, y + 10, 10), 3, rotation=180, fill=color)


_SHAPES: dict[str, Sequence[tuple[str, tuple[int, int, int, int], ink.Color]]] = {
    "Teapot": (("ellipse", (50, 60, 150, 150), (60, 110, 160)), ("arc", (130, 70, 185, 130), (60, 110, 160)),
               ("line", (60, 100, 15, 60), (60, 110, 160)), ("ellipse", (90, 44, 110, 64), (40, 80, 120))),
    "Umbrella": (("pie", (20, 20, 180, 170), (200, 60, 60)), ("line", (100, 95, 100, 165), (90, 60, 40))),
    "Lantern": (("box", (65, 50, 135, 150), (250, 205, 90)), ("box", (58, 38, 142, 54), (60, 60, 60)),
                ("box", (58, 148, 142, 162), (60, 60, 60)), ("arc", (75, 5, 125, 60), (60, 60, 60))),
    "Backpack": (("box", (55, 40, 145, 160), (70, 130, 90)), ("box", (68, 100, 132, 150), (50, 100, 66)),
                 ("arc", (80, 15, 120, 60), (50, 100, 66))),
    "Notebook": (("box", (55, 15, 150, 160), (120, 80, 160)), ("line", (72, 15, 72, 160), (240, 240, 240)),
                 ("box", (88, 45, 135, 75), (240, 240, 240))),
    "Scarf": (("box", (40, 30, 160, 62), (220, 130, 60)), ("box", (60, 55, 88, 150), (200, 110, 45)),
              ("box", (110, 55, 138, 130), (220, 130, 60))),
}  # fmt: skip


def _picture_of(pen: ImageDraw.ImageDraw, thing: str, box: tuple[int, int, int, int]) -> None:
    """A simple picture of an article, 200 x 170 pixels."""
    pen.rectangle(box, fill=(232, 236, 240))
    for kind, (x0, y0, x1, y1), color in _SHAPES[thing]:
        place = (box[0] + x0, box[1] + y0, box[0] + x1, box[1] + y1)
        if kind == "ellipse":
            pen.ellipse(place, fill=color)
        elif kind == "box":
            pen.rounded_rectangle(place, 8, fill=color)
        elif kind == "pie":
            pen.pieslice(place, 180, 360, fill=color)
        elif kind == "arc":
            pen.arc(place, 180 if thing != "Teapot" else -90, 360 if thing != "Teapot" else 90, fill=color, width=8)
        else:
            pen.line(place, fill=color, width=9)
