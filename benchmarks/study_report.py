"""The study's tables as Markdown, and its plots, from the JSON that `benchmarks.study` wrote.

python -m benchmarks.study_report benchmarks/study_demo.json --plot docs/study_demo.png
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
POLICIES = "entropy", "reverse", "depth", "entropy-input", "cosine", "change", "random", "damage"


def figure(row: Row, name: str = "divergence", group: str = "all") -> dict[str, float]:
    found: dict[str, float] = row["quality"][group]["figures"][name]
    return found


def kl(row: Row) -> float:
    return figure(row)["value"]


def short(value: float) -> str:
    return f"{value:.2g}" if value < 0.01 else f"{value:.3f}" if value < 1 else f"{value:.2f}"


def interval(row: Row) -> str:
    found = figure(row)
    return f"{short(found['value'])} ({short(found['low'])}..{short(found['high'])})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(head), "|".join(["---"] * len(head)), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def by_order(study: Row) -> dict[str, dict[int, list[Row]]]:
    """Rows by policy and number of low layers; the seeds of random ones together."""
    found: dict[str, dict[int, list[Row]]] = {}
    for row in [*study.get("orders", []), *study.get("damage", [])]:
        name = row["order"].split()[0]
        found.setdefault(name, {}).setdefault(row["low_layers"], []).append(row)
    return found


def order_table(study: Row) -> str:
    orders = by_order(study)
    counts = sorted(next(iter(orders.values())))
    rows = []
    for name in POLICIES:
        if name in orders:
            cells = [statistics.fmean(map(kl, orders[name][count])) for count in counts]
            rows.append([f"`{name}`" + (" (mean of 5)" if name == "random" else ""), *map(short, cells)])
    return table(["low layers", *map(str, counts)], rows)


def tau_table(study: Row) -> str:
    names = list(next(iter(study["taus"].values())))
    rows = [[kind, *(f"{taus[name]:.2f}" for name in names)] for kind, taus in study["taus"].items()]
    return table(["one layer in", *names], rows)


def type_table(study: Row) -> str:
    rows = [
        [
            row["type"],
            str(row["low_layers"]),
            f"{row['bytes']:,}",
            interval(row),
            f"{100 * figure(row, 'agreement')['value']:.1f}",
        ]
        for row in study["low_types"]
    ]
    return table(["low type", "low layers", "bytes", "KL, nats", "same token, %"], rows)


def frontier_table(study: Row) -> str:
    mixtures = {row["at"]: row for row in study.get("mixtures", [])}
    entropy = {f"IQ1_M {row['low_layers']}": row for row in study["orders"] if row["order"] == "entropy"}
    presets = {row["preset"]: row for row in study["presets"]}
    rows = []
    for name, row in sorted((entropy | presets).items(), key=lambda item: -item[1]["bytes"]):
        mixed = mixtures.get(name)
        shown = f"LUQ, {row['low_layers']} layers IQ1_M" if name in entropy else f"preset {name}"
        rows.append([shown, f"{row['bytes']:,}", interval(row), interval(mixed) if mixed else "-"])
    return table(["file", "bytes", "KL, nats", "`mix` in as many bytes"], rows)


def sequential_table(study: Row) -> str:
    rows = study["sequential"]
    pairs = [(before, after) for before, after in zip(rows[::2], rows[1::2], strict=True)]
    return table(
        ["plan", "bytes", "KL, nats", "with `--sequential`"],
        [[before["made"], f"{before['bytes']:,}", interval(before), interval(after)] for before, after in pairs],
    )


def alpha_table(study: Row) -> str:
    rows = []
    for row in study["alphas"]:
        groups = row["quality"]
        cells = [
            short(groups[group]["figures"]["divergence"]["value"])
            for group in ("all", "image", "question")
            if group in groups
        ]
        rows.append([f"{row['alpha']:g}", str(row["low_layers"]), *cells])
    head = ["all", "image", "text only"] if "image" in study["alphas"][0]["quality"] else ["all", "text only"]
    return table(["alpha", "low layers", *(f"KL, {name}" for name in head)], rows)


def share_table(study: Row) -> str:
    rows = [[f"{row['share']:g}", ", ".join(map(str, row["order"])), interval(row)] for row in study["shares"]]
    return table(["image share", "low layers", "KL, nats"], rows)


def draw_entropy(study: Row, axis: Any) -> None:
    for key, rows in study["scores"]["entropy"].items():
        if key.startswith("output"):
            axis.plot([row["mean"] for row in rows], "o-", label=key.removeprefix("output_"))
    axis.set(xlabel="layer", ylabel="entropy of the output, bits")


def draw_orders(study: Row, axis: Any) -> None:
    for name, rows in by_order(study).items():
        counts = sorted(rows)
        values = [statistics.fmean(map(kl, rows[count])) for count in counts]
        axis.plot(counts, values, "x--" if name == "random" else "o-", label=name, markersize=3)
    axis.set(xlabel="layers in IQ1_M", ylabel="KL, nats a token", yscale="log")


def draw_alphas(study: Row, axis: Any) -> None:
    if not study.get("alphas"):
        axis.set_axis_off()
        return
    for count in sorted({row["low_layers"] for row in study["alphas"]}):
        rows = [row for row in study["alphas"] if row["low_layers"] == count]
        for group in rows[0]["quality"]:
            values = [figure(row, group=group)["value"] for row in rows]
            axis.plot([row["alpha"] for row in rows], values, "o-", label=f"{group}, {count} layers")
    axis.set(xlabel="alpha: share of image+text tokens", ylabel="KL, nats a token", yscale="log")


def draw_sizes(study: Row, axis: Any) -> None:
    series = {
        "LUQ by entropy": [row for row in study["orders"] if row["order"] == "entropy"],
        "LUQ by damage": study.get("damage", []),
        "mix": study.get("mixtures", []),
        "presets": study["presets"],
    }
    for name, rows in series.items():
        places = sorted((row["bytes"] / 2**20, kl(row)) for row in rows)
        axis.plot([x for x, _ in places], [y for _, y in places], "kx" if name == "presets" else "o-", label=name)
    for row in study["presets"]:
        axis.annotate(row["preset"], (row["bytes"] / 2**20, kl(row)), fontsize=6)
    axis.set(xlabel="MiB", ylabel="KL, nats a token", yscale="log")
    if study.get("weights"):
        bits = 8 * 2**20 / study["weights"]
        top = axis.secondary_xaxis("top", functions=(lambda size: size * bits, lambda mean: mean / bits))
        top.set_xlabel("bits a weight, on average")


def draw(study: Row, target: Path) -> None:
    """Entropy by layer, quality by number of layers, by ratio alpha, and by bytes."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(12, 8), layout="constrained")
    for axis, pen in zip(canvas.subplots(2, 2).flat, (draw_entropy, draw_orders, draw_alphas, draw_sizes), strict=True):
        pen(study, axis)
        axis.grid(visible=True, alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    canvas.suptitle(study["model"])
    canvas.savefig(target, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    study = json.loads(options.study.read_text())
    for needed, make in (
        ("orders", order_table), ("taus", tau_table), ("low_types", type_table), ("presets", frontier_table),
        ("sequential", sequential_table), ("alphas", alpha_table), ("shares", share_table),
    ):  # fmt: skip
        if needed in study:
            print(f"{make(study)}\n")
    if options.plot:
        draw(study, options.plot)


if __name__ == "__main__":
    main()
