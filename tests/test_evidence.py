"""Predicted damage: coefficients that are known are found again, and mixtures spend bytes where they tell."""

from __future__ import annotations

import random

import pytest
from gguf import GGMLQuantizationType as Q

from luq_gguf.errors import BudgetError, RequestError
from luq_gguf.evidence import (
    BLOCKS,
    LIMITS,
    OFFSET,
    SPREAD,
    Evidence,
    Probe,
    block_shares,
    disturbances,
    fit_coefficients,
    group_of,
    layer_factors,
    most_disputed,
    predict_divergence,
    scale_errors,
    type_factor,
)
from luq_gguf.evidence import TABLES as TABLE_GROUPS
from luq_gguf.layout import Layout
from luq_gguf.mixing import Mixer
from luq_gguf.planning import Budget
from tests.test_planning import inputs, scores, small_specs

LAYERS = 4
SHARES = {"attention": (0.4, 0.1, 0.2, 0.1), "ffn": (0.8, 0.3, 0.1, 0.2)}
TYPES = ("Q6_K", "Q4_K", "Q2_K", "IQ1_M")
ERROR = {"Q6_K": 0.0004, "Q4_K": 0.006, "Q2_K": 0.08, "IQ1_M": 0.21}
WEIGHTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
TABLES = ("token_embd.weight", "output.weight")
ERRORS = dict.fromkeys([f"blk.{layer}.{name}.weight" for layer in range(LAYERS) for name in WEIGHTS], ERROR)
ERRORS |= dict.fromkeys(TABLES, ERROR)
TRUE = {
    "query_key": 0.3, "value_output": 0.9, "gate_up": 0.4, "down": 1.5, "embedding": 1.8, "output": 1.2, OFFSET: 0.01,
}  # fmt: skip


def types_of(kind_of) -> dict[str, str]:
    return {name: kind_of(name) for name in ERRORS} | {"blk.0.attn_norm.weight": "F32", "output_norm.weight": "F32"}


def true_damage(types: dict[str, str]) -> float:
    found = disturbances(types, ERRORS, SHARES)
    return TRUE[OFFSET] + sum(TRUE[group] * value for (group, _), value in found.items())


def evidence(**changes) -> Evidence:
    given = {"checkpoint": "c", "low_type": "IQ1_M", "errors": ERRORS, "coefficients": TRUE, "factors": (1.0,) * LAYERS}
    return Evidence(**(given | changes))


def test_weights_are_grouped_by_block() -> None:
    names = ("attn_q", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "attn_norm", "attn_q_norm")
    assert [group_of(f"blk.3.{name}.weight") for name in names] == [
        "query_key", "value_output", "value_output", "gate_up", "gate_up", "down", None, None,
    ]  # fmt: skip
    assert [group_of(name) for name in TABLES] == ["embedding", "output"]
    assert group_of("blk.3.attn_q.bias") is group_of("output_norm.weight") is group_of("blk.0.output.weight") is None


def test_fine_types_disturb_nothing_and_others_by_share_and_error() -> None:
    assert set(disturbances(types_of(lambda name: "F16"), ERRORS, SHARES).values()) == {0.0}
    found = disturbances(types_of(lambda name: "Q2_K"), ERRORS, SHARES)
    assert found["query_key", 0] == found["value_output", 0] == pytest.approx(2 * 0.4 * 0.08)
    assert found["gate_up", 1] == pytest.approx(2 * 0.3 * 0.08)
    assert found["down", 2] == pytest.approx(0.1 * 0.08)
    assert found["embedding", None] == found["output", None] == 0.08


def test_what_was_not_measured_is_not_taken_for_nothing() -> None:
    with pytest.raises(RequestError, match=r"what blk\.0\.attn_q\.weight loses as IQ4_NL was not measured"):
        disturbances({"blk.0.attn_q.weight": "IQ4_NL"}, ERRORS, SHARES)


def test_known_coefficients_are_found_again() -> None:
    rng = random.Random(0)
    probes = []
    for _ in range(12):
        types = types_of(lambda name: rng.choice(TYPES))
        probes.append(Probe(types=types, divergence=true_damage(types)))
    assert fit_coefficients(probes, ERRORS, SHARES) == pytest.approx(TRUE, rel=1e-6)


def test_no_group_is_given_away_for_a_probe_that_says_it_does_nothing() -> None:
    """Divergence on a few answers may fall by chance where a group is made coarser."""
    base = types_of(lambda name: "Q4_K")
    probes = [Probe(types=base, divergence=true_damage(base))]
    for group in (*BLOCKS, *TABLE_GROUPS):
        types = {name: "Q2_K" if group_of(name) == group else kind for name, kind in base.items()}
        measured = probes[0].divergence * 0.9 if group == "gate_up" else true_damage(types)
        probes.append(Probe(types=types, divergence=measured))
    found = fit_coefficients(probes, ERRORS, SHARES)
    groups = [found[group] for group in (*BLOCKS, *TABLE_GROUPS)]
    assert min(groups) == found["gate_up"] > 0
    assert max(groups) < 2 * SPREAD**2 * found["gate_up"]


def test_where_nothing_does_damage_only_the_offset_is_left() -> None:
    types = [types_of(lambda name, kind=kind: kind) for kind in TYPES]
    found = fit_coefficients([Probe(types=each, divergence=1.0) for each in types], ERRORS, SHARES)
    assert min(found.values()) >= 0
    assert found[OFFSET] == pytest.approx(1.0, abs=0.05)


