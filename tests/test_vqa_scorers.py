"""The scoring rules of the benchmarks, against examples that their publications work out or that follow by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luq_gguf.vqa import scorers


@pytest.mark.parametrize(("agreeing", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_rises_with_the_annotators_who_agree(agreeing: int, score: float) -> None:
    """The averages over all choices of nine of ten annotators, min(1, agreeing / 3), that VQA's authors give."""
    answers = ["blue"] * agreeing + [f"other {number}" for number in range(10 - agreeing)]
    assert scorers.vqa_accuracy("blue", answers) == pytest.approx(score)


def test_vqa_accuracy_of_a_single_answer_is_a_match() -> None:
    assert scorers.vqa_accuracy("Blue.", ["blue"]) == 1
    assert scorers.vqa_accuracy("red", ["blue"]) == 0


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Dog.", "dog"),
        ("two", "2"),
        ("none", "0"),
        ("an apple, a pear", "apple pear"),
        ("1,000", "1000"),
        ("red/blue", "red blue"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("3.5", "3.5"),
        ("no!\n", "no"),
        ("mother-in-law", "mother in law"),
        ("What's up?", "what's up"),
        ("twas", "'twas"),
    ],
)
def test_answers_are_normalized_as_in_vqa(text: str, normal: str) -> None:
    assert scorers.normalize_vqa(text) == normal


@given(st.text(max_size=40))
def test_normalizing_never_fails_and_leaves_no_article(text: str) -> None:
    assert not scorers.ARTICLES & set(scorers.normalize_vqa(text).split())


@pytest.mark.parametrize(
    ("said", "answers", "score"),
    [
        ("January 30, 1968", ["January 30, 1968"], 1.0),
        ("JANUARY  30, 1968", ["January 30, 1968"], 1.0),
        ("January 31, 1968", ["January 30, 1968"], 15 / 16),
        ("1968", ["January 30, 1968"], 0.0),  # 12 of 16 characters are missing
        ("abcd", ["abxy"], 0.5),  # the evaluation's code keeps a half
        ("abcd", ["axyz"], 0.0),
        ("P1", ["P1", "Page 1"], 1.0),
        ("", ["x"], 0.0),
    ],
)
def test_anls_takes_the_nearest_answer_above_a_half(said: str, answers: list[str], score: float) -> None:
    assert scorers.anls(said, answers) == pytest.approx(score)


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [
        ("105", "100", True),
        ("105.1", "100", False),
        ("95", "100", True),
        ("-95", "100", False),
        ("14%", "0.14", True),
        ("14%", "14", False),
        ("2009", "2010", True),  # the rule holds years to 5 %, too
        ("Germany", "germany", True),
        ("German", "Germany", False),
        ("0", "0", True),
        ("0.01", "0", False),
        ("inf", "3", False),
    ],
)
def test_chart_answers_may_be_five_percent_off(said: str, answer: str, right: bool) -> None:
    assert scorers.relaxed_accuracy(said, [answer]) == float(right)


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("Yes", "yes"),
        ("yes, there is", "yes"),
        ("No.", "no"),
        (" no", "no"),
        ("It is no dog", None),
        ("Not", "no"),
        ("", None),
    ],
)
def test_mme_reads_the_first_four_letters(said: str, answer: str | None) -> None:
    assert scorers.mme_answer(said) == answer


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("Yes, there is a dog.", "yes"),
        ("No, there is no dog.", "no"),
        ("There is not a dog in it", "no"),
        ("Yes. There is no cat, though.", "yes"),
        ("Nothing", "yes"),
    ],
)
def test_pope_reads_the_first_sentence(said: str, answer: str) -> None:
    assert scorers.pope_answer(said) == answer


OPTIONS = {"A": "a red cube", "B": "two dogs", "C": "nothing"}


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C) nothing", "C"),
        ("The answer is B", "B"),
        ("A and B", None),
        ("two dogs", "B"),
        ("I see Two Dogs there", "B"),
        ("A dog, so B", None),
        ("D", None),
        ("a cat", None),
        ("", None),
    ],
)
def test_a_letter_or_the_text_of_one_option_chooses_it(said: str, letter: str | None) -> None:
    assert scorers.option_letter(said, OPTIONS) == letter


def test_options_are_turned_by_one() -> None:
    assert scorers.rotations(OPTIONS) == [
        {"A": "a red cube", "B": "two dogs", "C": "nothing"},
        {"A": "two dogs", "B": "nothing", "C": "a red cube"},
        {"A": "nothing", "B": "a red cube", "C": "two dogs"},
    ]


@pytest.mark.parametrize(
    ("said", "kind", "precision", "options", "answer"),
    [
        ("The answer is 14.", "integer", 0, {}, "14"),
        ("3 + 4 = 7", "integer", 0, {}, "7"),
        ("It costs $1,234.50", "float", 1, {}, "1234.5"),
        ("0.6", "float", 2, {}, "0.60"),
        ("(B)", "text", 0, OPTIONS, "two dogs"),
        ("two dog", "text", 0, OPTIONS, ""),
        ("[1, 2]", "list", 0, {}, "[1, 2]"),
        ("I do not know", "integer", 0, {}, "i do not know"),
    ],
)
def test_math_answers_are_extracted_plainly(
    said: str, kind: str, precision: int, options: dict[str, str], answer: str
) -> None:
    assert scorers.math_answer(said, kind, precision, options) == answer


def test_exact_answers_may_differ_in_case_spaces_and_period() -> None:
    assert scorers.exact_match(" Red  circle. ", ["red circle"]) == 1
    assert scorers.exact_match("red circles", ["red circle"]) == 0
