"""What a conversion will take: peak memory and seconds of every stage, disk for its results and on the way.

Pure: no torch, no files. Takes sizes of the model, counts of tokens, what was chosen, and the machine's rates. Seconds
are estimated by `durations`, from the same records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from luq_gguf.cost_factors import (
    BATCH_TOKENS,
    CHILD_BYTES,
    DISTANCE_BYTES,
    FFN_COPIES,
    GROUP_TOKENS,
    HEAD_PLACES,
    HEAD_ROWS,
    HIDDEN_COPIES,
    IMPORT_BYTES,
    JSON_BYTES_A_LAYER,
    JSON_BYTES_A_TENSOR,
    JUDGE_BATCH,
    JUDGE_BYTES,
    JUDGE_CONTEXT,
    JUDGE_TOKEN_ROWS,
    KEPT_BYTES,
    LOGIT_BYTES,
    MODALITY_COUNT,
    PIECE_BYTES,
    PLAIN_BYTES,
    RECORD_BYTES,
    REFERENCE_TOP,
    SAMPLE_BYTES,
    SEEDS,
    SUMS_ITEM,
    TOKEN_BYTES,
    TOWER_FFN_COPIES,
    TOWER_HIDDEN_COPIES,
    VECTORS,
)

PICTURES, LAYERS, MMPROJ, MEASURE, REFINE = "pictures", "layers", "mmproj", "measure plans", "refine"
QUANTIZE, ASSEMBLE, JUDGE, BUNDLE = "quantize", "assemble", "judge", "bundle"


@dataclass(frozen=True)
class Tower:
    """A vision tower in numbers of weights: all, of the largest block, outside the blocks; widths, and how it sees.

    An image token is made of `patches`; in `full` of the blocks a patch sees all others of its image, elsewhere
    `window` of them.
    """

    weights: int
    blocks: int
    block_weights: int
    around: int
    hidden: int
    ffn: int
    patches: int
    patch_numbers: int
    full: int
    window: int = 0


@dataclass(frozen=True)
class Shape:
    """A decoder in numbers: widths, heads, layers, vocabulary, weights of a layer and of its largest tensor.

    `query` and `kv` are the rows of q and of k; `rotary` numbers of cosine and sine a token; `deep` how often image
    features are added to later layers. `outside` are the weights of the largest tensor outside the layers.
    """

    hidden: int
    ffn: int
    query: int
    kv: int
    rotary: int
    layers: int
    vocabulary: int
    layer_weights: int
    largest: int
    outside: int
    deep: int = 0
    tower: Tower | None = None


@dataclass(frozen=True)
class Load:
    """What goes through the model: tokens of every sample, and image tokens of every picture; the same to judge by.

    `answers` are the tokens of the held-out answers. Pictures are counted once.
    """

    lengths: tuple[int, ...]
    pictures: tuple[int, ...]
    judged: tuple[int, ...] = ()
    judged_pictures: tuple[int, ...] = ()
    answers: int = 0

    @cached_property
    def batches(self) -> tuple[tuple[int, int], ...]:
        """Samples and tokens a sample of every batch of the analysis, padding counted."""
        found: list[tuple[int, int]] = []
        for length in sorted(self.lengths):
            count = found[-1][0] if found else 0
            if count and length * (count + 1) <= BATCH_TOKENS:
                found[-1] = (count + 1, length)
            else:
                found.append((1, length))
        return tuple(found)

    @property
    def tokens(self) -> int:
        """Tokens of all batches with padding."""
        return sum(count * length for count, length in self.batches)

    @property
    def batch(self) -> int:
        """Tokens of the largest batch."""
        return max((count * length for count, length in self.batches), default=0)

    @property
    def group(self) -> int:
        """Image tokens that go through the tower at once, at most."""
        return min(sum(self.pictures), max(GROUP_TOKENS, *self.pictures, 0))


@dataclass(frozen=True)
class Chosen:
    """What was chosen, in numbers: bytes a number is computed in, bytes of the files, numbers by type of the plan.

    `text`, `high` and `low` are the file of the plan, without low layers and with all layers low; `mmproj` 0 is no
    vision part, `bundle` 0 no bundle. `copied` are the weights that llama.cpp copies into an order of its own; the
    others it maps, and the system takes their pages back when it wants them. `step` are the bytes of the largest part
    in 16 bits and quantized. `tries` is how
    many files are made and judged to choose the plan, `mixes` whether their tensors get types of their own.
    """

    compute: int
    text: int
    high: int
    low: int
    step: int
    header: int
    tensors: int
    types: Mapping[str, int]
    copied: int = 0
    inputs: int = 0
    mmproj: int = 0
    bundle: int = 0
    keeps: bool = True
    evaluates: bool = True
    tries: int = 0
    mixes: bool = False
    sequential: bool = False
    analyzed: bool = False


@dataclass(frozen=True)
class StageCost:
    """A stage: the most memory of all its processes in bytes, and its seconds where they were estimated."""

    name: str
    memory_bytes: int
    seconds: float | None = None


@dataclass(frozen=True)
class DiskCost:
    """Bytes: of every result, and in the work folder at most during the analysis and while files are made."""

    text: int
    mmproj: int
    bundle: int
    records: int
    analyzing: int
    making: int

    @property
    def final(self) -> int:
        """What stays in the output folder."""
        return self.text + self.mmproj + self.bundle + self.records

    @property
    def scratch(self) -> int:
        """The most that lies in the work folder at once."""
        return max(self.analyzing, self.making)

    @property
    def together(self) -> int:
        """The most that both folders hold at once; the vision part is in one or the other."""
        return max(self.analyzing, self.final + self.making - self.mmproj)


@dataclass(frozen=True)
class Costs:
    """All that a conversion will take; a stage that has nothing to do is left out."""

    stages: tuple[StageCost, ...]
    disk: DiskCost

    @property
    def peak(self) -> StageCost:
        """The stage that takes most memory."""
        return max(self.stages, key=lambda stage: stage.memory_bytes)

    @property
    def seconds(self) -> float | None:
        """Of all stages, where they were estimated."""
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(known) if len(known) == len(self.stages) else None

    def of(self, name: str) -> StageCost | None:
        """A stage by its name."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def timed(self, seconds: Mapping[str, float]) -> Costs:
        """The same with the seconds of every stage."""
        return replace(self, stages=tuple(replace(stage, seconds=seconds[stage.name]) for stage in self.stages))


