"""Tokens a second of Qwen2.5-VL-7B's shapes with random blocks, for several plans, on this machine.

    python -m benchmarks.seven_billion --json benchmarks/seven_billion.json
    python -m benchmarks.seven_billion --f16 --threads 1 2 4 8 --profile profile.json

Each file has the exact shapes and types that a conversion would have (benchmarks/shape_gguf.py); files are written,
measured and deleted one after the other. Predictions come from this CPU's profile, where `luq-gguf profile` left one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.shape_gguf import matrices_of, types_of
from luq_gguf.bench import measure_decode
from luq_gguf.manifest import versions
from luq_gguf.processors import cpu_name
from luq_gguf.profile import load_profile
from luq_gguf.random_gguf import write_random_gguf
from luq_gguf.speed import predict

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
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--f16", action="store_true", help="F16, too")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    profile, rows = load_profile(options.profile), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as work:
        for high, low, count in (*PLANS, *((LARGE,) if options.f16 else ())):
            family, types = types_of(MODEL, high, low, count)
            path = write_random_gguf(Path(work) / "model.gguf", family, types)
            matrices = matrices_of(family, types)
            for threads in options.threads:
                samples = measure_decode(
                    path, prompt=options.prompt, generate=options.generate, threads=threads, repeat=options.repeat
                )
                known = profile is not None and threads in profile.threads
                predicted = predict(matrices, profile, threads) if profile and known else None
                rows.append(
                    {
                        "high": high, "low": low, "low_layers": count, "bytes": path.stat().st_size,
                        "threads": threads, "prompt_tps": round(samples.prompt_tps, 2),
                        "generate_tps": round(samples.generate_tps, 2),
                        "predicted_prompt_tps": round(predicted.prompt, 2) if predicted else None,
                        "predicted_generate_tps": round(predicted.generate, 2) if predicted else None,
                        "bandwidth": round(profile.bandwidth[threads] / 1e9, 1) if profile and known else None,
                        "read_gb": round(predicted.read_bytes / 1e9, 3) if predicted else None,
                    }
                )  # fmt: skip
                print(rows[-1], flush=True)
            path.unlink()
    settings = {key: value for key, value in vars(options).items() if key not in ("json", "profile")}
    if options.json:
        whole = {"cpu": cpu_name(), "rows": rows, "settings": settings, "versions": versions()}
        options.json.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
