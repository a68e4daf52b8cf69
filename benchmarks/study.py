"""What the paper's choice of layers is worth on the files that it gives, and what beats it: every claim as a file.

    python -m benchmarks.study --model FOLDER --calib DATA --work SCRATCH --json benchmarks/study_NAME.json

Measures on held-out answers, against the 16-bit model: damage of single layers and how well cheap scores foretell it
(Kendall's tau); every order of the layers; low types at equal bytes; ratios of image and text tokens in the importance
matrix; llama.cpp's presets; the policies `damage` and `mix` at the bytes of the paper's plans. What was measured is
kept in SCRATCH, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from luq_gguf import activations
from luq_gguf.analysis import read_calibration
from luq_gguf.artifacts import Plan
from luq_gguf.choice import choose_plan
from luq_gguf.cli.progress import show_progress
from luq_gguf.errors import BudgetError
from luq_gguf.groundwork import Groundwork, prepare
from luq_gguf.job import Settings, open_job
from luq_gguf.manifest import versions
from luq_gguf.planning import Budget, change_scores, choose_order, entropy_means
from luq_gguf.probing import gather_evidence
from luq_gguf.processors import cpu_name
from luq_gguf.sequential import refine
from luq_gguf.sweep import PRESETS
from luq_gguf.trials import Trials

LOW_TYPES = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "Q2_K", "IQ3_XXS")
SINGLE_TYPES = ("IQ1_M", "Q2_K")
ORDERS = ("entropy", "entropy-input", "reverse", "depth", "cosine", "change")
SEEDS = 5
ALPHAS = (0.0, 0.1, 0.25, 0.5, 1.0)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
Row = dict[str, Any]
Vectors = NDArray[np.float32]


class Study:
    """One model's files, each measured once."""

    def __init__(self, ground: Groundwork, trials: Trials, settings: Settings, steps: int) -> None:
        self.ground, self.trials, self.settings, self.steps = ground, trials, settings, steps
        self.scores = ground.analysis.scores
        self.layers = self.scores.layers

    def row(self, plan: Plan, trials: Trials | None = None, **names: Any) -> Row:
        """What was measured of a plan's file."""
        quality = (trials or self.trials).quality(plan)
        found = {name: group.model_dump() for name, group in quality.groups.items()}
        return {**names, "low_layers": len(plan.low_layers), "bytes": plan.size_bytes, "quality": found}

    def plan(self, order: Sequence[int], count: int, **changes: Any) -> Plan:
        layout = self.ground.lay_out(replace(self.settings, **changes))
        return layout.plan(order, "study", Budget(count), strict=False)

    def order(self, name: str, seed: int = 0) -> tuple[int, ...]:
        return choose_order(self.scores, name, self.layers, seed)

    def counts(self) -> list[int]:
        """2 to all layers in about as many steps as were asked for."""
        step = max(2, round(self.layers / self.steps))
        return [*range(step, self.layers, step), self.layers]

    def singles(self) -> Iterator[Row]:
        """Each layer low by itself."""
        depth = self.order("depth")
        for kind in SINGLE_TYPES:
            for layer in range(self.layers):
                alone = [layer, *(other for other in depth if other != layer)]
                yield self.row(self.plan(alone, 1, low_type=kind), type=kind, layer=layer)

    def orders(self) -> Iterator[Row]:
        for count in self.counts():
            for name in ORDERS:
                yield self.row(self.plan(self.order(name), count), order=name)
            for seed in range(SEEDS):
                yield self.row(self.plan(self.order("random", seed), count), order=f"random {seed}")

    def measured_order(self, order: Sequence[int]) -> Iterator[Row]:
        for count in self.counts():
            yield self.row(self.plan(order, count), order="damage")

    def low_types(self) -> Iterator[Row]:
        """For each type as few layers, by entropy, as are needed for the bytes of the paper's share of IQ1_M."""
        order = self.order("entropy")
        most = self.plan(order, round(3 / 7 * self.layers)).size_bytes
        for kind in LOW_TYPES:
            sizes = self.ground.lay_out(replace(self.settings, low_type=kind)).sizes(order)
            count = next((count for count, size in enumerate(sizes) if size <= most), self.layers)
            yield self.row(self.plan(order, count, low_type=kind), type=kind)

    def presets(self) -> Iterator[Row]:
        for preset in (*PRESETS, "Q5_K_M", "IQ4_XS"):
            yield self.row(self.plan(self.order("depth"), 0, high_type=preset), preset=preset)

    def mixtures(self) -> Iterator[Row]:
        """The policy `mix` at the bytes of the paper's plans, and of the presets."""
        evidence = gather_evidence(self._asking_for("mix"), self.trials)
        sizes = {f"IQ1_M {count}": self.plan(self.order("entropy"), count).size_bytes for count in self.counts()}
        sizes |= {preset: self.plan(self.order("depth"), 0, high_type=preset).size_bytes for preset in PRESETS}
        for name, size in sizes.items():
            asked = replace(self.settings, order="mix", max_size=size)
            try:
                plan = choose_plan(asked, self.scores, self.ground.lay_out, evidence=evidence).plan
            except BudgetError:  # presets make the embeddings smaller, too
                continue
            yield self.row(plan, at=name)

    def sequential(self) -> Iterator[Row]:
        """Some plans with the importance matrix of the analysis, and with one along their own quantized layers."""
        order, evidence = self.order("entropy"), gather_evidence(self._asking_for("mix"), self.trials)
        some, every = (self.plan(order, count) for count in (round(3 / 7 * self.layers), self.layers))
        asked = replace(self.settings, order="mix", max_size=some.size_bytes)
        mixed = choose_plan(asked, self.scores, self.ground.lay_out, evidence=evidence).plan
        for name, plan in (("LUQ", some), ("all IQ1_M", every), ("mix", mixed)):
            yield self.row(plan, made=name, sequential=False)
            yield self.row(plan, self.trials.of(refine(self.ground, plan)), made=name, sequential=True)

    def damage_order(self) -> tuple[int, ...]:
        evidence = gather_evidence(self._asking_for("damage"), self.trials)
        assert evidence is not None
        return evidence.damage_order

    def shares(self) -> Iterator[Row]:
        """Orders by the entropy of vectors of which a share comes from samples with images, and what they give."""
        if "output_multimodal" not in self.scores.entropy:
            return
        job = self.ground.maker.job

        def blended(vectors: Mapping[str, Vectors]) -> dict[str, Vectors]:
            images, texts = vectors["multimodal"], vectors["text"]
            count = min(len(images), len(texts))
            kept = {share: round(share * count) for share in SHARES}
            return {f"{share:g}": np.concatenate([images[:n], texts[: count - n]]) for share, n in kept.items()}

        measure = activations._Pass._measure
        with patch.object(
            activations._Pass, "_measure", lambda each, site, vectors: measure(each, site, blended(vectors))
        ):
            scores = activations.analyze(
                job.checkpoint, job.family, self.ground.calibration, progress=job.progress
            ).scores
        count = round(3 / 7 * self.layers)
        for share in SHARES:
            rows = scores.entropy[f"output_{share:g}"]
            order = choose_order(scores.model_copy(update={"entropy": {"output_text": rows}}), "entropy", self.layers)
            entropies = [row.mean for row in rows]
            yield self.row(self.plan(order, count), share=share, entropies=entropies, order=order[:count])

    def _asking_for(self, order: str) -> Groundwork:
        maker = self.ground.maker
        job = replace(maker.job, settings=replace(maker.job.settings, order=order))
        return replace(self.ground, maker=replace(maker, job=job))

    def taus(self, singles: Sequence[Row]) -> dict[str, dict[str, float]]:
        """Kendall's tau between what is cheap to know of a layer and the damage that it does alone."""
        known: dict[str, list[float]] = {
            "entropy": entropy_means(self.scores, self.layers),
            "entropy-input": entropy_means(self.scores, self.layers, "input"),
            "cosine": change_scores(self.scores, "cosine", self.layers),
            "change": change_scores(self.scores, "change", self.layers),
        }
        found: dict[str, dict[str, float]] = {}
        for kind in SINGLE_TYPES:
            damage = [row["quality"]["all"]["figures"]["divergence"]["value"] for row in singles if row["type"] == kind]
            found[kind] = {name: float(kendalltau(values, damage).statistic) for name, values in known.items()}
        return found


