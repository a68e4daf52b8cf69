"""Predicted speeds against sums by hand, and the plans that a speed asks for; profiles here are made up."""

from __future__ import annotations

from math import prod

import pytest
from gguf import GGMLQuantizationType as Q
from hypothesis import given
from hypothesis import strategies as st

from luq_gguf.artifacts import Plan, read_record, write_record
from luq_gguf.errors import BudgetError, RequestError
from luq_gguf.planning import Budget, PlanInputs, TensorSpec, make_plan, type_size
from luq_gguf.speed import OtherCosts, Profile, Rates, Tensor, predict, tensors_of, workload
from luq_gguf.speed_budget import AUTO_TYPES, SpeedRule, cheapest_not_slower, gentlest_fast_enough
from tests.ggufs import WEIGHTS

LAYERS = 4
KINDS = ("Q6_K", "Q4_K", "IQ1_M")
FREE = OtherCosts(
    generate_channel=0, generate_unit=0, generate_token=0, prompt_channel=0, prompt_unit=0, prompt_token=0,
    context_channel=0,
)  # fmt: skip


def specs_of(low: Q = Q.IQ1_M, high: Q = Q.Q4_K, *, tied: bool = False) -> list[TensorSpec]:
    specs = [TensorSpec("token_embd.weight", (256, 512), Q.Q6_K, Q.Q6_K, Q.F16)]
    if not tied:
        specs.append(TensorSpec("output.weight", (256, 512), Q.Q6_K, Q.Q6_K, Q.F16))
    for layer in range(LAYERS):
        specs += [TensorSpec(f"blk.{layer}.{name}.weight", (256, 128), high, low, Q.F16) for name in WEIGHTS]
        specs.append(TensorSpec(f"blk.{layer}.attn_norm.weight", (256,), Q.F32, Q.F32, Q.F32))
    return specs


def plan_of(count: int, low: Q = Q.IQ1_M, *, max_size: int | None = None) -> Plan:
    inputs = PlanInputs("c", "Q4_K_M", low.name, "depth", {}, 0)
    return make_plan(specs_of(low), 1024, tuple(reversed(range(LAYERS))), Budget(count, max_size), inputs)


def profile_of(rates: dict[str, float], other: OtherCosts = FREE, *, prompt: int = 100) -> Profile:
    """Nanoseconds a weight by type with one thread; prompts cost a tenth."""
    by_type = {
        kind: {1: Rates(row=0, weight=rate, long_weight=3 * rate, prompt=rate / 10)} for kind, rate in rates.items()
    }
    return Profile(
        cpu="made up", llama_cpp="0", prompt=prompt, cache=1 << 15, rates=by_type, other={1: other}, bandwidth={1: 1e10}
    )


COSTLY = OtherCosts(
    generate_channel=50, generate_unit=20, generate_token=7000, prompt_channel=5, prompt_unit=2, prompt_token=300,
    context_channel=0.25,
)  # fmt: skip


def test_a_tokens_time_is_the_sum_of_its_products_and_what_comes_between() -> None:
    profile = profile_of({"Q6_K": 2.0, "Q4_K": 1.0, "IQ1_M": 3.0}, COSTLY)
    plan, layer, head = plan_of(1), 7 * 256 * 128, 256 * 512
    found = predict(tensors_of(specs_of(), plan.types), profile, 1)
    generate = 3 * layer * 1.0 + layer * 3.0 + head * 2.0 + LAYERS * 128 * (50 + 20) + 7000
    assert found.generate == pytest.approx(1e9 / generate)
    ffn = 3 * 256 * 128  # of the last layer, which is the low one, for the last token alone
    prompt = 3 * layer * 0.1 + (layer - ffn) * 0.3 + (ffn * 3.0 + head * 2.0) / 100 + 300
    prompt += LAYERS * 128 * 5 + (LAYERS - 1) * 128 * 2
    assert found.prompt == pytest.approx(1e9 / prompt)
    sizes = {Q.Q4_K: 3, Q.IQ1_M: 1}
    read = sum(count * 7 * type_size(kind, (256, 128)) for kind, count in sizes.items()) + type_size(Q.Q6_K, (256, 512))
    assert found.read_bytes == read


