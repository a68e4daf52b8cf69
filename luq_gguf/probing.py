"""Measures what plans by damage are made from: errors of a few rows of every weight, and the divergence of some files.

Probes are judged on a part of the held-out samples, so that a large model's cost minutes, not hours. Everything is kept
for later runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from gguf import GGMLQuantizationType

from luq_gguf.artifacts import LayerScores, Plan, read_record, scratch_folder, write_record
from luq_gguf.errors import RequestError
from luq_gguf.evidence import (
    CODEBOOKS,
    DISPUTED,
    GROUPS,
    LARGE,
    LIMITS,
    SPREAD,
    Evidence,
    Probe,
    block_shares,
    fit_coefficients,
    group_of,
    layer_factors,
    most_disputed,
    predict_divergence,
    scale_errors,
    type_factor,
)
from luq_gguf.export import export_text
from luq_gguf.groundwork import Groundwork
from luq_gguf.growth import order_by_damage
from luq_gguf.job import Job, Settings, key_of
from luq_gguf.layout import Layout
from luq_gguf.mixing import HIGH, MIX_TYPES
from luq_gguf.planning import DAMAGE, MEASURED, Budget, change_scores, choose_order, entropy_means
from luq_gguf.speed_budget import AUTO
from luq_gguf.trials import Trials
from luq_gguf.type_names import UNQUANTIZED

ROWS = 16
"""Of every weight so many rows tell its error."""
TABLE_ROWS = 256
"""The same of embeddings and the output matrix, whose rows, one a token, differ more."""
TOKENS, TOKENS_BY_WEIGHTS = 1000, 8e12
"""Held-out samples of so many tokens judge a probe, of so many by the model's weights where those are few."""
PROBE_TYPE = "Q2_K"
"""Quick to quantize to, and its errors are noise, and large: what coefficients are fitted to."""
CODEBOOK_LAYERS, FEW_CODEBOOK_LAYERS = 3, 2
"""In so many layers types with codebooks are measured."""
EVERY = 2
"""Of a large model every second layer is lowered to fit the groups' coefficients."""
IQ1 = "IQ1_M"


def gather_evidence(ground: Groundwork, trials: Trials | None) -> Evidence | None:
    """What the settings' order is made from, now or from an earlier run; None where it needs nothing measured.

    Raises RequestError where no sample was held out to measure on.
    """
    job = ground.maker.job
    settings = job.settings
    if settings.order not in MEASURED:
        return None
    if trials is None:
        hint = "calibrate with samples that have answers"
        raise RequestError(f"no sample was held out to measure --order {settings.order} on", hint=hint)
    low_type = IQ1 if settings.low_type.lower() == AUTO else settings.low_type.upper()
    decided = replace(settings, low_type=low_type)
    brief = trials.brief(tokens_for(ground.lay_out(decided).weights))
    probing = _Probing(ground, brief, ground.analysis.scores, decided)
    rules = (
        MIX_TYPES, PROBE_TYPE, CODEBOOKS, CODEBOOK_LAYERS, FEW_CODEBOOK_LAYERS, DISPUTED, EVERY, LARGE, ROWS,
        TABLE_ROWS, GROUPS, SPREAD, LIMITS,
    )  # fmt: skip
    key = key_of(probing.trials.key, settings.order, low_type, settings.high_type, rules)
    kept = job.work / f"evidence-{key}.json"
    if kept.is_file():
        return read_record(kept, Evidence)
    with job.watch.measure("probe"):
        evidence = probing.damage_order() if settings.order == DAMAGE else probing.mixture()
    write_record(kept, evidence)
    return evidence


def tokens_for(weights: int) -> int:
    """How many tokens judge a probe of a model with so many weights."""
    return max(TOKENS, int(TOKENS_BY_WEIGHTS / weights))