@contextmanager
def opened(options: argparse.Namespace, alpha: float, progress: Callable[..., None]) -> Iterator[Study]:
    """A study of a model at a ratio of image and text tokens; both entropies are measured."""
    settings = Settings(
        calib=options.calib, samples=options.samples, keep_parts=True, order="entropy-input", alpha=alpha,
        threads=options.threads,
    )  # fmt: skip
    job = open_job(options.model, options.work, settings, progress)
    calibration = read_calibration(settings, progress)
    with job.working(), prepare(job, calibration) as ground:
        trials = ground.open_trials()
        assert trials is not None, "the data has no held-out answers"
        yield Study(ground, trials, replace(settings, order="entropy"), options.steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calib")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--steps", type=int, default=10, help="numbers of low layers")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument(
        "--padded", action="store_true", help="many weights are zeros: bits a weight would tell nothing"
    )
    parser.add_argument("--parts", default="presets,singles,orders,low_types,mixtures,sequential,damage,alphas,shares")
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(options.json.read_text()) if options.json.is_file() else {}
    found |= {"versions": versions(), "cpu": cpu_name(), "model": Path(options.model).name}
    with show_progress() as progress:

        def keep(name: str, content: Any) -> None:
            found[name] = content
            options.json.write_text(json.dumps(found, indent=1) + "\n")

        with opened(options, 0.5, progress) as study:
            keep("scores", json.loads(study.scores.model_dump_json()))
            if not options.padded:
                keep("weights", study.ground.lay_out(study.settings).weights)
            for name in ("presets", "orders", "low_types", "mixtures", "sequential", "singles", "shares"):
                if name in options.parts:
                    keep(name, list(getattr(study, name)()))
            if "singles" in options.parts:
                keep("taus", study.taus(found["singles"]))
            if "damage" in options.parts:
                keep("damage", list(study.measured_order(study.damage_order())))
        if "alphas" in options.parts:
            rows = []
            for alpha in ALPHAS:
                with opened(options, alpha, progress) as study:
                    counts, order = (round(3 / 7 * study.layers), study.layers), study.order("entropy")
                    rows += [study.row(study.plan(order, count), alpha=alpha) for count in counts]
            keep("alphas", rows)


if __name__ == "__main__":
    main()