def test_a_long_context_costs_generation_for_every_channel_of_the_queries() -> None:
    tensors, profile = tensors_of(specs_of(), plan_of(1).types), profile_of(dict.fromkeys(KINDS, 1.0), COSTLY)
    short, same, long = (predict(tensors, profile, 1, context) for context in (None, 100, 4100))
    assert short == same == predict(tensors, profile, 1, 7)
    assert 1e9 / long.generate - 1e9 / short.generate == pytest.approx(LAYERS * 128 * 4000 * 0.25)
    assert long.prompt == short.prompt


def test_the_work_of_a_token_by_type() -> None:
    found, layer, ffn = workload(tensors_of(specs_of(), plan_of(1).types)), 7 * 256 * 128, 3 * 256 * 128
    assert found.every == {("Q4_K", 256): 3 * layer, ("IQ1_M", 256): layer - ffn}
    assert found.last == {("Q6_K", 256): 256 * 512, ("IQ1_M", 256): ffn}
    assert (found.channels, found.units, found.last_units) == (LAYERS * 128, (LAYERS - 1) * 128, 128)


@pytest.mark.parametrize(
    ("kind", "columns", "share"),
    [("Q4_K", 10_240, 0), ("Q4_K", 15_872, 1), ("F16", 5_632, 0), ("F16", 9_216, 1), ("Q4_K", 12_800, 0.4754)],
)
def test_long_rows_have_a_rate_of_their_own(kind: str, columns: int, share: float) -> None:
    """With 32 KiB of cache: the rate changes between 11,796 and 17,695 bytes of 8-bit numbers with their scales."""
    rates = Rates(row=7.0, weight=1.0, long_weight=3.0, prompt=1.0)
    assert rates.of_row(kind, columns, 1 << 15) == pytest.approx(7 + columns * (1 + 2 * share), rel=1e-4)
    profile = profile_of({kind: 1.0})
    assert profile.weight_time(kind, 1, columns) == pytest.approx(1 + 2 * share, rel=1e-4)
    found = predict([Tensor("blk.0.ffn_down.weight", (columns, 512), kind)], profile, 1)
    assert found.generate == pytest.approx(1e9 / (columns * 512 * (1 + 2 * share)), rel=1e-4)
    assert found.prompt == pytest.approx(100 * found.generate), "of a prompt, one token alone"


def test_short_rows_cost_more_a_weight() -> None:
    rates = {"Q4_K": {1: Rates(row=100.0, weight=1.0, long_weight=1.0, prompt=1.0)}}
    profile = profile_of({}).model_copy(update={"rates": rates})
    short, long = (predict([Tensor("output.weight", (columns, 512), "Q4_K")], profile, 1) for columns in (256, 1024))
    assert 1e9 / short.generate == pytest.approx(512 * (100 + 256))
    assert 1e9 / long.generate == pytest.approx(512 * (100 + 1024))


def test_tied_embeddings_are_the_output_matrix() -> None:
    profile = profile_of({"Q6_K": 2.0, "Q4_K": 1.0})
    high = {spec.name: spec.high.name for spec in specs_of()}
    tied, untied = (predict(tensors_of(specs_of(tied=tied), high), profile, 1) for tied in (True, False))
    assert tied == untied


@given(rates=st.lists(st.floats(0.01, 100), min_size=3, max_size=3), more=st.floats(1.001, 10))
def test_a_slower_type_makes_no_plan_faster(rates: list[float], more: float) -> None:
    tensors = tensors_of(specs_of(), plan_of(2).types)
    before = predict(tensors, profile_of(dict(zip(KINDS, rates, strict=True))), 1)
    for index in range(3):
        slowed = [rate * (more if place == index else 1) for place, rate in enumerate(rates)]
        after = predict(tensors, profile_of(dict(zip(KINDS, slowed, strict=True))), 1)
        assert after.generate < before.generate
        assert after.prompt < before.prompt


def test_what_was_not_measured_is_named() -> None:
    tensors = [Tensor("output.weight", (256, 512), "Q5_K")]
    with pytest.raises(RequestError, match=r"has no 8 threads; it has 1"):
        predict(tensors, profile_of({"Q5_K": 1.0}), 8)
    with pytest.raises(RequestError, match=r"has no Q5_K with 1 threads; measure it"):
        predict(tensors, profile_of({"Q4_K": 1.0}), 1)


