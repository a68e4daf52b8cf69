"""Charts with made-up figures, drawn by matplotlib: bars, lines, pies, points, histograms."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

from PIL import Image

from luq_gguf.calibration_set import ink
from luq_gguf.calibration_set.item import Item, chance, listed

DOTS_PER_INCH = 100
COLORS = {
    "blue": "#2f6db5",
    "orange": "#e8833a",
    "green": "#3c9d5d",
    "red": "#c8403f",
    "purple": "#7d5ba6",
    "gray": "#7f8790",
}
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
}
Plot = Callable[[Any], None]
"""Draws on the axes that it is given."""


def items() -> list[Item]:
    """Twelve charts."""
    makers = (
        _bars, _grouped, _sideways, _stacked, _line, _lines, _pie, _ring, _points, _histogram, _areas, _heat,
    )  # fmt: skip
    return [maker(f"chart-{number:02}") for number, maker in enumerate(makers, start=1)]


def _figure(size: tuple[int, int], plot: Plot, **style: Any) -> Image.Image:
    """A figure of `size` pixels with one plot, drawn in matplotlib's own settings, whatever the user's are."""
    with ink.quiet_matplotlib():
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update({**STYLE, **style})
            inches = (size[0] / DOTS_PER_INCH, size[1] / DOTS_PER_INCH)
            figure = Figure(figsize=inches, dpi=DOTS_PER_INCH, layout="constrained")
            canvas = FigureCanvasAgg(figure)
            plot(figure.add_subplot())
            file = io.BytesIO()
            canvas.print_png(file)
    return Image.open(file).convert("RGB")


def _bars(name: str) -> Item:
    rng = chance(name)
    months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun"]
    sold = rng.sample(range(12, 96, 3), len(months))
    best, worst = max(sold), min(sold)

    def plot(axes: Any) -> None:
        drawn = axes.bar(months, sold, color=COLORS["blue"])
        axes.bar_label(drawn, padding=2)
        axes.set_ylim(0, 1.12 * best)
        axes.set_title("Bicycles sold in the first half of the year")
        axes.set_ylabel("bicycles")

    full = dict(zip(months, ("January", "February", "March", "April", "May", "June"), strict=True))
    high, low = full[months[sold.index(best)]], full[months[sold.index(worst)]]
    asked = (
        ("In which month were the most bicycles sold, and how many?", f"In {high}, with {best} bicycles."),
        (
            "How large is the gap between the best and the worst month?",
            f"{best - worst} bicycles: {best} were sold in {high}, the best month, and {worst} in {low}, the worst.",
        ),
    )
    return Item(name, asked, partial(_figure, (640, 480), plot))


def _grouped(name: str) -> Item:
    rng = chance(name)
    cities = ["Lisbon", "Oslo", "Vienna", "Athens"]
    seasons = {"winter": rng.sample(range(20, 80, 4), 4), "summer": rng.sample(range(40, 120, 4), 4)}
    more = [city for city, cold, warm in zip(cities, *seasons.values(), strict=True) if warm > cold]

    def plot(axes: Any) -> None:
        for shift, (season, color) in enumerate(zip(seasons, (COLORS["purple"], COLORS["orange"]), strict=True)):
            places = [place + 0.38 * shift for place in range(4)]
            axes.bar(places, seasons[season], width=0.36, color=color, label=season)
        axes.set_xticks([place + 0.19 for place in range(4)], cities)
        axes.set_title("Hotel nights by season (thousands)")
        axes.grid(axis="y", alpha=0.4)
        axes.set_axisbelow(True)
        axes.legend(frameon=False)

    top = max(range(4), key=lambda place: seasons["summer"][place])
    asked = (
        ("Which city has the most hotel nights in summer?", f"{cities[top]}."),
        (
            "In which cities is the summer bar higher than the winter bar?",
            f"In {listed(more)}." if len(more) < 4 else "In all four: Lisbon, Oslo, Vienna and Athens.",
        ),
    )
    return Item(name, asked, partial(_figure, (700, 420), plot))


def _sideways(name: str) -> Item:
    rng = chance(name)
    languages = ["Python", "JavaScript", "SQL", "Java", "C++", "Go", "Rust"]
    shares = sorted(rng.sample(range(9, 68), len(languages)), reverse=True)

    def plot(axes: Any) -> None:
        drawn = axes.barh(languages, shares, color=[COLORS["green"], *["#a9c9b4"] * 6])
        axes.bar_label(drawn, fmt="%g %%", padding=3)
        axes.invert_yaxis()
        axes.set_xlim(0, max(shares) * 1.15)
        axes.set_xlabel("share of answers")
        axes.set_title("Which languages do you use at work?")

    half = [word for word, share in zip(languages, shares, strict=True) if share > 50]
    third = f"{languages[2]} comes third, with {shares[2]} %."
    used = (
        f"{len(half)}: {listed(half)}." if half else "None; even the first one stays at or below half of the answers."
    )
    asked = (
        ("Which language comes third in this survey?", third),
        ("How many languages were named by more than half of those asked?", used),
    )
    return Item(name, asked, partial(_figure, (620, 520), plot))


def _stacked(name: str) -> Item:
    rng = chance(name)
    years = ["2020", "2021", "2022", "2023", "2024"]
    parts = {kind: [rng.randrange(low, low + 24, 2) for _ in years] for kind, low in _ENERGY.items()}
    totals = [sum(column) for column in zip(*parts.values(), strict=True)]

    def plot(axes: Any) -> None:
        base = [0] * len(years)
        for (kind, heights), color in zip(parts.items(), ("#e9b949", "#5aa1d8", "#4d7c57"), strict=True):
            axes.bar_label(
                axes.bar(years, heights, bottom=base, color=color, label=kind), label_type="center", fontsize=9
            )
            base = [low + height for low, height in zip(base, heights, strict=True)]
        axes.set_ylim(0, max(totals) * 1.2)
        axes.legend(ncols=3, frameon=False, loc="upper center")
        axes.set_ylabel("GWh")
        axes.set_title("Electricity from renewable sources")

    last = {kind: heights[-1] for kind, heights in parts.items()}
    asked = (
        (
            "Give the three values of 2024 and their sum.",
            f"Solar {last['solar']}, wind {last['wind']} and water {last['water']} GWh, together {totals[-1]} GWh.",
        ),
    )
    return Item(name, asked, partial(_figure, (588, 504), plot))


_ENERGY = {"solar": 12, "wind": 24, "water": 18}


def _line(name: str) -> Item:
    rng = chance(name)
    hours = list(range(0, 25, 2))
    warmest = rng.choice([12, 14, 16])
    degrees = [round(21 - abs(hour - warmest) * 1.05 + rng.uniform(-0.6, 0.6), 1) for hour in hours]
    degrees[hours.index(warmest)] = round(max(degrees) + 0.8, 1)
    peak = max(degrees)

    def plot(axes: Any) -> None:
        axes.plot(hours, degrees, marker="o", color=COLORS["red"])
        axes.set_xticks(hours, [f"{hour}:00" for hour in hours], rotation=45)
        axes.annotate(f"{peak} °C", (warmest, peak), (0, 9), textcoords="offset points", ha="center")
        axes.set_ylim(min(degrees) - 1, peak + 2)
        axes.set_ylabel("temperature in °C")
        axes.set_title("Tuesday, weather station Harbour Hill")
        axes.grid(alpha=0.3)

    asked = (
        ("When was it warmest, and how warm was it?", f"At {warmest}:00, with {peak} °C."),
        (
            "Describe how the temperature changes over the day.",
            (
                f"It rises from about {round(degrees[0])} °C at midnight to its highest value of {peak} °C at "
                f"{warmest}:00 and then falls to about {round(degrees[-1])} °C by the end of the day."
            ),
        ),
    )
    return Item(name, asked, partial(_figure, (760, 420), plot))


def _lines(name: str) -> Item:
    rng = chance(name)
    years = list(range(2015, 2025))
    series = {}
    for label, start, slope in (("print", 82, -6), ("e-book", 20, 3), ("audio", 6, 6)):
        series[label] = [start + slope * step + rng.uniform(-2, 2) for step in range(len(years))]
    crossing = next(year for year, paper, audio in zip(years, series["print"], series["audio"], strict=True)
                    if audio > paper)  # fmt: skip

    def plot(axes: Any) -> None:
        for (label, values), style in zip(series.items(), ("-", "--", ":"), strict=True):
            axes.plot(years, values, style, linewidth=2.4, label=label)
        axes.set_title("What readers borrow: loans in thousands")
        axes.set_xticks(years)
        axes.legend()

    asked = (
        ("From which year on are more audio books than printed books borrowed?", f"From {crossing} on."),
        (
            "Which of the three lines falls?",
            "The solid line of printed books falls; e-books and audio books rise.",
        ),
    )
    return Item(name, asked, partial(_figure, (720, 400), plot, **{"axes.facecolor": "#f4f6f8"}))


def _pie(name: str) -> Item:
    rng = chance(name)
    shares = [34, 26, 18, 13, 9]
    posts = ["rent", "food", "transport", "clothes", "savings"]
    rng.shuffle(posts)

    def plot(axes: Any) -> None:
        axes.pie(shares, labels=posts, autopct="%d %%", startangle=90, colors=list(COLORS.values()))
        axes.set_title("Where the money goes in a month")

    asked = (
        ("What is the largest share in this budget?", f"{posts[0].capitalize()}, with 34 %."),
        (
            f"Do {posts[3]} and {posts[4]} together take more than {posts[1]}?",
            f"No: {posts[3]} (13 %) and {posts[4]} (9 %) make 22 %, less than the 26 % of {posts[1]}.",
        ),
    )
    return Item(name, asked, partial(_figure, (448, 448), plot))


def _ring(name: str) -> Item:
    rng = chance(name)
    counts = rng.sample([48, 31, 22, 12], 4)
    answers = ["sehr gut", "gut", "mittel", "schlecht"]

    def plot(axes: Any) -> None:
        colors = ("#1b7f4d", "#86c28b", "#f0c05a", "#cf5b4a")
        axes.pie(counts, labels=[f"{word} ({count})" for word, count in zip(answers, counts, strict=True)],
                 colors=colors, wedgeprops={"width": 0.4, "edgecolor": "white"}, startangle=60)  # fmt: skip
        axes.text(0, 0, f"{sum(counts)}\nAntworten", ha="center", va="center", fontsize=15)
        axes.set_title("Wie war der Kurs?")

    good = counts[0] + counts[1]
    asked = (
        ("Wie viele Personen haben insgesamt geantwortet?", f"{sum(counts)} Personen."),
        (
            "Wie viele fanden den Kurs gut oder sehr gut?",
            f"{good} Personen: {counts[0]} sehr gut und {counts[1]} gut.",
        ),
    )
    return Item(name, asked, partial(_figure, (560, 448), plot))


def _points(name: str) -> Item:
    rng = chance(name)
    hours = [rng.uniform(0.5, 9.5) for _ in range(38)]
    marks = [min(98.0, 34 + 6 * hour + rng.gauss(0, 5)) for hour in hours]

    def plot(axes: Any) -> None:
        axes.scatter(hours, marks, color=COLORS["purple"], alpha=0.75)
        axes.scatter([8.5], [31], color=COLORS["red"], marker="D", s=55)
        axes.set(xlabel="hours of study a week", ylabel="mark (of 100)", xlim=(0, 10), ylim=(20, 100))
        axes.set_title("Study time and marks")
        axes.grid(alpha=0.3)

    asked = (
        (
            "Is there a relation between the two quantities?",
            "Yes. The more hours are studied, the higher the mark tends to be; the points rise along a rough line.",
        ),
        (
            "Which point does not fit the others?",
            "The red diamond at the lower right: about 8.5 hours of study but only a mark of about 31.",
        ),
    )
    return Item(name, asked, partial(_figure, (560, 532), plot))


def _histogram(name: str) -> Item:
    rng = chance(name)
    counts = [rng.randrange(2, 9), rng.randrange(12, 20), rng.randrange(24, 40), rng.randrange(13, 22), 7, 3]
    edges = [0, 10, 20, 30, 40, 50, 60]

    def plot(axes: Any) -> None:
        axes.stairs(counts, edges, fill=True, color=COLORS["gray"], edgecolor="black")
        for place, count in enumerate(counts):
            axes.text(10 * place + 5, count + 0.5, str(count), ha="center")
        axes.vlines(edges[1:-1], 0, counts[1:], color="white", linewidth=1)
        axes.set(xlabel="minutes to work", ylabel="employees", xticks=edges, ylim=(0, 1.12 * max(counts)))
        axes.set_title("How long is your way to work?")

    long = counts[3] + counts[4] + counts[5]
    asked = (
        (
            "Which range of minutes is the most common, and how many employees fall into it?",
            f"20 to 30 minutes, with {counts[2]} employees.",
        ),
        ("How many employees travel for 30 minutes or longer?", f"{long} ({counts[3]} + 7 + 3)."),
    )
    return Item(name, asked, partial(_figure, (616, 420), plot))


def _areas(name: str) -> Item:
    rng = chance(name)
    weeks = list(range(1, 13))
    done = [0.0]
    for _ in weeks[1:]:
        done.append(done[-1] + rng.uniform(4, 9))
    left = [100 - value for value in done]

    def plot(axes: Any) -> None:
        axes.stackplot(weeks, done, left, labels=["done", "still to do"], colors=["#4f9d9d", "#e6d3b3"])
        axes.set(xlim=(1, 12), ylim=(0, 100), xlabel="week", ylabel="% of all tasks", xticks=weeks)
        axes.legend(loc="upper left")
        axes.set_title("Progress of the museum project")

    half = next((week for week, value in zip(weeks, done, strict=True) if value >= 50), None)
    reached = f"In week {half}." if half else "Not within these twelve weeks."
    asked = (
        ("In which week was half of the work done for the first time?", reached),
    )  # fmt: skip
    return Item(name, asked, partial(_figure, (672, 336), plot))


def _heat(name: str) -> Item:
    rng = chance(name)
    days = ["Mon", "Tue", "Wed", "Thu", "Fri"]
    slots = ["8-10", "10-12", "12-14", "14-16", "16-18"]
    cells = rng.sample(range(3, 90), 25)
    visits = [cells[5 * row : 5 * row + 5] for row in range(5)]

    def plot(axes: Any) -> None:
        axes.imshow(visits, cmap="YlOrRd", vmin=0, vmax=100)
        axes.set_xticks(range(5), days)
        axes.set_yticks(range(5), slots)
        for row in range(5):
            for column in range(5):
                dark = "white" if visits[row][column] > 60 else "black"
                axes.text(column, row, visits[row][column], ha="center", va="center", color=dark)
        axes.set_title("Visitors at the counter")

    place = cells.index(max(cells))
    full = dict(zip(days, ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday"), strict=True))
    asked = (
        (
            "When is the counter busiest?",
            (
                f"On {full[days[place % 5]]} between {slots[place // 5].replace('-', ' and ')} o'clock, "
                f"with {max(cells)} visitors."
            ),
        ),
        (
            "How many visitors come on Wednesday from 12 to 14?",
            f"{visits[2][2]}.",
        ),
    )
    return Item(name, asked, partial(_figure, (504, 504), plot))
