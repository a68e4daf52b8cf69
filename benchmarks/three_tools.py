"""Our conversion beside llama.cpp's three tools, on the same tokens: time, memory and disk, in turns.

    python -m benchmarks.make_checkpoint --layers 4 --out MODEL
    python -m benchmarks.three_tools MODEL --work DIR --json benchmarks/three_tools.json
    python -m benchmarks.three_tools LARGE_MODEL --once --work DIR --json benchmarks/three_tools_7b.json

Theirs: convert_hf_to_gguf.py (16 bits, and the mmproj), llama-imatrix, and llama-quantize with the same type for every
tensor. Ours: `analyze` beside llama-imatrix; `convert --no-eval` beside the sum of all; then a second budget with the
parts kept. With `--once` each is done once, the seconds of the analysis are those in `convert`, and our files are gone
before theirs are made. The tools come from the source archive of llama-cpp-python, with the installed libraries.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.watched import Watched, run_watched
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.families import find_family
from luq_gguf.manifest import versions
from luq_gguf.processors import cpu_name
from luq_gguf.prompts import PromptMaker
from tests.stock import ROOT, StockTools, prepare_stock_tools

PIECE = 512
"""Tokens of a text: llama-imatrix reads so many at once."""
QUESTIONS = 4
"""Short questions with answers, which only we read: an eighth of them is held out for the reference."""
WORDS = (
    "red", "circle", "left", "of", "a", "blue", "square", "above", "two", "green", "stars", "what", "is", "yes", "no",
)  # fmt: skip
PROGRAM = (sys.executable, "-m", "luq_gguf")


def write_texts(model: Path, work: Path, tokens: int) -> tuple[Path, Path]:
    """The same texts as JSONL for us and as one file for llama-imatrix, `tokens` in pieces of 512."""
    checkpoint = Checkpoint.open(model)
    maker = PromptMaker(checkpoint, find_family(checkpoint.config, checkpoint))
    drawn = random.Random(0)
    stream: list[int] = []
    while len(stream) < tokens:
        stream += maker.tokenizer.encode(" ".join(drawn.choices(WORDS, k=200)) + "\n", add_special_tokens=False).ids
    pieces = [stream[start : start + PIECE] for start in range(0, tokens, PIECE)]
    texts = [maker.tokenizer.decode(piece) for piece in pieces]
    rows: list[dict[str, Any]] = [{"text": text} for text in texts]
    rows += [{"question": f"What is {number}?", "answer": "a circle"} for number in range(QUESTIONS)]
    ours, theirs = work / "texts.jsonl", work / "texts.txt"
    ours.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    theirs.write_text("".join(texts), encoding="utf-8")
    return ours, theirs


class Bench:
    """The two ways, each step watched."""

    def __init__(self, model: Path, work: Path, tools: StockTools, tokens: int, threads: int, low: int) -> None:
        self.model, self.work, self.tools, self.threads, self.low = model, work, tools, threads, low
        self.chunks = tokens // PIECE
        self.jsonl, self.text = write_texts(model, work, tokens)
        self.ours, self.theirs, self.types = work / "ours", work / "theirs", work / "types.txt"

    def _fresh(self, folder: Path) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def _ours(self, command: str, *more: str, out: Path) -> Watched:
        options = ("--calib", self.jsonl, "--threads", str(self.threads), "--json")
        return run_watched((*PROGRAM, command, self.model, "--out", out, *options, *more), folders=[out])

    def analyze(self) -> Watched:
        """Entropies, importance matrix and reference."""
        return self._ours("analyze", out=self._fresh(self.ours))

    def convert(self, *more: str) -> Watched:
        """Everything but the evaluation, from nothing."""
        out = self._fresh(self.ours)
        done = self._ours("convert", "--no-eval", "--low-layers", str(self.low), *more, out=out)
        shutil.copyfile(out / "tensor-types.txt", self.types)
        return done

    def second_budget(self) -> Watched:
        """Another number of low layers in the folder of a conversion whose parts were kept."""
        return self._ours("convert", "--no-eval", "--keep-parts", "--low-layers", str(self.low - 1), out=self.ours)

    def _tool(self, name: str, *arguments: str | int | Path) -> Watched:
        libraries = {"LD_LIBRARY_PATH": str(self.tools.libraries)}
        command = (self.tools.folder / name, *map(str, arguments))
        return run_watched(command, folders=[self.theirs], environment=libraries)

    def their_export(self) -> Watched:
        """convert_hf_to_gguf.py, for the text model and for the mmproj."""
        self._fresh(self.theirs)
        script = (sys.executable, ROOT / "scripts" / "convert_stock.py", self.tools.source, self.model)
        text = run_watched((*script, self.theirs / "BF16.gguf"), folders=[self.theirs])
        vision = run_watched((*script, self.theirs / "mmproj.gguf", "--mmproj"), folders=[self.theirs])
        memory, disk = (max(getattr(text, key), getattr(vision, key)) for key in ("anonymous_bytes", "disk_bytes"))
        return Watched(text.seconds + vision.seconds, memory, disk, "")

    def their_imatrix(self) -> Watched:
        """llama-imatrix over the texts."""
        files = ("-m", self.theirs / "BF16.gguf", "-f", self.text, "-o", self.theirs / "imatrix.gguf")
        return self._tool("llama-imatrix", *files, "-c", PIECE, "--chunks", self.chunks, "-t", self.threads)

    def their_quantize(self) -> Watched:
        """llama-quantize by the types of our plan."""
        types = ("--imatrix", self.theirs / "imatrix.gguf", "--tensor-type-file", self.types)
        files = (self.theirs / "BF16.gguf", self.theirs / "LUQ.gguf", "Q4_K_M", self.threads)
        return self._tool("llama-quantize", *types, *files)


def rounds(bench: Bench, count: int) -> Iterator[dict[str, Watched]]:
    """Each round does everything once; who begins changes."""
    for number in range(count):
        found: dict[str, Watched] = {}
        theirs: list[tuple[str, Callable[[], Watched]]] = [
            ("their_export", bench.their_export), ("their_imatrix", bench.their_imatrix),
        ]  # fmt: skip
        ours: list[tuple[str, Callable[[], Watched]]] = [("analyze", bench.analyze)]
        for name, step in (*ours, *theirs) if number % 2 == 0 else (*theirs, *ours):
            found[name] = step()
            print(f"round {number}: {name} {found[name].seconds:.1f} s", file=sys.stderr, flush=True)
        ending: tuple[tuple[str, Callable[[], Watched]], ...] = (
            ("convert", bench.convert), ("their_quantize", bench.their_quantize),
        )  # fmt: skip
        for name, step in ending:
            found[name] = step()
            print(f"round {number}: {name} {found[name].seconds:.1f} s", file=sys.stderr, flush=True)
        yield found


def once(bench: Bench) -> tuple[dict[str, Watched], Watched]:
    """Everything once, ours first, and the second budget."""
    found = {"convert": bench.convert("--keep-parts")}
    stages = json.loads(found["convert"].printed)["seconds"]
    found["analyze"] = replace(found["convert"], seconds=stages["analyze"])
    second = bench.second_budget()
    shutil.rmtree(bench.ours)
    for name in ("their_export", "their_imatrix", "their_quantize"):
        found[name] = getattr(bench, name)()
        print(f"{name} {found[name].seconds:.1f} s", file=sys.stderr, flush=True)
    return found, second


def summary(samples: list[dict[str, Watched]]) -> dict[str, Any]:
    """Medians of the rounds, and of the ratios within a round."""
    steps = {
        name: {
            "seconds": round(statistics.median(each[name].seconds for each in samples), 1),
            "rounds": [round(each[name].seconds, 1) for each in samples],
            "anonymous_gib": round(max(each[name].anonymous_bytes for each in samples) / 2**30, 2),
            "disk_gib": round(max(each[name].disk_bytes for each in samples) / 2**30, 2),
        }
        for name in samples[0]
    }
    three = [sum(each[name].seconds for name in each if name.startswith("their_")) for each in samples]
    ratios = {
        "analyze / llama-imatrix": [each["analyze"].seconds / each["their_imatrix"].seconds for each in samples],
        "convert / three tools": [each["convert"].seconds / whole for each, whole in zip(samples, three, strict=True)],
    }
    stages = [json.loads(each["convert"].printed)["seconds"] for each in samples]
    return {
        "steps": steps,
        "ratios": {name: round(statistics.median(values), 3) for name, values in ratios.items()},
        "ratios_by_round": {name: [round(value, 3) for value in values] for name, values in ratios.items()},
        "stages_of_convert": {
            name: round(statistics.median(each.get(name, 0.0) for each in stages), 1) for name in stages[0]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="needs room for the model three times")
    parser.add_argument("--tokens", type=int, default=1 << 14)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--low-layers", type=int, help="default: 3/7 of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--once", action="store_true", help="for a model of which the disk holds little more than one copy"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    layers = Checkpoint.open(options.model).config["num_hidden_layers"]
    low = options.low_layers or round(3 * layers / 7)
    bench = Bench(options.model, options.work, prepare_stock_tools(), options.tokens, options.threads, low)
    if options.once:
        sample, second = once(bench)
        samples, first = [sample], sample["convert"]
    else:
        samples = list(rounds(bench, options.rounds))
        first, second = bench.convert("--keep-parts"), bench.second_budget()
    found = summary(samples)
    found["second_budget"] = {
        "first_seconds": round(first.seconds, 1), "second_seconds": round(second.seconds, 1),
        "ratio": round(second.seconds / first.seconds, 3), "first_disk_gib": round(first.disk_bytes / 2**30, 2),
    }  # fmt: skip
    about = {
        "command": f"python -m benchmarks.three_tools {' '.join(sys.argv[1:])}", "cpu": cpu_name(),
        "machine": platform.machine(), "versions": versions(), "layers": layers, "low_layers": low,
        "tokens": options.tokens, "threads": options.threads,
    }  # fmt: skip
    text = json.dumps(about | found, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
