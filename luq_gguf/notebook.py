"""Results as HTML tables for a notebook: takes the records of a stage, gives text.

The figures and sentences are those that the commands print. Names in records may be anyone's: whatever is shown is
escaped, and nothing of it is run or fetched.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from luq_gguf.amounts import format_bytes
from luq_gguf.errors import LuqError, printable

if TYPE_CHECKING:
    from luq_gguf.artifacts import LayerScores, Plan
    from luq_gguf.bench_record import BenchRecord
    from luq_gguf.judging import Quality
    from luq_gguf.pipeline import Conversion, SizeTable
    from luq_gguf.quality import Evaluation
    from luq_gguf.speed_budget import Forecast
    from luq_gguf.vqa.asking import BenchmarkResult

SEEN = {"output_multimodal": "image+text", "output_text": "text"}
LEFT, RIGHT = ' style="text-align:left"', ' style="text-align:right"'


def table_html(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are figures; every cell is escaped."""
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
    caption = f"<caption{LEFT}>{_escaped(title)}</caption>" if title else ""
    return f"<table>{caption}<thead><tr>{_cells('th', columns)}</tr></thead><tbody>{body}</tbody></table>"


def lines_html(lines: Iterable[str]) -> str:
    """Sentences, one below the other."""
    return "<p>" + "<br>".join(_escaped(line) for line in lines if line) + "</p>"


def _cells(kind: str, cells: Sequence[str]) -> str:
    return "".join(
        f"<{kind}{RIGHT if place else LEFT}>{_escaped(cell)}</{kind}>" for place, cell in enumerate(cells)
    )  # fmt: skip


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def scores_html(scores: LayerScores) -> str:
    """Entropy of every layer's output, and of its input where that was measured."""
    from luq_gguf.cli.tables import entropy_cell, score_lines

    names = list(scores.entropy)
    rows = [
        (str(layer), *(entropy_cell(scores.entropy[name], layer) for name in names)) for layer in range(scores.layers)
    ]
    title = "entropy of each layer in bits, ± over seeds"
    return table_html(title, ("layer", *(name.replace("_", ", ") for name in names)), rows) + lines_html(
        score_lines(scores)
    )


def plan_html(plan: Plan, forecast: Forecast | None = None) -> str:
    """The type of every weight, a row a layer, in the order in which layers become low; then size and speed."""
    from luq_gguf.cli.tables import plan_lines, speed_lines

    layers, others = type_map(plan)
    names = list(dict.fromkeys(name for kinds in layers.values() for name in kinds))
    low = set(plan.low_layers)
    rows = [
        (f"{layer} low" if layer in low else str(layer), *(layers.get(layer, {}).get(name, "") for name in names))
        for layer in plan.order
    ]
    title = f"order: {plan.order_name}" if plan.order_name else "types"
    outside = ", ".join(f"{name} {kind}" for name, kind in others.items())
    lines = [f"outside the layers: {outside}" if outside else "", *plan_lines(plan), *speed_lines(plan, forecast)]
    return table_html(title, ("layer", *names), rows) + lines_html(lines)


def type_map(plan: Plan) -> tuple[dict[int, dict[str, str]], dict[str, str]]:
    """Types by layer and weight, and those of the weights outside the layers; norms and biases (F32) are left out."""
    from luq_gguf.planning import layer_of

    layers: dict[int, dict[str, str]] = {}
    others: dict[str, str] = {}
    for name, kind in plan.types.items():
        if kind == "F32":
            continue
        layer, short = layer_of(name), name.removesuffix(".weight")
        if layer is None:
            others[short] = kind
        else:
            layers.setdefault(layer, {})[short.partition(f"{layer}.")[2]] = kind
    return layers, others


def sizes_html(table: SizeTable) -> str:
    """The size of the text GGUF for every number of low layers."""
    columns = ("low layers", "bytes", "size", f"against {table.high_type}", *(["tokens/s"] if table.tps else []))
    rows = [
        (
            str(count), f"{size:,}", format_bytes(size), f"{100 * (size / table.sizes[0] - 1):+.1f} %",
            *([f"{table.tps[count]:.1f}"] if table.tps else []),
        )
        for count, size in enumerate(table.sizes)
    ]  # fmt: skip
    title = f"{table.model}: {table.layers} layers, {table.low_type} in the low ones, {table.high_type} elsewhere"
    return table_html(title, columns, rows) + lines_html(table.notes)


