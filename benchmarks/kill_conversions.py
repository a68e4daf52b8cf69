"""Kill a conversion at random moments, go on, and compare every file with an undisturbed run's.

    python benchmarks/kill_conversions.py --moments 30 --json benchmarks/kill_conversions.json

Each time one process of the run (the program, the child that works, or the quantizer) gets SIGKILL. What
stands under a final name then must be whole, and the next run must finish with the same bytes.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from luq_gguf.artifacts import sha256_of
from luq_gguf.demo import CHECKPOINT
from luq_gguf.imatrix import read_sums
from luq_gguf.job import REFERENCE, SUMS
from luq_gguf.manifest import versions
from luq_gguf.reference import read_reference

OPTIONS = ("--calib", "shapes", "--low-layers", "2", "--low-type", "Q2_K", "--samples", "24", "--threads", "1")
STAGES = (
    "before the analysis", "in the pictures", "in the layers", "analyzed", "quantizing or later", "finished",
)  # fmt: skip
UNLIKE = {"manifest.json", "report.html"}
"""They hold seconds, and times of change."""


def convert(model: Path, out: Path, more: tuple[str, ...]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "luq_gguf", "convert", str(model), "--out", str(out), *OPTIONS, *more, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    stdout, stderr = process.communicate()
    if process.returncode:
        raise SystemExit(f"the conversion failed: {stderr.decode()}")
    result: dict[str, Any] = json.loads(stdout)
    return result


def hashes(out: Path) -> dict[str, str]:
    """Everything under a final name."""
    files = [path for path in out.iterdir() if path.is_file()] if out.is_dir() else []
    final = (path for path in files if path.suffix != ".partial" and path.name not in UNLIKE)
    return {path.name: sha256_of(path) for path in final}


def stage_of(out: Path) -> str:
    """How far a killed run had come, from what stands in its folder."""
    work = out / ".work"
    if (out / "manifest.json").exists():
        return "finished"
    if any((work / "parts").glob("*.gguf")) or any(work.glob("growing-*")):
        return "quantizing or later"
    if any(work.glob("analysis-*")):
        return "analyzed"
    if any(work.glob("analyzing-*/layers.safetensors")):
        return "in the layers"
    return "in the pictures" if any(work.glob("analyzing-*")) else "before the analysis"


def kill_one(model: Path, out: Path, moment: float, rng: random.Random, more: tuple[str, ...]) -> str:
    """Kill one process of a conversion after so many seconds; returns the stage it was in."""
    process = convert(model, out, more)
    started = time.monotonic()
    while process.poll() is None and time.monotonic() - started < moment:
        time.sleep(0.002)
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):  # it may be over already
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        rng.choice(family).send_signal(signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=60)
    if alive:
        raise SystemExit(f"processes outlive a killed run: {alive}")
    return stage_of(out)


def unlike(out: Path, expected: dict[str, str]) -> list[str]:
    """The names of the files that differ from the expected ones, or are in one place only."""
    found = hashes(out)
    return sorted(name for name in found.keys() | expected if found.get(name) != expected.get(name))


def difference(one: Path, other: Path) -> float:
    """The largest difference between what two analyses in the same type and of the same samples summed and foresaw.

    Of sums as a share of their row's largest, of the likeliest tokens in nats; infinite where more than that differs.
    """
    left, right = read_sums(one / SUMS), read_sums(other / SUMS)
    if left.counts != right.counts:
        return float("inf")
    found = [
        float(np.abs(row - right.squares[name][key]).max() / max(row.max(), np.finfo(float).tiny))
        for name, rows in left.squares.items()
        for key, row in rows.items()
    ]
    said, again = read_reference(one / REFERENCE), read_reference(other / REFERENCE)
    if said.context != again.context or (said.answers != again.answers).any():
        return float("inf")
    return max(*found, float(np.abs(said.log_probabilities[:, 0] - again.log_probabilities[:, 0]).max(initial=0)))


def require_same(out: Path, undisturbed: Path, when: str) -> None:
    """Raise SystemExit where a finished conversion differs from the undisturbed one, or left a half-written file."""
    if left := sorted(map(str, out.rglob("*.partial"))):
        raise SystemExit(f"{when} these files are left: {', '.join(left)}")
    if names := unlike(out, hashes(undisturbed)):
        found = difference(undisturbed, out)
        raise SystemExit(f"{when} these files differ, their analyses by up to {found:.2g}: {', '.join(names)}")


def run(model: Path, moments: int, seed: int, scratch: Path, more: tuple[str, ...]) -> dict[str, Any]:
    """Kill `moments` conversions, go on with each; raises SystemExit where a file differs."""
    rng = random.Random(seed)
    began = time.monotonic()
    finish(convert(model, scratch / "undisturbed", more))
    seconds = time.monotonic() - began
    expected = hashes(scratch / "undisturbed")
    stages: collections.Counter[str] = collections.Counter()
    for number in range(moments):
        out = scratch / f"killed-{number}"
        stage = kill_one(model, out, rng.uniform(0, seconds), rng, more)
        stages[stage] += 1
        for name, digest in hashes(out).items():
            if expected.get(name) != digest:
                raise SystemExit(f"{name} stood half-written under its final name")
        finish(convert(model, out, more))
        require_same(out, scratch / "undisturbed", f"after a kill {stage}")
        shutil.rmtree(out)
        print(f"{number + 1} of {moments}", file=sys.stderr)
    return {"moments": moments, "seed": seed, "undisturbed_seconds": round(seconds, 1), "stages": dict(stages)}


def format_markdown(found: dict[str, Any]) -> str:
    """The table of BENCHMARKS.md."""
    stages = [stage for stage in STAGES if stage in found["stages"]]
    rows = [
        ("killed", *stages, "files that differ afterwards"),
        ("---",) * (len(stages) + 2),
        (f"{found['moments']} times", *(str(found["stages"][stage]) for stage in stages), str(found["differences"])),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument("--no-keep-parts", action="store_true", help="let the parts move into the result")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    more = ("--no-keep-parts",) if options.no_keep_parts else ()
    with tempfile.TemporaryDirectory() as scratch:
        found = run(options.model, options.moments, options.seed, Path(scratch), more)
    command = f"python benchmarks/kill_conversions.py --moments {options.moments} --seed {options.seed}"
    about = {
        "command": " ".join((command, *more)),
        "options": (*OPTIONS, *more),
        "versions": versions(),
        "machine": platform.machine(),
    }
    content = {**about, **found, "differences": 0}
    options.json.write_text(json.dumps(content, indent=2) + "\n")
    print(format_markdown(content))


if __name__ == "__main__":
    main()
