"""Where an analysis spends its time: products, sums of inputs, K-means, reading, keeping.

    python -m benchmarks.analysis_parts MODEL --tokens 16384 --json benchmarks/analysis_parts.json

Runs the analysis in this process with a clock around its parts. A part within another counts for itself only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.three_tools import write_texts
from luq_gguf import activations, changes, input_sums
from luq_gguf.activations import analyze
from luq_gguf.analysis_state import AnalysisState
from luq_gguf.calibration import load_calibration
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.chosen_tokens import ChosenTokens
from luq_gguf.families import find_family
from luq_gguf.families.decoder_modules import DecoderModules
from luq_gguf.job import Stopwatch
from luq_gguf.manifest import versions
from luq_gguf.processors import cpu_name

PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "products": ((DecoderModules, "run"),),
    "sums of inputs": ((input_sums.InputSums, "add"),),
    "K-means": ((activations, "measure_entropy"),),
    "read layers": ((DecoderModules, "layer"),),
    "what layers add": ((changes.Additions, "figures"), (ChosenTokens, "take")),
    "keep the state": ((AnalysisState, "keep_layers"),),
    "reference": ((activations, "score_answers"),),
}


def clocked(watch: Stopwatch, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a clock around it."""

    def run(*arguments: Any, **options: Any) -> Any:
        with watch.measure(part):
            return function(*arguments, **options)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=1 << 14)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    checkpoint = Checkpoint.open(options.model)
    family = find_family(checkpoint.config, checkpoint)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as work:
        texts, _ = write_texts(options.model, Path(work), options.tokens)
        family.modules()
        patches = [
            mock.patch.object(owner, name, clocked(watch, part, getattr(owner, name)))
            for part, places in PARTS.items()
            for owner, name in places
        ]
        for patch in patches:
            patch.start()
        begun = time.monotonic()
        with watch.measure("everything else"):
            analyze(checkpoint, family, load_calibration(texts), keep=Path(work) / "state")
        seconds = time.monotonic() - begun
        mock.patch.stopall()
    found = {
        "command": f"python -m benchmarks.analysis_parts {' '.join(sys.argv[1:])}", "cpu": cpu_name(),
        "versions": versions(), "layers": family.layers, "tokens": options.tokens, "seconds": round(seconds, 1),
        "parts": {part: round(taken, 1) for part, taken in watch.seconds.items()},
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
