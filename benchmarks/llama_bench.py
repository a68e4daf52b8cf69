"""Our prompt and generation rates beside those of llama.cpp's llama-bench, on the same files, in turns.

    python -m benchmarks.llama_bench --json benchmarks/llama_bench.json

llama-bench is compiled from the source archive of llama-cpp-python and linked with the installed libraries. The
files have the shapes of some layers of Qwen2.5-VL-7B with random blocks of three types. Ours is measured in a process
of its own, too, as the command line does. A round is short, and there are many: what other programs take from the
memory changes within seconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.shape_gguf import types_of
from luq_gguf.bench import measure_decode
from luq_gguf.bench_statistics import paired_ratio
from luq_gguf.manifest import versions
from luq_gguf.random_gguf import write_random_gguf
from tests.stock import BENCH, StockTools, prepare_stock_tools

MODEL = "Qwen2.5-VL-7B"
FILES = {"Q4_K_M": ("Q4_K_M", 0), "IQ1_M": ("Q4_K_M", 28), "F16": ("F16", 0)}
"""The high type, and how many layers are IQ1_M."""


def theirs(
    tools: StockTools, path: Path, prompt: int, generate: int, threads: int, repeat: int
) -> dict[str, list[float]]:
    """Tokens a second of every sample of llama-bench."""
    numbers = ("-p", prompt, "-n", generate, "-t", threads, "-r", repeat, "-o", "json")
    runs = json.loads(tools.run("llama-bench", "-m", path, *numbers, cwd=path.parent))
    return {"prompt" if run["n_prompt"] else "generate": run["samples_ts"] for run in runs}


def ours(path: Path, prompt: int, generate: int, threads: int, repeat: int) -> dict[str, list[float]]:
    """Tokens a second of every sample of ours; of generation, a sample is a round, as llama-bench's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        numbers = {"prompt": prompt, "generate": generate, "threads": threads, "repeat": repeat}
        samples = pool.submit(measure_decode, path, **numbers).result()
    rounds = [samples.generate_ns[start : start + generate] for start in range(0, len(samples.generate_ns), generate)]
    return {
        "prompt": [prompt * 1e9 / taken for taken in samples.prompt_ns],
        "generate": [generate * 1e9 / sum(taken) for taken in rounds],
    }


def compare(tools: StockTools, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of both over all rounds, and how far ours is from theirs in percent, round by round."""
    found: dict[str, dict[str, list[float]]] = {who: {"prompt": [], "generate": []} for who in ("ours", "theirs")}
    numbers = (path, options.prompt, options.generate, options.threads, options.repeat)
    measures = {"theirs": lambda: theirs(tools, *numbers), "ours": lambda: ours(*numbers)}
    for number in range(options.rounds):
        for who in sorted(measures, reverse=number % 2 == 0):
            for what, samples in measures[who]().items():
                found[who][what].append(statistics.median(samples))
    result: dict[str, Any] = {}
    for what in ("prompt", "generate"):
        ratio = paired_ratio(found["theirs"][what], found["ours"][what])
        result[what] = {who: round(statistics.median(found[who][what]), 3) for who in found}
        result[what]["difference_percent"] = round(100 * (ratio.median - 1), 2)
        result[what]["interval_percent"] = [round(100 * (end - 1), 2) for end in (ratio.low, ratio.high)]
        result[what]["rounds"] = {who: [round(rate, 3) for rate in found[who][what]] for who in found}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--generate", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tools, result = prepare_stock_tools(BENCH), {}
    with tempfile.TemporaryDirectory() as work:
        for name, (high, low_layers) in FILES.items():
            family, types = types_of(MODEL, high, "IQ1_M", low_layers)
            path = write_random_gguf(Path(work) / f"{name}.gguf", family, types, layers=options.layers)
            result[name] = compare(tools, path, options)
            print(name, result[name], flush=True)
            path.unlink()
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    whole = {"files": result, "settings": settings, "versions": versions(), "machine": platform.machine()}
    if options.json:
        options.json.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