def test_a_profile_survives_its_file(tmp_path) -> None:
    profile = profile_of({"Q6_K": 2.0})
    write_record(tmp_path / "profile.json", profile)
    assert read_record(tmp_path / "profile.json", Profile) == profile


def rule(rates: dict[str, float], least: float | None = None) -> SpeedRule:
    return SpeedRule(profile_of(rates | {"Q6_K": 1.0, "Q4_K": 1.0}), 1, least)


def plans(kinds: tuple[str, ...], count: int = 2) -> dict[str, tuple[list[TensorSpec], Plan]]:
    return {kind: (specs_of(Q[kind]), plan_of(count, Q[kind])) for kind in kinds}


def test_auto_takes_the_smallest_that_is_not_slower() -> None:
    kinds = ("IQ1_M", "IQ2_XXS", "Q2_K")
    kind, forecast = cheapest_not_slower(plans(kinds), rule({"IQ1_M": 1.5, "IQ2_XXS": 1.1, "Q2_K": 0.9}))
    assert (kind, forecast.slower) == ("Q2_K", False)
    kind, _ = cheapest_not_slower(plans(kinds), rule({"IQ1_M": 1.0, "IQ2_XXS": 0.1, "Q2_K": 0.1}))
    assert kind == "IQ1_M"


def test_auto_says_where_all_are_slower() -> None:
    kind, forecast = cheapest_not_slower(plans(("IQ1_M", "Q2_K")), rule({"IQ1_M": 2.0, "Q2_K": 1.5}))
    assert (kind, forecast.slower) == ("Q2_K", True)
    assert forecast.ratio < 1


def makers(kinds: tuple[str, ...], max_size: int | None = None):
    return {
        kind: (specs_of(Q[kind]), lambda count, kind=kind: plan_of(count, Q[kind], max_size=max_size)) for kind in kinds
    }


def test_a_speed_takes_the_fewest_low_layers_then_the_gentlest_type() -> None:
    rates = {"Q3_K": 0.5, "IQ1_M": 0.1}
    slow = rule(rates).forecast(specs_of(Q.Q3_K), plan_of(1, Q.Q3_K)).plan.generate
    kind, plan, forecast = gentlest_fast_enough(makers(("Q3_K", "IQ1_M")), range(LAYERS + 1), rule(rates, slow * 0.999))
    assert (kind, len(plan.low_layers)) == ("Q3_K", 1)
    kind, plan, forecast = gentlest_fast_enough(makers(("Q3_K", "IQ1_M")), range(LAYERS + 1), rule(rates, slow * 1.001))
    assert (kind, len(plan.low_layers)) == ("IQ1_M", 1)
    assert forecast.plan.generate >= slow * 1.001


def test_a_speed_that_is_reached_without_low_layers_has_none() -> None:
    _, plan, forecast = gentlest_fast_enough(makers(("Q3_K",)), range(LAYERS + 1), rule({"Q3_K": 0.5}, 1.0))
    assert plan.low_layers == ()
    assert forecast.plan == forecast.high


def test_a_speed_and_a_size_hold_together() -> None:
    rates = {"Q3_K": 0.5}
    size = plan_of(3, Q.Q3_K).size_bytes
    _, plan, _ = gentlest_fast_enough(makers(("Q3_K",), max_size=size), range(LAYERS + 1), rule(rates, 1.0))
    assert len(plan.low_layers) == 3


def test_a_speed_that_nothing_reaches_names_the_fastest() -> None:
    with pytest.raises(
        BudgetError, match=r"no plan reaches 1e\+12 tokens/s .* predicted to reach .*: 4 of 4 layers Q3_K"
    ):
        gentlest_fast_enough(makers(("Q3_K",)), range(LAYERS + 1), rule({"Q3_K": 0.5}, 1e12))


def test_auto_types_rise_in_bits() -> None:
    sizes = [type_size(Q[kind], (256, 256)) / prod((256, 256)) for kind in AUTO_TYPES]
    assert sizes == sorted(sizes)
