"""What benchmarks publish: figures worked by hand and by scikit-learn, from questions as their tables have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score

from luq_gguf.errors import CalibrationError, RequestError
from luq_gguf.vqa.asking import score_all
from luq_gguf.vqa.benchmarks import (
    BENCHMARKS,
    COGNITION,
    EXACT,
    PERCEPTION,
    SHORT,
    Answered,
    Benchmark,
    Groups,
    find_benchmark,
)
from luq_gguf.vqa.questions import Question, read_questions
from tests.test_calibration_tables import RED, write_table

MME, MMBENCH, POPE, MATHVISTA = (find_benchmark(name) for name in ("mme", "mmbench", "pope", "mathvista"))
OPTIONS = {"A": "red", "B": "blue", "C": "green"}


def answer(benchmark: Benchmark, questions: Sequence[Question], said: Sequence[str]) -> list[Answered]:
    return [Answered(each, text, benchmark.score(each, text)) for each, text in zip(questions, said, strict=True)]


def values_of(benchmark: Benchmark, answered: Sequence[Answered], weights: Sequence[float] = ()) -> dict[str, float]:
    groups = Groups(answered)
    drawn = np.array(weights, np.float64) if len(weights) else np.ones(groups.count)
    return dict(benchmark.measure(answered, groups)(drawn))


def mme(*subtasks: str, images: int = 1) -> list[Question]:
    """Two questions about every image, as MME has them."""
    return [
        Question(f"{name}{image}{right}", "Is it?", (right,), category=name, group=f"{name}/{image}.png")
        for name in subtasks
        for image in range(images)
        for right in ("Yes", "No")
    ]


def test_a_perfect_model_has_2000_and_800_in_mme() -> None:
    questions = mme(*PERCEPTION, *COGNITION, images=3)
    found = values_of(MME, answer(MME, questions, [each.answers[0] for each in questions]))
    assert (found["score"], found["perception"], found["cognition"]) == (2800, 2000, 800)
    assert {found[name] for name in (*PERCEPTION, *COGNITION)} == {200}
    assert len(found) == 3 + 14


@pytest.mark.parametrize(
    ("said", "count"),
    [
        (["yes", "yes"], 50 + 0),
        (["No, it is not.", "No"], 50 + 0),
        (["Yes", "no."], 100 + 100),
        (["no", "yes"], 0),
        (["maybe", "No"], 50 + 0),
        (["yes", "no", "yes", "yes"], 75 + 50),
        (["yes", "yes", "no", "no"], 50 + 0),
    ],
)
def test_mme_counts_answers_and_images_of_which_both_are_right(said: list[str], count: float) -> None:
    questions = mme("count", images=len(said) // 2)
    found = values_of(MME, answer(MME, questions, said))
    assert found == {"score": count, "perception": count, "cognition": 0, "count": count}


def test_mme_sums_its_subtasks() -> None:
    questions = mme("count", "OCR", "code_reasoning", "made up")
    found = values_of(MME, answer(MME, questions, ["yes", "no", "yes", "yes", "yes", "yes", "no", "no"]))
    assert found == {
        "score": 200 + 3 * 50, "perception": 250, "cognition": 50, "count": 200, "OCR": 50, "code_reasoning": 50,
        "made up": 50,
    }  # fmt: skip


def choices(*categories: str) -> list[Question]:
    texts = [{"question": "Which?", **OPTIONS}] * len(categories)
    plain = [
        Question(str(n), "?", ("B",), category=category, options=dict(OPTIONS), details=texts[n])
        for n, category in enumerate(categories)
    ]
    return MMBENCH.prepare(plain)


def test_an_mmbench_question_counts_where_all_its_rotations_are_right() -> None:
    questions = choices("color", "color", "form")
    said = [
        *(each.answers[0] for each in questions[:3]),
        *(each.answers[0] for each in questions[3:5]), "not sure",
        *(f"The answer is {each.answers[0]}." for each in questions[6:]),
    ]  # fmt: skip
    found = values_of(MMBENCH, answer(MMBENCH, questions, said))
    assert found == pytest.approx({"score": 200 / 3, "color": 50, "form": 100, "single answers": 800 / 9})


def test_a_model_that_always_says_the_same_letter_gets_nothing_in_mmbench() -> None:
    questions = choices(*["color"] * 4)
    for letter in OPTIONS:
        found = values_of(MMBENCH, answer(MMBENCH, questions, [letter] * len(questions)))
        assert (found["score"], found["single answers"]) == (0, pytest.approx(100 / 3))
    texts = values_of(MMBENCH, answer(MMBENCH, questions, ["It is blue"] * len(questions)))
    assert texts["score"] == 100


ANSWERS = st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from(["popular", "random"])), min_size=1)


def pope(answers: Sequence[tuple[bool, bool, str]]) -> list[Answered]:
    questions = [
        Question(str(number), "Is there a dog?", ("yes" if true else "no",), category=category, group=str(number // 3))
        for number, (true, _, category) in enumerate(answers)
    ]
    return answer(POPE, questions, ["Yes, there is." if said else "No, there is not." for _, said, _ in answers])


@settings(deadline=None, max_examples=80)
@given(ANSWERS)
def test_popes_figures_are_those_of_scikit_learn(answers: list[tuple[bool, bool, str]]) -> None:
    true, said, categories = zip(*answers, strict=True)
    found = values_of(POPE, pope(answers))
    assert found["score"] == pytest.approx(100 * np.mean(np.equal(true, said)))
    assert found["yes"] == pytest.approx(100 * np.mean(said))
    for name, rule in (("F1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        wanted = rule(true, said, zero_division=np.nan)
        assert found[name] == pytest.approx(100 * wanted, nan_ok=True), name
    for category in set(categories):
        right = [t == s for t, s, c in answers if c == category]
        assert found[category] == pytest.approx(100 * np.mean(right))


@settings(deadline=None, max_examples=40)
@given(st.data(), st.sampled_from([EXACT, MME, MMBENCH, POPE]))
def test_a_group_drawn_twice_counts_as_two_of_it(data: st.DataObject, benchmark: Benchmark) -> None:
    """So that intervals are those of figures over drawn groups; a group that was not drawn is not there."""
    several = mme("count", "OCR", "color", images=2)
    questions = choices("a", "b", "a", "b") if benchmark is MMBENCH else several
    rights = ["A", "B", "C", "none"] if benchmark is MMBENCH else ["yes", "no"]
    answered = answer(benchmark, questions, [data.draw(st.sampled_from(rights)) for _ in questions])
    names = list(dict.fromkeys(each.question.group for each in answered))
    weights = data.draw(st.lists(st.integers(0, 3), min_size=len(names), max_size=len(names)).filter(any))
    drawn = [
        Answered(Question(**(vars(each.question) | {"group": f"{name} {copy}"})), each.said, each.score)
        for name, weight in zip(names, weights, strict=True)
        for copy in range(weight)
        for each in answered
        if each.question.group == name
    ]
    found, wanted = values_of(benchmark, answered, weights), values_of(benchmark, drawn)
    present = {each.question.category for each in drawn}
    everywhere = present == {each.question.category for each in answered}
    for name in wanted:
        if everywhere or name in present or name in ("single answers", "F1", "precision", "recall", "yes"):
            assert found[name] == pytest.approx(wanted[name], nan_ok=True), name
    for name in set(found) & {each.question.category for each in answered} - present:
        assert np.isnan(found[name])


def test_means_of_all_and_of_each_category() -> None:
    questions = [
        Question(str(n), "?", ("right",), category=category)
        for n, category in enumerate(("image", "image", "question"))
    ]
    found = values_of(EXACT, answer(EXACT, questions, ["Right.", "wrong", "right"]))
    assert found == pytest.approx({"score": 200 / 3, "image": 50, "question": 100})
    alone = values_of(EXACT, answer(EXACT, questions[:2], ["right", "wrong"]))
    assert alone == {"score": 50}


def test_intervals_are_of_images_not_of_questions() -> None:
    """Four answers about either image, all alike: only which image is drawn makes a difference."""
    questions = [Question(str(n), "?", ("yes",), group=str(n % 2)) for n in range(8)]
    apart = [Question(str(n), "?", ("yes",), group=str(n)) for n in range(8)]
    said = ["yes", "no"] * 4
    found, finer = (
        score_all(EXACT, answer(EXACT, each, said), model="m", data="d").figures["score"] for each in (questions, apart)
    )
    assert (found.value, found.low, found.high) == (50, 0, 100)
    assert finer.value == 50
    assert 0 < finer.low < finer.high < 100


def test_no_answer_gives_no_figures() -> None:
    with pytest.raises(CalibrationError, match="no question that can be asked"):
        score_all(EXACT, [], model="m.gguf", data="d.tsv")


TABLES: dict[str, list[dict[str, str]]] = {
    "mme": [
        {"category": "count", "image_path": "count/1.png", "question": "Is it one?", "answer": "Yes"},
        {"category": "count", "image_path": "count/1.png", "question": "Is it two?", "answer": "No"},
    ],
    "mmbench": [
        {"category": "color", "l2-category": "sight", "question": "Which?", "hint": "Look.", "answer": "C", **OPTIONS},
        {"category": "form", "l2-category": "sight", "question": "Which?", "answer": "A", "A": "left", "B": "right"},
    ],
    "textvqa": [{"question": "What brand?", "answer": "['nokia', 'nokia', 'Nokia.', 'nokia']"}],
    "vqav2": [{"question": "What color?", "answer": '["red", "red", "red", "red", "dark red"]'}],
    "gqa": [{"question": "Is it left?", "answer": "Yes"}],
    "pope": [
        {"category": "popular", "question": "Is there a dog?", "answer": "yes"},
        {"category": "random", "question": "Is there a cat?", "answer": "no"},
    ],
    "chartqa": [{"question": "How many?", "answer": "['14']", "split": "test_human"}],
    "docvqa": [{"question": "Which date?", "answer": "['1/8/93', 'January 8, 1993']"}],
    "mathvista": [
        {"question": "Find x.", "question_type": "multi_choice", "choices": "['2', '3']", "answer": "3",
         "answer_option": "B", "answer_type": "text", "task": "geometry", "category": "math"},
        {"question": "How long?", "question_type": "free_form", "choices": "[]", "answer": "1.5",
         "answer_type": "float", "precision": "1.0", "task": "geometry", "category": "general"},
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_table_is_asked_and_a_perfect_model_reaches_the_most(tmp_path: Path, name: str) -> None:
    benchmark, rows = BENCHMARKS[name], TABLES[name]
    rows = [{"index": str(n), "image": RED if n == 0 else "0", **row} for n, row in enumerate(rows)]
    questions = benchmark.prepare(read_questions(write_table(tmp_path / "t.tsv", rows), benchmark.needed))
    for question in questions:
        assert rows[int(question.id.partition("+")[0])]["question"] in question.prompt
        assert question.prompt.endswith(f"\n{SHORT}") == (benchmark.words == SHORT)
    said = [next(iter(each.answers)) for each in questions]
    if name == "mathvista":
        said = ["(B)", "It is 1.50 cm"]
    result = score_all(benchmark, answer(benchmark, questions, said), model="m.gguf", data="t.tsv", left_out=2)
    assert result.figures["score"].value == (200 if name == "mme" else 100)
    assert (result.questions, result.left_out, result.benchmark) == (len(questions), 2, name)
    assert [each.id for each in result.answers] == [each.id for each in questions]
    wrong = score_all(benchmark, answer(benchmark, questions, ["0 %!"] * len(said)), model="m", data="d")
    assert wrong.figures["score"].value < 100
    categories = {row["category"] for row in rows if "category" in row}
    assert categories - {"math"} <= result.figures.keys()


@pytest.mark.parametrize(
    ("cells", "said", "right"),
    [
        ({"answer_type": "integer", "answer": "7"}, "3 + 4 = 7", True),
        ({"answer_type": "integer", "answer": "7"}, "seven", False),
        ({"answer_type": "integer", "answer": "7"}, "9" * 400, False),
        ({"answer_type": "float", "answer": "0.6", "precision": "1.0"}, "about 0.62", True),
        ({"answer_type": "float", "answer": "0.6", "precision": "2.0"}, "about 0.62", False),
        ({"answer_type": "list", "answer": "[0, 2, 5]"}, "[0, 2, 5]", True),
        ({"answer_type": "list", "answer": "[0, 2, 5]"}, "0", False),
        ({"answer_type": "text", "answer": "Yes", "choices": "['Yes', 'No']"}, "A", True),
        ({"answer_type": "text", "answer": "Yes", "choices": "['Yes', 'No']"}, "no", False),
        ({"answer_type": "text", "answer": "145", "choices": "['35', '145']"}, "(B) 145\u00b0", True),
    ],
)
def test_mathvistas_answers_are_read_by_their_kind(tmp_path: Path, cells: dict, said: str, right: bool) -> None:
    table = write_table(tmp_path / "t.tsv", [{"index": "1", "question": "How many?", **cells}])
    (question,) = read_questions(table)
    assert MATHVISTA.score(question, said) == right


def test_benchmarks_are_found_in_any_case() -> None:
    assert find_benchmark("MMBench") is MMBENCH
    with pytest.raises(RequestError, match="unknown benchmark 'imagenet'") as caught:
        find_benchmark("imagenet")
    assert all(name in caught.value.hint for name in BENCHMARKS)
