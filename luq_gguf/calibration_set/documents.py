"""Documents of running text: letters, a book page, a newspaper, a notice, a form, a ticket, a note by hand."""

from __future__ import annotations

import random

from PIL import Image

from luq_gguf.calibration_set import ink
from luq_gguf.calibration_set.item import Item, chance, listed

PAPER = (250, 248, 242)


def items() -> list[Item]:
    """Eight documents."""
    makers = (_letter, _brief, _book_page, _newspaper, _aviso, _form, _ticket, _note)
    return [maker(f"document-{number:02}") for number, maker in enumerate(makers, start=1)]


def _letter(name: str) -> Item:
    rng = chance(name)
    sender = rng.choice(["Harriet Colebrook", "Samuel Adeyemi", "Ingrid Solberg"])
    day = f"{rng.randrange(2, 28)} March 2024"
    room, hour = rng.randrange(101, 320), rng.choice(["9.30", "10.15", "14.00"])
    body = (
        "Dear Mr. Whitfield,\n\nthank you for your letter and for the two photographs of the old mill. Our members "
        "were delighted: nobody had known that the water wheel was still turning in 1931.\n\nWe would like to show "
        f"both pictures in our spring exhibition. Could you come to the town library, room {room}, on Thursday at "
        f"{hour} to talk about it? Please bring the original prints, if you can, so that we may scan them.\n\nThe "
        "library pays for the train ticket; just keep the receipt.\n\nWith kind regards"
    )

    def draw() -> Image.Image:
        image, pen = ink.sheet((616, 812), PAPER)
        pen.text((60, 44), "Millbrook Local History Society", fill=(90, 40, 30), font=ink.font("roman bold", 26))
        pen.line([(60, 80), (556, 80)], fill=(90, 40, 30), width=2)
        ink.write(pen, (60, 92), "12 Weir Lane · Millbrook", "italic", 17)
        pen.text((556, 130), day, fill=ink.BLACK, font=ink.font("roman", 19), anchor="ra")
        below = ink.write(pen, (60, 190), body, "roman", 20, width=496)
        ink.hand_write(image, (64, below + 6), sender, chance(name + " signature"), 32)
        ink.write(pen, (60, below + 56), f"{sender}, secretary", "roman", 18)
        return ink.grain(image, chance(name + " grain"), 12)

    asked = (
        ("Who wrote this letter, and on what date?", f"{sender} wrote it, on {day}."),
        (
            "What is Mr. Whitfield asked to do?",
            (
                f"He is asked to come to room {room} of the town library on Thursday at {hour} to talk about the "
                "exhibition, and to bring the original prints and keep the receipt of his train ticket."
            ),
        ),
    )
    return Item(name, asked, draw)


def _brief(name: str) -> Item:
    rng = chance(name)
    number, meter = rng.randrange(410000, 980000), rng.randrange(1200, 4800)
    due = rng.randrange(10, 28)
    body = (
        "Sehr geehrte Frau Özdemir,\n\nfür Ihre Jahresabrechnung benötigen wir den aktuellen Stand Ihres "
        f"Wasserzählers. Der letzte Stand vom vergangenen Jahr lautet {meter} m³.\n\nBitte teilen Sie uns den neuen "
        f"Wert bis zum {due}. Januar mit: per Postkarte, telefonisch oder auf unserer Internetseite. Erhalten wir "
        "keine Nachricht, müssen wir Ihren Verbrauch schätzen.\n\nMit freundlichen Grüßen\nIhre Stadtwerke Lindenau"
    )

    def draw() -> Image.Image:
        image, pen = ink.sheet((588, 700))
        pen.rectangle([0, 0, 588, 76], fill=(0, 92, 130))
        pen.text((40, 24), "Stadtwerke Lindenau", fill=ink.WHITE, font=ink.font("bold", 26))
        ink.write(pen, (40, 110), "Frau\nAylin Özdemir\nAm Anger 7\n04177 Lindenau", "sans", 16, width=300)
        ink.write(pen, (370, 110), f"Kundennummer\n{number}", "bold", 15, width=200)
        pen.text((40, 250), "Ablesung Ihres Wasserzählers", fill=ink.BLACK, font=ink.font("bold", 19))
        ink.write(pen, (40, 296), body, "sans", 16, width=508)
        return image

    asked = (
        ("Wie lautet die Kundennummer in diesem Schreiben?", f"{number}."),
        (
            "Was soll Frau Özdemir tun, und bis wann?",
            f"Sie soll den Stand ihres Wasserzählers mitteilen, und zwar bis zum {due}. Januar.",
        ),
    )
    return Item(name, asked, draw)


