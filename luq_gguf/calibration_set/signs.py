"""Signs and dials as a camera sees them in the street: on a wall, before the sky, with grain."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw

from luq_gguf.calibration_set import ink
from luq_gguf.calibration_set.item import Item, chance

RED = (196, 22, 28)
SKY = ((120, 170, 225), (215, 230, 242))


def items() -> list[Item]:
    """Ten signs."""
    makers = (_stop, _speed, _fingerpost, _shop, _warning, _clock, _gauge, _plate, _platform, _parking)
    return [maker(f"sign-{number:02}") for number, maker in enumerate(makers, start=1)]


def _street(size: tuple[int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Sky, hills and a road: what stands behind a road sign."""
    image, pen = ink.shade(size, *SKY)
    wide, high = size
    pen.ellipse([-wide // 3, round(high * 0.62), round(wide * 0.7), high * 2], fill=(96, 140, 84))
    pen.ellipse([wide // 3, round(high * 0.68), round(wide * 1.4), high * 2], fill=(80, 124, 72))
    pen.polygon([(wide * 0.62, high * 0.76), (wide * 0.68, high * 0.76), (wide, high), (wide * 0.55, high)],
                fill=(92, 94, 98))  # fmt: skip
    return image, pen


def _pole(pen: ImageDraw.ImageDraw, x: float, top: float, bottom: float) -> None:
    pen.rectangle([x - 7, top, x + 7, bottom], fill=(150, 154, 160))
    pen.line([(x - 3, top), (x - 3, bottom)], fill=(190, 194, 200), width=3)


def _bricks(size: tuple[int, int], name: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A wall of bricks."""
    rng = chance(name)
    image, pen = ink.sheet(size, (190, 180, 168))
    for row in range(size[1] // 28 + 1):
        for column in range(-1, size[0] // 70 + 1):
            x, y = column * 70 + 35 * (row % 2), row * 28
            color = ink.mix((150, 72, 54), (176, 96, 72), rng.random())
            pen.rectangle([x + 2, y + 2, x + 66, y + 25], fill=color)
    return image, pen


def _stop(name: str) -> Item:
    words = chance(name).choice(["STOP", "ARRÊT", "ALTO"])

    def draw() -> Image.Image:
        image, pen = _street((420, 504))
        _pole(pen, 170, 200, 504)
        pen.regular_polygon((170, 170, 128), 8, fill=ink.WHITE)
        pen.regular_polygon((170, 170, 118), 8, fill=RED)
        size = ink.shrink_to(words, "bold", 66, 190)
        pen.text((170, 170), words, fill=ink.WHITE, font=ink.font("bold", size), anchor="mm")
        return ink.grain(image, chance(name + " grain"), 24)

    asked = (
        ("What shape and color is this road sign?", "It is a red octagon with a white edge."),
        ("What must a driver do at this sign?", f"Stop: the sign says {words}. Drive on only when the way is free."),
    )
    return Item(name, asked, draw)


def _speed(name: str) -> Item:
    limit = chance(name).choice([30, 50, 70])

    def draw() -> Image.Image:
        image, pen = _street((476, 588))
        _pole(pen, 200, 140, 588)
        pen.ellipse([82, 40, 318, 276], fill=RED)
        pen.ellipse([112, 70, 288, 246], fill=ink.WHITE)
        pen.text((200, 158), str(limit), fill=ink.BLACK, font=ink.font("bold", 92), anchor="mm")
        pen.rectangle([92, 300, 308, 380], fill=ink.WHITE, outline=ink.BLACK, width=3)
        pen.text((200, 340), "22 - 6 h", fill=ink.BLACK, font=ink.font("bold", 38), anchor="mm")
        return ink.grain(image, chance(name + " grain"), 24)

    asked = (
        ("What is the speed limit on this sign?", f"{limit}."),
        (
            "Does the limit apply at 3 in the afternoon?",
            "No. The plate below says that it applies from 22 to 6 o'clock, at night.",
        ),
    )
    return Item(name, asked, draw)


def _fingerpost(name: str) -> Item:
    rng = chance(name)
    goals = rng.sample(["Eagle Rock", "Blue Lake", "Old Chapel", "Waterfall", "Village"], 4)
    minutes = rng.sample(range(15, 190, 5), 4)
    sides = ["right", "left", "right", "left"] if rng.random() < 0.5 else ["left", "left", "right", "right"]

    def draw() -> Image.Image:
        image, pen = _street((644, 532))
        pen.rectangle([312, 30, 332, 532], fill=(106, 76, 48))
        for row, (goal, minute, side) in enumerate(zip(goals, minutes, sides, strict=True)):
            y = 52 + 84 * row
            tip = [(90, y), (560, y), (600, y + 31), (560, y + 62), (90, y + 62)]
            if side == "left":
                tip = [(644 - x, place) for x, place in tip]
            pen.polygon(tip, fill=(247, 208, 60), outline=ink.BLACK, width=2)
            left = 112 if side == "right" else 92
            pen.text((left, y + 31), goal, fill=ink.BLACK, font=ink.font("bold", 29), anchor="lm")
            right = 540 if side == "right" else 532
            pen.text((right, y + 31), f"{minute} min", fill=ink.BLACK, font=ink.font("sans", 25), anchor="rm")
        return ink.grain(image, chance(name + " grain"), 22)

    near = goals[minutes.index(min(minutes))]
    asked = (
        ("Which place is the nearest, and how long is the walk?", f"{near}, {min(minutes)} minutes away."),
        (
            f"In which direction must I go to reach {goals[1]}?",
            f"To the {sides[1]}; it takes {minutes[1]} minutes.",
        ),
    )
    return Item(name, asked, draw)


def _shop(name: str) -> Item:
    rng = chance(name)
    opens, closes = rng.choice([7, 8, 9]), rng.choice([18, 19])
    noon = rng.choice([12, 13, 14])
    rest = rng.choice(["Mon", "Wed"])

    def draw() -> Image.Image:
        image, pen = _bricks((560, 560), name + " wall")
        pen.rectangle([30, 30, 530, 140], fill=(24, 70, 60), outline=(230, 200, 120), width=5)
        pen.text((280, 85), "BAKER & SONS", fill=(240, 220, 150), font=ink.font("serif bold", 48), anchor="mm")
        pen.rectangle([110, 190, 450, 520], fill=(252, 250, 244), outline=ink.BLACK, width=3)
        pen.text((280, 210), "Opening hours", fill=ink.BLACK, font=ink.font("serif bold", 29), anchor="ma")
        for row, day in enumerate(["Mon", "Tue", "Wed", "Thu", "Fri", "Sat"]):
            y = 266 + 40 * row
            ink.write(pen, (140, y), day, "serif", 24)
            hours = "closed" if day == rest else f"{opens} - {noon if day == 'Sat' else closes}"
            pen.text(
                (420, y), hours, fill=RED if hours == "closed" else ink.BLACK, font=ink.font("serif", 24), anchor="ra"
            )
        return ink.grain(image, chance(name + " grain"), 22)

    full = {"Mon": "Monday", "Wed": "Wednesday"}[rest]
    asked = (
        ("On which day of the week is the shop closed, apart from Sunday?", f"On {full}."),
        (
            "What is the name of the shop, and until when is it open on Saturday?",
            f"The shop is called Baker & Sons; on Saturday it is open until {noon} o'clock.",
        ),
    )
    return Item(name, asked, draw)


def _warning(name: str) -> Item:
    volts = chance(name).choice([400, 1000, 20000])

    def draw() -> Image.Image:
        image, pen = ink.sheet((392, 476), (128, 134, 140))
        for x in range(0, 392, 56):
            pen.line([(x, 0), (x, 476)], fill=(108, 114, 120), width=4)
        pen.rectangle([50, 40, 342, 436], fill=(252, 206, 16), outline=ink.BLACK, width=4)
        pen.polygon([(196, 64), (92, 240), (300, 240)], fill=ink.BLACK)
        pen.polygon([(196, 88), (112, 229), (280, 229)], fill=(252, 206, 16))
        pen.polygon([(206, 112), (170, 176), (192, 176), (180, 222), (222, 156), (198, 156)], fill=ink.BLACK)
        pen.text((196, 270), "DANGER", fill=ink.BLACK, font=ink.font("bold", 47), anchor="ma")
        pen.text((196, 332), f"{volts:,} volts", fill=ink.BLACK, font=ink.font("bold", 33), anchor="ma")
        pen.text((196, 388), "Keep this door locked", fill=ink.BLACK, font=ink.font("sans", 20), anchor="ma")
        return ink.grain(image, chance(name + " grain"), 26)

    asked = (
        (
            "What does this sign warn of?",
            f"Of electricity: it shows a flash in a triangle and says “Danger, {volts:,} volts”.",
        ),
        ("What does the last line of the sign ask for?", "To keep this door locked."),
    )
    return Item(name, asked, draw)


def _hand(
    pen: ImageDraw.ImageDraw, center: ink.Point, turn: float, length: float, width: int, color: ink.Color
) -> None:
    """A hand of a dial; `turn` is in full turns clockwise from the top."""
    angle = math.tau * turn - math.pi / 2
    end = (center[0] + length * math.cos(angle), center[1] + length * math.sin(angle))
    pen.line([center, end], fill=color, width=width)


def _clock(name: str) -> Item:
    rng = chance(name)
    hour, minute = rng.randrange(1, 13), rng.randrange(5, 60, 5)

    def draw() -> Image.Image:
        image, pen = _bricks((448, 448), name + " wall")
        pen.ellipse([34, 34, 414, 414], fill=(40, 44, 48))
        pen.ellipse([52, 52, 396, 396], fill=(250, 248, 240))
        for number in range(1, 13):
            angle = math.tau * number / 12 - math.pi / 2
            place = (224 + 140 * math.cos(angle), 224 + 140 * math.sin(angle))
            pen.text(place, str(number), fill=ink.BLACK, font=ink.font("serif bold", 31), anchor="mm")
        for mark in range(60):
            inner = 156 if mark % 5 else 150
            angle = math.tau * mark / 60
            pen.line([(224 + r * math.cos(angle), 224 + r * math.sin(angle)) for r in (inner + 8, 166)],
                     fill=ink.BLACK, width=2)  # fmt: skip
        _hand(pen, (224, 224), (hour + minute / 60) / 12, 88, 11, ink.BLACK)
        _hand(pen, (224, 224), minute / 60, 136, 6, ink.BLACK)
        pen.ellipse([214, 214, 234, 234], fill=RED)
        return ink.grain(image, chance(name + " grain"), 20)

    asked = (("What time does the clock show?", f"{hour}:{minute:02}."),)
    return Item(name, asked, draw)


def _gauge(name: str) -> Item:
    rng = chance(name)
    value = rng.randrange(1, 10) + 0.5

    def draw() -> Image.Image:
        image, pen = ink.shade((420, 420), (90, 96, 104), (60, 64, 70))
        pen.ellipse([24, 24, 396, 396], fill=(196, 200, 206))
        pen.ellipse([40, 40, 380, 380], fill=ink.WHITE)
        pen.arc([60, 60, 360, 360], 135 + 27 * 8, 405, fill=RED, width=14)
        pen.arc([60, 60, 360, 360], 135, 135 + 27 * 8, fill=(60, 160, 80), width=14)
        for number in range(11):
            angle = math.radians(135 + 27 * number)
            place = (210 + 118 * math.cos(angle), 210 + 118 * math.sin(angle))
            pen.text(place, str(number), fill=ink.BLACK, font=ink.font("bold", 24), anchor="mm")
        pen.text((210, 286), "bar", fill=ink.BLACK, font=ink.font("sans", 25), anchor="mm")
        _hand(pen, (210, 210), (135 + 27 * value) / 360 + 0.25, 96, 7, RED)
        pen.ellipse([196, 196, 224, 224], fill=ink.BLACK)
        return ink.grain(image, chance(name + " grain"), 18)

    place = "red" if value > 8 else "green"
    asked = (
        ("What pressure does the gauge show?", f"About {value} bar."),
        ("Is the needle in the green or in the red range?", f"In the {place} range."),
    )
    return Item(name, asked, draw)


def _plate(name: str) -> Item:
    rng = chance(name)
    letters = "".join(rng.sample("ABCDEFHKLMNPRSTVXZ", 4))
    text = f"{letters[:2]} {rng.randrange(100, 999)} {letters[2:]}"

    def draw() -> Image.Image:
        image, pen = ink.shade((644, 252), (70, 20, 26), (120, 34, 40))
        pen.rounded_rectangle([60, 66, 584, 186], 12, fill=ink.WHITE, outline=ink.BLACK, width=5)
        pen.rectangle([66, 72, 116, 180], fill=(0, 51, 153))
        pen.text((91, 158), "F", fill=ink.WHITE, font=ink.font("bold", 29), anchor="mm")
        for star in range(12):
            angle = math.tau * star / 12
            x, y = 91 + 15 * math.cos(angle), 106 + 15 * math.sin(angle)
            pen.ellipse([x - 2, y - 2, x + 2, y + 2], fill=(255, 204, 0))
        pen.text((350, 126), text, fill=ink.BLACK, font=ink.font("mono bold", 68), anchor="mm")
        image = image.rotate(-3, Image.Resampling.BICUBIC, fillcolor=(90, 26, 32))
        return ink.grain(image, chance(name + " grain"), 30)

    asked = (("Read the licence plate of this car.", f"{text}."),)
    return Item(name, asked, draw)


def _platform(name: str) -> Item:
    rng = chance(name)
    goals = rng.sample(["Hamburg", "Basel", "Wien", "Paris", "Roma", "Praha", "Warszawa"], 4)
    times = sorted(f"{rng.randrange(10, 23)}:{rng.randrange(10, 60)}" for _ in goals)
    tracks = rng.sample(range(1, 15), 4)
    late = rng.randrange(4)

    def draw() -> Image.Image:
        image, pen = ink.sheet((868, 364), (12, 24, 60))
        for title, x in (("Time", 30), ("Destination", 170), ("Track", 480), ("Remarks", 600)):
            ink.write(pen, (x, 20), title, "sans", 21, (150, 170, 220))
        for row, goal in enumerate(goals):
            y = 74 + 68 * row
            pen.rectangle([16, y - 8, 852, y + 50], fill=(20, 38, 88))
            ink.write(pen, (30, y), times[row], "mono bold", 31, ink.WHITE)
            ink.write(pen, (170, y), goal, "mono bold", 31, ink.WHITE)
            ink.write(pen, (496, y), str(tracks[row]), "mono bold", 31, ink.WHITE)
            if row == late:
                ink.write(pen, (600, y + 4), "25 min late", "mono", 27, (255, 200, 40))
        return ink.grain(image, chance(name + " grain"), 14)

    asked = (
        (f"From which track does the train to {goals[2]} leave?", f"From track {tracks[2]}."),
        (
            "Which train is late, and by how much?",
            f"The train to {goals[late]}, due at {times[late]}, is 25 minutes late.",
        ),
    )
    return Item(name, asked, draw)


def _parking(name: str) -> Item:
    rng = chance(name)
    hours = rng.choice([1, 2, 3])
    free = rng.randrange(12, 240)

    def draw() -> Image.Image:
        image, pen = _street((336, 532))
        _pole(pen, 168, 200, 532)
        pen.rounded_rectangle([68, 40, 268, 240], 18, fill=(0, 84, 166), outline=ink.WHITE, width=6)
        pen.text((168, 140), "P", fill=ink.WHITE, font=ink.font("bold", 140), anchor="mm")
        pen.rectangle([68, 252, 268, 306], fill=ink.WHITE, outline=ink.BLACK, width=2)
        pen.text((168, 279), f"max. {hours} h", fill=ink.BLACK, font=ink.font("bold", 29), anchor="mm")
        pen.rectangle([68, 318, 268, 378], fill=(20, 20, 20))
        pen.text((168, 348), f"FREE {free}", fill=(90, 230, 90), font=ink.font("mono bold", 30), anchor="mm")
        return ink.grain(image, chance(name + " grain"), 24)

    limit = f"{hours} hour{'s' if hours > 1 else ''}"
    asked = (
        (
            "How long may I park here, and how many spaces are free?",
            f"You may park for at most {limit}; {free} spaces are free.",
        ),
    )
    return Item(name, asked, draw)
