"""Make calibration data of a text model's own answers: many kinds of English questions, answered greedily at 16 bits.

    OMP_WAIT_POLICY=passive python -m benchmarks.study_data --model SmolLM2-135M-padded-F16.gguf --out study.jsonl

The questions are built of the lists below and are the same in every run. The rows are {"question", "answer"}; those
without an answer are left out. Behind them come {"text"} rows, passages of prose from the docstrings of Python's
standard library.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from luq_gguf.runtime import Runtime

ABOUT = (
    ("Explain {} in simple terms.", "What is {}?", "Why does {} matter?", "Explain {} to a ten-year-old."),
    (
        "photosynthesis", "gravity", "inflation", "a black hole", "the water cycle", "machine learning", "democracy",
        "an earthquake", "the immune system", "electricity", "evolution", "a solar eclipse", "the stock market",
        "recycling", "plate tectonics", "a vaccine", "the greenhouse effect", "a computer virus", "supply and demand",
        "the food chain", "a rainbow", "friction", "the nervous system", "cloud computing", "a search engine",
        "the Renaissance", "the Industrial Revolution", "a metaphor", "the periodic table", "a balanced diet",
        "compound interest", "the speed of sound", "freedom of speech", "a neural network", "the ozone layer",
        "natural selection", "an operating system", "the scientific method", "biodiversity", "a supernova",
    ),
)  # fmt: skip
HOW = (
    ("How do I {}?", "What is the best way to {}?", "Give me step-by-step instructions to {}."),
    (
        "boil an egg", "learn a new language", "save money every month", "plant tomatoes",
        "prepare for a job interview", "tie a tie", "clean a bicycle chain", "sleep better at night",
        "write a cover letter", "bake bread", "train a puppy", "make new friends in a new city", "back up my computer",
        "reduce stress at work", "start running", "remove a coffee stain", "choose a good password", "read more books",
        "take better photos", "cook rice", "plan a birthday party", "change a flat tire", "grow herbs on a windowsill",
        "study for an exam", "pack for a long trip", "give a good presentation", "build a simple website",
        "stop procrastinating", "care for houseplants", "write a thank-you note", "improve my handwriting",
        "make a budget", "learn to swim", "wash a wool sweater", "set up a home office",
    ),
)  # fmt: skip
STORIES = (
    ("Write a short story about {}.", "Write a short poem about {}.", "Describe {} in three sentences."),
    (
        "a lighthouse keeper", "a lost dog", "the sea in winter", "a robot who wants to paint", "an old library",
        "two friends on a train", "a village without clocks", "a garden at night", "a dragon who is afraid of fire",
        "the first snow", "a letter that never arrived", "a market in the morning", "a girl who talks to birds",
        "an empty theater", "a storm in the mountains", "a baker and his cat", "the last day of summer",
        "a spaceship far from home", "a secret door", "a grandmother's kitchen", "a quiet river", "a broken violin",
        "a fox in the city", "the moon and a child", "a long journey through the desert",
    ),
)  # fmt: skip
PAIRS = (
    ("What is the difference between {} and {}?", "Compare {} and {}.", "Which should I choose, {} or {}, and why?"),
    (
        ("a cat", "a dog"), ("tea", "coffee"), ("a list", "a tuple in Python"), ("weather", "climate"),
        ("a virus", "a bacterium"), ("a lake", "a river"), ("mass", "weight"), ("a novel", "a short story"),
        ("a city", "a village"), ("a laptop", "a desktop computer"), ("speed", "velocity"), ("a frog", "a toad"),
        ("renting a home", "buying a home"), ("a comet", "an asteroid"), ("cycling", "walking"),
        ("an alligator", "a crocodile"), ("gas", "liquid"), ("fiction", "history"), ("a bus", "a train"),
        ("a debit card", "a credit card"), ("baking", "frying"), ("a violin", "a cello"),
        ("a compiler", "an interpreter"), ("cotton", "wool"), ("a simile", "a metaphor"),
        ("the Atlantic Ocean", "the Pacific Ocean"), ("a paper book", "an electronic book"), ("an artery", "a vein"),
        ("a king", "a president"), ("jam", "honey"),
    ),
)  # fmt: skip
LISTS = (
    ("List five {}.", "Name three {} and say a word about each.", "Give me a list of {}."),
    (
        "healthy breakfasts", "European capitals", "animals that live in the ocean", "uses of a paper clip",
        "famous scientists", "things to do on a rainy day", "musical instruments", "ways to save water",
        "fruits that are red", "books for children", "countries in Africa", "types of clouds", "hobbies for two people",
        "signs of a good leader", "programming languages", "common kitchen tools", "birds that cannot fly",
        "planets of the solar system", "questions to ask in an interview", "gifts for a teacher",
        "exercises without equipment", "ancient civilizations", "board games", "spices from Asia",
        "causes of traffic jams",
    ),
)  # fmt: skip
PARAGRAPHS = (
    (
        "Honeybees live in colonies of up to sixty thousand. Most of them are workers, who gather nectar, clean the "
        "hive and feed the young. A single queen lays all the eggs, up to two thousand a day in spring. When a "
        "worker finds flowers, she dances on the comb, and the angle of her dance tells the others where to fly."
    ),
    (
        "The old bridge was closed last spring after engineers found cracks in two of its pillars. Since then, "
        "people who live on the east side have had to drive eleven miles to reach the hospital. The town council "
        "has voted for a new bridge, but it will not be open for at least three years. Until then, a small ferry "
        "will run every half hour."
    ),
    (
        "Maria began to learn the piano when she was fifty-two. Her teacher told her that she had started too late "
        "to play in concerts, and she answered that she only wanted to play for her grandchildren. Six years later "
        "she filled the town hall twice in one week, and her grandchildren turned the pages."
    ),
    (
        "Glass is made by melting sand with soda and lime at about 1500 degrees. The melt is poured onto a bath of "
        "liquid tin, where it spreads and becomes flat. It is then cooled slowly, because glass that cools too fast "
        "breaks easily. Broken glass can be melted again as often as one likes without becoming worse."
    ),
    (
        "Our office will move to the new building on the first Monday in June. Please pack your desk by Friday noon "
        "and put your name on every box. Computers will be moved by the technical team, so leave them where they "
        "are. The kitchen will be open from Tuesday, and there is a welcome breakfast on Wednesday at nine."
    ),
    (
        "In the far north the sun does not set for weeks in summer, and in winter it does not rise. Plants there "
        "grow close to the ground, where the wind is weaker. Many animals change the color of their fur with the "
        "season, brown in summer and white in winter, so that neither hunters nor prey are easily seen."
    ),
)
READING = ("Summarize this paragraph in one sentence:", "Give this paragraph a title:", "What is the main point here?",
           "List the most important facts of this text:")  # fmt: skip
SUMS = (
    "What is {a} + {b}?", "What is {a} minus {b}?", "What is {c} times {d}?",
    "I have {a} apples and give away {d}. How many are left?", "A book costs {c} dollars. How much do {d} books cost?",
    "A train travels {b} miles in one hour. How far does it travel in {d} hours?",
)  # fmt: skip
TRANSLATE = (
    ("Translate into French: {}", "Translate into Spanish: {}", "Translate into German: {}", "Say this in Italian: {}"),
    (
        "Good morning, how are you?", "The train leaves at eight.", "I would like a cup of tea.",
        "Where is the station?", "My sister lives in a small town.", "It is raining today.", "Thank you for your help.",
        "We are going to the beach.", "The book is on the table.", "Can you speak more slowly?", "I have two brothers.",
        "The soup is too hot.", "See you tomorrow.", "The children are playing in the garden.",
        "How much does this cost?", "I am learning French.", "The museum is closed on Mondays.",
        "He forgot his umbrella.", "Winter is my favorite season.", "Happy birthday!",
    ),
)  # fmt: skip
REWRITE = (
    (
        "Rewrite this sentence so that it is more polite: {}", "Correct the grammar of this sentence: {}",
        "Rewrite this sentence in the past tense: {}", "Make this sentence shorter: {}",
        "Rewrite this sentence in a formal style: {}",
    ),
    (
        "Send me the report today.", "She don't like to swims in cold water.",
        "The boy walks to school with his friends.",
        "Due to the fact that it was raining, we made the decision to stay at home.",
        "Hey, can't make it to the meeting.", "You are late again.", "Me and him was going to the shop yesterday.",
        "They build a house near the river.", "In my own personal opinion, I think that the movie was quite good.",
        "The boss is mad about the numbers.", "Move your car.", "There is many reason why people moves to the city.",
        "He writes a letter and drinks his coffee.", "At this point in time we are not able to give you an answer.",
        "Thanks a lot, that was super helpful!", "I don't want to talk to you now.", "The informations is not correct.",
        "We see the mountains from our window.", "It is important to note that the store will be closed on Sunday.",
        "Let's grab lunch and chat about the plan.", "Be quiet.", "Yesterday I go to the market for buy fish.",
        "The wind is strong and the boats stay in the harbor.",
        "The reason why I am calling is because I want to ask about the price.", "This phone is junk.",
    ),
)  # fmt: skip
PYTHON = (
    ("Write a Python function that {}.", "How can I write Python code that {}?"),
    (
        "adds two numbers", "checks whether a number is prime", "reverses a string", "finds the largest item of a list",
        "counts the words of a text", "reads a file line by line", "computes the factorial of a number",
        "removes duplicates from a list", "sorts a dictionary by its values", "checks whether a word is a palindrome",
        "converts Celsius to Fahrenheit", "prints the first ten Fibonacci numbers", "merges two sorted lists",
        "draws a random number between 1 and 6", "writes a list to a CSV file", "counts the vowels of a string",
        "computes the average of a list", "finds the common items of two lists", "prints a multiplication table",
        "asks the user for a name and greets them", "flattens a nested list", "tells whether a year is a leap year",
        "measures how long a function takes", "splits a text into sentences", "downloads a web page",
    ),
)  # fmt: skip
FACTS = (
    "What is the capital of France?", "Who wrote Romeo and Juliet?", "How many continents are there?",
    "What is the largest planet of the solar system?", "At what temperature does water boil?",
    "Who painted the Mona Lisa?", "What is the longest river in Africa?",
    "In which year did people first walk on the Moon?", "Why is the sky blue?", "What do plants need to grow?",
    "How many legs does a spider have?", "What language is spoken in Brazil?", "What is the chemical symbol of gold?",
    "Who was the first president of the United States?", "Why do leaves fall in autumn?",
    "What is the currency of Japan?", "How many days are there in a leap year?", "What is the opposite of generous?",
    "Which gas do we breathe in to live?", "What is the tallest animal?", "Who invented the telephone?",
    "What are the primary colors?", "How long does it take the Earth to go around the Sun?",
    "What is a group of wolves called?", "Why do we have seasons?", "Which ocean lies between Europe and America?",
    "What is the freezing point of water?", "What does a doctor do?", "How do birds fly?",
    "Is a tomato a fruit or a vegetable?",
)  # fmt: skip
LETTERS = (
    ("Write a short email to {}.", "Write a friendly message to {}."),
    (
        "a landlord about a broken heater", "a colleague who is ill", "a teacher to ask for more time",
        "a friend to invite her to dinner", "a hotel to cancel a room", "a neighbor about loud music",
        "a customer whose order is late", "your grandmother on her birthday", "a manager to ask for a day off",
        "a library about a lost book", "a new member of the team", "a shop to return a pair of shoes",
        "an old friend after ten years", "the city about a dark street", "a cousin who passed an exam",
    ),
)  # fmt: skip
MODULES = (
    "argparse", "ast", "asyncio", "bisect", "calendar", "codecs", "collections", "concurrent.futures", "configparser",
    "contextlib", "copy", "csv", "ctypes", "dataclasses", "datetime", "decimal", "difflib", "doctest", "email.message",
    "enum", "fractions", "functools", "gettext", "glob", "heapq", "html.parser", "http.client", "http.cookiejar",
    "http.server", "imaplib", "importlib.abc", "inspect", "io", "ipaddress", "itertools", "json", "locale", "logging",
    "mailbox", "mimetypes", "multiprocessing.pool", "optparse", "os", "pathlib", "pdb", "pickle", "pickletools",
    "platform", "pprint", "queue", "random", "sched", "selectors", "shelve", "shutil", "smtplib", "socketserver",
    "sqlite3", "ssl", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit",
    "tokenize", "trace", "traceback", "typing", "unittest", "urllib.parse", "urllib.request", "uuid", "weakref",
    "zipfile",
)  # fmt: skip
PASSAGES, FEWEST_WORDS = 60, 45


def fill(templates: Sequence[str], things: Sequence[str | tuple[str, ...]]) -> list[str]:
    """A question about each thing, in one phrasing after the other."""
    return [
        template.format(*((thing,) if isinstance(thing, str) else thing))
        for thing, template in zip(things, itertools.cycle(templates), strict=False)
    ]


def questions() -> list[str]:
    """All questions, of kind after kind; every run asks the same ones."""
    filled = [fill(*pattern) for pattern in (ABOUT, HOW, STORIES, PAIRS, LISTS, TRANSLATE, REWRITE, PYTHON, LETTERS)]
    reading = [f"{asked}\n\n{paragraph}" for paragraph in PARAGRAPHS for asked in READING]
    numbers = [
        {"a": 30 + 13 * n % 70, "b": 5 + 7 * n % 23, "c": 2 + 5 * n % 11, "d": 3 + n % 7} for n in range(5 * len(SUMS))
    ]
    sums = [template.format(**drawn) for template, drawn in zip(itertools.cycle(SUMS), numbers, strict=False)]
    return [*itertools.chain.from_iterable(filled), *reading, *sums, *FACTS]


def passages() -> list[str]:
    """Prose of docstrings, one passage of each module before the second of any."""
    found = [list(prose_of(module)) for module in MODULES]
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*found))
    return list(dict.fromkeys(passage for passage in rounds if passage))[:PASSAGES]


def prose_of(module: str) -> Iterator[str]:
    """The longer paragraphs of a module's docstrings that are sentences rather than code, tables or lists."""
    loaded = importlib.import_module(module)
    public = [value for name, value in sorted(vars(loaded).items()) if not name.startswith("_")]
    own = [value for value in public if getattr(value, "__module__", None) == module]
    for thing in (loaded, *own):
        for paragraph in (inspect.getdoc(thing) or "").split("\n\n"):
            indented = any(line.startswith((" ", "\t")) for line in paragraph.splitlines())
            text = " ".join(paragraph.split())
            plain = sum(letter.isalpha() or letter in " ,.'" for letter in text) >= 0.96 * len(text)
            sentences = text[:1].isupper() and text.endswith(".") and not text.isupper()
            if not indented and plain and sentences and len(text.split()) >= FEWEST_WORDS:
                yield text


