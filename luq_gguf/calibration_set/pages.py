"""More screens: a mailbox, a calendar, a weather app, a folder of files, a player."""

from __future__ import annotations

import calendar

from PIL import Image, ImageDraw

from luq_gguf.calibration_set import ink
from luq_gguf.calibration_set.item import Item, chance
from luq_gguf.calibration_set.screens import BLUE, LINE, button, window


def items() -> list[Item]:
    """Five screens."""
    makers = (_mailbox, _calendar, _weather, _files, _player)
    return [maker(f"screen-{number:02}") for number, maker in enumerate(makers, start=7)]


_MAILS = [
    ("Library", "Two books are due on Friday", "Please return or renew them online."),
    ("Dr. Okafor", "Your appointment", "We moved it to Tuesday at 8:30."),
    ("Grandma", "Photos from the garden", "The roses came out so early this year!"),
    ("Bike Repair Shop", "Ready to be picked up", "New chain and brakes, 64.00 in total."),
    ("Choir", "Rehearsal on Sunday", "Bring the blue folder, please."),
    ("Power Company", "Your bill for May", "The amount is taken from your account."),
    ("Ravi", "Lunch?", "I know a new place near the river."),
]


def _mailbox(name: str) -> Item:
    rng = chance(name)
    mails = rng.sample(_MAILS, 6)
    unread = sorted(rng.sample(range(6), 3))
    times = sorted((f"{rng.randrange(7, 19):02}:{rng.randrange(60):02}" for _ in mails), reverse=True)

    def draw() -> Image.Image:
        image, pen = window((868, 560), "Mail")
        pen.rectangle([1, 37, 190, 558], fill=(244, 246, 250))
        button(pen, (20, 56, 170, 96), "Write", main=True)
        for row, folder in enumerate([f"Inbox ({len(unread)})", "Sent", "Drafts", "Spam", "Trash"]):
            ink.write(pen, (28, 122 + 42 * row), folder, "bold" if row == 0 else "sans", 17)
        for row, (sender, subject, start) in enumerate(mails):
            y = 44 + 86 * row
            fresh = row in unread
            if fresh:
                pen.ellipse([204, y + 18, 214, y + 28], fill=BLUE)
            ink.write(pen, (226, y + 12), sender, "bold" if fresh else "sans", 18)
            pen.text((848, y + 14), times[row], fill=ink.GRAY, font=ink.font("sans", 15), anchor="ra")
            ink.write(pen, (226, y + 36), subject, "bold" if fresh else "sans", 16)
            ink.write(pen, (226, y + 58), start, "sans", 15, ink.GRAY)
            pen.line([(190, y + 85), (868, y + 85)], fill=LINE)
        return image

    sender, subject, start = mails[2]
    asked = (
        ("How many messages are unread?", "Three."),
        (
            f"What does the message from “{sender}” say, and when did it arrive?",
            f"“{subject}”: {start} It arrived at {times[2]}.",
        ),
    )
    return Item(name, asked, draw)


def _calendar(name: str) -> Item:
    rng = chance(name)
    month = rng.randrange(1, 13)
    first, days = calendar.monthrange(2025, month)
    holiday, dentist = sorted(rng.sample(range(3, 27), 2))
    names = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    title = f"{_MONTHS[month - 1]} 2025"

    def draw() -> Image.Image:
        image, pen = ink.sheet((644, 560))
        pen.text((28, 20), title, fill=ink.BLACK, font=ink.font("bold", 31))
        for column, weekday in enumerate(names):
            pen.text((74 + 84 * column, 84), weekday[:3], fill=ink.GRAY, font=ink.font("bold", 17), anchor="ma")
        for day in range(1, days + 1):
            column, row = (first + day - 1) % 7, (first + day - 1) // 7
            x, y = 32 + 84 * column, 112 + 72 * row
            pen.rectangle([x, y, x + 84, y + 72], outline=LINE)
            color = (200, 40, 40) if column == 6 else ink.BLACK
            ink.write(pen, (x + 8, y + 6), str(day), "sans", 17, color)
            for event, label, fill in ((holiday, "party", (255, 221, 120)), (dentist, "dentist", (170, 215, 255))):
                if day == event:
                    pen.rounded_rectangle([x + 4, y + 38, x + 80, y + 64], 6, fill=fill)
                    pen.text((x + 42, y + 51), label, fill=ink.BLACK, font=ink.font("sans", 15), anchor="mm")
        return image

    visit = names[(first + dentist - 1) % 7]
    asked = (
        ("On which weekday is the dentist entered, and on which date?", f"On {visit}, {dentist} {title}."),
        (
            "How many days before the dentist is the party?",
            f"{dentist - holiday}: the party is on the {holiday}., the dentist on the {dentist}.",
        ),
    )
    return Item(name, asked, draw)


