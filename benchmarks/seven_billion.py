"""Tokens a second of Qwen2.5-VL-7B's shapes with random blocks, for several plans, on this machine.

    python -m benchmarks.seven_billion --f16 --json benchmarks/seven_billion.json
    python -m benchmarks.seven_billion --threads 1 2 4 8

Each file has the exact shapes and types that a conversion would have (benchmarks/shape_gguf.py); files are written,
measured and deleted one after the other. The CPU is profiled in a round before and one after each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.shape_gguf import matrices_of, types_of
from luq_gguf.bench import DecodeSamples, measure_decode
from luq_gguf.manifest import versions
from luq_gguf.processors import cpu_name
from luq_gguf.profile import Profiler
from luq_gguf.random_gguf import write_random_gguf
from luq_gguf.speed import Profile, Tensor, predict

MODEL = "Qwen2.5-VL-7B"
PLANS = (
    ("Q4_K_M", "IQ1_M", 0), ("Q4_K_M", "IQ1_M", 12), ("Q4_K_M", "IQ1_M", 16), ("Q4_K_M", "Q2_K", 12),
    ("Q4_K_M", "IQ1_M", 28),
)  # fmt: skip
"""High type, low type, low layers."""
LARGE = ("F16", "IQ1_M", 0)
"""With --f16: 15 GB of disk, and of memory."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--generate", type=int, default=16)
    parser.add_argument("--threads", type=int, nargs="+", default=(), help="default: one and all cores")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--f16", action="store_true", help="F16, too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with Profiler(options.threads) as profiler, tempfile.TemporaryDirectory() as work:
        profiler.measure(1)
        for high, low, count in (*PLANS, *((LARGE,) if options.f16 else ())):
            family, types = types_of(MODEL, high, low, count)
            path = write_random_gguf(Path(work) / "model.gguf", family, types)
            measured = [
                measure_decode(
                    path, prompt=options.prompt, generate=options.generate, threads=each, repeat=options.repeat
                )
                for each in profiler.threads
            ]
            profile = profiler.measure(1, earlier=1)
            for samples in measured:
                plan = {"high": high, "low": low, "low_layers": count, "bytes": path.stat().st_size}
                rows.append(plan | row_of(samples, matrices_of(family, types), profile))
                print(rows[-1], flush=True)
            path.unlink()
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    if options.json:
        whole = {"cpu": cpu_name(), "rows": rows, "settings": settings, "versions": versions()}
        options.json.write_text(json.dumps(whole, indent=1) + "\n")


def row_of(samples: DecodeSamples, matrices: list[Tensor], profile: Profile) -> dict[str, Any]:
    """Measured and predicted tokens a second, and what the memory gives."""
    predicted = predict(matrices, profile, samples.threads)
    return {
        "threads": samples.threads, "prompt_tps": round(samples.prompt_tps, 2),
        "generate_tps": round(samples.generate_tps, 2), "predicted_prompt_tps": round(predicted.prompt, 2),
        "predicted_generate_tps": round(predicted.generate, 2),
        "bandwidth": round(profile.bandwidth[samples.threads] / 1e9, 1),
        "read_gb": round(predicted.read_bytes / 1e9, 3),
    }  # fmt: skip


if __name__ == "__main__":
    main()