def answered(model: Path, asked: Sequence[str], max_tokens: int, threads: int | None) -> Iterator[dict[str, str]]:
    """A row for every question that the model has an answer to; says on stderr how far it is."""
    started = time.monotonic()
    with Runtime(model, threads=threads, context=1024) as runtime:
        for number, question in enumerate(asked, start=1):
            answer = runtime.answer(question, max_tokens=max_tokens).rstrip("\ufffd")
            if answer:
                yield {"question": question, "answer": answer}
            if number % 10 == 0 or number == len(asked):
                seconds = time.monotonic() - started
                print(f"{number} of {len(asked)} questions, {seconds:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the 16-bit GGUF of the model that is to be studied")
    parser.add_argument("--out", type=Path, required=True, help="the JSONL file")
    parser.add_argument("--max-tokens", type=int, default=96, help="longest answer")
    parser.add_argument("--threads", type=int, help="one for each core by default")
    options = parser.parse_args()
    rows = answered(options.model, questions(), options.max_tokens, options.threads)
    texts = ({"text": passage} for passage in passages())
    count = 0
    with options.out.open("w", encoding="utf-8") as handle:
        for row in itertools.chain(rows, texts):
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
            handle.flush()
            count += 1
    print(f"{options.out}: {count} rows")


if __name__ == "__main__":
    main()
