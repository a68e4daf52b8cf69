"""Measures files of many plans of a model, made from the same parts: 0 to all layers low, by orders and low types.

Beside them llama.cpp's own presets with the same importance matrix. Each file is judged and thrown away; a sweep that
was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from luq_gguf.analysis import read_calibration
from luq_gguf.artifacts import Plan, write_record
from luq_gguf.choice import speed_rule
from luq_gguf.errors import RequestError
from luq_gguf.frontier import FRONTIER, Frontier, FrontierPoint
from luq_gguf.groundwork import Groundwork, prepare
from luq_gguf.imatrix import read_brought
from luq_gguf.job import Settings, open_job
from luq_gguf.judging import Quality
from luq_gguf.layout import Layout
from luq_gguf.planning import Budget, choose_order
from luq_gguf.progress import Progress, silent
from luq_gguf.speed_budget import AUTO, SpeedRule

PRESETS = ("Q4_K_M", "Q3_K_M", "IQ3_XXS", "Q2_K", "IQ2_M", "IQ2_XS", "IQ2_XXS", "IQ1_M")
STEPS = 8
"""About so many numbers of low layers where no step is asked for."""


@dataclass(frozen=True)
class SweepRequest:
    """What a sweep measures: for each order and low type every `step`-th number of low layers, and the presets."""

    orders: tuple[str, ...] = ("entropy",)
    low_types: tuple[str, ...] = ("IQ1_M",)
    presets: tuple[str, ...] = PRESETS
    step: int | None = None

    def counts(self, layers: int) -> list[int]:
        """Numbers of low layers, all of them the last."""
        step = self.step or max(1, round(layers / STEPS))
        return [*range(step, layers, step), layers]


def sweep(model: str, out: Path, settings: Settings, request: SweepRequest, progress: Progress = silent) -> Frontier:
    """Measure every plan of a request; `frontier.json` in `out` holds what was measured so far.

    Raises RequestError where no sample with an answer was held out, or the settings ask for something that is chosen
    by measuring.
    """
    if AUTO in {kind.lower() for kind in request.low_types} or settings.by_speed:
        raise RequestError("a sweep measures the low types that it is given", hint="name them: --low-type IQ1_M,Q2_K")
    job = open_job(model, out, settings, progress)
    calibration, rule = read_calibration(settings, progress), speed_rule(settings)
    brought = read_brought(settings.imatrix)
    with job.working(), prepare(job, calibration, brought) as ground:
        trials = ground.open_trials()
        if trials is None:
            raise RequestError("no sample was held out to judge by", hint="calibrate with samples that have answers")
        plans = list(_plans(ground, settings, request))
        frontier = Frontier(
            model=job.name,
            checkpoint=job.checkpoint.digest,
            cpu=rule.profile.cpu if rule else None,
            threads=rule.threads if rule else None,
        )
        for done, (layout, plan) in enumerate(plans):
            progress("sweep", done, len(plans))
            point = _point(layout, plan, rule, trials.quality(plan))
            frontier = frontier.model_copy(update={"points": (*frontier.points, point)})
            write_record(out / FRONTIER, frontier)
        progress("sweep", len(plans), len(plans))
    return frontier


def _plans(ground: Groundwork, settings: Settings, request: SweepRequest) -> Iterator[tuple[Layout, Plan]]:
    """Every plan once: the presets, the high type alone, then by order, low type and number of low layers."""
    scores = ground.analysis.scores
    seen = set[str]()
    for preset in dict.fromkeys([settings.high_type.upper(), *(preset.upper() for preset in request.presets)]):
        layout = ground.lay_out(replace(settings, high_type=preset))
        order = choose_order(None, "depth", scores.layers)
        yield layout, layout.plan(order, "", Budget(0), strict=settings.strict)
    for low_type in request.low_types:
        layout = ground.lay_out(replace(settings, low_type=low_type.upper()))
        for order_name in request.orders:
            order = choose_order(scores, order_name, scores.layers, settings.seed)
            for count in request.counts(scores.layers):
                plan = layout.plan(order, order_name, Budget(count), strict=settings.strict)
                if str(plan.types) not in seen:
                    seen.add(str(plan.types))
                    yield layout, plan


def _point(layout: Layout, plan: Plan, rule: SpeedRule | None, quality: Quality) -> FrontierPoint:
    return FrontierPoint(
        preset=not plan.low_layers,
        order_name=plan.order_name,
        low_type=plan.low_type,
        high_type=plan.high_type,
        low_layers=plan.low_layers,
        layers=plan.layers,
        size_bytes=plan.size_bytes,
        bits_per_weight=plan.bits_per_weight,
        predicted_tps=rule.forecast(layout.specs, plan).plan.generate if rule else None,
        quality=quality,
    )