def spread_out(layers: int, count: int) -> list[int]:
    """So many layers, or all, in the middles of equal parts."""
    return sorted({(2 * part + 1) * layers // (2 * count) for part in range(count)})


@dataclass(frozen=True)
class _Probing:
    ground: Groundwork
    trials: Trials
    scores: LayerScores
    settings: Settings

    @property
    def job(self) -> Job:
        return self.ground.maker.job

    def damage_order(self) -> Evidence:
        """The order of the layers by measured damage per byte."""
        layout = self.ground.lay_out(self.settings)
        layers = self.scores.layers
        depth = choose_order(None, "depth", layers)
        saved = {
            layer: before - after for layer, (before, after) in zip(depth, pairwise(layout.sizes(depth)), strict=True)
        }
        expected = 3 * layers
        done = 0

        def damage(low: frozenset[int]) -> float:
            nonlocal done
            self.job.progress("measure layers", min(done, expected - 1), expected)
            done += 1
            order = [*sorted(low), *(layer for layer in depth if layer not in low)]
            plan = layout.plan(order, DAMAGE, Budget(len(low)), strict=self.settings.strict)
            return self.trials.quality(plan).all.divergence

        order = order_by_damage(saved, damage)
        self.job.progress("measure layers", expected, expected)
        return Evidence(checkpoint=self.job.checkpoint.digest, low_type=self.settings.low_type, damage_order=order)

    def mixture(self) -> Evidence:
        """Errors of all weights, coefficients that fit some measured files, and factors of layers and types."""
        errors, shares, layers = self.errors(), block_shares(self.scores), self.scores.layers
        wanted = self._wanted(layers)
        probes: dict[str, Probe] = {}
        for done, (name, plan) in enumerate(wanted.items()):
            self.job.progress("measure files", done, len(wanted))
            probes[name] = Probe(types=plan.types, divergence=self.trials.quality(plan).all.divergence)
        self.job.progress("measure files", len(wanted), len(wanted))
        base, fitted = probes[HIGH], [probes[HIGH], *(probes[group] for group in GROUPS if group in probes)]
        evidence = Evidence(
            checkpoint=self.job.checkpoint.digest,
            low_type=self.settings.low_type,
            errors=errors,
            coefficients=fit_coefficients(fitted, errors, shares),
            factors=(1.0,) * layers,
            probes=len(probes),
        )
        off = [abs(predict_divergence(evidence, shares, each.types) / each.divergence - 1) for each in probes.values()]
        types = {kind: type_factor(kind, base, probes[kind], evidence, shares) for kind in CODEBOOKS}
        singles = {int(name): probe for name, probe in probes.items() if name.isdecimal()}
        return evidence.model_copy(
            update={
                "errors": scale_errors(errors, types),
                "type_factors": types,
                "factors": layer_factors(layers, base, singles, evidence, shares),
                "fit_error": statistics.median(off),
            }
        )

    def _wanted(self, layers: int) -> dict[str, Plan]:
        """The files to measure, by name: the high type alone, with each group low, with each codebook type in some
        layers, and with each disputed layer low; of a large model groups are low in fewer layers, and no layer alone.
        """
        layout = self.ground.lay_out(replace(self.settings, low_type=PROBE_TYPE))
        large = layout.weights >= LARGE
        wanted = {HIGH: layout.mixed_plan(layers, {})}
        for group in GROUPS:
            if lowered := _lowered(layout, group=group, layers=(None, *range(0, layers, EVERY if large else 1))):
                wanted[group] = layout.mixed_plan(layers, lowered)
        some = spread_out(layers, FEW_CODEBOOK_LAYERS if large else CODEBOOK_LAYERS)
        for kind in CODEBOOKS:
            coded = self.ground.lay_out(replace(self.settings, low_type=kind))
            wanted[kind] = coded.mixed_plan(layers, _lowered(coded, layers=some))
        changes, entropies = change_scores(self.scores, "change", layers), entropy_means(self.scores, layers)
        for layer in () if large else most_disputed(changes, entropies, DISPUTED):
            wanted[str(layer)] = layout.mixed_plan(layers, _lowered(layout, layers=(layer,)))
        return wanted

    def errors(self) -> dict[str, dict[str, float]]:
        """The relative error of every weight that a mixture gives a type, in every type, from a few rows of each."""
        maker, found = self.ground.maker, dict[str, dict[str, float]]()
        specs = self.ground.lay_out(self.settings).specs
        lowered = [self.ground.lay_out(replace(self.settings, low_type=kind)).specs for kind in MIX_TYPES]
        types = {spec.high.name for spec in specs if group_of(spec.name)}
        types |= {spec.low.name for each in lowered for spec in each if group_of(spec.name)}
        kinds = sorted(types - UNQUANTIZED)
        with scratch_folder(self.job.work, "errors") as scratch:
            for done, layer in enumerate((None, *range(self.scores.layers))):
                self.job.progress("weight errors", done, self.scores.layers)
                source = scratch / "layer.gguf"
                names = {spec.name for spec in specs if spec.layer == layer and group_of(spec.name)}
                export_text(
                    self.job.checkpoint, self.job.family, source, dtype=self.job.dtype, tokenizer=False,
                    select=names.__contains__,
                )  # fmt: skip
                rows = ROWS if layer is not None else TABLE_ROWS
                job = {"source": str(source), "types": kinds, "rows": rows, "imatrix": str(maker.imatrix)}
                found |= maker.quantizer.run(job, lambda line: None)["errors"]
        self.job.progress("weight errors", self.scores.layers, self.scores.layers)
        return found


def _lowered(
    layout: Layout, *, layers: Sequence[int | None], group: str | None = None
) -> dict[str, GGMLQuantizationType]:
    """The low types of one group or all of them, of some layers; None stands for what is outside."""
    return {
        spec.name: spec.low
        for spec in layout.specs
        if group_of(spec.name) is not None and (group is None or group_of(spec.name) == group) and spec.layer in layers
    }
