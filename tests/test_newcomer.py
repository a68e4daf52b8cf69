"""The script that follows the README: what it runs, what it leaves out, and that it fails where a newcomer would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "newcomer.py"
LEFT_OUT = "```sh\nsource .venv/bin/activate\nmake demo\nllama-mtmd-cli x\nllama-server x\nllama-quantize x\n```\n"
STAND_INS = "```sh\nluq-gguf plan m --max-size 3.4GiB\nluq-gguf bench x --threads 1,2,4\n```\n"


def follow(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def listed(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "README.md").write_text(text)
    return follow(tmp_path / "README.md", "--list")


def test_every_command_of_the_readme_is_run_or_left_out_for_a_reason() -> None:
    done = follow("--list")
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if line.startswith("line ")]
    states = [line for line in done.stdout.splitlines() if line.startswith(("    to run", "    left out: "))]
    assert len(commands) == len(states) > 10
    readme = (ROOT / "README.md").read_text().splitlines()
    for line in commands:
        number, _, command = line.removeprefix("line ").partition(": ")
        assert readme[int(number) - 1] == command
    for command in ("convert", "ask", "eval", "bench", "doctor"):
        assert any(f": luq-gguf {command} " in line for line in commands)


def test_blocks_of_other_languages_are_left_alone(tmp_path: Path) -> None:
    text = LEFT_OUT + STAND_INS + "```python\nimport this\n```\n```text\nwhatever\n```\nrm -rf /\n"
    done = listed(tmp_path, text)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2 of 7 commands of README.md"
    assert "--max-size 4.75MB" in done.stdout


def test_a_command_over_two_lines_is_one(tmp_path: Path) -> None:
    done = listed(tmp_path, LEFT_OUT + STAND_INS + "```sh\n# first\nluq-gguf convert m \\\n  --out o\n```\n")
    assert "luq-gguf convert m   --out o" in done.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LEFT_OUT + STAND_INS + "```sh\npip install luq-gguf\n```\n", ("line 13", "pip install", "reason")),
        (STAND_INS, ("no line begins with", "activate", "take its reason out")),
        (LEFT_OUT, ("3", "take its stand-in out")),
    ],
)
def test_what_nobody_thought_of_is_an_error(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    done = listed(tmp_path, text)
    assert done.returncode == 1
    for word in words:
        assert word in done.stderr


def test_a_command_that_fails_ends_it(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nsys.path.insert(0, sys.argv[1])\nimport newcomer\n"
        "print(newcomer.call('echo done; test -f here', Path(sys.argv[2]), dict(os.environ)))"
    )
    arguments = [sys.executable, "-c", code, str(SCRIPT.parent), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, "exit code 1 of echo done" in done.stderr) == (1, True)
    (tmp_path / "here").touch()
    assert subprocess.run(arguments, capture_output=True, text=True, check=False).returncode == 0