def quality_html(quality: Quality) -> str:
    """Every figure with its interval, apart for questions about images and others."""
    from luq_gguf.cli.eval import FIGURES
    from luq_gguf.cli.tables import format_interval
    from luq_gguf.judging import KINDS

    groups = quality.groups
    rows = [
        ("answers", *(f"{group.samples:,}" for group in groups.values())),
        ("tokens", *(f"{group.tokens:,}" for group in groups.values())),
    ]
    for name, (title, form, factor) in FIGURES.items():
        rows.append((title, *(format_interval(group.figures[name], form, factor) for group in groups.values())))
    columns = ("95 % intervals", *(KINDS.get(name, name) for name in groups))
    return table_html(f"against {quality.reference}", columns, rows)


def evaluation_html(found: Evaluation) -> str:
    """A file, how well it says what the 16-bit model says, and what it scores."""
    parts = [lines_html([f"{found.model}: {format_bytes(found.size_bytes)} ({found.size_bytes:,} bytes)"])]
    if found.quality is not None:
        parts.append(quality_html(found.quality))
    if found.benchmark is not None:
        parts.append(_benchmark_html(found.benchmark, found.reference_benchmark))
    if found.accuracy_drop is not None:
        parts.append(lines_html([f"drop against 16 bits: {100 * found.accuracy_drop:.1f} % of its score"]))
    return "".join(parts)


def _benchmark_html(result: BenchmarkResult, full: BenchmarkResult | None) -> str:
    from luq_gguf.cli.tables import format_interval

    rows = []
    for name, estimate in result.figures.items():
        other = full.figures.get(name) if full else None
        beside = [format_interval(other, "{:.1f}") if other else "-"] if full else []
        rows.append((name, format_interval(estimate, "{:.1f}"), *beside))
    title = f"{result.benchmark}, {result.questions:,} questions of {result.data}, 95 % intervals"
    left_out = f"{result.left_out:,} questions could not be asked" if result.left_out else ""
    return table_html(title, ("figure", "this file", *(["16 bits"] if full else [])), rows) + lines_html(
        [result.note, left_out]
    )


def conversion_html(result: Conversion) -> str:
    """What was made: its layers, its quality, its size and where it lies."""
    from luq_gguf.cli.tables import WHY

    quality = result.quality
    shown = quality_html(quality) if quality else lines_html([f"quality not measured: {result.unmeasured or WHY}"])
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in result.seconds.items())
    lines = [*_conversion_lines(result), _floor_line(result), f"time: {stages}" if stages else ""]
    return _layers_html(result) + shown + lines_html([*lines, *(str(path) for path in result.files())])


def _layers_html(result: Conversion) -> str:
    from luq_gguf.cli.tables import entropy_cell

    scores = result.scores
    names = [name for name in SEEN if name in scores.entropy]
    low = set(result.plan.low_layers)
    rows = []
    for layer in range(result.plan.layers):
        kind = result.plan.low_type if layer in low else result.plan.high_type
        cells = (entropy_cell(scores.entropy[name], layer) for name in names)
        rows.append((str(layer), *cells, kind, f"{result.layer_bytes[layer]:,}"))
    columns = ("layer", *(f"entropy ({SEEN[name]})" for name in names), "type", "bytes")
    return table_html(result.model.name, columns, rows)


def _floor_line(result: Conversion) -> str:
    """How much of the importance matrix says nothing; the files may have gone since."""
    from luq_gguf.cli.tables import format_floor

    try:
        return format_floor(result.floored)
    except (LuqError, OSError):
        return ""


def _conversion_lines(result: Conversion) -> list[str]:
    from luq_gguf.cli.tables import plan_lines, speed_lines

    lines = [*plan_lines(result.plan), *speed_lines(result.plan, result.forecast, result.tps)]
    if (better := result.better) is not None:
        lines.append(f"MIND: {better.verdict}")
    return lines


def benchmark_html(record: BenchRecord) -> str:
    """Every table of a benchmark, and what it was measured on."""
    from luq_gguf.bench_report import report_of

    report = report_of(record)
    tables = (table_html(table.title, table.columns, table.rows) for table in report.tables)
    return "".join(tables) + lines_html(report.lines)
