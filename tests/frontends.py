"""Servers of other projects with our files: how each is started, and what the README says of each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.serving import HOST, Server, serving
from tests.stock import ROOT, StockTools

CONTEXT = 1024


@contextmanager
def python_server(
    text: Path, vision: Path | None, folder: Path, *, chat_format: str | None = "mtmd"
) -> Iterator[Server]:
    """llama-cpp-python's server; it loads the vision part with the first picture."""
    options = ["--model", text, "--n_ctx", CONTEXT, "--n_threads", 1, "--n_threads_batch", 1]
    if vision is not None:
        options += ["--clip_model_path", vision, "--chat_format", chat_format]

    def command(port: int) -> list[str]:
        started = [sys.executable, "-m", "llama_cpp.server", "--host", HOST, "--port", port, *options]
        return [str(word) for word in started]

    with serving(command, "/v1/models", folder / "python-server.log") as server:
        yield server


@contextmanager
def stock_server(stock: StockTools, text: Path, vision: Path | None, folder: Path) -> Iterator[Server]:
    """llama.cpp's own server."""
    options = ["--model", text, "--ctx-size", CONTEXT, "--threads", 1, "--parallel", 1, "--no-warmup", "--offline"]
    if vision is not None:
        options += ["--mmproj", vision]

    def command(port: int) -> list[str]:
        started = [stock.folder / "llama-server", "--host", HOST, "--port", port, *options]
        return [str(word) for word in started]

    with serving(command, "/health", folder / "llama-server.log", stock.environment) as server:
        yield server


def readme_frontends() -> dict[str, str]:
    """The README's table: the version that was checked, by the frontend's name; "" where none was."""
    lines = (ROOT / "README.md").read_text().splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("| frontend | version |"))
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, version, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name.split(" (")[0].strip("`")] = version.removeprefix("not checked")
    return rows