_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip


def _weather(name: str) -> Item:
    rng = chance(name)
    city = rng.choice(["Reykjavík", "Nairobi", "Montréal", "Kraków"])
    now = rng.randrange(6, 27)
    days = ["Thu", "Fri", "Sat", "Sun"]
    sky = rng.sample(["sun", "cloud", "rain", "storm"], 4)
    highs = rng.sample(range(now - 6, now + 7), 4)
    full = dict(zip(days, ("Thursday", "Friday", "Saturday", "Sunday"), strict=True))

    def draw() -> Image.Image:
        image, pen = ink.shade((420, 728), (44, 94, 160), (140, 186, 226))
        pen.text((210, 60), city, fill=ink.WHITE, font=ink.font("sans", 34), anchor="ma")
        pen.text((210, 112), f"{now}°", fill=ink.WHITE, font=ink.font("sans", 96), anchor="ma")
        pen.text((210, 240), "Feels colder in the wind", fill=ink.WHITE, font=ink.font("sans", 18), anchor="ma")
        for row, (day, kind, high) in enumerate(zip(days, sky, highs, strict=True)):
            y = 310 + 96 * row
            pen.rounded_rectangle([24, y, 396, y + 82], 16, fill=(86, 134, 190))
            ink.write(pen, (46, y + 26), day, "bold", 23, ink.WHITE)
            _sky(pen, kind, 200, y + 41)
            pen.text((372, y + 41), f"{high}°", fill=ink.WHITE, font=ink.font("sans", 27), anchor="rm")
        return image

    warm = days[highs.index(max(highs))]
    wet = full[days[sky.index("rain")]]
    asked = (
        (f"What is the temperature in {city} now?", f"{now} degrees."),
        (
            "Which day will be the warmest, and on which day does the symbol show rain without lightning?",
            f"{full[warm]} will be the warmest, with {max(highs)} degrees; rain without lightning is shown on {wet}.",
        ),
    )
    return Item(name, asked, draw)


def _sky(pen: ImageDraw.ImageDraw, kind: str, x: int, y: int) -> None:
    """A symbol of the weather around a point."""
    if kind == "sun":
        pen.ellipse([x - 20, y - 20, x + 20, y + 20], fill=(255, 214, 64))
        return
    pen.ellipse([x - 32, y - 14, x + 4, y + 14], fill=(235, 239, 245))
    pen.ellipse([x - 16, y - 26, x + 22, y + 14], fill=(235, 239, 245))
    pen.ellipse([x + 4, y - 12, x + 36, y + 14], fill=(235, 239, 245))
    if kind != "cloud":
        for drop in (-20, 0, 20):
            pen.line([(x + drop, y + 18), (x + drop - 6, y + 34)], fill=(190, 225, 255), width=4)
    if kind == "storm":
        pen.line([(x + 10, y + 2), (x, y + 18), (x + 12, y + 18), (x + 2, y + 38)], fill=(255, 230, 60), width=5)


