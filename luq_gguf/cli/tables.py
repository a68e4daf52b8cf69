"""What commands print: tables of scores, plans, sizes and conversions, as text."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from luq_gguf.amounts import format_bytes
from luq_gguf.type_names import bits_of

if TYPE_CHECKING:
    from luq_gguf.artifacts import EntropyRow, LayerScores, Plan
    from luq_gguf.bootstrap import Estimate
    from luq_gguf.calibration_summary import CalibrationSummary
    from luq_gguf.judging import Quality
    from luq_gguf.pipeline import Conversion, SizeTable
    from luq_gguf.speed import Profile
    from luq_gguf.speed_budget import Forecast

WIDTH = 110
WARNINGS = ("MIND", "SLOWER", "BUSY")
"""How lines begin that nobody should overlook."""
WHY = "the run that made these files left it out"


def render(*parts: Table | str) -> str:
    """Tables and lines as text; lines stay whole, since paths and commands in them are copied.

    With bold heads and coloured warnings where standard output is a terminal that has them; NO_COLOR is heeded.
    """
    console = Console(
        file=io.StringIO(), width=WIDTH, force_terminal=sys.stdout.isatty(), highlight=False, markup=False, emoji=False
    )
    for part in parts:
        warning = isinstance(part, str) and part.startswith(WARNINGS)
        console.print(part, soft_wrap=isinstance(part, str), style="yellow" if warning else None)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())


def make_table(title: str, columns: Iterable[str]) -> Table:
    """A table whose first column is text, the others figures; its title stays one line, however narrow it is."""
    heading = Text(title, no_wrap=True, overflow="ignore")
    table = Table(title=heading, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def format_interval(estimate: Estimate, form: str, factor: float = 1) -> str:
    """A figure with its interval, each in a form and multiplied."""
    value, low, high = (form.format(factor * each) for each in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low}..{high})"


def format_floor(floored: tuple[int, int]) -> str:
    """How much of an importance matrix is inputs that hardly ever differ from zero."""
    low, total = floored
    return f"importance: {low:,} of {total:,} channels stand at the floor, 1e-5 of their row's mean"


def entropy_cell(rows: tuple[EntropyRow, ...] | None, layer: int) -> str:
    """A layer's entropy and how far it is apart between seeds."""
    return "-" if rows is None else f"{rows[layer].mean:.3f} ±{rows[layer].spread:.3f}"


def format_scores(scores: LayerScores, order: str) -> str:
    """Entropy of every layer, with how stable its order is."""
    site = "input" if order == "entropy-input" else "output"
    multimodal, text = scores.entropy.get(f"{site}_multimodal"), scores.entropy.get(f"{site}_text")
    table = make_table(f"entropy of each layer's {site} in bits, ± over seeds", ("layer", "image+text", "text only"))
    for layer in range(scores.layers):
        table.add_row(str(layer), entropy_cell(multimodal, layer), entropy_cell(text, layer))
    return render(table, "", *score_lines(scores))


def score_lines(scores: LayerScores) -> list[str]:
    """How stable the order is, what it was measured on, and what to mind."""
    taus = ", ".join(f"{value:.2f} ({name.replace('_', ', ')})" for name, value in scores.stability.items())
    tokens = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in scores.tokens.items())
    return [
        f"agreement of the layers' order between two seeds, Kendall's tau: {taus}",
        f"{scores.samples} samples ({tokens} tokens), {scores.held_out} held out, computed in {scores.compute_type}",
        *scores.warnings,
    ]


def format_plan(plan: Plan, folder: Path, forecast: Forecast | None = None) -> str:
    """A plan's layers, size and predicted speed."""
    low = set(plan.low_layers)
    table = make_table(f"order: {plan.order_name}", ("layer", "type"))
    for layer in plan.order:
        table.add_row(str(layer), plan.low_type if layer in low else plan.high_type)
    wrote = f"wrote {folder / 'plan.json'} and {folder / 'tensor-types.txt'}"
    return render(table, "", *plan_lines(plan), *speed_lines(plan, forecast), wrote)