def test_a_layer_that_does_more_damage_than_predicted_counts_for_more() -> None:
    base = Probe(types=types_of(lambda name: "Q4_K"), divergence=true_damage(types_of(lambda name: "Q4_K")))

    def single(layer: int, times: float) -> Probe:
        types = types_of(lambda name: "Q2_K" if name.startswith(f"blk.{layer}.") else "Q4_K")
        return Probe(types=types, divergence=base.divergence + times * (true_damage(types) - base.divergence))

    singles = {0: single(0, 2.0), 2: single(2, 0.5), 3: single(3, 1000.0)}
    factors = layer_factors(LAYERS, base, singles, evidence(), SHARES)
    assert factors == pytest.approx((2.0, 1.0, 0.5, LIMITS[1]))
    corrected = evidence(factors=factors)
    before = predict_divergence(corrected, SHARES, base.types)
    assert before > predict_divergence(evidence(), SHARES, base.types)


@pytest.mark.parametrize(("times", "found"), [(1.0, 1.0), (1.7, 1.7), (0.01, LIMITS[0]), (100.0, LIMITS[1])])
def test_a_type_that_does_more_damage_than_its_error_tells_counts_for_more(times: float, found: float) -> None:
    plain = types_of(lambda name: "Q4_K")
    coded = types_of(lambda name: "IQ1_M" if name.startswith("blk.1.") else "Q4_K")
    base = Probe(types=plain, divergence=true_damage(plain))
    types = {kind: {"IQ1_M": times}.get(kind, 1.0) * error for kind, error in ERROR.items()}
    found_errors = dict.fromkeys(ERRORS, types)
    lowered = Probe(types=coded, divergence=predict_divergence(evidence(errors=found_errors), SHARES, coded))
    factor = type_factor("IQ1_M", base, lowered, evidence(), SHARES)
    assert factor == pytest.approx(found)
    scaled = evidence(errors=scale_errors(ERRORS, {"IQ1_M": factor}))
    if LIMITS[0] < times < LIMITS[1]:
        assert predict_divergence(scaled, SHARES, coded) == pytest.approx(lowered.divergence)
    assert predict_divergence(scaled, SHARES, plain) == pytest.approx(base.divergence)


def test_the_layers_in_dispute_are_those_that_change_places_most() -> None:
    assert most_disputed([1, 2, 3, 4], [1, 2, 3, 4], 2) == [3, 2]
    assert most_disputed([1, 2, 3, 4], [4, 2, 3, 1], 2) == [3, 0]


def test_shares_are_means_over_both_kinds_of_tokens() -> None:
    known = scores([1.0, 2.0], changes={"attention_text": [1.0, 3.0], "attention_multimodal": [0.0, 1.0],
                                        "ffn_text": [0.5, 0.25]})  # fmt: skip
    assert block_shares(known) == {"attention": (0.5, 2.0), "ffn": (0.5, 0.25)}
    with pytest.raises(RequestError, match="do not say what layers add"):
        block_shares(scores([1.0, 2.0]))


def mixer(**changes) -> Mixer:
    layouts = {
        kind: Layout("c", tuple(small_specs(LAYERS, low=Q[kind])), 1000, inputs(low_type=kind)) for kind in TYPES
    }
    rows = {f"{block}_text": list(values) for block, values in SHARES.items()}
    return Mixer(layouts, scores([1.0] * LAYERS, changes=rows), evidence(**changes))


def test_a_mixture_beats_every_plan_of_one_low_type_at_its_bytes() -> None:
    """The damages are those that the evidence predicts, so that the optimum is known to be no worse."""
    made = mixer()
    for kind, layout in made.layouts.items():
        for count in range(LAYERS + 1):
            order = (1, 2, 3, 0)
            plan = layout.plan(order, "depth", Budget(count), strict=False)
            mixed = made.plan(plan.size_bytes)
            assert mixed.size_bytes <= plan.size_bytes
            assert true_damage(mixed.types) <= true_damage(plan.types) + 1e-12, (kind, count)


def test_embeddings_give_their_bytes_where_they_do_less_and_take_no_codebook_type() -> None:
    found = set()
    for times in (0.0, 0.05, 1000.0):
        made = mixer(coefficients=TRUE | {"embedding": times * TRUE["embedding"]})
        kinds = [made.plan(size).types["token_embd.weight"] for size in made.sizes()]
        assert set(kinds) <= {"Q6_K", "Q2_K"}
        found.add(kinds.count("Q2_K"))
        assert kinds[0] == ("Q2_K" if times == 0 else "Q6_K")
    assert len(found) == 3


def test_more_bytes_never_do_more_damage() -> None:
    made = mixer()
    sizes = made.sizes()
    assert sizes == sorted(sizes, reverse=True)
    damages = [true_damage(made.plan(size).types) for size in sizes]
    assert damages == sorted(damages)
    with pytest.raises(BudgetError, match="no mixture has at most"):
        made.plan(sizes[-1] - 1)


def test_the_same_bytes_give_the_same_mixture_again() -> None:
    """What a conversion's folder is checked by: its plan's own size as the budget."""
    made = mixer()
    for size in made.sizes():
        plan = made.plan(size)
        assert made.plan(plan.size_bytes) == plan
