"""Follow the README as a newcomer does: run its commands from top to bottom in an empty folder; each has to succeed.

    python scripts/newcomer.py [README.md] [--list]

The demo checkpoint stands in for the models of the hub, and what the README speaks of without making it (a photo, rows
of one's own, files of other models) is put there first. Every line of every `sh` block is run, or left out for a reason
that stands below; a line of another program that nobody has given a reason for is an error, and so is a reason that no
line needs. `--list` only says what would be run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from luq_gguf.demo import CHECKPOINT
from luq_gguf.demo.scenes import draw_scene, make_scene, talk_about

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = "luq-gguf"
LEFT_OUT = {
    r"source \.venv/bin/activate\b": "the folder of this Python is on the path",
    r"make (demo|test)\b": "what calls this script has run it",
    r"llama-mtmd-cli\b": "llama.cpp's own tools are not installed; tests/test_stock.py holds them against our files",
    r"(llama-server|python -m llama_cpp\.server)\b": "servers run until stopped; tests/test_frontends.py asks them",
    r"llama-quantize\b": "llama.cpp's own tools are not installed; tests/test_stock_imatrix.py runs this",
}
"""Lines that are not run, by how they begin, and why."""
STAND_INS = {
    r"\b3\.4GiB\b": ("4.75MB", "a budget that lies between the demo's smallest and largest file"),
    r"--threads [\d,]+": ("--threads 1,2", "more threads than cores make a measurement endless"),
}
"""What is put for a part of a line, and why."""
MODELS = ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct")
QUESTIONS = 12
QUICK = "--calib shapes --samples 40 --no-eval"


@dataclass(frozen=True)
class Line:
    """A command of the README: where it stands, as it is written, and as it is run; `reason` where it is not."""

    number: int
    written: str
    run: str
    reason: str | None


def read_lines(readme: Path) -> Iterator[Line]:
    """Every command of every `sh` block; one that goes on after a backslash is one."""
    inside, held = False, ""
    for number, text in enumerate(readme.read_text(encoding="utf-8").splitlines(), 1):
        if text.startswith("```"):
            inside, held = text.strip() == "```sh", ""
        elif inside and text.endswith("\\"):
            held += text[:-1]
        elif inside and (command := (held + text).strip()) and not command.startswith("#"):
            held = ""
            yield _line(number, command)


def _line(number: int, written: str) -> Line:
    reason = next((reason for start, reason in LEFT_OUT.items() if re.match(start, written)), None)
    if reason is None and written.split(maxsplit=1)[0] != PROGRAM:
        raise SystemExit(f"line {number}: {written!r} is not of {PROGRAM}: run it, or give a reason in {__file__}")
    run = written
    for pattern, (stand_in, _) in STAND_INS.items():
        run = re.sub(pattern, stand_in, run)
    return Line(number, written, run, reason)


def require_used(lines: list[Line]) -> None:
    """A reason or a stand-in that no line needs is of another README."""
    for start in LEFT_OUT:
        if not any(re.match(start, line.written) for line in lines):
            raise SystemExit(f"no line begins with {start!r} any more: take its reason out of {__file__}")
    for pattern in STAND_INS:
        if not any(re.search(pattern, line.written) for line in lines):
            raise SystemExit(f"no line has {pattern!r} any more: take its stand-in out of {__file__}")


def prepare(folder: Path, environment: dict[str, str]) -> None:
    """Put into a folder what the README takes for granted."""
    for name in MODELS:
        shutil.copytree(CHECKPOINT, folder / name)
    write_questions(folder)
    draw_scene(make_scene(1)).save(folder / "photo.jpg")
    spare = folder / "spare"
    for layers in ("0", "4"):
        call(f"{PROGRAM} convert {MODELS[0]} --out spare --low-layers {layers} {QUICK}", folder, environment)
    call(f"{PROGRAM} export {MODELS[0]} --out spare/16bit", folder, environment)
    (high,), (low,) = spare.glob("*-LUQ-0of*.gguf"), spare.glob("*-LUQ-4of*.gguf")
    (vision,), (full,) = spare.glob("mmproj-*.gguf"), (spare / "16bit").glob("Qwen*.gguf")
    names = {
        "model-Q4_K_M.gguf": high, "model-LUQ.gguf": low, "mmproj-model-F16.gguf": vision, "mmproj.gguf": vision,
        "small.gguf": low, "other.gguf": high, "Qwen-F16.gguf": full,
    }  # fmt: skip
    for name, source in names.items():
        os.link(source, folder / name)


def write_questions(folder: Path) -> None:
    """Rows of one's own, and a table as the benchmark MME publishes it."""
    rows, table = [], ["index\tcategory\timage_path\tquestion\tanswer"]
    (folder / "pictures").mkdir()
    for number in range(QUESTIONS):
        name = f"pictures/scene-{number}.png"
        draw_scene(make_scene(number)).save(folder / name)
        question = talk_about(make_scene(number), turns=1)[0]
        rows.append(f'{{"image": "{name}", "question": "{question.text}", "answer": "{question.answer}"}}\n')
        answer = "Yes" if number % 2 else "No"
        table.append(f"{number}\texistence\t{name}\tIs there a star? Please answer yes or no.\t{answer}")
    for name in ("my-questions.jsonl", "rows.jsonl"):
        (folder / name).write_text("".join(rows), encoding="utf-8")
    (folder / "MME.tsv").write_text("\n".join(table) + "\n", encoding="utf-8")


def call(command: str, folder: Path, environment: dict[str, str]) -> float:
    """Run a command as a shell does; gives its seconds, ends this program where it fails."""
    print(f"$ {command}", flush=True)
    started = time.monotonic()
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise SystemExit(f"exit code {done.returncode} of {command}")
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("readme", nargs="?", type=Path, default=ROOT / "README.md")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    lines = list(read_lines(options.readme))
    require_used(lines)
    seconds: dict[int, float] = {}
    if not options.list:
        with tempfile.TemporaryDirectory(prefix="newcomer-") as name:
            seconds = follow(lines, Path(name))
    for line in lines:
        state = f"left out: {line.reason}" if line.reason else f"{seconds[line.number]:.1f} s" if seconds else "to run"
        print(f"line {line.number}: {line.written}\n    {state}")
        if not line.reason and line.run != line.written:
            print(f"    as: {line.run}")
    print(f"{sum(not line.reason for line in lines)} of {len(lines)} commands of {options.readme.name}")


def follow(lines: list[Line], folder: Path) -> dict[int, float]:
    """Seconds of every command that is run, by its line."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    cache = str(folder / "cache")  # a profile that is measured here is nobody's
    environment = {**os.environ, "PATH": path, "XDG_CACHE_HOME": cache, "HF_HUB_OFFLINE": "1"}
    prepare(folder, environment)
    return {line.number: call(line.run, folder, environment) for line in lines if not line.reason}


if __name__ == "__main__":
    main()
