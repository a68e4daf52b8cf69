"""The plan that the settings ask for, speed included: which low type, how many low layers, and how fast it will be.

Takes scores, what makes a layout for a low type, and a CPU's profile where one is known or needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from luq_gguf.artifacts import LayerScores, Plan, read_record
from luq_gguf.errors import ArtifactError, RequestError
from luq_gguf.job import SCORES, Settings
from luq_gguf.layout import Layout, kept_layout
from luq_gguf.plan import Budget, choose_order
from luq_gguf.processors import cpu_name, default_threads
from luq_gguf.profile import keep_profile, load_profile, measure_profile
from luq_gguf.progress import Progress, silent
from luq_gguf.speed import Profile
from luq_gguf.speed_budget import AUTO, AUTO_TYPES, Forecast, SpeedRule, cheapest_not_slower, gentlest_fast_enough

LayOut = Callable[[Settings], Layout]


@dataclass(frozen=True)
class Choice:
    """A plan with its layout; `settings` name it without speeds, `forecast` is there where the CPU was profiled."""

    layout: Layout
    plan: Plan
    settings: Settings
    forecast: Forecast | None


def speed_rule(settings: Settings, progress: Progress = silent) -> SpeedRule | None:
    """The rule by which speeds are predicted: None without a profile, which is measured where a plan depends on it.

    Raises RequestError where the profile has not the threads that were asked for.
    """
    profile = load_profile(settings.profile)
    if profile is None:
        if not settings.by_speed:
            return None
        profile = measure_profile(progress=progress)
        keep_profile(profile)
    threads = settings.threads or min(default_threads(), max(profile.threads))
    if threads not in profile.threads:
        if not settings.by_speed:
            return None
        known = ", ".join(map(str, profile.threads))
        raise RequestError(f"the profile of {profile.cpu} has no {threads} threads", hint=f"it has {known}")
    elsewhere = profile.cpu != cpu_name()
    return SpeedRule(profile, threads, settings.min_tps, elsewhere, doubt_profile(profile))


def doubt_profile(profile: Profile) -> str | None:
    """In what a profile differs from this machine: CPU and version of llama-cpp-python; or that it was busy."""
    import llama_cpp

    doubts = []
    if profile.cpu != cpu_name():
        doubts.append(f"the profile is of {profile.cpu}, this is {cpu_name()}: nothing is measured here")
    if profile.llama_cpp != llama_cpp.__version__:
        doubts.append(f"it was measured with llama-cpp-python {profile.llama_cpp}, this is {llama_cpp.__version__}")
    if profile.busy:
        doubts.append("other programs ran while it was measured")
    return "; ".join(doubts) or None


def choose_plan(settings: Settings, scores: LayerScores, lay_out: LayOut, rule: SpeedRule | None) -> Choice:
    """The plan of a model; raises BudgetError where no plan keeps every budget."""
    if settings.min_tps is not None and rule is not None:
        return _by_speed(settings, scores, lay_out, rule)
    if settings.low_type.lower() == AUTO and rule is not None:
        return _automatic(settings, scores, lay_out, rule)
    layout = lay_out(settings)
    plan = layout.plan_for(settings, scores)
    return Choice(layout, plan, settings, rule.forecast(layout.specs, plan) if rule else None)


def _types(settings: Settings) -> tuple[str, ...]:
    return AUTO_TYPES if settings.low_type.lower() == AUTO else (settings.low_type.upper(),)


def _automatic(settings: Settings, scores: LayerScores, lay_out: LayOut, rule: SpeedRule) -> Choice:
    """The smallest type that does not slow generation down, at the number of low layers that the budget gives."""
    decided = {kind: replace(settings, low_type=kind) for kind in _types(settings)}
    layouts = {kind: lay_out(each) for kind, each in decided.items()}
    made = {kind: (layouts[kind].specs, layouts[kind].plan_for(each, scores)) for kind, each in decided.items()}
    kind, forecast = cheapest_not_slower(made, rule)
    return Choice(layouts[kind], made[kind][1], decided[kind], forecast)


def _by_speed(settings: Settings, scores: LayerScores, lay_out: LayOut, rule: SpeedRule) -> Choice:
    """The gentlest plan that is fast enough."""
    order = choose_order(scores, settings.order, scores.layers, settings.seed)
    decided = {kind: replace(settings, low_type=kind, min_tps=None) for kind in reversed(_types(settings))}
    layouts = {kind: lay_out(each) for kind, each in decided.items()}

    def plan_of(kind: str) -> Callable[[int], Plan]:
        def make(count: int) -> Plan:
            budget = Budget(count, settings.max_size)
            return layouts[kind].plan(order, settings.order, budget, strict=settings.strict)

        return make

    makers = {kind: (layout.specs, plan_of(kind)) for kind, layout in layouts.items()}
    counts = range(scores.layers + 1) if settings.low_layers is None else (settings.low_layers,)
    kind, plan, forecast = gentlest_fast_enough(makers, counts, rule)
    chosen = replace(decided[kind], low_layers=len(plan.low_layers))
    return Choice(layouts[kind], plan, chosen, forecast)


def plan_again(folder: Path, settings: Settings, rule: SpeedRule | None = None) -> Choice:
    """The plan of an analyzed model by other settings, from what stands in its folder."""
    scores = read_record(folder / SCORES, LayerScores)

    def lay_out(chosen: Settings) -> Layout:
        model, layout = kept_layout(folder, chosen)
        if (model.checkpoint, model.layers) != (scores.checkpoint, scores.layers):
            raise ArtifactError(
                f"{folder / SCORES} is of another model than the rest of {folder}",
                path=folder / SCORES,
                hint="analyze the model again",
            )
        return layout

    return choose_plan(settings, scores, lay_out, rule)
