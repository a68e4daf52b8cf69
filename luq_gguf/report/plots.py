"""The plots of a model card: entropy and types by layer, and the frontier, as PNG.

Takes what `folder` read, leaves files. Texts that come from records are never read as formulas.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from luq_gguf.artifacts import atomic_path
from luq_gguf.frontier import undominated
from luq_gguf.job import PLOTS
from luq_gguf.planning import layer_of
from luq_gguf.report.views import STYLES, TOKENS, type_shares

if TYPE_CHECKING:
    from luq_gguf.report.folder import Finished

COLOURS = {"b1": "#e2571e", "b2": "#f0a02f", "b3": "#d8c24a", "b4": "#3d9488", "b5": "#3f7cbf", "b6": "#4b57b5",
           "b8": "#7d53a8", "b16": "#a3a9b4"}  # fmt: skip
LINES = {"m": "#1d2230", "t": "#8b91a0"}
BAND = "#fdeadd"
DPI = 110


def draw_plots(found: Finished, folder: Path) -> tuple[Path, ...]:
    """Draw every plot that the records allow; they lie in `folder`."""
    layers, frontier = (folder / name for name in PLOTS)
    _save(_draw_layers(found), layers)
    if found.frontier is None:
        return (layers,)
    _save(_draw_frontier(found), frontier)
    return layers, frontier


def _save(figure: Any, target: Path) -> None:
    with atomic_path(target) as partial:
        figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": None})


def _draw_layers(found: Finished) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for layer in found.plan.low_layers:
        above.axvspan(layer - 0.5, layer + 0.5, color=BAND, lw=0)
    _draw_entropy(found, above)
    _draw_types(found, below)
    below.set_xlabel("layer")
    below.xaxis.get_major_locator().set_params(integer=True)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    below.set_xlim(-0.5, found.plan.layers - 0.5)
    return figure


def _draw_entropy(found: Finished, axes: Any) -> None:
    site = "input" if found.plan.order_name == "entropy-input" else "output"
    for tokens, name in TOKENS.items():
        rows = found.scores.entropy.get(f"{site}_{tokens}")
        if rows:
            axes.errorbar(
                range(len(rows)), [row.mean for row in rows], [row.spread for row in rows], fmt="o-", ms=4, lw=1,
                capsize=2, color=LINES[STYLES[tokens]], label=name,
            )  # fmt: skip
    axes.set_ylabel("entropy, bits")
    axes.grid(axis="y", alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)


def _draw_types(found: Finished, axes: Any) -> None:
    """A stacked bar a layer: the bytes of its matrices by type."""
    bottoms = [0.0] * found.plan.layers
    for kind, style, _, _ in type_shares(found):
        sizes = [0.0] * found.plan.layers
        for tensor in found.matrices:
            layer = layer_of(tensor.name)
            if layer is not None and layer < found.plan.layers and tensor.type.name == kind:
                sizes[layer] += tensor.nbytes / 2**20
        if any(sizes):
            axes.bar(range(found.plan.layers), sizes, 0.86, bottoms, color=COLOURS[style], label=kind)
            bottoms = [bottom + size for bottom, size in zip(bottoms, sizes, strict=True)]
    axes.set_ylabel("MiB")
    axes.legend(fontsize=8, frameon=False, ncols=6, loc="upper center", bbox_to_anchor=(0.5, 1.2))


def _draw_frontier(found: Finished) -> Any:
    from matplotlib.figure import Figure

    assert found.frontier is not None
    points = found.frontier.points
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    axes = figure.subplots()
    for preset, colour, name in (
        (False, LINES["m"], "plans of the sweep"),
        (True, COLOURS["b16"], "llama.cpp's presets"),
    ):
        some = [point for point in points if point.preset is preset]
        axes.plot(
            [p.size_bytes / 2**20 for p in some], [p.divergence for p in some], "o", ms=5, color=colour, label=name
        )
    for point in points:
        text = point.high_type[:12] if point.preset else str(len(point.low_layers))
        axes.annotate(
            text, (point.size_bytes / 2**20, point.divergence), textcoords="offset points", xytext=(5, 4), fontsize=7,
            parse_math=False,
        )  # fmt: skip
    best = undominated(points)
    axes.plot([p.size_bytes / 2**20 for p in best], [p.divergence for p in best], "--", lw=1, color=LINES["t"])
    if found.quality is not None:
        axes.plot(
            found.plan.size_bytes / 2**20,
            found.quality.all.divergence,
            "o",
            ms=10,
            color=COLOURS["b1"],
            label="this file",
        )
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel="size, MiB", ylabel="KL divergence from 16 bits, nats a token", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return figure
