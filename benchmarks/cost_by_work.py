"""Time and memory of an analysis against its work: decoder layers, and tokens.

    python -m benchmarks.cost_by_work --work DIR --json benchmarks/cost_by_work.json --plot docs/cost-by-work.png

Makes checkpoints of 1, 2, 4, 8 layers of Qwen2.5-VL-7B's width; 8k tokens through each, and 2k, 8k, 32k through two.
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

from benchmarks.make_checkpoint import make_checkpoint
from benchmarks.three_tools import PROGRAM, write_texts
from benchmarks.watched import run_watched
from luq_gguf.manifest import versions
from luq_gguf.processors import cpu_name
from tests.published import PUBLISHED

LAYERS, TOKENS = (1, 2, 4, 8), (2048, 8192, 32768)
FIXED_LAYERS, FIXED_TOKENS = 2, 8192


def measure(work: Path, layers: int, tokens: int) -> dict[str, Any]:
    """One analysis in a process of its own, of a checkpoint made where it is not there yet."""
    model = work / f"layers-{layers}"
    if not model.is_dir():
        config = PUBLISHED["Qwen2.5-VL-7B"][0] | {"num_hidden_layers": layers, "max_window_layers": layers}
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
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    measured: dict[tuple[int, int], dict[str, Any]] = {}
    wanted = [(count, FIXED_TOKENS) for count in LAYERS] + [(FIXED_LAYERS, tokens) for tokens in TOKENS]
    for case in dict.fromkeys(wanted):
        measured[case] = measure(options.work, *case)
        print(measured[case], file=sys.stderr, flush=True)
    found: dict[str, Any] = {
        "command": f"python -m benchmarks.cost_by_work {' '.join(sys.argv[1:])}", "cpu": cpu_name(),
        "versions": versions(), "by_layers": [measured[count, FIXED_TOKENS] for count in LAYERS],
        "by_tokens": [measured[FIXED_LAYERS, tokens] for tokens in TOKENS],
    }  # fmt: skip
    found["lines"] = {of: line_through(found[f"by_{of}"], of) for of in ("layers", "tokens")}
    print(json.dumps(found["lines"], indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        draw(found, options.plot)


if __name__ == "__main__":
    main()
