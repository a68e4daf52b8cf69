"""Damages real files at random and watches the readers: a refusal (LuqError) is right, anything else is a finding.

    .venv/bin/python -m tests.fuzz.fuzz_readers --cases 10000 --json benchmarks/fuzz_readers.json
    .venv/bin/python -m tests.fuzz.fuzz_readers --reader gguf --case 4711   # one case again, with its traceback
    .venv/bin/python -m tests.fuzz.fuzz_readers --markdown benchmarks/fuzz_readers.json

A finding is another exception, a message of several lines, more than 2 seconds of processor time, more than 200 MB +
10 times the input of memory, or the end of the process. Every case follows from its reader, seed and number alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from luq_gguf import __version__
from luq_gguf.errors import LuqError
from tests.fuzz.fuzz_llama import fuzz_llama
from tests.fuzz.readers import READERS, Reader

MOST_SECONDS = 2.0
MOST_BYTES = 200 << 20
PATIENCE = 60.0
LLAMA = "llama"
"""Not among the readers by default: there, crashes of the child are what is counted."""
SHOWN = 20
"""Findings of a reader that are recorded in full."""


class Bench:
    """A reader's folder, in which one file is damaged for each case."""

    def __init__(self, reader: Reader, folder: Path) -> None:
        self.reader, self.folder = reader, folder / "files"
        self.folder.mkdir()
        reader.prepare(self.folder)
        names = [path.name for path in sorted(self.folder.iterdir())]
        self.alone = "*" in reader.targets
        targets = dict.fromkeys(names, reader.targets["*"]) if self.alone else reader.targets
        self.sound = {name: (self.folder / name).read_bytes() for name in targets}
        self.targets = targets
        if self.alone:
            shutil.rmtree(self.folder)
            self.folder.mkdir()

    def run(self, name: str, seed: int, case: int) -> tuple[str, str]:
        """What became of a case: accepted, refused, or the kind of finding; and what is to be said of it."""
        rng = random.Random(f"{name} {seed} {case}")
        target = rng.choice(sorted(self.targets))
        usual = sys.getrecursionlimit()
        sys.setrecursionlimit(50_000)  # what the damage may need, the reader may not
        content = self.targets[target](self.sound[target], rng)
        sys.setrecursionlimit(usual)
        path = self.folder / target
        path.write_bytes(content)
        before, started = _peak(), time.process_time()
        try:
            outcome = self._read()
        finally:
            if self.alone:
                path.unlink()
            else:
                path.write_bytes(self.sound[target])
            shutil.rmtree(self.folder / "out", ignore_errors=True)
        seconds, grown = time.process_time() - started, _peak() - before
        if outcome[0] in {"accepted", "refused"} and seconds > MOST_SECONDS:
            outcome = "slow", f"{seconds:.1f} s of processor time"
        if outcome[0] in {"accepted", "refused"} and grown > MOST_BYTES + 10 * len(content):
            outcome = "large", f"{grown / 1e6:.0f} MB for {len(content)} bytes"
        return outcome[0], f"{target}: {outcome[1]}" if outcome[1] else ""

    def _read(self) -> tuple[str, str]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.reader.read(self.folder)
        except LuqError as error:
            text = str(error)
            sound = text.isprintable() and len(text) < 2000
            return ("refused", "") if sound else ("message", repr(text[:300]))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            own = [frame for frame in traceback.extract_tb(error.__traceback__) if "/luq_gguf/" in frame.filename]
            at = f"{Path((own or [place])[-1].filename).name}:{(own or [place])[-1].lineno}"
            return "exception", f"{type(error).__name__} at {at}: {' '.join(str(error).split())[:200]}"
        return "accepted", ""


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _work(name: str, seed: int, first: int, cases: int, at: Synchronized[int], results: Any) -> None:
    """A child: runs cases and says what became of each that is worth saying."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)
    with tempfile.TemporaryDirectory(prefix="luq-fuzz-") as folder:
        bench = Bench(READERS[name], Path(folder))
        bench.reader.read(bench.folder) if not bench.alone else None
        for case in range(first, cases):
            at.value = case
            kind, text = bench.run(name, seed, case)
            if kind not in {"accepted", "refused"}:
                results.put({"case": case, "kind": kind, "what": text})
            else:
                results.put({"kind": kind})
    close = getattr(bench.reader.read, "renderer", None)
    if close is not None:
        close.close()


def fuzz(name: str, seed: int, cases: int) -> dict[str, Any]:
    """All cases of one reader; a child that dies or hangs costs the case it was at."""
    context = multiprocessing.get_context("fork")
    counts: Counter[str] = Counter()
    findings: list[dict[str, Any]] = []
    started, first = time.monotonic(), 0
    while first < cases:
        at, results = context.Value("q", first), context.SimpleQueue()
        child = context.Process(target=_work, args=(name, seed, first, cases, at, results))
        child.start()
        ended = _watch(child, at, results, counts, findings)
        if not ended:
            break
        counts["crash"] += 1
        findings.append({"case": at.value, "kind": "crash", "what": ended})
        first = at.value + 1
    kinds = Counter(finding["what"].partition(": ")[2][:80] for finding in findings)
    return {
        "reader": name, "cases": cases, "seed": seed, "counts": dict(counts),
        "seconds": round(time.monotonic() - started, 1), "findings": findings[:SHOWN],
        "kinds": dict(kinds.most_common(SHOWN)),
    }  # fmt: skip


def _watch(child: Any, at: Any, results: Any, counts: Counter[str], findings: list[dict[str, Any]]) -> str:
    """Collect a child's results until its end; says how it died, "" where it came to its end."""
    last, moved = at.value, time.monotonic()
    while True:
        alive = child.is_alive()
        while not results.empty():
            found = results.get()
            counts[found["kind"]] += 1
            if "case" in found:
                findings.append(found)
        if not alive:
            return "" if child.exitcode == 0 else f": exit code {child.exitcode}"
        if at.value != last:
            last, moved = at.value, time.monotonic()
        if time.monotonic() - moved > PATIENCE:
            child.kill()
            child.join()
            return f": no end after {PATIENCE:.0f} seconds"
        time.sleep(0.02)


