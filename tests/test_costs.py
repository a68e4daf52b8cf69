"""What a conversion takes: closed forms, published shapes, and a real conversion of a pico model."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from luq_gguf import activations, cost_factors, costs, durations, entropy, probing, quality, reference, runtime
from luq_gguf.analysis import read_calibration
from luq_gguf.artifacts import MODALITIES
from luq_gguf.bundle import bundle, bundle_size
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.costs import Chosen, Costs, Load, Shape, estimate_costs
from luq_gguf.durations import Rates, estimate_seconds
from luq_gguf.families import find_family
from luq_gguf.families.decoder_modules import HEAD_ROWS
from luq_gguf.job import open_job
from luq_gguf.layout import lay_out, layout_of_config, write_header
from luq_gguf.pipeline import Settings, convert
from luq_gguf.progress import silent
from luq_gguf.prompts import Prompts, tokenize_calibration
from luq_gguf.resources import estimate
from luq_gguf.workload import expected_plan, load_of, shape_of
from tests.published import PUBLISHED

GIB, MIB = 1 << 30, 1 << 20
BUFFER = 1 << 29
SHAPE = Shape(
    hidden=512, ffn=2048, query=512, kv=128, rotary=128, layers=8, vocabulary=4096, layer_weights=4_000_000,
    largest=1_048_576, outside=2_097_152,
)  # fmt: skip
CHOSEN = Chosen(
    compute=4, text=40 * MIB, high=50 * MIB, low=20 * MIB, step=16 * MIB, header=MIB, tensors=100,
    types={"Q4_K": 30_000_000, "IQ1_M": 5_000_000, "F32": 1000},
)  # fmt: skip
RATES = Rates(products=1e10, single=5e9, disk=1e8, quantized={"Q4_K": 1e7, "IQ1_M": 1e6}, threads=2)


def costs_with(load: Load, shape: Shape = SHAPE, chosen: Chosen = CHOSEN) -> Costs:
    return estimate_costs(shape, load, chosen, BUFFER, 2)


def even_load(samples: int, length: int = 100) -> Load:
    return Load((length,) * samples, (), judged=(length,), answers=5)


def test_the_numbers_taken_from_other_modules_are_theirs() -> None:
    """`costs` imports nothing heavy, so it repeats them."""
    assert cost_factors.BATCH_TOKENS == activations.BATCH_TOKENS
    assert cost_factors.GROUP_TOKENS == activations.GROUP_TOKENS
    assert cost_factors.HEAD_ROWS == HEAD_ROWS
    assert (cost_factors.HEAD_PLACES, cost_factors.REFERENCE_TOP) == (reference.PLACES, reference.TOP)
    assert (cost_factors.VECTORS, cost_factors.CLUSTERS) == (entropy.MAX_VECTORS, entropy.CLUSTERS)
    assert len(entropy.SEEDS) == cost_factors.SEEDS
    assert len(MODALITIES) == cost_factors.MODALITY_COUNT
    assert judging_context() == cost_factors.JUDGE_CONTEXT
    assert runtime.BATCH_TOKENS >= cost_factors.JUDGE_BATCH
    assert (cost_factors.BRIEF_TOKENS, cost_factors.BRIEF_WEIGHTS) == (probing.TOKENS, probing.TOKENS_BY_WEIGHTS)


def judging_context() -> int:
    return quality.MAX_TOKENS + quality.HEADROOM


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=60))
def test_batches_hold_every_sample_and_no_more_than_fits(lengths: list[int]) -> None:
    load = Load(tuple(lengths), ())
    assert sum(count for count, _ in load.batches) == len(lengths)
    assert all(count == 1 or count * length <= cost_factors.BATCH_TOKENS for count, length in load.batches)
    assert sum(lengths) <= load.tokens
    assert load.batch == max(count * length for count, length in load.batches)


@given(st.lists(st.integers(1, 1500), min_size=1, max_size=40))
def test_a_group_of_pictures_is_never_larger_than_is_said(tokens: list[int]) -> None:
    pictures = {str(number): SimpleNamespace(grid=(1, count)) for number, count in enumerate(tokens)}
    groups = activations.group_pictures(pictures)
    assert max(sum(pictures[key].grid[1] for key in group) for group in groups) <= Load((), tuple(tokens)).group
    assert Load((), ()).group == 0


@given(st.integers(1, 50), st.integers(1, 20))
@hypothesis_settings(deadline=None)
def test_what_lies_on_the_disk_grows_with_the_tokens(samples: int, times: int) -> None:
    one, more = (costs_with(even_load(40 * count)).disk for count in (samples, samples * times))
    fixed = costs_with(Load((), (), answers=5)).disk.analyzing
    assert (more.analyzing - fixed) == times * (one.analyzing - fixed)
    assert one.analyzing - fixed == 2 * 4 * SHAPE.hidden * 40 * 100 * samples
    assert one.final == more.final


@given(st.integers(1, 80), st.integers(2, 6))
def test_records_and_time_grow_with_the_layers_and_memory_hardly(layers: int, times: int) -> None:
    load = even_load(100)
    few, many = (replace(SHAPE, layers=count) for count in (layers, layers * times))
    seconds = [durations.layers_seconds(shape, replace(load, answers=0), CHOSEN, RATES) for shape in (few, many)]
    assert seconds[1] == pytest.approx(times * seconds[0])
    before, after = (costs_with(load, shape).of(costs.LAYERS) for shape in (few, many))
    assert before is not None
    assert after is not None
    assert after.memory_bytes - before.memory_bytes == costs.sums_bytes(many) - costs.sums_bytes(few)


@pytest.mark.parametrize("name", ["memory", "seconds"])
def test_more_of_anything_never_takes_less(name: str) -> None:
    load = Load((300, 400, 500), (), judged=(300,), answers=10)
    shapes = [
        replace(SHAPE, **{field: 2 * getattr(SHAPE, field)}) for field in ("hidden", "layer_weights", "vocabulary")
    ]
    loads = [Load((300, 400, 500, 600), (), judged=(300, 500), answers=10)]
    changed = [(shape, load) for shape in shapes] + [(SHAPE, other) for other in loads]

    def figures(shape: Shape, given: Load) -> dict[str, float]:
        if name == "memory":
            return {stage.name: stage.memory_bytes for stage in costs_with(given, shape).stages}
        return estimate_seconds(shape, given, CHOSEN, RATES)

    before = figures(SHAPE, load)
    for shape, given_load in changed:
        after = figures(shape, given_load)
        assert all(after[stage] >= value for stage, value in before.items())
        assert after != before


def test_half_the_bytes_a_number_halves_layer_and_states() -> None:
    load = even_load(100)
    whole, half = (costs_with(load, chosen=replace(CHOSEN, compute=compute)) for compute in (4, 2))
    states = 2 * SHAPE.hidden * load.tokens * 2
    assert whole.disk.analyzing - half.disk.analyzing == states
    assert whole.of(costs.LAYERS).memory_bytes - half.of(costs.LAYERS).memory_bytes >= 2 * SHAPE.layer_weights


PARTS = [
    ({}, 40), ({"keeps": False}, 0), ({"keeps": False, "sequential": True}, 40), ({"tries": 5}, 50 + 20 + 50),
    ({"tries": 5, "mixes": True}, 50 + 20 + 40 + 50),
]  # fmt: skip


@pytest.mark.parametrize(("change", "wanted"), PARTS)
def test_parts_lie_where_they_are_kept_or_others_want_them(change: dict[str, int], wanted: int) -> None:
    assert costs.parts_bytes(replace(CHOSEN, **change)) == wanted * MIB


def test_stages_that_have_nothing_to_do_are_left_out() -> None:
    full = replace(CHOSEN, mmproj=MIB, bundle=41 * MIB, tries=3, sequential=True)
    tower = costs.Tower(10_000, 2, 4000, 2000, 64, 96, 4, 1176, 1, 16)
    load = Load((100,), (64,), judged=(100,), judged_pictures=(64,), answers=5)
    names = [stage.name for stage in costs_with(load, replace(SHAPE, tower=tower), full).stages]
    every = ["pictures", "layers", "mmproj", "measure plans", "refine", "quantize", "assemble", "judge", "bundle"]
    assert names == every
    assert set(names) == estimate_seconds(replace(SHAPE, tower=tower), load, full, RATES).keys()
    again = replace(CHOSEN, analyzed=True, evaluates=False)
    assert [stage.name for stage in costs_with(load, chosen=again).stages] == ["quantize", "assemble"]


def test_both_folders_together_never_hold_more_than_the_sum() -> None:
    disk = costs_with(even_load(1000), chosen=replace(CHOSEN, mmproj=8 * MIB)).disk
    assert max(disk.final, disk.scratch) <= disk.together <= disk.final + disk.scratch
    assert disk.final == disk.text + disk.mmproj + disk.bundle + disk.records


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_shape_is_counted_whole(name: str) -> None:
    config, text, vision = PUBLISHED[name]
    family = find_family(config)
    shape = shape_of(family)
    tables = shape.vocabulary * shape.hidden * (1 if family.tied_embeddings else 2)
    assert 0 <= text - shape.layers * shape.layer_weights - tables <= 16384
    assert shape.outside == shape.vocabulary * shape.hidden
    assert shape.tower is not None
    assert shape.tower.weights == pytest.approx(vision, rel=0.1)
    assert (
        shape.tower.around < shape.tower.weights <= shape.tower.around + shape.tower.blocks * shape.tower.block_weights
    )


def test_the_file_of_a_seven_billion_shape_is_exact(tmp_path: Path) -> None:
    """12 of 28 layers low, the last first: the size that `plan` gives, which is the file's."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["Qwen2.5-VL-7B"][0]))
    settings = Settings(order="depth")
    family, layout, _ = layout_of_config(tmp_path, settings, "general")
    plan = expected_plan(layout, settings, family.layers)
    assert (len(plan.low_layers), round(plan.size_bytes / GIB, 2)) == (12, 3.34)
    assert plan.size_bytes == layout.sizes(tuple(reversed(range(28))))[12]
    largest = expected_plan(layout, Settings(max_drop=0.1), family.layers)
    assert largest.size_bytes == max(layout.sizes(tuple(reversed(range(28)))))
    within = expected_plan(layout, Settings(max_drop=0.1, max_size=3 * GIB), family.layers)
    assert within.size_bytes <= 3 * GIB


