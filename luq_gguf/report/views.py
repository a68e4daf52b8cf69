"""What a page shows of each record, as rows and charts; every number with the place in the records that it comes from.

Takes what `folder` read; knows no HTML but the charts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from luq_gguf.bench_results import GENERATION, PROMPT, speeds
from luq_gguf.families.base import LAYER_WEIGHTS
from luq_gguf.images import MIN_IMAGE_TOKENS
from luq_gguf.job import MANIFEST, PLAN
from luq_gguf.planning import MIXED, layer_of
from luq_gguf.report.charts import Mark, Point, Series, Tile, bits_class, frontier_chart, interval_chart, layers_chart
from luq_gguf.report.memory import caches
from luq_gguf.report.numbers import key
from luq_gguf.type_names import bits_of

if TYPE_CHECKING:
    from luq_gguf.artifacts import EntropyRow
    from luq_gguf.bench_statistics import Interval
    from luq_gguf.bootstrap import Estimate
    from luq_gguf.gguf_file import GGUFTensor
    from luq_gguf.report.folder import Finished

TOKENS = {"multimodal": "image and text tokens", "text": "text-only samples"}
STYLES = {"multimodal": "m", "text": "t"}
MOST_POINTS, MOST_MINDS = 300, 12


@dataclass(frozen=True)
class Bar:
    """A bar: what it is, its length against the longest, and the number that stands at it."""

    name: str
    share: float
    source: str
    style: str = ""


@dataclass(frozen=True)
class QualityRow:
    """One group of answers; the charts are of agreement and divergence."""

    name: str
    pointer: str
    agreement: Markup
    divergence: Markup


@dataclass(frozen=True)
class MemoryRow:
    """Bytes at a context: the text model's weights, the vision part's, and the KV cache; and those of the high type."""

    context: int
    whole: bool
    text: int
    vision: int
    cache: int
    high: int

    @property
    def total(self) -> int:
        """Everything that is counted."""
        return self.text + self.vision + self.cache


@dataclass(frozen=True)
class BenchRow:
    """One measured speed: tokens a second with their interval, of a file with a number of threads."""

    file: str
    this: bool
    threads: int
    prompt: Interval
    generation: Interval
    cpu: str
    rounds: int
    share: float


def file_rows(found: Finished) -> list[tuple[str, str]]:
    """The files that were made, and what each is."""
    what = {found.model: "text model", found.mmproj: "vision part (mmproj)", found.bundle: "both in one file"}
    return [(name, what[name]) for name in found.manifest.files if name in what]


def size_bars(found: Finished) -> list[Bar]:
    """The text model beside the same with the high type alone, and in 16 bits."""
    plan = found.plan
    rows = [("16 bits", plan.f16_size_bytes, "f16_size_bytes", "b16"),
            (f"{plan.high_type} alone", plan.high_size_bytes, "high_size_bytes", "b4"),
            ("this file", plan.size_bytes, "size_bytes", "b1")]  # fmt: skip
    most = max(size for _, size, _, _ in rows)
    return [Bar(name, size / most, f"{PLAN}#/{place}", style) for name, size, place, style in rows]


def style_of(kind: str) -> str:
    """The colour's class of a type."""
    return bits_class(bits_of(kind))


def type_shares(found: Finished) -> list[tuple[str, str, int, float]]:
    """Every type by rising bits: its name, class, bytes, and share of all tensors' bytes."""
    sizes: Counter[str] = Counter()
    for tensor in found.text.tensors.values():
        sizes[tensor.type.name] += tensor.nbytes
    total = sum(sizes.values())
    return [(kind, style_of(kind), sizes[kind], sizes[kind] / total) for kind in sorted(sizes, key=bits_of)]


def layers_view(found: Finished) -> Markup:
    """Entropy, types and bytes by layer."""
    plan = found.plan
    label = "mixed types" if plan.low_type == MIXED else plan.low_type
    return layers_chart(entropies(found), _tiles(found), plan.low_layers, label)


def entropies(found: Finished) -> list[Series]:
    """Of the layers' output, or of their input where the order was made by that."""
    site = "input" if found.plan.order_name == "entropy-input" else "output"
    rows = {tokens: found.scores.entropy.get(f"{site}_{tokens}") for tokens in TOKENS}
    return [
        Series(TOKENS[tokens], STYLES[tokens], _marks(each, tokens, f"{site}_{tokens}"))
        for tokens, each in rows.items()
        if each
    ]


