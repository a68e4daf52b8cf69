"""Which held-out samples judge a probe: not the longest, both kinds, never none."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from luq_gguf.reference import Reference
from luq_gguf.trials import choose_brief

SAMPLES = st.lists(st.tuples(st.integers(1, 900), st.booleans()), min_size=1, max_size=20)


@given(SAMPLES, st.integers(0, 3000))
def test_they_keep_the_limit_and_leave_no_kind_out(rows: list[tuple[int, bool]], tokens: int) -> None:
    costs, kinds = (list(column) for column in zip(*rows, strict=True))
    places = choose_brief(costs, kinds, tokens)
    assert places == sorted(set(places))
    assert {kinds[place] for place in places} == set(kinds)
    if len(places) > 2:
        assert sum(costs[place] for place in places) <= tokens


def test_the_cheaper_half_of_each_kind_comes_in_turns() -> None:
    costs = [900, 30, 200, 50, 100, 60]
    kinds = [True, False, True, False, True, False]
    assert choose_brief(costs, kinds, 0) == [1, 2]
    assert choose_brief(costs, kinds, 300) == [1, 2, 3]
    assert choose_brief(costs, kinds, 10_000) == [1, 2, 3, 4]
    assert choose_brief([5, 5, 5], [False] * 3, 10) == [0, 1]


def test_a_part_of_a_reference_has_the_tokens_of_its_samples() -> None:
    places, top = 6, np.arange(12, dtype=np.int32).reshape(6, 2)
    whole = Reference(
        samples=("a", "b", "c"), starts=np.array([0, 1, 4, 6]), prompts=np.array([7, 8, 9], np.int32),
        answers=np.arange(places, dtype=np.int32), top=top, log_probabilities=-top.astype(np.float32),
        rest=np.zeros(places, np.float32), context={"turn_end": "."},
    )  # fmt: skip
    part = whole.some([0, 2])
    assert part.samples == ("a", "c")
    assert part.starts.tolist() == [0, 1, 3]
    assert part.prompts.tolist() == [7, 9]
    assert part.answers.tolist() == [0, 4, 5]
    assert part.top.tolist() == [[0, 1], [8, 9], [10, 11]]
    assert part.turn_end == "."
