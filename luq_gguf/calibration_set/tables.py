"""Tables: results, prices, plans of the week, nutrition, a ledger, in several styles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from luq_gguf.calibration_set import ink
from luq_gguf.calibration_set.item import Item, chance, listed


@dataclass(frozen=True)
class Style:
    """How a table looks: its face, size, colors, and whether it has a grid or stripes."""

    face: str = "sans"
    size: int = 18
    head: ink.Color = (44, 62, 80)
    head_ink: ink.Color = ink.WHITE
    stripe: ink.Color | None = (236, 240, 245)
    grid: ink.Color | None = None
    back: ink.Color = ink.WHITE
    row_height: float = 2.1


def items() -> list[Item]:
    """Eight tables."""
    makers = (_league, _plans, _week, _nutrition, _ledger, _planets, _stock, _results)
    return [maker(f"table-{number:02}") for number, maker in enumerate(makers, start=1)]


def _draw(title: str, rows: Sequence[Sequence[str]], style: Style, note: str = "") -> Image.Image:
    """A table whose first row is its head and whose first column stands left; others are centered."""
    face = ink.font(style.face, style.size)
    bold = ink.font("mono bold" if style.face == "mono" else "bold", style.size)
    widths = [
        round(max(bold.getlength(row[column]) for row in rows) + 1.7 * style.size) for column in range(len(rows[0]))
    ]
    high, top = round(style.size * style.row_height), round(2.6 * style.size) if title else 18
    size = (max(sum(widths) + 48, 300), top + high * len(rows) + (56 if note else 24))
    image, pen = ink.sheet(size, style.back)
    if title:
        big = ink.shrink_to(title, "bold", style.size + 4, size[0] - 48)
        pen.text((24, 14), title, fill=ink.BLACK, font=ink.font("bold", big))
    for number, row in enumerate(rows):
        x, y = 24, top + high * number
        fill = style.head if number == 0 else style.stripe if number % 2 == 0 else None
        if fill is not None:
            pen.rectangle([x, y, x + sum(widths), y + high - 1], fill=fill)
        for column, (cell, wide) in enumerate(zip(row, widths, strict=True)):
            place, anchor = (x + 0.6 * style.size, "lm") if column == 0 else (x + wide / 2, "mm")
            color = style.head_ink if number == 0 else ink.BLACK
            pen.text((place, y + high / 2), cell, fill=color, font=bold if number == 0 else face, anchor=anchor)
            if style.grid:
                pen.rectangle([x, y, x + wide, y + high], outline=style.grid)
            x += wide
    if note:
        pen.text((24, size[1] - 38), note, fill=ink.GRAY, font=ink.font("oblique", 14))
    return image


def _league(name: str) -> Item:
    rng = chance(name)
    clubs = ["Harbour United", "FC Kestrel", "Old Mill Rovers", "Sparta Nord", "Blue Valley", "Athletic 09"]
    rng.shuffle(clubs)
    records = []
    for place in range(6):
        won = 11 - 2 * place + rng.randrange(0, 2)
        drawn = rng.randrange(0, 4)
        records.append((won, drawn, 16 - won - drawn))
    points = [3 * won + drawn for won, drawn, _ in records]
    order = sorted(range(6), key=lambda row: -points[row])
    rows = [["Club", "Won", "Drawn", "Lost", "Points"]]
    rows += [[club, *map(str, records[row]), str(points[row])] for club, row in zip(clubs, order, strict=True)]
    asked = (
        ("Which club leads the table, and with how many points?", f"{clubs[0]}, with {rows[1][4]} points."),
        (
            f"How many matches did {clubs[3]} win, draw and lose?",
            f"{clubs[3]} won {rows[4][1]}, drew {rows[4][2]} and lost {rows[4][3]}.",
        ),
    )
    return Item(name, asked, lambda: _draw("District league after 16 matches", rows, Style()))


def _plans(name: str) -> Item:
    rng = chance(name)
    prices = [0, rng.randrange(5, 10), rng.randrange(14, 25)]
    space = [rng.choice([2, 5]), rng.choice([50, 100]), rng.choice([500, 1000])]
    rows = [
        ["Feature", "Free", "Home", "Team"],
        ["Price a month", *(f"{price} EUR" for price in prices)],
        ["Storage", *(f"{size} GB" for size in space)],
        ["Devices", "1", "5", "unlimited"],
        ["Offline use", "no", "yes", "yes"],
        ["Shared folders", "no", "no", "yes"],
        ["Support by phone", "no", "no", "yes"],
    ]
    style = Style(size=19, head=(94, 53, 177), stripe=None, grid=(205, 200, 220))
    asked = (
        ("Which plans can be used offline?", "Home and Team."),
        (
            "I need 3 devices and want to pay as little as possible. Which plan should I take?",
            f"Home: it allows 5 devices and costs {prices[1]} EUR a month. Free allows only one device.",
        ),
    )
    return Item(name, asked, lambda: _draw("Compare our plans", rows, style))


def _week(name: str) -> Item:
    rng = chance(name)
    subjects = ["Maths", "Biology", "History", "Art", "English", "Music", "Sport", "Physics"]
    days = ["Mon", "Tue", "Wed", "Thu", "Fri"]
    grid = [[rng.choice(subjects[:4] if row < 2 else subjects[4:]) for _ in days] for row in range(4)]
    rows = [["Time", *days], *([f"{8 + hour}:00", *grid[hour]] for hour in range(4))]
    place = rng.randrange(5)
    full = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"][place]
    count = sum(row.count("Maths") for row in grid)
    style = Style(size=17, head=(255, 213, 79), head_ink=ink.BLACK, stripe=None, grid=(150, 150, 150), row_height=2.9)
    asked = (
        ("How many maths lessons are there in this week?", f"{count}."),
        (
            f"List the lessons on {full} in order.",
            f"{', '.join(grid[hour][place] for hour in range(4))}.",
        ),
    )
    return Item(name, asked, lambda: _draw("Class 7b", rows, style))


def _nutrition(name: str) -> Item:
    rng = chance(name)
    fat, sugar, protein = rng.randrange(20, 170) / 10, rng.randrange(30, 240) / 10, rng.randrange(40, 130) / 10
    carbs = round(sugar + rng.randrange(200, 400) / 10, 1)
    energy = round(9 * fat + 4 * (carbs + protein))
    rows = [
        ["Nährwerte", "je 100 g", "je Portion (40 g)"],
        *(
            [label, f"{value:.1f} g".replace(".", ","), f"{value * 0.4:.1f} g".replace(".", ",")]
            for label, value in (("Fett", fat), ("Kohlenhydrate", carbs), ("davon Zucker", sugar), ("Eiweiß", protein))
        ),
    ]
    rows.insert(1, ["Energie", f"{energy} kcal", f"{round(energy * 0.4)} kcal"])
    style = Style(size=17, head=ink.BLACK, stripe=None, grid=ink.BLACK, row_height=1.9)
    asked = (
        ("Wie viel Zucker enthalten 100 g?", f"{rows[4][1]}."),
        ("How many kilocalories does one serving of 40 g have?", f"{round(energy * 0.4)} kcal."),
    )
    return Item(name, asked, lambda: _draw("Haferkekse mit Honig", rows, style))


def _ledger(name: str) -> Item:
    rng = chance(name)
    what = ["Rent", "Salary", "Groceries", "Electricity", "Refund", "Train pass", "Dentist"]
    moves = [
        -780,
        2350,
        -rng.randrange(60, 190),
        -rng.randrange(40, 90),
        rng.randrange(15, 60),
        -49,
        -rng.randrange(70, 200),
    ]
    balance, rows = rng.randrange(300, 900), [["Date", "Entry", "Amount", "Balance"]]
    for number, (label, move) in enumerate(zip(what, moves, strict=True)):
        balance += move
        rows.append([f"{1 + 4 * number:02}.06.", label, f"{move:+d}.00", f"{balance}.00"])
    paid_in = [row[1] for row, move in zip(rows[1:], moves, strict=True) if move > 0]
    style = Style(face="mono", size=16, head=(38, 96, 64), stripe=(228, 240, 232), grid=(170, 190, 178))
    asked = (
        ("What is the balance after the last entry?", f"{balance}.00."),
        ("Which entries brought money in?", f"{listed(paid_in)}."),
    )
    return Item(name, asked, lambda: _draw("Account statement, June", rows, style))


def _planets(name: str) -> Item:
    rows = [
        ["Planet", "Diameter (km)", "Moons", "Day (hours)", "Year"],
        ["Mercury", "4,879", "0", "4,223", "88 days"],
        ["Venus", "12,104", "0", "2,802", "225 days"],
        ["Earth", "12,756", "1", "24.0", "365 days"],
        ["Mars", "6,792", "2", "24.7", "687 days"],
        ["Jupiter", "142,984", "95", "9.9", "11.9 years"],
        ["Saturn", "120,536", "146", "10.7", "29.4 years"],
        ["Uranus", "51,118", "28", "17.2", "83.7 years"],
        ["Neptune", "49,528", "16", "16.1", "164 years"],
    ]
    style = Style(size=18, head=(20, 24, 60), stripe=(232, 233, 245))
    asked = (
        ("Which planet in this table has the most moons?", "Saturn, with 146."),
        (
            "Which planets are smaller than the Earth in diameter?",
            "Mercury (4,879 km), Venus (12,104 km) and Mars (6,792 km).",
        ),
    )
    note = "Rounded values; the count of moons grows with new discoveries."
    return Item(name, asked, lambda: _draw("The planets of the solar system", rows, style, note))


def _stock(name: str) -> Item:
    rng = chance(name)
    goods = ["Screws M4", "Screws M6", "Nails 40 mm", "Wood glue", "Sandpaper", "Hinges", "Brushes", "Varnish", "Putty"]
    counts = [rng.randrange(0, 90) for _ in goods]
    counts[rng.randrange(len(goods))] = 0
    least = [rng.choice([10, 20, 30]) for _ in goods]
    rows = [["Article", "Shelf", "In stock", "Minimum"]]
    rows += [[thing, f"{rng.choice('ABC')}{rng.randrange(1, 9)}", str(have), str(need)]
             for thing, have, need in zip(goods, counts, least, strict=True)]  # fmt: skip
    short = [thing for thing, have, need in zip(goods, counts, least, strict=True) if have < need]
    gone = [thing for thing, have in zip(goods, counts, strict=True) if have == 0]
    style = Style(size=20, head=(205, 92, 40), stripe=(252, 240, 230))
    asked = (
        ("Which articles are out of stock?", f"{listed(gone)}."),
        ("Which articles are below their minimum and must be ordered?", f"{listed(short)}."),
    )
    return Item(name, asked, lambda: _draw("Workshop store", rows, style))


def _results(name: str) -> Item:
    rng = chance(name)
    rows = [["Model", "Params", "Accuracy", "Latency"]]
    sizes = ["0.5B", "1.5B", "3B", "7B"]
    scores = sorted(rng.sample(range(412, 790), 4))
    times = sorted(rng.sample(range(18, 240), 4))
    rows += [[f"Base-{size}", size, f"{score / 10:.1f}", f"{time} ms"]
             for size, score, time in zip(sizes, scores, times, strict=True)]  # fmt: skip
    style = Style(face="serif", size=15, head=ink.WHITE, head_ink=ink.BLACK, stripe=None, grid=(215, 215, 215))
    note = "Table 2: Accuracy (%) and time per image."
    gain = (scores[3] - scores[2]) / 10
    asked = (
        ("What is the accuracy of the 3B model?", f"{scores[2] / 10:.1f} %."),
        (
            "What does going from 3B to 7B gain and cost?",
            f"It gains {gain:.1f} points of accuracy and costs {times[3] - times[2]} ms more per image.",
        ),
    )
    return Item(name, asked, lambda: _draw("", rows, style, note))