_CHAPTER = (
    "The ferry left at dusk. Marta stood at the rail and counted the lamps along the shore until there were too many "
    "of them, and then, quite suddenly, too few. Her uncle had warned her that the crossing was long and that the "
    "soup was bad; he had not told her that the sea would smell of iron, or that the engine would hum the same three "
    "notes all night.\n"
    "At ten a boy came round with blankets. He gave her two and would not take a coin. “You are the one with the "
    "clock,” he said, and looked at the box under her arm. She had wrapped it in a coat, but it had begun to strike "
    "again, softly, at the wrong hour, as it always did when it was moved.\n"
    "“It belongs to my uncle,” she said. “It is going home.”\n"
    "The boy nodded as if clocks went home every day of the week."
)


def _book_page(name: str) -> Item:
    page = chance(name).randrange(21, 180)

    def draw() -> Image.Image:
        image, pen = ink.sheet((756, 1036), (246, 240, 226))
        pen.text((378, 54), "THE NIGHT CROSSING", fill=ink.GRAY, font=ink.font("roman", 21), anchor="ma")
        pen.text((378, 124), "Chapter Four", fill=ink.BLACK, font=ink.font("roman bold", 37), anchor="ma")
        y: float = 210
        for paragraph in _CHAPTER.split("\n"):
            y = ink.write(pen, (86, y), "\u00a0" * 5 + paragraph, "roman", 28, width=590, leading=1.3)
        pen.text((378, 984), str(page), fill=ink.BLACK, font=ink.font("roman", 24), anchor="ma")
        return ink.grain(image, chance(name + " grain"), 16)

    asked = (
        ("What is Marta carrying under her arm?", "A clock that belongs to her uncle, in a box wrapped in a coat."),
        (
            "Which chapter begins on this page, and what is the page number?",
            f"Chapter Four of “The Night Crossing” begins on page {page}.",
        ),
    )
    return Item(name, asked, draw)


_REPORT = (
    (
        "After nine years of argument the old railway bridge over the Tarn is to become a garden. The council voted on "
        "Monday evening, by {yes} votes to {no}, to plant trees and lay a footpath where the last train ran in 1988."
    ),
    (
        "Work begins in May and will cost {cost} million. “We wanted a place where nobody has to buy anything,” "
        "said the mayor. Opponents fear noise and ask who will clear the snow."
    ),
    "The bridge stays open to cyclists while the work goes on.",
)


def _newspaper(name: str) -> Item:
    rng = chance(name)
    no = rng.randrange(8, 14)
    facts = {"yes": no + rng.randrange(3, 11), "no": no, "cost": f"{rng.randrange(21, 68) / 10:.1f}"}

    def draw() -> Image.Image:
        image, pen = ink.sheet((784, 700), (243, 240, 233))
        pen.text((392, 26), "The Tarn Valley Courier", fill=ink.BLACK, font=ink.font("serif bold", 40), anchor="ma")
        pen.line([(36, 86), (748, 86)], fill=ink.BLACK, width=3)
        pen.text((36, 94), "Tuesday, 9 April", fill=ink.BLACK, font=ink.font("serif", 14))
        pen.text((748, 94), "No. 4,107 · 1.80", fill=ink.BLACK, font=ink.font("serif", 14), anchor="ra")
        ink.write(pen, (36, 130), "Railway bridge becomes a garden", "serif bold", 33)
        left = ink.write(pen, (36, 196), _REPORT[0].format(**facts), "roman", 20, width=340)
        ink.write(pen, (36, left + 8), _REPORT[2], "roman", 20, width=340)
        _draw_bridge(image, (400, 200, 748, 410), chance(name + " picture"))
        ink.write(pen, (400, 416), "The bridge as it may look in two years.", "italic", 16)
        ink.write(pen, (400, 452), _REPORT[1].format(**facts), "roman", 20, width=346)
        pen.line([(36, 640), (748, 640)], fill=ink.GRAY)
        ink.write(pen, (36, 652), "Weather: showers, 11 °C · Sport: page 9 · Letters: page 6", "serif", 15)
        return ink.grain(image, chance(name + " grain"), 18)

    asked = (
        ("What is the headline of this newspaper page?", "Railway bridge becomes a garden."),
        (
            "How did the council vote, and what will the work cost?",
            f"It voted for the garden by {facts['yes']} votes to {no}; the work will cost {facts['cost']} million.",
        ),
    )
    return Item(name, asked, draw)


