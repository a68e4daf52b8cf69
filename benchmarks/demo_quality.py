"""How well the demo model answers through llama.cpp: at 16 bits and with more and more low layers.

    .venv/bin/python benchmarks/demo_quality.py --out /path/to/scratch --json benchmarks/demo_quality.json

Asks questions about scenes that were never trained on. Per file: exact answers by kind of question;
against the 16-bit file: share of equal answers, share of equal next tokens and KL divergence (nats
per token) along the 16-bit file's own answers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from luq_gguf import __version__, pipeline
from luq_gguf.demo import CHECKPOINT, FRESH_SEED
from luq_gguf.demo.scenes import CLOSED_KINDS, QUESTION_KINDS, ask_about, draw_scene, make_scene
from luq_gguf.runtime import Runtime


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def answers_of(runtime: Runtime, scenes: int, forced: list[list[int]] | None) -> list[dict[str, Any]]:
    """One row a question; log-probabilities along the `forced` tokens, or along the model's own answer."""
    rows: list[dict[str, Any]] = []
    for number in range(scenes):
        scene = make_scene(FRESH_SEED + 1000 + number)
        image, rng = draw_scene(scene), random.Random(number)
        for kind in QUESTION_KINDS:
            question = ask_about(scene, kind, rng)
            answer = runtime.answer(question.text, image)
            tokens = runtime.tokenize(f"{answer}<|im_end|>") if forced is None else forced[len(rows)]
            first = runtime.start(question.text, image)
            logits = np.vstack([first[None], runtime.extend(tokens)[:-1]])
            rows.append({"kind": kind, "answer": answer, "right": answer == question.answer, "tokens": tokens,
                         "log": log_softmax(logits)})  # fmt: skip
    return rows


def summarize(rows: list[dict[str, Any]], reference: list[dict[str, Any]]) -> dict[str, Any]:
    right: dict[str, list[bool]] = defaultdict(list)
    same_tokens, divergences, same_answers = [], [], []
    for row, full in zip(rows, reference, strict=True):
        right[row["kind"]].append(row["right"])
        same_answers.append(row["answer"] == full["answer"])
        same_tokens += (row["log"].argmax(-1) == full["log"].argmax(-1)).tolist()
        divergences += (np.exp(full["log"]) * (full["log"] - row["log"])).sum(-1).tolist()
    return {
        "accuracy": {kind: float(np.mean(right[kind])) for kind in QUESTION_KINDS},
        "closed": float(np.mean([value for kind in CLOSED_KINDS for value in right[kind]])),
        "same_answers": float(np.mean(same_answers)),
        "same_tokens": float(np.mean(same_tokens)),
        "kl_nats": float(np.mean(divergences)),
        "questions": len(rows),
        "tokens": len(same_tokens),
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def format_results(record: dict[str, Any]) -> str:
    """The tables of BENCHMARKS.md."""
    kinds = QUESTION_KINDS
    lines = ["| file | MB | " + " | ".join(kinds) + " | closed questions | same answer | same next token | KL, nats |"]
    lines.append("|---" * (len(kinds) + 6) + "|")
    for name, row in record["files"].items():
        shares = [row["accuracy"][kind] for kind in kinds] + [row["closed"], row["same_answers"], row["same_tokens"]]
        cells = " | ".join(f"{100 * share:.1f} %" for share in shares)
        lines.append(f"| {name} | {row['size_bytes'] / 1e6:.2f} | {cells} | {row['kl_nats']:.4f} |")
    entropy = record["scores"]["entropy"]
    layers = range(record["scores"]["layers"])
    lines += ["", "| layer | " + " | ".join(map(str, layers)) + " |", "|---" * (len(layers) + 1) + "|"]
    for key, rows in entropy.items():
        lines.append(f"| {key.replace('_', ', ')} | " + " | ".join(f"{row['mean']:.2f}" for row in rows) + " |")
        lines.append("| ± over seeds | " + " | ".join(f"{row['spread']:.2f}" for row in rows) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="scratch folder")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--low-layers", type=int, nargs="+", default=[0, 4, 6, 8, 12])
    options = parser.parse_args()
    made = pipeline.export_model(str(options.checkpoint), options.out / "16bit", "auto", "f16")
    full, mmproj = made.text, made.mmproj
    with Runtime(full, mmproj) as runtime:
        reference = answers_of(runtime, options.scenes, None)
    results: dict[str, Any] = {"16 bits": {"size_bytes": full.stat().st_size, **summarize(reference, reference)}}
    forced = [row["tokens"] for row in reference]
    for count in options.low_layers:
        settings = pipeline.Settings(low_layers=count, calib="shapes", work=options.out / "work", keep_parts=True)
        made = pipeline.convert(str(options.checkpoint), options.out / str(count), settings)
        with Runtime(made.model, mmproj) as runtime:
            rows = answers_of(runtime, options.scenes, forced)
        summary = {
            "low_layers": list(made.plan.low_layers),
            "size_bytes": made.plan.size_bytes,
            "seconds": made.seconds,
        }
        results[f"{count} low layers"] = summary | summarize(rows, reference)
        print(count, json.dumps(results[f"{count} low layers"]), flush=True)
    import llama_cpp

    record = {
        "command": " ".join(["benchmarks/demo_quality.py", *sys.argv[1:]]),
        "versions": {"luq_gguf": __version__, "llama_cpp_python": llama_cpp.__version__},
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "scores": json.loads(made.scores.model_dump_json()),
        "files": results,
    }
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    print(format_results(record))


if __name__ == "__main__":
    main()
