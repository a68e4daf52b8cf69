"""Documents of lines and prices: receipts, an invoice, a menu, a timetable."""

from __future__ import annotations

from PIL import Image, ImageDraw

from luq_gguf.calibration_set import ink
from luq_gguf.calibration_set.item import Item, chance

Lines = list[tuple[str, int]]
"""What was bought, and its price in cents."""


def items() -> list[Item]:
    """Six documents."""
    makers = (_receipt, _addition, _invoice, _menu, _timetable, _parcel)
    return [maker(f"document-{number:02}") for number, maker in enumerate(makers, start=9)]


def _money(cents: int, point: str = ".") -> str:
    return f"{cents // 100}{point}{cents % 100:02}"


_GOODS = [
    ("Apples 1 kg", 249),
    ("Whole milk", 119),
    ("Rye bread", 329),
    ("Butter 250 g", 259),
    ("Coffee beans", 899),
    ("Rice 2 kg", 399),
    ("Yogurt", 89),
    ("Honey", 549),
]


def _receipt(name: str) -> Item:
    rng = chance(name)
    bought: Lines = [(thing, base + rng.randrange(0, 80, 10)) for thing, base in rng.sample(_GOODS, 6)]
    total = sum(price for _, price in bought)
    given = (total // 1000 + 1) * 1000
    clock = f"{rng.randrange(8, 21):02}:{rng.randrange(60):02}"

    def draw() -> Image.Image:
        image, pen = ink.sheet((364, 616), (252, 252, 249))
        pen.text((182, 24), "GREEN CORNER", fill=ink.BLACK, font=ink.font("mono bold", 28), anchor="ma")
        pen.text((182, 62), "8 Station Road", fill=ink.BLACK, font=ink.font("mono", 16), anchor="ma")
        pen.text((182, 86), f"17.05.2024   {clock}", fill=ink.BLACK, font=ink.font("mono", 16), anchor="ma")
        y = _priced(pen, 130, 332, bought, 18)
        pen.line([(28, y + 4), (336, y + 4)], fill=ink.BLACK, width=2)
        y = _priced(pen, y + 16, 332, [("TOTAL", total)], 24)
        y = _priced(pen, y + 8, 332, [("CASH", given), ("CHANGE", given - total)], 18)
        pen.text((182, y + 30), "Thank you!", fill=ink.BLACK, font=ink.font("mono bold", 20), anchor="ma")
        return ink.grain(image, chance(name + " grain"), 16)

    asked = (
        ("What is the total on this receipt?", f"{_money(total)}."),
        (
            "How many articles were bought, and which was the most expensive?",
            "Six articles; the most expensive was {} for {}.".format(*_dearest(bought)),
        ),
    )
    return Item(name, asked, draw)


def _dearest(lines: Lines, point: str = ".") -> tuple[str, str]:
    thing, price = max(lines, key=lambda line: line[1])
    return thing, _money(price, point)


def _priced(pen: ImageDraw.ImageDraw, y: float, right: float, lines: Lines, size: int, point: str = ".") -> float:
    """Lines with their prices at the right; returns where the next one goes."""
    for thing, price in lines:
        pen.text((32, y), thing, fill=ink.BLACK, font=ink.font("mono", size))
        pen.text((right, y), _money(price, point), fill=ink.BLACK, font=ink.font("mono", size), anchor="ra")
        y += round(size * 1.7)
    return y


_CARTE = [
    ("Soupe à l'oignon", 790),
    ("Salade niçoise", 1240),
    ("Crêpe au citron", 650),
    ("Café crème", 310),
    ("Eau gazeuse", 420),
    ("Tarte aux poires", 540),
]


def _addition(name: str) -> Item:
    rng = chance(name)
    taken: Lines = [(thing, base + rng.randrange(0, 90, 10)) for thing, base in rng.sample(_CARTE, 4)]
    total = sum(price for _, price in taken)
    table = rng.randrange(2, 30)

    def draw() -> Image.Image:
        image, pen = ink.sheet((420, 476), (248, 246, 238))
        pen.text((210, 24), "Café du Marché", fill=(110, 20, 40), font=ink.font("italic", 38), anchor="ma")
        ink.write(pen, (32, 92), f"Table {table}          2 couverts", "mono", 17)
        pen.line([(28, 124), (392, 124)], fill=ink.GRAY)
        y = _priced(pen, 142, 388, taken, 18, ",")
        pen.line([(28, y + 4), (392, y + 4)], fill=ink.GRAY)
        y = _priced(pen, y + 18, 388, [("Total EUR", total)], 24, ",")
        pen.text((210, y + 26), "Service compris - merci !", fill=ink.BLACK, font=ink.font("italic", 22), anchor="ma")
        return ink.grain(image, chance(name + " grain"), 14)

    asked = (
        (
            "Quel est le plat ou la boisson le plus cher de cette addition ?",
            "{}, à {} euros.".format(*_dearest(taken, ",")),
        ),
        ("What is the table number, and how much has to be paid?", f"Table {table}; {_money(total)} euros."),
    )
    return Item(name, asked, draw)


def _invoice(name: str) -> Item:
    rng = chance(name)
    number = f"R-2024-{rng.randrange(100, 999)}"
    work = {"Desk, oak": 340, "Office chair": 210, "Desk lamp": 45, "Shelf 80 cm": 90, "Delivery": 60}
    rows = [
        (thing, 1 if thing == "Delivery" else rng.randrange(2, 7), price + rng.randrange(0, 30, 5))
        for thing, price in work.items()
    ]
    net = sum(count * price for _, count, price in rows)
    tax = round(net * 20)

    def draw() -> Image.Image:
        image, pen = ink.sheet((700, 840))
        pen.text((48, 44), "NORDHOLM FURNITURE", fill=(32, 66, 100), font=ink.font("bold", 25))
        pen.text((652, 44), "INVOICE", fill=ink.GRAY, font=ink.font("bold", 28), anchor="ra")
        ink.write(pen, (48, 120), "Bill to:\nRiverside Dental Practice\n5 Quay Street", "sans", 16, width=300)
        ink.write(pen, (420, 120), f"Number: {number}\nDate: 3 September 2024\nDue: 30 days", "sans", 16, width=300)
        pen.rectangle([40, 240, 660, 276], fill=(32, 66, 100))
        columns = (("Article", 56, "la"), ("Quantity", 400, "ra"), ("Price", 520, "ra"), ("Amount", 648, "ra"))
        for title, x, anchor in columns:
            pen.text((x, 248), title, fill=ink.WHITE, font=ink.font("bold", 16), anchor=anchor)
        for row, (thing, count, price) in enumerate(rows):
            y = 290 + 46 * row
            cells = (thing, str(count), f"{price}.00", f"{count * price:,}.00")
            for (_, x, anchor), cell in zip(columns, cells, strict=True):
                pen.text((x, y), cell, fill=ink.BLACK, font=ink.font("sans", 17), anchor=anchor)
            pen.line([(40, y + 34), (660, y + 34)], fill=ink.PALE)
        sums = (("Net", net * 100), ("Tax 20 %", tax), ("Total", net * 100 + tax))
        for row, (label, cents) in enumerate(sums):
            face = "bold" if label == "Total" else "sans"
            ink.write(pen, (430, 550 + 38 * row), label, face, 18)
            amount = f"{cents // 100:,}.{cents % 100:02}"
            pen.text((648, 550 + 38 * row), amount, fill=ink.BLACK, font=ink.font(face, 18), anchor="ra")
        note = f"Please pay without deduction and give the number {number}. The goods remain ours until paid in full."
        ink.write(pen, (48, 740), note, "sans", 14, ink.GRAY, width=600)
        return image

    chairs = rows[1]
    asked = (
        ("What is the invoice number?", f"{number}."),
        (
            "How many office chairs were ordered, and what do they cost together?",
            f"{chairs[1]} at {chairs[2]}.00 each, together {chairs[1] * chairs[2]:,}.00.",
        ),
    )
    return Item(name, asked, draw)


_DISHES = {
    "Starters": ["Pumpkin soup", "Smoked trout", "Garden salad"],
    "Main dishes": ["Mushroom risotto", "Roast chicken", "Lentil stew", "Grilled cod"],
    "Desserts": ["Plum cake", "Lemon sorbet"],
}


def _menu(name: str) -> Item:
    rng = chance(name)
    prices: dict[str, int] = {}
    for part, dishes in enumerate(_DISHES.values()):
        low = (7, 15, 5)[part]
        prices.update(zip(dishes, rng.sample(range(low, low + 8), len(dishes)), strict=True))
    green = ["Pumpkin soup", "Garden salad", "Mushroom risotto", "Lentil stew"]

    def draw() -> Image.Image:
        image, pen = ink.sheet((532, 756), (41, 52, 47))
        cream, gold = (240, 232, 212), (214, 178, 110)
        pen.rectangle([16, 16, 516, 740], outline=gold, width=2)
        pen.text((266, 44), "The Copper Kettle", fill=gold, font=ink.font("roman bold", 40), anchor="ma")
        y = 122
        for part, dishes in _DISHES.items():
            pen.text((266, y), part, fill=gold, font=ink.font("italic", 29), anchor="ma")
            y += 48
            for dish in dishes:
                shown = f"{dish} (v)" if dish in green else dish
                pen.text((60, y), shown, fill=cream, font=ink.font("roman", 24))
                pen.text((472, y), str(prices[dish]), fill=cream, font=ink.font("roman", 24), anchor="ra")
                y += 40
            y += 14
        pen.text((266, 694), "(v) without meat or fish", fill=cream, font=ink.font("italic", 19), anchor="ma")
        return image

    cheap = min(_DISHES["Main dishes"], key=lambda dish: prices[dish])
    asked = (
        ("Which main dishes contain neither meat nor fish?", "Mushroom risotto and lentil stew."),
        (
            "What is the cheapest main dish on this menu?",
            f"{cheap}, for {prices[cheap]}.",
        ),
    )
    return Item(name, asked, draw)


def _timetable(name: str) -> Item:
    rng = chance(name)
    stops = ["Town Hall", "Market Square", "Hospital", "University", "Lake Park", "Airport"]
    gaps = [rng.randrange(4, 13) for _ in stops[1:]]
    starts = [6 * 60 + 10 + 75 * trip + rng.randrange(20) for trip in range(6)]
    times = [[start + sum(gaps[:stop]) for start in starts] for stop in range(6)]

    def clock(minutes: int) -> str:
        return f"{minutes // 60}:{minutes % 60:02}"

    def draw() -> Image.Image:
        image, pen = ink.sheet((840, 420), (245, 247, 250))
        pen.rectangle([0, 0, 840, 64], fill=(196, 30, 58))
        pen.text((24, 14), "Line 42   Town Hall - Airport", fill=ink.WHITE, font=ink.font("bold", 27))
        pen.text((816, 22), "Monday to Friday", fill=ink.WHITE, font=ink.font("sans", 18), anchor="ra")
        for row, stop in enumerate(stops):
            y = 84 + 52 * row
            if row % 2 == 0:
                pen.rectangle([12, y, 828, y + 51], fill=(225, 231, 240))
            ink.write(pen, (28, y + 14), stop, "bold", 18)
            for column in range(6):
                shown = clock(times[row][column])
                pen.text((316 + 100 * column, y + 13), shown, fill=ink.BLACK, font=ink.font("sans", 20), anchor="ra")
        return image

    asked = (
        ("When does the first bus reach the hospital?", f"At {clock(times[2][0])}."),
        (
            "How long does the ride from Town Hall to the airport take?",
            f"{sum(gaps)} minutes; the first bus leaves at {clock(starts[0])} and arrives at {clock(times[5][0])}.",
        ),
    )
    return Item(name, asked, draw)


def _parcel(name: str) -> Item:
    rng = chance(name)
    weight = f"{rng.randrange(11, 95) / 10:.1f} kg"
    person, street, town = rng.choice(
        [
            ("Мария Иванова", "ул. Садовая, д. 14", "190000 Санкт-Петербург"),
            ("Νίκος Παπαδάκης", "Οδός Ερμού 22", "105 63 Αθήνα"),
            ("Oľga Kováčová", "Hlavná 8", "040 01 Košice"),
        ]
    )

    def draw() -> Image.Image:
        image, pen = ink.sheet((560, 392), (190, 152, 106))
        pen.rectangle([40, 36, 520, 356], fill=ink.WHITE)
        pen.rectangle([40, 36, 520, 84], fill=(245, 190, 30))
        pen.text((56, 44), "PARCEL SERVICE", fill=ink.BLACK, font=ink.font("bold", 25))
        ink.write(pen, (60, 104), "To:", "sans", 16, ink.GRAY)
        ink.write(pen, (60, 132), f"{person}\n{street}\n{town}", "sans", 25, width=440)
        pen.line([(40, 258), (520, 258)], fill=ink.BLACK, width=2)
        ink.write(pen, (60, 276), f"Weight {weight}", "bold", 24)
        pen.rectangle([330, 272, 500, 336], outline=(200, 30, 30), width=4)
        pen.text((415, 290), "FRAGILE", fill=(200, 30, 30), font=ink.font("bold", 25), anchor="ma")
        return ink.grain(image, chance(name + " grain"), 22)

    asked = (
        ("Who is this parcel for? Copy the name as it is written.", f"{person}."),
        ("How heavy is the parcel, and what does the red stamp say?", f"It weighs {weight}; the stamp says FRAGILE."),
    )
    return Item(name, asked, draw)
