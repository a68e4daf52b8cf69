"""The plan that the settings ask for, speed included: which low type, how many low layers, and how fast it will be.

Takes scores, what makes a layout for a low type, and a CPU's profile where one is known or needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from luq_gguf.artifacts import LayerScores, Plan, read_record
from luq_gguf.errors import ArtifactError, BudgetError, RequestError
from luq_gguf.evidence import EVIDENCE, Evidence
from luq_gguf.job import SCORES, Settings
from luq_gguf.layout import Layout, kept_layout
from luq_gguf.mixing import MIX_TYPES, Mixer
from luq_gguf.planning import DAMAGE, MEASURED, MIX, Budget, choose_order
from luq_gguf.processors import cpu_name, default_threads
from luq_gguf.profile import keep_profile, load_profile, measure_profile
from luq_gguf.progress import Progress, silent
from luq_gguf.quality_budget import smallest_within
from luq_gguf.speed import Profile
from luq_gguf.speed_budget import AUTO, AUTO_TYPES, Forecast, SpeedRule, cheapest_not_slower, gentlest_fast_enough

Drop = Callable[[Plan], float]
"""Measures in which share of answer tokens a plan's file differs from the 16-bit model."""
LayOut = Callable[[Settings], Layout]
DEFAULT_LOW = "IQ1_M"


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


def choose_plan(
    settings: Settings,
    scores: LayerScores,
    lay_out: LayOut,
    rule: SpeedRule | None = None,
    *,
    evidence: Evidence | None = None,
    drop: Drop | None = None,
) -> Choice:
    """The plan of a model; raises BudgetError where no plan keeps every budget.

    `evidence` is what an order by damage and a mixture are made from, `drop` measures a plan where that is limited.
    """
    return _Chooser(settings, scores, lay_out, rule, evidence, drop).choose()


