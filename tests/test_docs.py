"""The documents: their commands exist, their Python runs, and what is generated is up to date."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from PIL import Image

from luq_gguf.cli import UsageError
from luq_gguf.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
HUB_ID = "Qwen/Qwen2.5-VL-7B-Instruct"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [text for language, text in found if language in languages]


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every line of a page's shell blocks that calls the program."""
    for block in blocks(page, "sh", "console", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "luq-gguf" in words:
                yield words[words.index("luq-gguf") + 1 :]


def known_commands() -> dict[str, Any]:
    """The program's commands by name."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return commands


def check(arguments: list[str]) -> None:
    """Parse arguments as the program would, without running anything; raises UsageError."""
    command, name = typer.main.get_command(app), "luq-gguf"
    while (children := getattr(command, "commands", None)) is not None:
        if not arguments or arguments[0] not in children:
            raise UsageError(f"{name} has no command {arguments[:1]}")
        name, command, arguments = f"{name} {arguments[0]}", children[arguments[0]], arguments[1:]
    command.make_context(name, list(arguments))


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "commands.md"], ids=lambda page: page.name)
def test_every_command_in_the_documents_exists(page: Path) -> None:
    for arguments in commands(page):
        try:
            check(arguments)
        except UsageError as error:
            pytest.fail(f"luq-gguf {shlex.join(arguments)}: {error.format_message()}")


def test_the_check_of_commands_finds_wrong_ones() -> None:
    assert sum(1 for page in PAGES for _ in commands(page)) > 30
    check(["convert", "MODEL", "--out", "out"])
    for wrong in (
        ["conjure", "MODEL"],
        ["convert", "MODEL", "--out", "out", "--max-siez", "3GiB"],
        ["convert", "MODEL"],
        ["calib", "draw"],
        ["bench", "a.gguf", "--repeat", "often"],
    ):
        with pytest.raises(UsageError):
            check(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_and_command_named_in_a_text_exists(page: Path) -> None:
    """Inline code: `luq-gguf NAME`, and `--option` of any command of ours, or of a program that is named below."""
    known = known_commands()
    parameters = [each for command in (*known.values(), known["calib"].commands["show"]) for each in command.params]
    options = {name for each in parameters for name in (*each.opts, *each.secondary_opts)}
    options |= {"--help", "--version", "--install-completion", "--show-completion"}
    options |= {"--chat_format"}  # of llama-cpp-python's server
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for code in re.findall(r"`([^`\n]+)`", text):
        if code.startswith("luq-gguf "):
            assert code.split()[1] in {*known, "COMMAND"} or code.split()[1].startswith(("[", "--")), code
        if code.startswith(("luq-gguf ", "--")):
            for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code):
                assert option in options, f"{page.name}: {code}"


def test_the_page_of_commands_is_what_their_help_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_commands = runpy.run_path(str(ROOT / "scripts" / "write_commands.py"))["main"]
    monkeypatch.setattr(sys, "argv", ["write_commands.py", "--check"])
    write_commands()
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for name in known_commands():
        assert f"## `luq-gguf {name}`" in page
    (tmp_path / "commands.md").write_text(page.replace("--max-size", "--most-bytes"))
    with pytest.raises(SystemExit, match="make format"):
        write_commands(tmp_path / "commands.md")


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "python.md"], ids=lambda page: page.name)
def test_the_python_in_the_documents_runs(
    page: Path, pico_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All blocks of a page, one after the other, with a small checkpoint in the place of the hub's."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (56, 56), "red").save("red.png")
    rows = [{"image": "red.png", "question": "Which color?", "answer": "red"}]
    rows += [{"question": f"What is {number} plus 1?", "answer": str(number + 1)} for number in range(8)]
    rows += [{"text": f"Passage {number}: a short text about nothing."} for number in range(4)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = "\n".join(blocks(page, "python"))
    assert code.count(HUB_ID) >= 1
    namespace: dict[str, object] = {"__name__": "documents"}
    exec(compile(code.replace(HUB_ID, str(pico_checkpoint)), str(page), "exec"), namespace)
    assert Path("qwen/manifest.json").is_file()


def test_links_lead_to_files_that_exist() -> None:
    """Where the source is browsed; mkdocs holds the site's own links, anchors among them."""
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if not link.startswith(("http", "#")):
                assert (page.parent / link.partition("#")[0]).exists(), f"{page.name}: {link}"
