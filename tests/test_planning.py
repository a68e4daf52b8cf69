"""Plans: the sizes of a 7B model, budgets, orders, and properties over arbitrary models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Q
from hypothesis import given
from hypothesis import strategies as st

from luq_gguf.artifacts import EntropyRow, LayerScores
from luq_gguf.assemble import header_bytes
from luq_gguf.errors import BudgetError, RequestError
from luq_gguf.gguf_file import GGUFFile
from luq_gguf.planning import (
    MEASURED,
    MIXED,
    ORDERS,
    Budget,
    PlanInputs,
    TensorSpec,
    choose_order,
    make_mixed_plan,
    make_plan,
    size_table,
    tensor_order,
    tensor_types_text,
    type_size,
)
from luq_gguf.quantize import resolve_types, tensor_specs
from tests.ggufs import QWEN_7B, QWEN_72B, WEIGHTS, write_text_gguf

REPORTED_ORDER = (27, 26, 18, 24, 23, 20, 22, 21, 19, 17, 25, 16, 15, 14, 13, 12, 11, 10, 9, 8, 1, 0, 3, 2, 6, 5, 7, 4)
GIB = 1 << 30


def inputs(**changes) -> PlanInputs:
    given = {
        "checkpoint": "c", "high_type": "Q4_K_M", "low_type": "IQ1_M", "order_name": "depth",
        "high_fallbacks": {}, "source_bytes": 0,
    }  # fmt: skip
    return PlanInputs(**(given | changes))


def small_specs(layers: int = 4, low: Q = Q.IQ1_M, high: Q = Q.Q4_K) -> list[TensorSpec]:
    specs = [TensorSpec("token_embd.weight", (256, 64), Q.Q6_K, low, Q.F16)]
    for layer in range(layers):
        specs += [TensorSpec(f"blk.{layer}.{name}.weight", (256, 128), high, low, Q.F16) for name in WEIGHTS]
        specs.append(TensorSpec(f"blk.{layer}.attn_norm.weight", (256,), Q.F32, Q.F32, Q.F32))
    return specs


def scores(
    means: list[float], sites: tuple[str, ...] = ("output_multimodal",), changes: dict[str, list[float]] | None = None
) -> LayerScores:
    rows = tuple(EntropyRow(mean=mean, spread=0.0, by_seed=(mean,), vectors=10, clusters=2) for mean in means)
    return LayerScores(
        checkpoint="c", layers=len(means), entropy=dict.fromkeys(sites, rows), stability={}, tokens={}, samples=1,
        held_out=0, compute_type="f32", seed=0,
        changes={key: tuple(values) for key, values in (changes or {}).items()},
    )  # fmt: skip


@pytest.fixture(scope="module")
def header_7b(tmp_path_factory) -> Path:
    path = write_text_gguf(tmp_path_factory.mktemp("7b") / "7b.gguf", QWEN_7B, hole=True)
    assert path.stat().st_blocks * 512 < 10**8, "this disk keeps no holes"
    return path


@pytest.mark.parametrize(
    ("low_type", "expected"),
    [
        ("IQ1_M", {0: 4.36, 8: 3.68, 12: 3.34, 16: 3.03, 17: 2.94, 20: 2.70, 28: 2.03}),
        ("Q2_K", {0: 4.36, 8: 3.87, 12: 3.63, 16: 3.41, 17: 3.34, 20: 3.17, 28: 2.70}),
    ],
)
def test_sizes_of_qwen_7b(header_7b: Path, low_type: str, expected: dict[int, float]):
    header = GGUFFile.open(header_7b)
    specs = tensor_specs(header, resolve_types(header_7b, "Q4_K_M", low_type))
    sizes = size_table(specs, header_bytes(header, "Q4_K_M", None), REPORTED_ORDER)
    assert {count: round(sizes[count] / GIB, 2) for count in expected} == expected


def test_types_of_qwen_7b_are_those_of_a_plain_run(header_7b: Path):
    """FACTS: attn_v and ffn_down are Q6_K in the first and last eighth and in every third layer between."""
    resolved = resolve_types(header_7b, "Q4_K_M", "IQ1_M")
    more_bits = {0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27}
    for layer in range(28):
        for name in WEIGHTS:
            wide = name in {"attn_v", "ffn_down"} and layer in more_bits
            assert resolved.high[f"blk.{layer}.{name}.weight"] == (Q.Q6_K if wide else Q.Q4_K), (layer, name)
            assert resolved.low[f"blk.{layer}.{name}.weight"] == Q.IQ1_M
        assert resolved.low[f"blk.{layer}.attn_q.bias"] == Q.F32
    assert (resolved.high["output.weight"], resolved.low["output.weight"]) == (Q.Q6_K, Q.IQ1_M)
    assert resolved.high_fallbacks == {}


def test_fallbacks_of_qwen_72b_are_shown_and_counted(tmp_path: Path):
    path = write_text_gguf(tmp_path / "72b.gguf", QWEN_72B, hole=True)
    header, resolved = GGUFFile.open(path), resolve_types(path, "Q4_K_M", "IQ1_M")
    specs = tensor_specs(header, resolved)
    order, base = choose_order(None, "depth", 80), header_bytes(header, "Q4_K_M", None)
    asked = inputs(high_fallbacks=resolved.high_fallbacks)
    plan = make_plan(specs, base, order, Budget(low_layers=2), asked)
    assert plan.fallbacks["blk.79.ffn_down.weight"] == plan.types["blk.79.ffn_down.weight"] == "IQ4_NL"
    assert {kind for name, kind in plan.fallbacks.items() if not name.startswith(("blk.78", "blk.79"))} <= {
        "Q5_0", "Q8_0",
    }  # fmt: skip
    assert len(plan.fallbacks) == 80
    with pytest.raises(
        RequestError,
        match=r"2 tensors cannot take IQ1_M, the first is blk\.78\.ffn_down\.weight \(it would be IQ4_NL\)",
    ):
        make_plan(specs, base, order, Budget(low_layers=2), asked, strict=True)


def test_orders_by_entropy():
    means = [3.0, 1.0, 2.0, 1.0]
    assert choose_order(scores(means), "entropy", 4) == (3, 1, 2, 0)
    assert choose_order(scores(means), "reverse", 4) == (0, 2, 3, 1)
    assert choose_order(scores(means, ("output_text",)), "entropy", 4) == (3, 1, 2, 0)
    assert choose_order(scores(means, ("input_multimodal",)), "entropy-input", 4) == (3, 1, 2, 0)


def test_orders_by_change_take_what_changes_least():
    """The mean over both kinds of tokens: layer 1 has the likeliest output, layer 2 the blocks that add least."""
    changes = {
        "cosine_multimodal": [0.5, 0.9, 0.7],
        "cosine_text": [0.5, 0.9, 0.9],
        "attention_text": [0.1, 0.2, 0.1],
        "ffn_text": [0.9, 0.3, 0.1],
    }
    known = scores([1.0, 2.0, 3.0], changes=changes)
    assert choose_order(known, "cosine", 3) == (1, 2, 0)
    assert choose_order(known, "change", 3) == (2, 1, 0)
    with pytest.raises(RequestError, match="do not give the order 'cosine'"):
        choose_order(scores([1.0, 2.0]), "cosine", 2)


@pytest.mark.parametrize("name", MEASURED)
def test_what_is_measured_is_no_order_of_the_scores(name: str):
    with pytest.raises(RequestError, match=f"the order '{name}' is measured; convert the model with it"):
        choose_order(scores([1.0, 2.0]), name, 2)


@given(st.dictionaries(st.sampled_from(["blk.0.attn_q.weight", "blk.2.ffn_up.weight", "blk.3.ffn_down.weight"]),
                       st.sampled_from([Q.Q2_K, Q.Q6_K, Q.IQ1_M])))  # fmt: skip
def test_a_mixed_plan_counts_every_byte(types: dict[str, Q]):
    specs = small_specs()
    plan = make_mixed_plan(specs, 1000, 4, types, inputs(order_name="mix"))
    high = {spec.name: spec.high for spec in specs}
    chosen = {name: Q[kind] for name, kind in plan.types.items()}
    assert chosen == high | types
    assert plan.size_bytes == 1000 + sum(spec.bytes_as(chosen[spec.name]) for spec in specs)
    assert plan.high_size_bytes == 1000 + sum(spec.bytes_as(spec.high) for spec in specs)
    smaller = {int(name.split(".")[1]) for name, kind in types.items() if kind != Q.Q6_K}
    assert smaller >= set(plan.low_layers)
    assert plan.low_type == MIXED


@given(st.sampled_from(sorted(set(ORDERS) - set(MEASURED))), st.integers(1, 60), st.integers(0, 9), st.data())
def test_an_order_is_a_permutation(name: str, layers: int, seed: int, data):
    means = data.draw(st.lists(st.floats(0, 7), min_size=layers, max_size=layers))
    changes = dict.fromkeys(("cosine_text", "attention_multimodal", "ffn_text"), means)
    rated = scores(means, ("output_multimodal", "input_text"), changes)
    order = choose_order(rated, name, layers, seed)
    assert sorted(order) == list(range(layers))
    assert order == choose_order(rated, name, layers, seed)
    if name in {"entropy", "entropy-input"}:
        assert [means[layer] for layer in order] == sorted(means)


@pytest.mark.parametrize(
    ("given_scores", "name", "layers", "message"),
    [
        (None, "entropy", 4, "no entropies"),
        (scores([1.0, 2.0]), "entropy-input", 2, "no entropies of the layers' input"),
        (scores([1.0, 2.0]), "entropy", 3, "scores are of 2 layers"),
        (None, "best", 4, "unknown order 'best'; known are entropy, entropy-input, depth, reverse, random"),
    ],
)
def test_bad_orders(given_scores, name: str, layers: int, message: str):
    with pytest.raises(RequestError, match=message):
        choose_order(given_scores, name, layers)


def test_random_orders_follow_the_seed():
    assert len({choose_order(None, "random", 28, seed) for seed in range(5)}) == 5


def test_default_budget_is_three_sevenths():
    plan = make_plan(small_specs(28), 1000, choose_order(None, "depth", 28), Budget(), inputs())
    assert plan.low_layers == tuple(range(16, 28))


def test_low_layers_get_the_low_type_in_all_seven_weights_and_nothing_else_changes():
    plan = make_plan(small_specs(), 1024, (2, 0, 1, 3), Budget(low_layers=2), inputs())
    assert plan.low_layers == (0, 2)
    lowered = {name for name, kind in plan.types.items() if kind == "IQ1_M"}
    assert lowered == {f"blk.{layer}.{name}.weight" for layer in (0, 2) for name in WEIGHTS}
    assert plan.types["blk.0.attn_norm.weight"] == "F32"
    row_bytes = {"IQ1_M": 56, "Q4_K": 144}
    weights = 14 * 128 * (row_bytes["IQ1_M"] + row_bytes["Q4_K"])
    assert plan.size_bytes == 1024 + 64 * 210 + weights + 4 * 1024
    assert plan.high_size_bytes == 1024 + 64 * 210 + 28 * 128 * 144 + 4 * 1024
    elements = 64 * 256 + 28 * 128 * 256 + 4 * 256
    assert plan.bits_per_weight == pytest.approx(8 * (plan.size_bytes - 1024) / elements)


BUDGETS = st.integers(0, 10**6)
TYPES = st.sampled_from([Q.IQ1_M, Q.Q2_K, Q.Q4_K, Q.Q6_K, Q.Q8_0])


@given(BUDGETS, TYPES, TYPES, st.permutations(range(5)))
def test_a_size_budget_is_kept_with_the_fewest_low_layers(limit: int, low: Q, high: Q, order: list[int]):
    specs = small_specs(5, low, high)
    sizes = size_table(specs, 320, order)
    budget = Budget(max_size=limit)
    if min(sizes) > limit:
        with pytest.raises(BudgetError) as caught:
            make_plan(specs, 320, order, budget, inputs(low_type=low.name))
        assert caught.value.nearest_bytes == min(sizes)
        assert f"{min(sizes):,}" in str(caught.value)
        assert f"{limit:,}" in str(caught.value)
        return
    plan = make_plan(specs, 320, order, budget, inputs(low_type=low.name))
    count = len(plan.low_layers)
    assert plan.size_bytes == sizes[count] <= limit
    assert all(size > limit for size in sizes[:count])
    assert set(plan.low_layers) == set(order[:count])
    assert ("within" in " ".join(plan.notes)) == (count == 0)


def test_a_budget_holds_to_the_byte():
    specs, order = small_specs(), (1, 3, 0, 2)
    sizes = size_table(specs, 320, order)
    for count, size in enumerate(sizes):
        assert len(make_plan(specs, 320, order, Budget(max_size=size), inputs()).low_layers) == count
    for count, size in enumerate(sizes[:-1]):
        assert len(make_plan(specs, 320, order, Budget(max_size=size - 1), inputs()).low_layers) == count + 1


@given(TYPES, TYPES, st.permutations(range(5)))
def test_the_table_of_sizes_agrees_with_each_plan(low: Q, high: Q, order: list[int]):
    specs = small_specs(5, low, high)
    sizes = size_table(specs, 320, order)
    plans = [make_plan(specs, 320, order, Budget(low_layers=n), inputs(low_type=low.name)) for n in range(6)]
    assert sizes == tuple(plan.size_bytes for plan in plans)
    for plan in plans:
        by_hand = sum(-(-type_size(Q[plan.types[spec.name]], spec.shape) // 32) * 32 for spec in specs)
        assert plan.size_bytes == 320 + by_hand
    if type_size(low, (256,)) < type_size(high, (256,)):
        assert list(sizes) == sorted(set(sizes), reverse=True)


@pytest.mark.parametrize(
    ("budget", "kind", "message"),
    [
        (Budget(low_layers=5), RequestError, "5 low layers asked for, the model has 4; give 0 to 4"),
        (Budget(low_layers=-1), RequestError, "-1 low layers"),
        (
            Budget(low_layers=1, max_size=300_000),
            BudgetError,
            r"with 1 low layers .* more than 300,000; 3 low layers fit",
        ),
        (Budget(low_layers=1, max_size=3), BudgetError, "the smallest file has"),
    ],
)
def test_budgets_that_cannot_be_met(budget: Budget, kind: type, message: str):
    with pytest.raises(kind, match=message) as caught:
        make_plan(small_specs(), 320, (3, 2, 1, 0), budget, inputs())
    assert caught.value.exit_code == 2


def test_an_order_of_another_model_is_refused():
    with pytest.raises(RequestError, match="the order names 3 layers, the model has 4"):
        make_plan(small_specs(), 320, (2, 1, 0), Budget(), inputs())


def test_a_type_for_trained_models_is_noted():
    plan = make_plan(small_specs(low=Q.TQ1_0), 320, (3, 2, 1, 0), Budget(), inputs(low_type="TQ1_0"))
    assert "TQ1_0 is for models trained for it" in plan.notes[0]


def test_type_file_hits_each_weight_and_no_other():
    plan = make_plan(small_specs(12), 320, tuple(range(12)), Budget(low_layers=3), inputs())
    rows = [line.split("=") for line in tensor_types_text(plan).split()]
    assert len(rows) == 12 * 7 + 1
    for name, kind in plan.types.items():
        hits = [found for pattern, found in rows if re.search(pattern, name)]
        assert hits == ([] if "norm" in name else [kind.lower()]), name
    assert all(pattern == pattern.lower() for pattern, _ in rows)


def test_tensors_are_ordered_as_llama_cpp_does():
    names = ["blk.10.ffn_up.weight", "token_embd.weight", "blk.2.attn_q.weight", "output.weight", "blk.2.attn_q.bias"]
    in_order = [
        "output.weight", "token_embd.weight", "blk.2.attn_q.bias", "blk.2.attn_q.weight", "blk.10.ffn_up.weight",
    ]  # fmt: skip
    assert tensor_order(names) == in_order