def _files(name: str) -> Item:
    rng = chance(name)
    names = ["budget.xlsx", "cover.png", "draft_v2.docx", "interview.mp3", "manual.pdf", "notes.txt", "trailer.mp4"]
    sizes = [rng.randrange(12, 990) for _ in names]
    sizes[6] = rng.randrange(1200, 9000)
    days = [f"{rng.randrange(1, 28):02} Nov" for _ in names]
    chosen = rng.randrange(7)

    def draw() -> Image.Image:
        image, pen = window((700, 448), "Documents / Project")
        for title, x, anchor in (("Name", 60, "la"), ("Size (KB)", 470, "ra"), ("Changed", 650, "ra")):
            pen.text((x, 56), title, fill=ink.GRAY, font=ink.font("bold", 16), anchor=anchor)
        for row, (file, size, day) in enumerate(zip(names, sizes, days, strict=True)):
            y = 88 + 44 * row
            if row == chosen:
                pen.rectangle([8, y, 692, y + 43], fill=(208, 226, 255))
            pen.rectangle([24, y + 8, 46, y + 36], fill=_FILE_COLORS[row], outline=ink.GRAY)
            ink.write(pen, (60, y + 11), file, "sans", 18)
            pen.text((470, y + 11), f"{size:,}", fill=ink.BLACK, font=ink.font("sans", 18), anchor="ra")
            pen.text((650, y + 11), day, fill=ink.BLACK, font=ink.font("sans", 18), anchor="ra")
        ink.write(pen, (24, 412), f"7 files, {sum(sizes):,} KB", "sans", 15, ink.GRAY)
        return image

    asked = (
        ("Which file is selected?", f"{names[chosen]}."),
        ("Which file is the largest, and when was it changed?",
         f"{names[6]}, with {sizes[6]:,} KB; it was changed on {days[6]}."),
    )  # fmt: skip
    return Item(name, asked, draw)


_FILE_COLORS = (
    (120, 200, 140), (240, 190, 120), (130, 170, 240), (220, 150, 220), (240, 130, 120), (240, 240, 240),
    (150, 150, 170),
)  # fmt: skip


def _player(name: str) -> Item:
    rng = chance(name)
    songs = rng.sample(["Low Tide", "Paper Planes at Noon", "Copper Sky", "Slow Elevator", "Winter Fruit"], 4)
    lengths = [rng.randrange(150, 330) for _ in songs]
    playing, share = rng.randrange(4), rng.randrange(20, 80) / 100

    def clock(seconds: float) -> str:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02}"

    def draw() -> Image.Image:
        image, pen = ink.sheet((588, 364), (22, 22, 30))
        pen.rectangle([24, 24, 224, 224], fill=(226, 90, 70))
        pen.ellipse([64, 64, 184, 184], fill=(250, 210, 120))
        pen.polygon([(24, 224), (124, 110), (224, 224)], fill=(60, 50, 90))
        ink.write(pen, (248, 24), "The Lighthouse Keepers", "bold", 20, ink.WHITE)
        for row, (song, seconds) in enumerate(zip(songs, lengths, strict=True)):
            color = (110, 220, 150) if row == playing else (190, 192, 204)
            ink.write(pen, (248, 74 + 38 * row), f"{row + 1}  {song}", "sans", 18, color)
            pen.text((564, 74 + 38 * row), clock(seconds), fill=color, font=ink.font("sans", 18), anchor="ra")
        pen.line([(24, 264), (564, 264)], fill=(90, 92, 104), width=6)
        pen.line([(24, 264), (24 + 540 * share, 264)], fill=(110, 220, 150), width=6)
        ink.write(pen, (24, 280), clock(lengths[playing] * share), "sans", 16, ink.WHITE)
        pen.rectangle([282, 304, 290, 336], fill=ink.WHITE)
        pen.rectangle([300, 304, 308, 336], fill=ink.WHITE)
        return image

    asked = (
        ("Which song is playing?", f"{songs[playing]}."),
        (
            "Which of the songs is the longest?",
            f"{songs[lengths.index(max(lengths))]}, with {clock(max(lengths))} minutes.",
        ),
    )
    return Item(name, asked, draw)