def test_memory_of_a_seven_billion_shape_follows_the_layer_not_the_model() -> None:
    shape = shape_of(find_family(PUBLISHED["Qwen2.5-VL-7B"][0]))
    load = Load((700,) * 150, (500,) * 150, judged=(700,), judged_pictures=(500,), answers=100)
    chosen = replace(CHOSEN, text=int(3.34 * GIB), copied=int(2.2 * GIB), mmproj=int(1.26 * GIB))
    found = costs_with(load, shape, chosen)
    layer = 4 * shape.layer_weights
    assert layer < found.of(costs.LAYERS).memory_bytes < 6 * layer
    base = costs.base_memory(shape, chosen)
    assert base < GIB
    around = base + costs.features_bytes(shape, load, chosen)
    assert found.of(costs.PICTURES).memory_bytes < around + 2 * shape.tower.weights
    assert found.of(costs.QUANTIZE).memory_bytes == base + cost_factors.KEPT_BYTES + 2 * BUFFER
    assert 0 < found.of(costs.JUDGE).memory_bytes - chosen.copied - chosen.mmproj < 2 * GIB


class HighWater:
    """The most bytes that files below a folder had at once, looked at over and over by a thread."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.most, self._done = folder, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def look(self, *_: object) -> None:
        size = 0
        for folder, _, names in os.walk(self.folder):  # which minds no folder that goes while it looks
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    size += (Path(folder) / name).stat().st_blocks * 512  # the header's hole takes nothing
        self.most = max(self.most, size)

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.look()


def prompts_of(checkpoint: Path, settings: Settings) -> Prompts:
    opened = Checkpoint.open(checkpoint)
    family = find_family(opened.config, opened)
    return tokenize_calibration(opened, family, read_calibration(settings, silent), settings.image_max_tokens)


CONVERSIONS = [{"bundle": True}, {"keep_parts": False, "mmproj_type": "f32", "high_type": "Q8_0"}]


@pytest.mark.parametrize("change", CONVERSIONS, ids=str)
def test_a_real_conversion_takes_what_was_said(pico_checkpoint: Path, tmp_path: Path, change: dict) -> None:
    base = Settings(calib="shapes", low_type="Q2_K", samples=60, threads=1, order="depth", low_layers=1)
    settings, out, work = replace(base, **change), tmp_path / "out", tmp_path / "work"
    job = open_job(str(pico_checkpoint), out, replace(settings, work=work), silent)
    layout = lay_out(job.checkpoint.digest, write_header(job, tmp_path), settings, "shapes")
    expected = estimate(job, layout, prompts_of(pico_checkpoint, settings)).disk
    with HighWater(work) as water:
        made = convert(str(pico_checkpoint), out, replace(settings, work=work), water.look)
    assert made.model.stat().st_size == expected.text
    assert made.mmproj is not None
    assert made.mmproj.stat().st_size == expected.mmproj
    assert (made.bundle.stat().st_size if made.bundle else 0) == expected.bundle
    final = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    assert final <= expected.final <= 1.1 * final + 2 * cost_factors.RECORD_BYTES
    assert water.most / 2 <= expected.scratch <= 2 * water.most
    assert settings.keep_parts is False or water.most <= expected.scratch


def test_a_bundle_has_the_size_that_is_said(converted, tmp_path: Path) -> None:
    result = json.loads(converted.stdout)
    model, mmproj = Path(result["model"]), Path(result["mmproj"])
    bundle(model, mmproj, tmp_path / "bundle.gguf")
    assert (tmp_path / "bundle.gguf").stat().st_size == bundle_size(model.stat().st_size, mmproj.stat().st_size)


def test_the_batches_are_those_of_the_analysis(pico_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their tokens, and the distinct pictures, as the pass itself makes them."""
    settings = Settings(calib="shapes", samples=40)
    seen: list[tuple[int, int]] = []
    features: list[int] = []
    run_layer = activations._Pass._run_layer

    def spy(self, index, module, batches, *arguments, **options):
        if index == 0:
            seen.extend(tuple(batch.states.shape[:2]) for batch in batches)
        return run_layer(self, index, module, batches, *arguments, **options)

    finite = activations._Pass._require_finite
    monkeypatch.setattr(activations._Pass, "_run_layer", spy)
    monkeypatch.setattr(
        activations._Pass, "_require_finite",
        lambda self, rows, names: (features.extend(len(row) for row in rows), finite(self, rows, names)),
    )  # fmt: skip
    opened = Checkpoint.open(pico_checkpoint)
    family = find_family(opened.config, opened)
    activations.analyze(opened, family, read_calibration(settings, silent), compute_type="f32")
    load = load_of(prompts_of(pico_checkpoint, settings))
    assert list(load.batches) == seen
    assert sorted(load.pictures) == sorted(features)
