"""Fixtures that several test files share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from luq_gguf import pipeline
from luq_gguf.demo import CHECKPOINT
from luq_gguf.quantizer import Quantizer
from tests.pico import build_pico
from tests.program import QUICK, Run, result_of, run_program
from tests.stock import SERVER, StockTools, prepare_stock_tools


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A profile that this machine's user has measured changes nothing here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def pico_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico Qwen2.5-VL in the hub's form: bf16, one file, 3 layers."""
    return build_pico(tmp_path_factory.mktemp("checkpoints") / "Pico-VL-Instruct")


@pytest.fixture(scope="module")
def quantizer() -> Iterator[Quantizer]:
    """A running quantizer, one for a test file."""
    with Quantizer() as child:
        yield child


@pytest.fixture(scope="session")
def converted(pico_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What the program leaves and prints for a budget of one low layer; tests must not change the folder."""
    out = tmp_path_factory.mktemp("converted")
    return run_program("convert", pico_checkpoint, "--out", out, "--low-layers", 1, *QUICK, "--json")


@pytest.fixture(scope="session")
def analyzed_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an analysis of the demo model by 60 of its own samples; tests add to its work folder only."""
    folder = tmp_path_factory.mktemp("analyzed")
    pipeline.analyze(str(CHECKPOINT), folder, pipeline.Settings(calib="shapes", samples=60, threads=1))
    return folder


@pytest.fixture(scope="session")
def stock() -> StockTools:
    """llama.cpp's own tools, for slow tests."""
    return prepare_stock_tools()


@pytest.fixture(scope="session")
def server_tools() -> StockTools:
    """llama.cpp's server."""
    return prepare_stock_tools(SERVER)


@pytest.fixture
def copy_of_converted(converted: Run, tmp_path: Path) -> Path:
    """A finished conversion with one low layer, to go on from; its times of change are kept."""
    return Path(shutil.copytree(Path(result_of(converted)["model"]).parent, tmp_path / "out"))
