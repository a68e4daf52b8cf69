"""How far predicted speeds are from measured ones, over mixes of types in a 7B-shaped model of a few layers.

    python -m benchmarks.predict_speed --json benchmarks/predict_speed.json

Every mix is predicted from its shapes and types, written with random blocks, and measured: generation and prompt, with
each number of threads, and one mix after a long context. All of that in several passes, with rounds of the CPU's
profile in between: where other programs take bandwidth away, rates change within seconds, and the model is to be
judged, not the moment. Medians are held against each other. "first" is the error of the first profile alone, as a user
has it; "noise" how far single measurements are from their own median.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType as Q

from benchmarks.shape_gguf import matrices_of, types_of
from luq_gguf.bench import measure_decode
from luq_gguf.families import Family
from luq_gguf.manifest import versions
from luq_gguf.profile import PROMPT, Profiler
from luq_gguf.random_gguf import write_random_gguf
from luq_gguf.speed import predict

MODEL = "Qwen2.5-VL-7B"
LAYERS = 3
CONTEXT = 2048
PROFILE_EVERY = 8
"""Mixes between two rounds of the profile."""
UNIFORM = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "IQ4_XS", "Q3_K", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XXS", "IQ1_M", "IQ1_S")
LOW = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "Q2_K", "IQ3_XXS")
"""With Q4_K_M in the other layers, in one and in two of the three."""

Mix = tuple[str, Family, dict[str, Q]]
Key = tuple[str, int, str]
"""Mix, threads, what is decoded."""


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


def measure(mix: Mix, path: Path, prompt: int, threads: Iterable[int], options: argparse.Namespace) -> dict[Key, float]:
    """Tokens a second of a mix, by mix, threads and what is decoded."""
    name, family, types = mix
    write_random_gguf(path, family, types, layers=LAYERS)
    found = {}
    for count in threads:
        samples = measure_decode(path, prompt=prompt, generate=options.generate, threads=count, repeat=options.repeat)
        found[name, count, "generate"] = samples.generate_tps
        if prompt == PROMPT:
            found[name, count, "prompt"] = samples.prompt_tps
    path.unlink()
    return found


def error(predicted: float, measured: float) -> float:
    """Percent that a prediction is too high."""
    return round(100 * (predicted / measured - 1), 1)


def row_of(key: Key, rates: list[float], predicted: float, first: float) -> dict[str, Any]:
    """Medians over the passes and their errors."""
    measured = statistics.median(rates)
    return {
        "mix": key[0], "threads": key[1], "what": key[2], "predicted": round(predicted, 2),
        "measured": round(measured, 2), "error_percent": error(predicted, measured),
        "first_error_percent": error(first, measured), "noise_percent": [error(rate, measured) for rate in rates],
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians and largest of errors and of noise, by kind and threads."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(f"{row['what']}, {row['threads']} threads", []).append(row)
    found = {}
    for name, group in groups.items():
        errors, first = ([abs(row[key]) for row in group] for key in ("error_percent", "first_error_percent"))
        noise = [abs(each) for row in group for each in row["noise_percent"]]
        found[name] = {
            "median": round(statistics.median(errors), 1), "largest": max(errors),
            "first_median": round(statistics.median(first), 1), "first_largest": max(first),
            "noise_median": round(statistics.median(noise), 1), "noise_largest": max(noise),
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generate", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=(), help="default: one and all cores")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    mixed = [(name, *mix) for name, mix in mixes().items()]
    long = (f"{mixed[0][0]} after {CONTEXT} tokens", *mixed[0][1:])
    todo = [*((mix, PROMPT) for mix in mixed), (long, CONTEXT)]
    rates: dict[Key, list[float]] = {}
    with Profiler(options.threads) as profiler, tempfile.TemporaryDirectory() as work:
        first = whole = profiler.measure(2)
        rounds = 2
        for _ in range(options.passes):
            for place, (mix, prompt) in enumerate(todo):
                for key, rate in measure(mix, Path(work) / "mix.gguf", prompt, profiler.threads, options).items():
                    rates.setdefault(key, []).append(rate)
                    print(*key, round(rate, 2), flush=True)
                if place % PROFILE_EVERY == PROFILE_EVERY - 1:
                    whole, rounds = profiler.measure(1, earlier=rounds), rounds + 1
    rows = []
    for mix, prompt in todo:
        matrices = matrices_of(*mix[1:], LAYERS)
        for key in (key for key in rates if key[0] == mix[0]):
            predicted, once = (getattr(predict(matrices, each, key[1], prompt), key[2]) for each in (whole, first))
            rows.append(row_of(key, rates[key], predicted, once))
            print(*rows[-1].values(), flush=True)
    print(json.dumps(summary(rows), indent=1))
    if options.json:
        result = {"summary": summary(rows), "rows": rows, "profile": whole.model_dump(), "first": first.model_dump()}
        options.json.write_text(json.dumps(result | {"versions": versions()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