def _marks(rows: Sequence[EntropyRow], tokens: str, name: str) -> list[Mark]:
    return [
        Mark(
            row.mean,
            f"layer {layer}, {TOKENS[tokens]}: {row.mean:.3f} ±{row.spread:.3f} bits, {row.vectors:,} token vectors",
            row.spread,
            f"scores.json#/entropy/{key(name)}/{layer}/mean",
        )
        for layer, row in enumerate(rows)
    ]


def _tiles(found: Finished) -> list[tuple[str, list[Tile | None]]]:
    """The layers' matrices by kind, in the order in which a token meets them."""
    kinds: dict[str, list[Tile | None]] = {}
    for tensor in found.matrices:
        layer = layer_of(tensor.name)
        if layer is None or layer >= found.plan.layers:
            continue
        kind = tensor.name.split(".", 2)[2].removesuffix(".weight")
        kinds.setdefault(kind, [None] * found.plan.layers)[layer] = _tile(tensor)
    place = {kind: number for number, kind in enumerate(LAYER_WEIGHTS)}
    return sorted(kinds.items(), key=lambda item: (place.get(item[0], len(place)), item[0]))


def _tile(tensor: GGUFTensor) -> Tile:
    kind, shape = tensor.type.name, " x ".join(f"{length:,}" for length in tensor.shape)
    tip = f"{tensor.name}: {kind}, {tensor.nbytes:,} bytes, {shape}, {bits_of(kind):.2f} bits a weight"
    return Tile(style_of(kind), tip, tensor.nbytes)


def outside_tiles(found: Finished) -> list[tuple[str, str, Tile]]:
    """The matrices outside the layers: name, type, tile."""
    return [
        (tensor.name.removesuffix(".weight"), tensor.type.name, _tile(tensor))
        for tensor in found.matrices
        if layer_of(tensor.name) is None
    ]


def quality_rows(found: Finished, kinds: Mapping[str, str]) -> list[QualityRow]:
    """The groups of answers, on common axes."""
    if found.quality is None:
        return []
    groups = found.quality.groups
    least = min(group.figures["agreement"].low for group in groups.values())
    most = max(group.figures["divergence"].high for group in groups.values())
    bounds = {"agreement": (max(0.0, least - 0.1 * (1 - least) - 0.005), 1.0), "divergence": (0.0, 1.05 * most or 1.0)}
    forms = {"agreement": ("{:.1f} %", 100.0), "divergence": ("{:.4f} nats", 1.0)}
    return [
        QualityRow(
            kinds.get(name, "all answers"), f"quality.json#/groups/{key(name)}",
            *(_interval(group.figures[figure], bounds[figure], *forms[figure]) for figure in bounds),
        )
        for name, group in groups.items()
    ]  # fmt: skip


def _interval(estimate: Estimate, bounds: tuple[float, float], form: str, factor: float) -> Markup:
    value, low, high = (form.format(factor * each) for each in (estimate.value, estimate.low, estimate.high))
    return interval_chart(
        estimate.value, estimate.low, estimate.high, bounds, f"{value}, 95 % interval {low} to {high}"
    )


def memory_rows(found: Finished) -> list[MemoryRow]:
    """What the files take at run time, by context."""
    plan, vision = found.plan, found.manifest.files[found.mmproj].bytes if found.mmproj else 0
    return [
        MemoryRow(cache.context, cache.whole, plan.size_bytes, vision, cache.bytes,
                  plan.high_size_bytes + vision + cache.bytes)
        for cache in caches(found.text.metadata)
    ]  # fmt: skip


def speed_rows(found: Finished) -> list[tuple[str, float, float, float, str]]:
    """Predicted tokens/s: name, generating, share of the fastest, reading a prompt, class."""
    speed = found.speed
    if speed is None:
        return []
    rates = [("16 bits", speed.full, "b16"), (f"{found.plan.high_type} alone", speed.high, "b4"),
             ("this file", speed.plan, "b1")]  # fmt: skip
    most = max(rate.generate for _, rate, _ in rates if rate is not None)
    return [
        (name, rate.generate, rate.generate / most, rate.prompt, style)
        for name, rate, style in rates
        if rate is not None
    ]


