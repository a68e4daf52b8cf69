"""The published rules by which benchmarks score an answer, each a pure function of texts; 1 is right, 0 wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from anls_star import anls_score

YES, NO = "yes", "no"
RELATIVE_ERROR = 0.05
AGREEING = 3
"""As many of the other annotators make an answer wholly right."""
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBERS)}}
ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
WITH_APOSTROPHE = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_PERIOD = re.compile(r"\.(?!\d)")
_DIGIT_COMMA = re.compile(r"\d,\d")
_NUMBER = re.compile(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?|[-+]?\.\d+")
_LETTER = re.compile(r"(?<![A-Za-z0-9'])([A-Z])(?![A-Za-z0-9'])")


def _missing_apostrophes() -> dict[str, str]:
    """What people write for a contraction: with any one of its apostrophes left out."""
    found = {}
    for word in WITH_APOSTROPHE.split():
        for place in (index for index, mark in enumerate(word) if mark == "'"):
            found[word[:place] + word[place + 1 :]] = word
    return found


CONTRACTIONS = _missing_apostrophes()


def exact_match(said: str, answers: Sequence[str]) -> float:
    """Whether the answer is one of `answers`, whatever its case, spaces and final period."""
    return float(plain(said) in {plain(answer) for answer in answers})


def plain(text: str) -> str:
    """A text in lower case, single spaces, and without a final period."""
    return " ".join(text.split()).casefold().rstrip(".").rstrip()


def vqa_accuracy(said: str, answers: Sequence[str]) -> float:
    """Soft accuracy of VQA (Antol et al. 2015) and TextVQA: mean over annotators of min(1, others who agree / 3)."""
    given = normalize_vqa(said)
    known = [normalize_vqa(answer) for answer in answers]
    agreeing = known.count(given)
    if len(known) == 1:
        return float(agreeing)
    return sum(min(1.0, (agreeing - (answer == given)) / AGREEING) for answer in known) / len(known)


def normalize_vqa(text: str) -> str:
    """An answer as VQA's evaluation compares it: without punctuation and articles, numbers as digits."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    digits = _DIGIT_COMMA.search(text) is not None
    kept = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if beside_space or digits else " ")
    words = (DIGITS.get(word, word) for word in _PERIOD.sub("", kept).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def anls(said: str, answers: Sequence[str]) -> float:
    """DocVQA's normalized Levenshtein similarity (Biten et al. 2019) to the nearest answer; below 0.5 it is 0."""
    score: float = anls_score(tuple(answers), said, return_gt=False, return_key_scores=False)
    return score


def relaxed_accuracy(said: str, answers: Sequence[str]) -> float:
    """ChartQA's rule (Masry et al. 2022): numbers within 5 %, other answers exactly, whatever the case."""
    return float(any(_relaxed(said.strip(), answer.strip()) for answer in answers))


def _relaxed(said: str, answer: str) -> bool:
    given, wanted = _number(said), _number(answer)
    if given is not None and wanted:
        return abs(given - wanted) <= RELATIVE_ERROR * abs(wanted)
    return said.lower() == answer.lower()


def _number(text: str) -> float | None:
    """The number that a text is; of a percentage its hundredth."""
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def mme_answer(said: str) -> str | None:
    """Yes or no as MME's evaluation reads it (Fu et al. 2023): in the first four letters."""
    begin = said.strip().lower()[:4]
    return YES if YES in begin else NO if NO in begin else None


def pope_answer(said: str) -> str:
    """Yes or no as POPE's evaluation reads it (Li et al. 2023): no where the first sentence denies, else yes."""
    words = re.split(r"\s+", said.split(".", maxsplit=1)[0].replace(",", "").strip())
    return NO if {"No", "not", "no"} & set(words) else YES


def option_letter(said: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer chooses: the only letter in it that is one, else the only option whose text it has.

    As VLMEvalKit matches answers before it asks another model; None where that leaves a doubt.
    """
    letters: set[str] = {letter for letter in _LETTER.findall(said) if letter in options}
    if len(letters) == 1:
        return letters.pop()
    if not letters:
        named = [letter for letter, text in options.items() if text.strip() and text.lower() in said.lower()]
        return named[0] if len(named) == 1 else None
    return None


def math_answer(said: str, kind: str, precision: int, options: Mapping[str, str]) -> str:
    """What a MathVista answer says, without the language model that the benchmark's authors extract it with.

    Of a choice its option's text; of a number the last one that is named, rounded as asked; else the text itself.
    """
    if options:
        letter = option_letter(said, options)
        return options[letter] if letter else ""
    if kind not in {"integer", "float"}:
        return plain(said)
    numbers = _NUMBER.findall(said)
    value = float(numbers[-1].replace(",", "")) if numbers else math.inf
    if not math.isfinite(value):  # none, or hundreds of digits
        return plain(said)
    return str(round(value)) if kind == "integer" else f"{value:.{precision}f}"


def rotations(options: Mapping[str, str]) -> list[dict[str, str]]:
    """The options of a question in every rotation, MMBench's circular evaluation (Liu et al. 2023)."""
    letters, texts = list(options), list(options.values())
    return [dict(zip(letters, texts[turn:] + texts[:turn], strict=True)) for turn in range(len(texts))]