def repeat(name: str, seed: int, case: int) -> None:
    """One case again, with its traceback."""
    with tempfile.TemporaryDirectory(prefix="luq-fuzz-") as folder:
        bench = Bench(READERS[name], Path(folder))
        plain, bench.reader = bench.reader, READERS[name]
        read = plain.read

        def loud(place: Path) -> None:
            try:
                read(place)
            except BaseException:
                traceback.print_exc()
                raise

        bench.reader = Reader(plain.prepare, plain.targets, loud)
        print(bench.run(name, seed, case))


def format_markdown(content: dict[str, Any]) -> str:
    """The table of a result."""
    rows = ["| reader | cases | read | refused | other exception | slow | large | crash | minutes |", "|" + "---|" * 9]
    for row in content["readers"]:
        count = Counter(row["counts"])
        told = (
            row["cases"], count["accepted"], count["refused"] + count["refused before"],
            count["exception"] + count["message"], count["slow"], count["large"], count["crash"],
        )  # fmt: skip
        cells = [row["reader"], *(f"{number:,}" for number in told), f"{row['seconds'] / 60:.1f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--reader", action="append", choices=[*READERS, LLAMA])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", type=int)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    if given.markdown:
        print(format_markdown(json.loads(given.markdown.read_text())))
        return
    if given.case is not None:
        repeat(given.reader[0], given.seed, given.case)
        return
    content: dict[str, Any] = {
        "command": "python -m tests.fuzz.fuzz_readers " + " ".join(sys.argv[1:]),
        "versions": {"luq-gguf": __version__, "python": platform.python_version()},
        "cpu": f"{cpu_name()}, one core",
        "limits": {"seconds": MOST_SECONDS, "bytes": MOST_BYTES},
        "readers": [],
    }
    if given.json and given.json.exists():  # rows of other readers stay
        content["readers"] = json.loads(given.json.read_text())["readers"]
    for name in given.reader or READERS:
        row = fuzz_llama(given.seed, given.cases) if name == LLAMA else fuzz(name, given.seed, given.cases)
        content["readers"] = [*(other for other in content["readers"] if other["reader"] != name), row]
        print(name, row["seconds"], row["counts"], json.dumps(row["kinds"], indent=1), flush=True)
        if given.json:
            given.json.write_text(json.dumps(content, indent=1) + "\n")


def cpu_name() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