def bench_rows(found: Finished) -> list[BenchRow]:
    """Measured tokens/s of the benchmarks that lie in the folder."""
    rows: list[BenchRow] = []
    sha256 = found.manifest.files[found.model].sha256
    for record in found.benches.values():
        measured = {(each.phase, each.file, each.threads): each.rate for each in speeds(record)}
        most = max(rate.median for (phase, _, _), rate in measured.items() if phase == GENERATION)
        for run in record.runs:
            file, generation = record.files[run.file], measured[GENERATION, run.file, run.threads]
            rows.append(
                BenchRow(file.name, file.sha256 == sha256, run.threads, measured[PROMPT, run.file, run.threads],
                         generation, record.machine.cpu, record.settings.rounds, generation.median / most)
            )  # fmt: skip
    return rows


def frontier_view(found: Finished) -> Markup | None:
    """The sweep's files with this one among them."""
    if found.frontier is None:
        return None
    points = [
        Point(
            each.size_bytes, each.divergence,
            f"{each.name[:80]}: {each.size_bytes:,} bytes, KL {each.divergence:.4f} nats",
            "preset" if each.preset else "m", each.high_type[:12] if each.preset else str(len(each.low_layers)),
            f"frontier.json#/points/{number}/quality/groups/all/figures/divergence/value",
        )
        for number, each in enumerate(found.frontier.points[:MOST_POINTS])
    ]  # fmt: skip
    if found.quality is not None:
        divergence = found.quality.all.divergence
        tip = f"this file: {found.plan.size_bytes:,} bytes, KL {divergence:.4f} nats"
        source = "quality.json#/groups/all/figures/divergence/value"
        points.append(Point(found.plan.size_bytes, divergence, tip, "here", "this file", source))
    return frontier_chart(points)


def stage_bars(found: Finished) -> list[Bar]:
    """How long each stage took."""
    seconds = found.manifest.seconds
    most = max(seconds.values(), default=0.0) or 1.0
    return [Bar(name, value / most, f"{MANIFEST}#/seconds/{key(name)}") for name, value in seconds.items()]


def minds(found: Finished) -> list[str]:
    """What a reader should mind: a better preset, tensors of another type than asked for, doubts of the analysis."""
    notes = []
    if (better := found.better) is not None:
        notes.append(better.verdict)
    if found.speed is not None and found.speed.plan.generate < found.speed.high.generate:
        notes.append(f"on {found.speed.cpu} this file is predicted to be slower than {found.plan.high_type} alone")
    if found.plan.fallbacks:
        kinds = ", ".join(sorted(set(found.plan.fallbacks.values())))
        notes.append(
            f"{len(found.plan.fallbacks)} tensors have rows that the wanted type cannot take: they are {kinds}"
        )
    return [*notes, *found.plan.notes, *found.scores.warnings][:MOST_MINDS]


def picture_option(found: Finished) -> str:
    """What tells llama.cpp's programs to make small pictures as large as the model's own processor makes them.

    Nothing where llama.cpp does so by itself, or every picture has the same size.
    """
    least, most = found.scores.least_image_tokens, found.scores.image_tokens
    needed = found.mmproj and least is not None and least > MIN_IMAGE_TOKENS and least != most
    return f" --image-min-tokens {least}" if needed else ""


def usage(found: Finished) -> list[tuple[str, str]]:
    """Commands that run the files, by program."""
    vision = f" --mmproj {found.mmproj}" if found.mmproj else ""  # names are harmless, see `folder`
    sizes = picture_option(found)
    image = " --image photo.jpg" if found.mmproj else ""
    tool = "llama-mtmd-cli" if found.mmproj else "llama-cli"
    asked = "What is this?" if found.mmproj else "Hello!"
    return [
        ("llama-server", f"llama-server -m {found.model}{vision}{sizes} -c 4096"),
        (tool, f'{tool} -m {found.model}{vision}{sizes}{image} -p "{asked}"'),
        ("luq-gguf", f'luq-gguf ask {found.model}{vision}{image} "{asked}"'),
        ("KoboldCpp", f"koboldcpp --model {found.model}{vision}"),
        ("Ollama", f"ollama create {found.manifest.name.lower()} -f Modelfile"),
    ]
