"""How long the stages of a conversion will take, from a machine's rates and the model's sizes.

Pure. Counts multiply-adds, numbers to quantize and bytes to move; every factor below was or is to be measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log2

from luq_gguf import costs
from luq_gguf.cost_factors import (
    BRIEF_TOKENS,
    BRIEF_WEIGHTS,
    CLUSTER_ROUNDS,
    CLUSTERS,
    CONVERT_RATE,
    JUDGE_SECONDS,
    JUDGE_SHARE,
    LAYER_OVERHEAD,
    PICTURE_SECONDS,
    PICTURE_SHARE,
    QUANTIZE_OVERHEAD,
    SEEDS,
    START_SECONDS,
    TOWER_OVERHEAD,
    VECTORS,
)
from luq_gguf.costs import Chosen, Load, Shape


@dataclass(frozen=True)
class Rates:
    """What this machine does in a second, with all threads where nothing else is said.

    `products` are multiply-adds of torch in the compute type, `single` in float32 on one thread; `disk` bytes written
    and flushed; `quantized` numbers that llama.cpp's quantizer makes of each type, `tables` seconds before the first.
    """

    products: float
    single: float
    disk: float
    quantized: Mapping[str, float]
    threads: int
    tables: Mapping[str, float] = field(default_factory=dict)

    def moving(self, count: float) -> float:
        """Seconds to read or write so many bytes, as fast as the disk and the conversion let it."""
        return count / min(self.disk, CONVERT_RATE)


def estimate_seconds(shape: Shape, load: Load, chosen: Chosen, rates: Rates) -> dict[str, float]:
    """Seconds of every stage, by its name."""
    quantize = quantize_seconds(shape, chosen, rates)
    assemble = 3 * rates.moving(chosen.text)
    tokens = sum(load.judged)
    judge = judge_seconds(shape, load, chosen, rates, tokens)
    brief = min(tokens, max(BRIEF_TOKENS, int(BRIEF_WEIGHTS / max(1, sum(chosen.types.values())))))
    tried = judge_seconds(shape, load, chosen, rates, brief if chosen.mixes else tokens)
    layers = layers_seconds(shape, load, chosen, rates)
    return {
        costs.PICTURES: START_SECONDS + pictures_seconds(shape, load, rates),
        costs.LAYERS: START_SECONDS + layers,
        costs.MMPROJ: 2 * rates.moving(chosen.mmproj) + 0.1,
        costs.MEASURE: chosen.tries * (assemble + tried) + (2 + chosen.mixes) * quantize,
        costs.REFINE: 2 * layers + quantize,
        costs.QUANTIZE: quantize,
        costs.ASSEMBLE: assemble + 0.1,
        costs.JUDGE: judge,
        costs.BUNDLE: 3 * rates.moving(chosen.text + chosen.mmproj) + 0.1,
    }


def pictures_seconds(shape: Shape, load: Load, rates: Rates) -> float:
    """The vision tower over all pictures."""
    tower = shape.tower
    if tower is None:
        return 0.0
    work = sum(picture_products(shape, tokens) for tokens in load.pictures)
    return TOWER_OVERHEAD * work / rates.products + PICTURE_SECONDS * len(load.pictures)


def picture_products(shape: Shape, tokens: int) -> float:
    """Multiply-adds of the tower for a picture of so many image tokens."""
    tower = shape.tower
    assert tower is not None
    patches = tokens * tower.patches
    seen = tower.full * patches + (tower.blocks - tower.full) * min(patches, tower.window)
    return float(patches * (tower.weights + 2 * seen * tower.hidden))


def layers_seconds(shape: Shape, load: Load, chosen: Chosen, rates: Rates) -> float:
    """All samples through all layers, with K-means behind each, the states written, and the head at the answers."""
    attention = sum(count * length**2 for count, length in load.batches) * shape.query  # half of what is not causal
    products = load.tokens * shape.layer_weights + attention
    states = chosen.compute * shape.hidden * load.tokens + 2 * shape.layer_weights
    layer = LAYER_OVERHEAD * products / rates.products + cluster_seconds(shape, load, rates) + rates.moving(states)
    head = load.answers * shape.hidden * shape.vocabulary / (rates.single * rates.threads)
    return shape.layers * layer + head


def cluster_seconds(shape: Shape, load: Load, rates: Rates) -> float:
    """K-means of one layer: multimodal tokens and texts apart, one thread a seed."""
    kinds = 2 if load.pictures else 1
    products = min(VECTORS, load.tokens) * CLUSTERS * shape.hidden * CLUSTER_ROUNDS
    return kinds * SEEDS * products / (rates.single * min(SEEDS, rates.threads))


def quantize_seconds(shape: Shape, chosen: Chosen, rates: Rates) -> float:
    """All tensors through the quantizer, by their types, with the 16-bit parts written and read."""
    numbers = sum(count / rates.quantized[kind] for kind, count in chosen.types.items() if kind in rates.quantized)
    moved = 2 * sum(chosen.types.values())
    tables = max((rates.tables.get(kind, 0.0) for kind in chosen.types), default=0.0)
    return tables + QUANTIZE_OVERHEAD * numbers + 3 * rates.moving(moved + chosen.text) + 0.05 * shape.layers


def judge_seconds(shape: Shape, load: Load, chosen: Chosen, rates: Rates, tokens: int) -> float:
    """llama.cpp over so many held-out tokens, and over the pictures in them."""
    rate = rates.single * rates.threads
    weights = shape.layers * shape.layer_weights + shape.vocabulary * shape.hidden
    share = tokens / max(1, sum(load.judged))
    pictures = load.judged_pictures if shape.tower else ()
    seen = share * sum(picture_products(shape, each) for each in pictures)
    work = tokens * weights / JUDGE_SHARE + seen / PICTURE_SHARE
    return JUDGE_SECONDS + rates.moving(chosen.text + chosen.mmproj) + work / rate


def tries_of(order: str, layers: int, probes: int, *, drop: bool) -> int:
    """How many files are made and judged to choose a plan: for a measured order, and until a drop is met."""
    tries = {"damage": 3 * layers, "mix": probes}.get(order, 0)
    return tries + (int(log2(layers + 1)) + 2 if drop else 0)