def speed_lines(plan: Plan, forecast: Forecast | None, measured: float | None = None) -> list[str]:
    """The predicted speed beside that of the high type alone, and what was measured."""
    if forecast is None:
        return []
    against = f"{forecast.high.generate:.1f} ({100 * (forecast.ratio - 1):+.0f} %)"
    lines = [
        (
            f"predicted on {forecast.cpu}, {forecast.threads} threads: {forecast.plan.generate:.1f} tokens/s, "
            f"{plan.high_type} alone {against}; prompts {forecast.plan.prompt:.0f}, {forecast.high.prompt:.0f}; "
            f"after {forecast.long_context:,} tokens of context {forecast.long.generate:.1f} tokens/s"
        )
    ]
    if forecast.slower:
        lines.append(f"SLOWER: on this CPU the file will be smaller than {plan.high_type} alone, but not faster")
    if forecast.doubt is not None:
        lines.append(f"MIND: {forecast.doubt}")
    if measured is not None:
        lines.append(f"measured: {measured:.1f} tokens/s")
    return lines


def plan_lines(plan: Plan) -> list[str]:
    """How many layers are low, the size, and what to mind."""
    share = 100 * (plan.size_bytes / plan.high_size_bytes - 1)
    lines = [
        (
            f"{len(plan.low_layers)} of {plan.layers} layers {plan.low_type}: {format_bytes(plan.size_bytes)} "
            f"({plan.size_bytes:,} bytes), {plan.bits_per_weight:.2f} bits per weight"
        ),
        (
            f"{plan.high_type} alone: {format_bytes(plan.high_size_bytes)} ({share:+.1f} %), "
            f"16 bits: {format_bytes(plan.f16_size_bytes)}"
        ),
    ]
    lines += [f"fallback: {name} is {kind}" for name, kind in plan.fallbacks.items()]
    return lines + list(plan.notes)


def format_sizes(sizes: SizeTable) -> str:
    """The size of the text GGUF for every number of low layers."""
    table = make_table(
        f"{sizes.model}: {sizes.layers} layers, {sizes.low_type} in the low ones, {sizes.high_type} elsewhere",
        ("low layers", "bytes", "size", f"against {sizes.high_type}", *(["tokens/s"] if sizes.tps else [])),
    )
    for count, size in enumerate(sizes.sizes):
        against = f"{100 * (size / sizes.sizes[0] - 1):+.1f} %"
        speed = [f"{sizes.tps[count]:.1f}"] if sizes.tps else []
        table.add_row(str(count), f"{size:,}", format_bytes(size), against, *speed)
    return render(table, "", *sizes.notes)


def format_conversion(result: Conversion) -> str:
    """The final table of `convert`."""
    plan, scores = result.plan, result.scores
    low, entropy, text = (
        set(plan.low_layers),
        scores.entropy.get("output_multimodal"),
        scores.entropy.get("output_text"),
    )
    table = make_table("", ("layer", "entropy (image+text)", "entropy (text)", "type", "bytes"))
    for layer in range(plan.layers):
        kind = plan.low_type if layer in low else plan.high_type
        size = f"{result.layer_bytes[layer]:,}"
        table.add_row(str(layer), entropy_cell(entropy, layer), entropy_cell(text, layer), kind, size)
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in result.seconds.items())
    lines = [*plan_lines(plan), f"time: {stages}" if stages else "nothing to do: these files are of the same request"]
    lines += speed_lines(plan, result.forecast, result.tps)
    lines += quality_lines(result.quality) if result.quality else [f"quality not measured: {result.unmeasured or WHY}"]
    if (better := result.better) is not None:
        lines.append(f"MIND: {better.verdict}")
    lines.append(format_floor(result.floored))
    if result.mmproj_layout:
        lines.append(f"vision part: laid out {result.mmproj_layout!r} (--mmproj-layout)")
    lines += [f"wrote {path}" for path in (*result.files(), *filter(None, [result.report]))]
    return render(table, "", *score_lines(scores), *lines)


