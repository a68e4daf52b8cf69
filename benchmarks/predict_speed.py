"""How far predicted speeds are from measured ones, over mixes of types in a 7B-shaped model of a few layers.

    python -m benchmarks.predict_speed --json benchmarks/predict_speed.json

Every mix is predicted from its shapes and types, written with random blocks, and measured: generation and prompt, with
each number of threads, and one mix after a long context. The CPU is profiled before and after each mix: where other
programs take bandwidth away, rates change within seconds, and the model is to be judged. "first" is the error of the
first profile, taken once, as a user has it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType as Q

from benchmarks.shape_gguf import matrices_of, types_of
from luq_gguf.bench import measure_decode
from luq_gguf.families import Family
from luq_gguf.manifest import versions
from luq_gguf.profile import PROMPT, Profiler
from luq_gguf.random_gguf import write_random_gguf
from luq_gguf.speed import Profile, predict

MODEL = "Qwen2.5-VL-7B"
LAYERS = 3
CONTEXT = 2048
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


def forecast(mix: Mix, prompt: int, profiles: Sequence[Profile], key: Key) -> float:
    """What a key of a mix is predicted to reach, in the mean of profiles."""
    _, family, types = mix
    matrices = matrices_of(family, types, LAYERS)
    speeds = [predict(matrices, profile, key[1], prompt) for profile in profiles]
    return statistics.geometric_mean(getattr(speed, key[2]) for speed in speeds)


def error(predicted: float, measured: float) -> float:
    """Percent that a prediction is too high."""
    return round(100 * (predicted / measured - 1), 1)


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Median and largest error by kind and threads."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(f"{row['what']}, {row['threads']} threads", []).append(row)
    found = {}
    for name, group in groups.items():
        errors, first = ([abs(row[key]) for row in group] for key in ("error_percent", "first_error_percent"))
        found[name] = {
            "median": round(statistics.median(errors), 1), "largest": max(errors),
            "first_median": round(statistics.median(first), 1), "first_largest": max(first),
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generate", type=int, default=24)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=(), help="default: one and all cores")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    mixed = [(name, *mix) for name, mix in mixes().items()]
    long = (f"{mixed[0][0]} after {CONTEXT} tokens", *mixed[0][1:])
    rows: list[dict[str, Any]] = []
    with Profiler(options.threads) as profiler, tempfile.TemporaryDirectory() as work:
        profiles = [profiler.measure(2)]
        for mix, prompt in [*((mix, PROMPT) for mix in mixed), (long, CONTEXT)]:
            measured = measure(mix, Path(work) / "mix.gguf", prompt, profiler.threads, options)
            profiles.append(profiler.measure(1))
            for key, rate in measured.items():
                predicted, first = (forecast(mix, prompt, each, key) for each in (profiles[-2:], profiles[:1]))
                rows.append(
                    {
                        "mix": key[0], "threads": key[1], "what": key[2], "predicted": round(predicted, 2),
                        "measured": round(rate, 2), "error_percent": error(predicted, rate),
                        "first_error_percent": error(first, rate),
                    }
                )  # fmt: skip
                print(*rows[-1].values(), flush=True)
    print(json.dumps(summary(rows), indent=1))
    if options.json:
        whole = {"summary": summary(rows), "rows": rows, "profile": profiles[0].model_dump(), "versions": versions()}
        options.json.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