def estimate_costs(shape: Shape, load: Load, chosen: Chosen, buffer_bytes: int, threads: int) -> Costs:
    """Memory of every stage and disk; `buffer_bytes` are rows that the quantizer may hold."""
    after = base_memory(shape, chosen) + (0 if chosen.analyzed else KEPT_BYTES)
    memory = {
        PICTURES: pictures_memory(shape, load, chosen) if load.pictures and not chosen.analyzed else 0,
        LAYERS: 0 if chosen.analyzed else layers_memory(shape, load, chosen, threads),
        MMPROJ: after if chosen.mmproj else 0,
        MEASURE: judge_memory(shape, load, chosen, chosen.high) if chosen.tries else 0,
        REFINE: refine_memory(shape, load, chosen, buffer_bytes, threads) if chosen.sequential else 0,
        QUANTIZE: after + quantizer_memory(shape, buffer_bytes),
        ASSEMBLE: after,
        JUDGE: judge_memory(shape, load, chosen, chosen.copied) if chosen.evaluates and load.judged else 0,
        BUNDLE: after if chosen.bundle else 0,
    }
    stages = tuple(StageCost(name, bytes_) for name, bytes_ in memory.items() if bytes_)
    return Costs(stages, disk_cost(shape, load, chosen))


def base_memory(shape: Shape, chosen: Chosen) -> int:
    """The main process and the idle quantizer, with the vocabulary and without weights."""
    main = PLAIN_BYTES if chosen.analyzed and not chosen.sequential else IMPORT_BYTES
    return main + CHILD_BYTES + PIECE_BYTES * shape.vocabulary


def pictures_memory(shape: Shape, load: Load, chosen: Chosen) -> int:
    """One block of the vision tower, what lies around the blocks, one group of pictures, and all features."""
    tower = shape.tower
    if tower is None:
        return 0
    weights = chosen.compute * (tower.block_weights + tower.around)
    patches = load.group * tower.patches
    rows = TOWER_HIDDEN_COPIES * tower.hidden + TOWER_FFN_COPIES * tower.ffn
    pixels = 2 * 4 * tower.patch_numbers
    activations = patches * (chosen.compute * rows + pixels)
    return base_memory(shape, chosen) + weights + activations + features_bytes(shape, load, chosen)


def layers_memory(shape: Shape, load: Load, chosen: Chosen, threads: int) -> int:
    """One decoder layer with one batch, or with K-means; at the end some rows of the output matrix with their logits.

    The states of all samples lie in a file.
    """
    layer = chosen.compute * shape.layer_weights
    held = samples_memory(shape, load, chosen) + sums_bytes(shape)
    work = max(batch_memory(shape, load, chosen), cluster_memory(shape, load, threads))
    head = min(shape.vocabulary, HEAD_ROWS)
    logits = min(load.answers, HEAD_PLACES) * head * LOGIT_BYTES + 2 * 4 * head * shape.hidden
    return base_memory(shape, chosen) + held + max(layer + vector_bytes(shape, load) + work, logits)


def samples_memory(shape: Shape, load: Load, chosen: Chosen) -> int:
    """What is held of all samples for the length of the analysis: positions, kinds, features for deeper layers."""
    deep = chosen.compute * shape.deep * shape.hidden * sum(load.pictures)
    return load.tokens * (TOKEN_BYTES + chosen.compute * shape.rotary) + SAMPLE_BYTES * len(load.lengths) + deep


