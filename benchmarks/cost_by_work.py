"""Time and memory of an analysis against its work: decoder layers, and tokens.

    python -m benchmarks.cost_by_work --work DIR --json benchmarks/cost_by_work.json --plot docs/cost-by-work.png
    python -m benchmarks.cost_by_work --work DIR --model Qwen2.5-VL-72B --layers 1 2 --at-tokens 16384 --tokens

Makes checkpoints of 1, 2, 4, 8 layers of a model's width; 8k tokens through each, and 2k, 8k, 32k through two.
Memory is the process' own (benchmarks/watched.py), seconds are of the whole command.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.make_checkpoint import MODELS, make_checkpoint
from benchmarks.three_tools import PROGRAM, write_texts
from benchmarks.watched import run_watched
from luq_gguf.manifest import versions
from luq_gguf.processors import cpu_name
from tests.published import PUBLISHED

LAYERS, TOKENS = (1, 2, 4, 8), (2048, 8192, 32768)
FIXED_LAYERS, FIXED_TOKENS = 2, 8192


def measure(work: Path, name: str, layers: int, tokens: int) -> dict[str, Any]:
    """One analysis in a process of its own, of a checkpoint made where it is not there yet."""
    model = work / f"{name}-{layers}"
    if not model.is_dir():
        config = PUBLISHED[name][0] | {"num_hidden_layers": layers, "max_window_layers": layers}
        make_checkpoint(config, model)
    texts, _ = write_texts(model, work, tokens)
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    found = run_watched((*PROGRAM, "analyze", model, "--out", out, "--calib", texts, "--json"), folders=[out])
    return {
        "layers": layers, "tokens": tokens, "seconds": round(found.seconds, 1),
        "anonymous_gib": round(found.anonymous_bytes / 2**30, 2), "disk_gib": round(found.disk_bytes / 2**30, 2),
    }  # fmt: skip


def line_through(rows: list[dict[str, Any]], of: str) -> dict[str, float]:
    """The straight line of the seconds, and how far the worst measurement is from it, as a share."""
    places, seconds = np.array([row[of] for row in rows]), np.array([row["seconds"] for row in rows])
    slope, start = np.polyfit(places, seconds, 1)
    off = np.abs(slope * places + start - seconds) / seconds
    return {"seconds_each": float(slope), "seconds_before": float(start), "worst": float(off.max())}


def draw(found: dict[str, Any], target: Path) -> None:
    """Seconds and memory against layers and tokens."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for panel, (of, label) in zip(panels, (("layers", "decoder layers"), ("tokens", "tokens")), strict=True):
        rows = found[f"by_{of}"]
        places = [row[of] for row in rows]
        panel.plot(places, [row["seconds"] for row in rows], "o-", color="tab:blue")
        panel.set(xlabel=label, xlim=(0, None), ylim=(0, None))
        panel.set_ylabel("seconds", color="tab:blue")
        memory = panel.twinx()
        memory.plot(places, [row["anonymous_gib"] for row in rows], "s--", color="tab:orange")
        memory.set(ylim=(0, 4))
        memory.set_ylabel("memory, GiB", color="tab:orange")
    figure.savefig(target, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="needs some 25 GB")
    parser.add_argument("--model", choices=MODELS, default="Qwen2.5-VL-7B")
    parser.add_argument("--layers", type=int, nargs="*", default=LAYERS)
    parser.add_argument("--at-tokens", type=int, default=FIXED_TOKENS, help="tokens through each number of layers")
    parser.add_argument("--tokens", type=int, nargs="*", default=TOKENS, help="through two layers")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    measured: dict[tuple[int, int], dict[str, Any]] = {}
    cases = {
        "layers": [(count, options.at_tokens) for count in options.layers],
        "tokens": [(FIXED_LAYERS, tokens) for tokens in options.tokens],
    }
    for case in dict.fromkeys([*cases["layers"], *cases["tokens"]]):
        measured[case] = measure(options.work, options.model, *case)
        print(measured[case], file=sys.stderr, flush=True)
    found: dict[str, Any] = {
        "command": f"python -m benchmarks.cost_by_work {' '.join(sys.argv[1:])}", "cpu": cpu_name(),
        "versions": versions(), "model": options.model,
    }  # fmt: skip
    found |= {f"by_{of}": [measured[case] for case in those] for of, those in cases.items() if those}
    found["lines"] = {of: line_through(found[f"by_{of}"], of) for of, those in cases.items() if len(those) > 1}
    print(json.dumps(found["lines"], indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        draw(found, options.plot)


if __name__ == "__main__":
    main()
