"""Writes docs/commands.md from the commands' own help; `--check` only says whether it is up to date."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "docs" / "commands.md"
HEAD = "<!-- Made from the commands' help by scripts/write_commands.py (make format). -->\n\n"


def commands_page() -> str:
    """What typer's own generator makes of the program."""
    tool = [sys.executable, "-m", "typer", "luq_gguf.cli.app", "utils", "docs", "--name", "luq-gguf"]
    done = subprocess.run(
        [*tool, "--title", "Commands"], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(TARGET.parent.parent)},
    )  # fmt: skip
    return HEAD + done.stdout.rstrip() + "\n"


def main(target: Path = TARGET) -> None:
    """Write the page, or with `--check` exit with a message where it is not what would be written."""
    page = commands_page()
    if "--check" not in sys.argv:
        target.write_text(page, encoding="utf-8")
    elif not target.is_file() or target.read_text(encoding="utf-8") != page:
        sys.exit(f"{target.name} is not what the commands' help says: run scripts/write_commands.py (make format)")


if __name__ == "__main__":
    main()