def batch_memory(shape: Shape, load: Load, chosen: Chosen) -> int:
    """The activations of a batch in a decoder layer."""
    rows = HIDDEN_COPIES * shape.hidden + FFN_COPIES * shape.ffn + 2 * (shape.query + 2 * shape.kv)
    return chosen.compute * load.batch * rows


def vector_bytes(shape: Shape, load: Load) -> int:
    """The chosen token vectors of both kinds, before and after a layer."""
    return 4 * 4 * min(VECTORS, load.tokens) * shape.hidden


def cluster_memory(shape: Shape, load: Load, threads: int) -> int:
    """K-means: the distances of all vectors, and widened vectors or a copy of them for each run."""
    vectors = min(VECTORS, load.tokens)
    copies = max(DISTANCE_BYTES, 4 * min(SEEDS, threads)) * vectors * shape.hidden
    return DISTANCE_BYTES * vectors**2 + copies


def quantizer_memory(shape: Shape, buffer_bytes: int) -> int:
    """What the child holds: rows of the largest tensor in float32, at most its buffer, and as much that they become.

    The 16-bit part is read through a map, whose pages the system can take back.
    """
    return 2 * min(buffer_bytes, 4 * max(shape.largest, shape.outside))


def refine_memory(shape: Shape, load: Load, chosen: Chosen, buffer_bytes: int, threads: int) -> int:
    """The analysis with all states in memory and the layer's quantized weights in float32, the quantizer beside it."""
    more = states_bytes(shape, load, chosen) + 4 * shape.layer_weights + quantizer_memory(shape, buffer_bytes)
    return layers_memory(shape, load, chosen, threads) + more


def judge_memory(shape: Shape, load: Load, chosen: Chosen, file_bytes: int) -> int:
    """llama.cpp with so many bytes of a file and its vision part in memory, its context, and what it computes in."""
    context = JUDGE_CONTEXT * 2 * 2 * shape.kv * shape.layers
    tokens = 4 * JUDGE_BATCH * (shape.vocabulary + JUDGE_TOKEN_ROWS * shape.ffn)
    seen = 0
    if shape.tower is not None and load.judged_pictures:
        patches = max(load.judged_pictures) * shape.tower.patches
        seen = 4 * patches * (TOWER_HIDDEN_COPIES * shape.tower.hidden + TOWER_FFN_COPIES * shape.tower.ffn)
    return base_memory(shape, chosen) + JUDGE_BYTES + file_bytes + chosen.mmproj + context + max(tokens, seen)


def features_bytes(shape: Shape, load: Load, chosen: Chosen) -> int:
    """What the tower makes of all pictures."""
    return chosen.compute * shape.hidden * (1 + shape.deep) * sum(load.pictures)


def states_bytes(shape: Shape, load: Load, chosen: Chosen) -> int:
    """The states of all samples before and after a layer."""
    return 2 * chosen.compute * shape.hidden * load.tokens


def sums_bytes(shape: Shape) -> int:
    """Sums of squared inputs of every layer, and of the output matrix."""
    channels = 2 * shape.hidden + shape.query + shape.ffn
    return SUMS_ITEM * MODALITY_COUNT * (shape.layers * channels + shape.hidden)


def disk_cost(shape: Shape, load: Load, chosen: Chosen) -> DiskCost:
    """Bytes of the results, and of what lies in the work folder on the way."""
    sums, reference = sums_bytes(shape), load.answers * (8 * REFERENCE_TOP + 8)
    states = states_bytes(shape, load, chosen)
    analysis = sums + reference
    texts = JSON_BYTES_A_TENSOR * chosen.tensors + JSON_BYTES_A_LAYER * shape.layers + RECORD_BYTES
    records = analysis + chosen.inputs + chosen.header + texts
    seen = 4 * shape.hidden * (1 + shape.deep) * sum(load.judged_pictures)
    judged = chosen.evaluates or chosen.tries
    making = parts_bytes(chosen) + chosen.step + chosen.mmproj + chosen.inputs + (seen if judged else 0)
    making += 0 if chosen.analyzed else analysis
    analyzing = 0 if chosen.analyzed else states + features_bytes(shape, load, chosen) + 2 * sums + chosen.header
    return DiskCost(chosen.text, chosen.mmproj, chosen.bundle, records, analyzing, making)


def parts_bytes(chosen: Chosen) -> int:
    """Quantized parts that lie in the work folder at once, beside the one being made, and a file that is tried.

    A plan's parts stay where they are kept or another plan may want them, else each moves into the result.
    """
    if not chosen.tries:
        return chosen.text if chosen.keeps or chosen.sequential else 0
    others = chosen.text if chosen.mixes else 0
    return chosen.high + chosen.low + others + chosen.high