def _draw_bridge(image: Image.Image, box: tuple[int, int, int, int], rng: random.Random) -> None:
    """A grey picture of a bridge on three arches with trees on it."""
    left, top, right, bottom = box
    wide, high = right - left, bottom - top
    view, pen = ink.shade((wide, high), (205, 205, 205), (240, 240, 240))
    pen.rectangle([0, high - 40, wide, high], fill=(150, 150, 150))
    pen.rectangle([0, 90, wide, high - 30], fill=(110, 110, 110))
    for arch in range(3):
        x = 20 + arch * (wide - 20) // 3
        pen.pieslice([x, 110, x + 90, high + 60], 180, 360, fill=(215, 215, 215))
    for tree in range(7):
        x, tall = 18 + tree * 50 + rng.randrange(12), rng.randrange(34, 60)
        pen.line([(x, 90), (x, 90 - tall // 2)], fill=(60, 60, 60), width=4)
        pen.ellipse([x - 17, 90 - tall - 12, x + 17, 90 - tall // 3], fill=(80, 80, 80))
    image.paste(view, (left, top))


def _aviso(name: str) -> Item:
    rng = chance(name)
    day, start = rng.randrange(3, 27), rng.choice([8, 9, 10])
    end = start + rng.randrange(3, 6)

    def draw() -> Image.Image:
        image, pen = ink.sheet((504, 616), (255, 246, 205))
        pen.rectangle([14, 14, 490, 602], outline=(180, 40, 30), width=6)
        pen.text((252, 48), "AVISO", fill=(180, 40, 30), font=ink.font("bold", 62), anchor="ma")
        pen.text((252, 138), "a todos los vecinos", fill=ink.BLACK, font=ink.font("sans", 24), anchor="ma")
        body = (
            f"El martes {day} de octubre no habrá agua en el edificio de {start}:00 a {end}:00 horas por la "
            "reparación de la bomba del sótano.\n\nLes recomendamos llenar algunas botellas la noche anterior y "
            "cerrar bien los grifos.\n\nEl ascensor funcionará con normalidad."
        )
        ink.write(pen, (52, 204), body, "sans", 22, width=404)
        ink.write(pen, (52, 540), "La administración", "oblique", 20)
        return image

    asked = (
        ("¿Qué día no habrá agua y durante cuántas horas?",
         f"El martes {day} de octubre, durante {end - start} horas, de {start}:00 a {end}:00."),
        ("Does the lift work on that day, according to this Spanish notice?", "Yes, the lift works as usual."),
    )  # fmt: skip
    return Item(name, asked, draw)


def _form(name: str) -> Item:
    rng = chance(name)
    person = rng.choice(["Tomasz Zieliński", "Leila Haddad", "Oliver Brandt"])
    course = rng.choice(["Watercolor", "First aid", "Guitar"])
    fields = {
        "Name": person,
        "Date of birth": f"{rng.randrange(1, 29):02}/{rng.randrange(1, 13):02}/{rng.randrange(1961, 2004)}",
        "Telephone": f"0{rng.randrange(200, 999)} {rng.randrange(100000, 999999)}",
        "Town": rng.choice(["Ashford", "Northwick", "Bellmore"]),
    }

    def draw() -> Image.Image:
        image, pen = ink.sheet((672, 560))
        pen.text((36, 26), "Evening School - Registration", fill=ink.BLACK, font=ink.font("bold", 25))
        hand = chance(name + " hand")
        for row, (label, value) in enumerate(fields.items()):
            y = 92 + 62 * row
            ink.write(pen, (36, y + 14), label, "sans", 16)
            pen.rectangle([200, y, 636, y + 44], outline=ink.GRAY)
            ink.hand_write(image, (214, y + 8), value, hand, 27)
        ink.write(pen, (36, 358), "Course (tick one)", "sans", 16)
        for place, option in enumerate(["Watercolor", "First aid", "Guitar"]):
            x = 200 + 150 * place
            pen.rectangle([x, 352, x + 24, 376], outline=ink.BLACK, width=2)
            ink.write(pen, (x + 34, 354), option, "sans", 16)
            if option == course:
                ink.hand_line(pen, [(x + 3, 362), (x + 11, 374), (x + 30, 344)], hand, width=4)
        ink.write(pen, (36, 420), "Fees are paid at the first lesson. Please write in block letters.", "oblique", 14)
        pen.line([(36, 510), (300, 510)], fill=ink.GRAY)
        ink.write(pen, (36, 516), "Signature", "sans", 13)
        ink.hand_write(image, (60, 470), person, chance(name + " signature"), 30)
        return ink.grain(image, chance(name + " grain"), 10)

    asked = (
        (
            "Fill in: name, date of birth and telephone number of the person who registers.",
            f"{person}, born on {fields['Date of birth']}, telephone {fields['Telephone']}.",
        ),
        ("Which course is ticked?", f"{course}."),
    )
    return Item(name, asked, draw)


def _ticket(name: str) -> Item:
    rng = chance(name)
    origin, goal = rng.sample(["Milano", "Zürich", "Lyon", "København", "Praha"], 2)
    facts = {
        "Date": f"{rng.randrange(1, 29)} JUN",
        "Departs": f"{rng.randrange(6, 20):02}:{rng.randrange(5, 59):02}",
        "Coach": str(rng.randrange(1, 15)),
        "Seat": f"{rng.randrange(11, 90)}{rng.choice('AD')}",
    }

    def draw() -> Image.Image:
        image, pen = ink.sheet((784, 308), (236, 242, 238))
        pen.rectangle([0, 0, 784, 58], fill=(22, 99, 74))
        pen.text((28, 14), "EUROLINEA  TRAIN TICKET", fill=ink.WHITE, font=ink.font("bold", 25))
        pen.text((28, 84), origin, fill=ink.BLACK, font=ink.font("bold", 34))
        pen.text((28, 146), f"to  {goal}", fill=ink.BLACK, font=ink.font("bold", 34))
        for place, (label, value) in enumerate(facts.items()):
            x = 28 + 132 * place
            ink.write(pen, (x, 214), label, "sans", 15, ink.GRAY)
            ink.write(pen, (x, 236), value, "mono bold", 26)
        for y in range(58, 308, 14):
            pen.line([(600, y), (600, y + 7)], fill=ink.GRAY, width=2)
        bars, x = chance(name + " bars"), 634
        while x < 750:
            wide = bars.choice([2, 3, 5])
            pen.rectangle([x, 90, x + wide, 250], fill=ink.BLACK)
            x += wide + bars.choice([3, 4, 6])
        ink.write(pen, (634, 258), f"{bars.randrange(10**9, 10**10)}", "mono", 16)
        return image

    asked = (
        ("Where does this ticket go from and to?", f"From {origin} to {goal}."),
        (
            "When does the train leave, and where does the passenger sit?",
            f"It leaves at {facts['Departs']}; the passenger sits in coach {facts['Coach']}, seat {facts['Seat']}.",
        ),
    )
    return Item(name, asked, draw)


def _note(name: str) -> Item:
    rng = chance(name)
    things = rng.sample(
        ["2 l milk", "rye bread", "6 eggs", "tomatoes", "batteries", "olive oil", "stamps", "green tea"], 6
    )
    crossed = rng.sample(range(6), 2)

    def draw() -> Image.Image:
        image, pen = ink.sheet((392, 504), (255, 249, 214))
        hand = chance(name + " hand")
        for y in range(84, 504, 52):
            pen.line([(0, y), (392, y)], fill=(198, 214, 232), width=1)
        pen.line([(58, 0), (58, 504)], fill=(236, 170, 170), width=2)
        ink.hand_write(image, (78, 36), "To buy today", hand, 38)
        for row, thing in enumerate(things):
            y = 100 + 52 * row
            ink.hand_write(image, (84, y), f"- {thing}", hand, 34)
            if row in crossed:
                ink.hand_line(pen, [(80, y + 22), (270, y + 18)], hand, (170, 40, 40), 4)
        return ink.grain(image, chance(name + " grain"), 14)

    left = [thing for row, thing in enumerate(things) if row not in crossed]
    asked = (
        ("How many things on this list are crossed out?", "Two."),
        ("What is still to be bought?", f"{listed(left)}."),
    )
    return Item(name, asked, draw)
