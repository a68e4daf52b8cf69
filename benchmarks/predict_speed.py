"""How far predicted speeds are from measured ones, over mixes of types in a 7B-shaped model of a few layers.

    python -m benchmarks.predict_speed --json benchmarks/predict_speed.json

The CPU is profiled first. Then every mix is predicted from its shapes and types, written with random blocks, and
measured, generation and prompt, with each number of threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType as Q

from benchmarks.shape_gguf import matrices_of, types_of
from luq_gguf.bench import measure_decode
from luq_gguf.families import Family
from luq_gguf.manifest import versions
from luq_gguf.profile import PROMPT, measure_profile
from luq_gguf.random_gguf import write_random_gguf
from luq_gguf.speed import Profile, predict

MODEL = "Qwen2.5-VL-7B"
LAYERS = 3
UNIFORM = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "IQ4_XS", "Q3_K", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XXS", "IQ1_M", "IQ1_S")
LOW = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "Q2_K", "IQ3_XXS")
"""With Q4_K_M in the other layers, in one and in two of the three."""


def mixes() -> dict[str, tuple[Family, dict[str, Q]]]:
    """Types of every tensor by the mix's name."""
    family, base = types_of(MODEL, "Q4_K_M", "IQ1_M", 0)
    found = {"Q4_K_M": (family, base)}
    for kind in UNIFORM:
        layers = {name: Q[kind] if name.startswith("blk.") and old != Q.F32 else old for name, old in base.items()}
        found[f"all {kind}"] = (family, layers)
    for kind in LOW:
        for count in (1, 2):
            low = tuple(f"blk.{layer}." for layer in range(count))
            changed = {name: Q[kind] if name.startswith(low) and old != Q.F32 else old for name, old in base.items()}
            found[f"{count} of {LAYERS} {kind}"] = (family, changed)
    return found


def compare(
    name: str, family: Family, types: dict[str, Q], profile: Profile, work: Path, generate: int, repeat: int
) -> list[dict[str, Any]]:
    """Predicted and measured tokens a second, by threads and by what is decoded."""
    path = write_random_gguf(work / "mix.gguf", family, types, layers=LAYERS)
    matrices = matrices_of(family, types, LAYERS)
    rows = []
    for threads in profile.threads:
        expected = predict(matrices, profile, threads)
        samples = measure_decode(path, prompt=PROMPT, generate=generate, threads=threads, repeat=repeat)
        for what, predicted, measured in (
            ("generate", expected.generate, samples.generate_tps),
            ("prompt", expected.prompt, samples.prompt_tps),
        ):
            error = 100 * (predicted / measured - 1)
            rows.append(
                {
                    "mix": name, "threads": threads, "what": what, "predicted": round(predicted, 2),
                    "measured": round(measured, 2), "error_percent": round(error, 1),
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
    path.unlink()
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Median and largest error by kind and threads."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(f"{row['what']}, {row['threads']} threads", []).append(abs(row["error_percent"]))
    return {name: {"median": round(statistics.median(e), 1), "largest": max(e)} for name, e in groups.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generate", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=(), help="default: one and all cores")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    profile = measure_profile(options.threads)
    print(profile.model_dump_json(indent=1), flush=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        for name, (family, types) in mixes().items():
            rows += compare(name, family, types, profile, Path(work), options.generate, options.repeat)
    print(json.dumps(summary(rows), indent=1))
    if options.json:
        whole = {"summary": summary(rows), "rows": rows, "profile": profile.model_dump(), "versions": versions()}
        options.json.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