def quality_lines(quality: Quality) -> list[str]:
    """What was measured of a file, in a sentence for all answers and one for each kind."""
    from luq_gguf.judging import KINDS

    return [
        f"measured on {group.samples} held-out answers ({KINDS.get(name, name)}, {group.tokens} tokens): "
        f"{100 * group.agreement:.1f} % of tokens as the 16-bit model says them, KL {group.divergence:.4f} nats"
        for name, group in quality.groups.items()
    ]


def format_profile(profile: Profile) -> str:
    """Every type's rates, the fastest first, and what a token costs besides."""
    from luq_gguf.speed import COLUMNS, LONG_COLUMNS

    columns = [
        heading
        for count in profile.threads
        for heading in (f"Gweights/s, {count} thr.", f"long rows, {count} thr.", f"prompts, {count} thr.")
    ]
    table = make_table(profile.cpu, ("type", "bits", *columns))
    for kind in sorted(profile.rates, key=lambda kind: profile.weight_time(kind, profile.threads[-1])):
        bits, cells = bits_of(kind), []
        for count in profile.threads:
            short, long = (profile.weight_time(kind, count, length) for length in (COLUMNS, LONG_COLUMNS))
            cells += [f"{1 / short:.1f}", f"{1 / long:.1f}", f"{1 / profile.rates[kind][count].prompt:.1f}"]
        table.add_row(kind, f"{bits:.2f}", *cells)
    lines = []
    for count in profile.threads:
        other = profile.other[count]
        lines.append(
            f"{count} threads: memory reads {profile.bandwidth[count] / 1e9:.1f} GB/s; besides weights, a "
            f"generated token costs {other.generate_token / 1e3:.0f} us, 1,000 channels of a layer "
            f"{other.generate_channel:.0f} us, and {other.context_channel:.2f} ms more with 1,000 tokens of context"
        )
    if profile.busy:
        lines.append("BUSY: other programs ran meanwhile; measure again when the machine is quiet")
    return render(table, "", *lines)


def format_calibration(found: CalibrationSummary) -> str:
    """What a calibration set holds."""
    kinds = {"image": "questions about images", "question": "questions without an image", "text": "plain texts"}
    table = make_table(f"{found.name}: {sum(found.samples.values())} samples", ("what", "count"))
    for kind, words in kinds.items():
        table.add_row(words, f"{found.samples[kind]:,}")
    table.add_row("with an answer", f"{found.answered:,}")
    table.add_row("held out to judge by", f"{found.held_out:,}")
    table.add_row("conversations of several turns", f"{found.conversations:,}")
    table.add_row("distinct pictures", f"{len(found.sizes):,}")
    return render(table, "", *_calibration_lines(found))


def _calibration_lines(found: CalibrationSummary) -> list[str]:
    lines = []
    if found.sizes:
        by_area = sorted(found.sizes, key=lambda size: size[0] * size[1])
        shown = ", ".join(
            f"{width} x {height}" for width, height in (by_area[0], by_area[len(by_area) // 2], by_area[-1])
        )
        lines.append(f"pictures, smallest, middle, largest: {shown} pixels")
        fewest, most = min(found.picture_tokens), max(found.picture_tokens)
        lines.append(f"image tokens a picture: {fewest:,} to {most:,}, in the middle {found.median_tokens:,.0f}")
    tokens = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in found.tokens.items())
    how = "as the model counts" if found.exact else "about: images as Qwen2.5-VL sees them, texts at 4 bytes a token"
    lines.append(f"tokens: {tokens} ({how})")
    if found.skipped:
        lines += [f"{found.skipped:,} samples cannot be used:", *(f"  {reason}" for reason in found.reasons)]
    return lines