@dataclass(frozen=True)
class _Chooser:
    settings: Settings
    scores: LayerScores
    lay_out: LayOut
    rule: SpeedRule | None
    evidence: Evidence | None
    drop: Drop | None

    def choose(self) -> Choice:
        settings = self.settings
        if settings.order == MIX:
            return self._mixed()
        if settings.max_drop is not None:
            return self._by_quality()
        if settings.min_tps is not None and self.rule is not None:
            return self._by_speed(self.rule)
        if settings.low_type.lower() == AUTO and self.rule is not None:
            return self._automatic(self.rule)
        layout = self.lay_out(settings)
        return self._choice(layout, self._plan_for(layout, settings), settings)

    def _order(self) -> tuple[int, ...]:
        settings = self.settings
        if settings.order == DAMAGE and self.evidence is not None and self.evidence.damage_order:
            return self.evidence.damage_order
        return choose_order(self.scores, settings.order, self.scores.layers, settings.seed)

    def _plan_for(self, layout: Layout, settings: Settings) -> Plan:
        return layout.plan(self._order(), settings.order, settings.budget, strict=settings.strict)

    def _choice(self, layout: Layout, plan: Plan, settings: Settings) -> Choice:
        return Choice(layout, plan, settings, self.rule.forecast(layout.specs, plan) if self.rule else None)

    def _types(self) -> tuple[str, ...]:
        low_type = self.settings.low_type
        return AUTO_TYPES if low_type.lower() == AUTO else (low_type.upper(),)

    def _automatic(self, rule: SpeedRule) -> Choice:
        """The smallest type that does not slow generation down, at the number of low layers that the budget gives."""
        decided = {kind: replace(self.settings, low_type=kind) for kind in self._types()}
        layouts = {kind: self.lay_out(each) for kind, each in decided.items()}
        made = {kind: (layouts[kind].specs, self._plan_for(layouts[kind], each)) for kind, each in decided.items()}
        kind, forecast = cheapest_not_slower(made, rule)
        return Choice(layouts[kind], made[kind][1], decided[kind], forecast)

    def _by_speed(self, rule: SpeedRule) -> Choice:
        """The gentlest plan that is fast enough."""
        settings, order = self.settings, self._order()
        decided = {kind: replace(settings, low_type=kind, min_tps=None) for kind in reversed(self._types())}
        layouts = {kind: self.lay_out(each) for kind, each in decided.items()}

        def plan_of(kind: str) -> Callable[[int], Plan]:
            def make(count: int) -> Plan:
                budget = Budget(count, settings.max_size)
                return layouts[kind].plan(order, settings.order, budget, strict=settings.strict)

            return make

        makers = {kind: (layout.specs, plan_of(kind)) for kind, layout in layouts.items()}
        kind, plan, forecast = gentlest_fast_enough(makers, self._counts(), rule)
        chosen = replace(decided[kind], low_layers=len(plan.low_layers))
        return Choice(layouts[kind], plan, chosen, forecast)

    def _counts(self) -> Sequence[int]:
        named = self.settings.low_layers
        return range(self.scores.layers + 1) if named is None else (named,)

    def _by_quality(self) -> Choice:
        """The smallest file whose measured drop stays within the limit, of the plans that keep the other budgets."""
        free = replace(self.settings, max_drop=None, max_size=None, min_tps=None)
        automatic = self.settings.low_type.lower() == AUTO and self.rule is not None
        decided = replace(self, settings=free).choose().settings if automatic else free
        layout, order = self.lay_out(decided), self._order()
        plans = [
            layout.plan(order, decided.order, Budget(count), strict=decided.strict) for count in self._counts()
        ]  # fmt: skip
        plan = self._smallest(layout, plans)
        return self._choice(layout, plan, replace(decided, low_layers=len(plan.low_layers)))

    def _smallest(self, layout: Layout, plans: Sequence[Plan]) -> Plan:
        """Of plans that keep the other budgets the smallest within the drop, or without a limit the largest."""
        settings = self.settings
        fitting = [plan for plan in plans if settings.max_size is None or plan.size_bytes <= settings.max_size]
        fast = [plan for plan in fitting if self.rule is None or self.rule.allows(layout.specs, plan)]
        if not fast:
            smallest = min(plans, key=lambda plan: plan.size_bytes)
            raise BudgetError(
                "no plan keeps every budget",
                nearest_bytes=smallest.size_bytes,
                hint=f"the smallest file has {smallest.size_bytes:,} bytes; raise --max-size or lower --min-tps",
            )
        ordered = sorted(fast, key=lambda plan: -plan.size_bytes)
        if settings.max_drop is None:
            return ordered[0]
        if self.drop is None:
            raise RequestError("a plan by quality is measured", hint="give --max-drop to `luq-gguf convert`")
        return smallest_within(ordered, self.drop, settings.max_drop)

    def _mixed(self) -> Choice:
        """A type for every group of tensors, in as many bytes as are allowed or as the plan by entropy has."""
        if self.evidence is None or not self.evidence.coefficients:
            raise RequestError("a mixture needs measured damages", hint="give --order mix to `luq-gguf convert`")
        settings = self.settings
        layouts = {kind: self.lay_out(replace(settings, low_type=kind)) for kind in MIX_TYPES}
        mixer = Mixer(layouts, self.scores, self.evidence)
        if settings.max_drop is None and settings.min_tps is None:
            plan = mixer.plan(settings.max_size or self._bytes_by_entropy())
        else:
            plan = self._smallest(mixer.layout, [mixer.plan(size) for size in mixer.sizes()])
        return self._choice(
            mixer.layout, plan, replace(settings, min_tps=None, max_drop=None, max_size=plan.size_bytes)
        )

    def _bytes_by_entropy(self) -> int:
        """The bytes that the paper's method takes for the same settings."""
        kind = DEFAULT_LOW if self.settings.low_type.lower() == AUTO else self.settings.low_type
        plain = replace(self.settings, order="entropy", low_type=kind, min_tps=None, max_drop=None)
        return replace(self, settings=plain, evidence=None).choose().plan.size_bytes


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

    evidence = _kept_evidence(folder / EVIDENCE, scores) if settings.order in MEASURED else None
    return choose_plan(settings, scores, lay_out, rule, evidence=evidence)


def _kept_evidence(path: Path, scores: LayerScores) -> Evidence | None:
    """What a conversion measured to plan by; raises ArtifactError where it is of another model than the scores."""
    if not path.is_file():
        return None
    evidence = read_record(path, Evidence)
    layers = len(evidence.factors) or scores.layers
    if (evidence.checkpoint, layers) != (scores.checkpoint, scores.layers):
        raise ArtifactError(f"{path} is of another model than {SCORES}", path=path, hint="convert the model again")
    return evidence
