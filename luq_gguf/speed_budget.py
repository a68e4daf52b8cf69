"""Plans by speed: how fast a plan will be beside the high type alone, and which plan reaches a speed.

Pure: takes layouts' tensors and plans, a profile and a number of threads. The gentlest plan that keeps every budget is
the one with the fewest low layers, then with the low type of the most bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from luq_gguf.artifacts import Plan
from luq_gguf.errors import BudgetError, RequestError
from luq_gguf.planning import TensorSpec
from luq_gguf.speed import Profile, Speed, predict, tensors_of

AUTO = "auto"
AUTO_TYPES = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "Q3_K")
"""What `--low-type auto` chooses from, by rising bits a weight."""
LONG_CONTEXT = 4096


@dataclass(frozen=True)
class Forecast:
    """Tokens a second that a plan and the high type alone are predicted to reach on a CPU.

    `long` is the plan's speed after a context of `long_context` tokens, `full` that of the 16-bit file where the
    profile has its types, `doubt` what else than the plan may matter.
    """

    cpu: str
    threads: int
    plan: Speed
    high: Speed
    long: Speed
    long_context: int = LONG_CONTEXT
    doubt: str | None = None
    full: Speed | None = None

    @property
    def slower(self) -> bool:
        """Whether generation is slower than that of the high type alone."""
        return self.plan.generate < self.high.generate

    @property
    def ratio(self) -> float:
        """Generation against the high type alone."""
        return self.plan.generate / self.high.generate


@dataclass(frozen=True)
class SpeedRule:
    """A CPU's profile, how many threads will run, and the tokens a second that are to be reached, if any.

    `elsewhere` says that it is another CPU than this one, so that nothing measured here tells of it; `doubt` is what
    makes the profile doubtful here.
    """

    profile: Profile
    threads: int
    least: float | None = None
    elsewhere: bool = False
    doubt: str | None = None

    def forecast(self, specs: Sequence[TensorSpec], plan: Plan) -> Forecast:
        """What a plan of these tensors is predicted to reach."""
        high = {spec.name: spec.high.name for spec in specs}
        planned, alone = tensors_of(specs, plan.types), tensors_of(specs, high)
        return Forecast(
            self.profile.cpu,
            self.threads,
            plan=predict(planned, self.profile, self.threads),
            high=predict(alone, self.profile, self.threads),
            long=predict(planned, self.profile, self.threads, LONG_CONTEXT),
            doubt=self.doubt,
            full=self._full(specs),
        )

    def _full(self, specs: Sequence[TensorSpec]) -> Speed | None:
        tensors = tensors_of(specs, {spec.name: spec.source.name for spec in specs})
        known = all(tensor.kind in self.profile.rates for tensor in tensors)
        return predict(tensors, self.profile, self.threads) if known else None

    def allows(self, specs: Sequence[TensorSpec], plan: Plan) -> bool:
        """Whether a plan is predicted to reach the speed, where one is to be reached."""
        return self.least is None or self.forecast(specs, plan).plan.generate >= self.least


PlanOf = Callable[[int], Plan]
"""The plan with so many low layers; raises BudgetError where that keeps no other budget."""


def cheapest_not_slower(
    plans: Mapping[str, tuple[Sequence[TensorSpec], Plan]], rule: SpeedRule
) -> tuple[str, Forecast]:
    """The low type with the fewest bytes that does not slow generation down, of plans by low type.

    Where all do, the one that does least: the forecast then says that it is slower.
    """
    found = [(kind, plan, rule.forecast(specs, plan)) for kind, (specs, plan) in plans.items()]
    if not found:
        raise RequestError("there is no low type to choose from")
    fit = [entry for entry in found if not entry[2].slower]
    if fit:
        kind, _, forecast = min(fit, key=lambda entry: entry[1].size_bytes)
    else:
        kind, _, forecast = max(found, key=lambda entry: entry[2].plan.generate)
    return kind, forecast


def gentlest_fast_enough(
    makers: Mapping[str, tuple[Sequence[TensorSpec], PlanOf]], counts: Iterable[int], rule: SpeedRule
) -> tuple[str, Plan, Forecast]:
    """The plan with the fewest low layers, and of these with the gentlest low type, that reaches the speed.

    `makers` has the low types, gentlest first; `counts` the numbers of low layers, rising. Raises BudgetError with the
    fastest that can be reached.
    """
    assert rule.least is not None
    fastest: tuple[float, str] = (0.0, "none")
    for count in counts:
        for kind, (specs, plan_of) in makers.items():
            try:
                plan = plan_of(count)
            except BudgetError:
                continue
            forecast = rule.forecast(specs, plan)
            if forecast.plan.generate >= rule.least:
                return kind, plan, forecast
            fastest = max(fastest, (forecast.plan.generate, f"{count} of {plan.layers} layers {kind}"))
    raise BudgetError(
        f"no plan reaches {rule.least:g} tokens/s on {rule.profile.cpu} with {rule.threads} threads",
        nearest_bytes=0,
        hint=f"the fastest is predicted to reach {fastest[0]:.1f}: {fastest[1]}",
    )
