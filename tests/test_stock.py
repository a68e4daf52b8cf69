"""Our files against llama.cpp's own tools: llama-quantize, llama-imatrix, llama-mtmd-cli and its converter."""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from luq_gguf.demo import CHECKPOINT, FRESH_SEED
from luq_gguf.demo.scenes import ask_about, draw_scene, make_scene
from tests.program import run_program
from tests.stock import ROOT, StockTools

pytestmark = pytest.mark.slow

GOLDEN_CASES = sorted(path.stem for path in (ROOT / "tests" / "golden").glob("*.json"))
ANSWERED_KINDS = ("count", "color", "what", "where")
DEFAULTS = ("IQ1_M", "Q4_K_M")
MAKER = f"luq-gguf {importlib.metadata.version('luq-gguf')}"
NAMED = ("--override-kv", f"general.quantized_by=str:{MAKER}")
"""The one thing that our files say beyond those of llama-quantize."""
CASES = [
    ("pico", 1, DEFAULTS),
    ("pico", 3, DEFAULTS),
    ("pico", 2, ("IQ2_XXS", "Q5_K_M")),
    ("demo", 4, DEFAULTS),
    ("demo", 8, DEFAULTS),
    ("demo", 3, ("Q2_K", "Q5_K_S")),
]


@dataclass(frozen=True)
class Model:
    """A checkpoint, its 16-bit export, and a work folder that its conversions share."""

    checkpoint: Path
    full: Path
    folder: Path
    samples: int

    def convert(self, low_layers: int, types: tuple[str, str] = DEFAULTS, *options: str) -> dict[str, Any]:
        """The object that `convert --json` prints."""
        out = self.folder / f"{low_layers}-{'-'.join(types)}"
        done = run_program(
            "convert", self.checkpoint, "--out", out, "--low-layers", low_layers, "--low-type", types[0],
            "--high-type", types[1], "--samples", self.samples, "--work", self.folder / "work", "--json", *options,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@dataclass(frozen=True)
class Tensor:
    shape: tuple[int, ...]
    type: str
    data: bytes


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor, by the gguf library."""
    return {
        tensor.name: Tensor(tuple(tensor.shape.tolist()), tensor.tensor_type.name, tensor.data.tobytes())
        for tensor in GGUFReader(path).tensors
    }


def read_metadata(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items() if name[:5] != "GGUF."}


def assert_same(made: Path, stock: Path) -> None:
    """Tensor by tensor and key by key first, for what a failure says; then the whole files."""
    ours, theirs = read_tensors(made), read_tensors(stock)
    assert {name: (tensor.shape, tensor.type) for name, tensor in ours.items()} == {
        name: (tensor.shape, tensor.type) for name, tensor in theirs.items()
    }
    assert not [name for name in theirs if ours[name].data != theirs[name].data]
    assert read_metadata(made) == read_metadata(stock)
    assert made.read_bytes() == stock.read_bytes()


def export(checkpoint: Path, folder: Path, samples: int) -> Model:
    done = run_program("export", checkpoint, "--out", folder / "16bit")
    assert done.returncode == 0, done.stderr
    (full,) = (path for path in (folder / "16bit").glob("*.gguf") if not path.name.startswith("mmproj-"))
    return Model(checkpoint, full, folder, samples)


@pytest.fixture(scope="session")
def models(pico_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    return {
        "pico": export(pico_checkpoint, tmp_path_factory.mktemp("pico"), 10),
        "demo": export(CHECKPOINT, tmp_path_factory.mktemp("demo"), 48),
    }


@pytest.mark.parametrize(("name", "low_layers", "types"), CASES)
def test_llama_quantize_makes_our_file_of_our_imatrix_and_type_file(
    name: str, low_layers: int, types: tuple[str, str], models: dict[str, Model], stock: StockTools
) -> None:
    model = models[name]
    result = model.convert(low_layers, types)
    assert len(result["low_layers"]) == low_layers
    made = Path(result["model"])
    target = made.with_name("stock.gguf")
    stock.run(
        "llama-quantize", *NAMED, "--imatrix", "imatrix.gguf", "--tensor-type-file", "tensor-types.txt", model.full,
        target, types[1], 2, cwd=made.parent,
    )  # fmt: skip
    assert_same(made, target)
    low = {tensor.type for key, tensor in read_tensors(target).items() if is_layer_weight(key, result["low_layers"])}
    assert low == {types[0]}


@pytest.mark.parametrize("name", ["pico", "demo"])
def test_the_readmes_command_gives_the_same_tensors(name: str, models: dict[str, Model], stock: StockTools) -> None:
    """In the folder of a conversion: what a user of llama.cpp does with our two files."""
    model = models[name]
    made = Path(model.convert(2)["model"])
    stock.run(
        "llama-quantize", "--imatrix", "imatrix.gguf", "--tensor-type-file", "tensor-types.txt", model.full, "out.gguf",
        "Q4_K_M", 2, cwd=made.parent,
    )  # fmt: skip
    again = made.parent / "out.gguf"
    assert read_tensors(again) == read_tensors(made)
    assert read_metadata(made) == read_metadata(again) | {"general.quantized_by": MAKER}


def is_layer_weight(name: str, layers: list[int]) -> bool:
    block, number, *rest = name.split(".")
    return block == "blk" and int(number) in layers and rest[-1] == "weight" and "norm" not in rest[0]


@pytest.mark.parametrize("high_type", ["Q4_K_M", "Q5_K_M"])
@pytest.mark.parametrize("name", ["pico", "demo"])
def test_without_low_layers_our_file_is_a_plain_run_of_llama_quantize(
    name: str, high_type: str, models: dict[str, Model], stock: StockTools, tmp_path: Path
) -> None:
    model = models[name]
    result = model.convert(0, ("IQ1_M", high_type))
    made = Path(result["model"])
    stock.run(
        "llama-quantize", *NAMED, "--imatrix", "imatrix.gguf", model.full, tmp_path / "imatrix.gguf", high_type, 2,
        cwd=made.parent,
    )  # fmt: skip
    assert_same(made, tmp_path / "imatrix.gguf")
    stock.run("llama-quantize", model.full, tmp_path / "plain.gguf", high_type, 2, cwd=tmp_path)
    plain = {key: tensor.type for key, tensor in read_tensors(tmp_path / "plain.gguf").items()}
    assert result["types"] == plain
    assert json.loads(Path(result["plan"]).read_text())["types"] == plain


@pytest.mark.parametrize("name", ["pico", "demo"])
def test_the_stock_tools_read_our_importance_matrix(
    name: str, models: dict[str, Model], stock: StockTools, tmp_path: Path
) -> None:
    """llama-imatrix reads it and writes it again; llama-quantize notes how many weights it found in it."""
    model = models[name]
    ours = Path(model.convert(0)["imatrix"])
    stock.run("llama-imatrix", "-m", model.full, "--in-file", ours, "-o", tmp_path / "again.gguf", cwd=tmp_path)
    mine, again = read_values(ours), read_values(tmp_path / "again.gguf")
    assert mine.keys() == again.keys()
    for key, values in mine.items():
        np.testing.assert_array_equal(values, again[key], err_msg=key)
    noted = read_metadata(tmp_path / "again.gguf")
    noted["imatrix.chunk_count"] = max(1, noted["imatrix.chunk_count"])  # a set of few tokens is one chunk to us
    assert read_metadata(ours) == noted
    weights = [key for key, tensor in read_tensors(model.full).items() if len(tensor.shape) > 1]
    weights.remove("token_embd.weight")
    assert {key.rpartition(".")[0] for key in mine} == set(weights)
    stock.run("llama-quantize", "--imatrix", ours, model.full, tmp_path / "iq.gguf", "IQ1_M", 2, cwd=tmp_path)
    assert read_metadata(tmp_path / "iq.gguf")["quantize.imatrix.entries_count"] == len(weights)


def read_values(path: Path) -> dict[str, np.ndarray]:
    """Tensors without their outermost dimensions of 1, which llama-imatrix leaves out."""
    return {tensor.name: tensor.data.reshape(-1) for tensor in GGUFReader(path).tensors}


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str]]:
    """Pictures of fresh scenes, each with a question of another kind."""
    folder = tmp_path_factory.mktemp("pictures")
    asked = []
    for number, kind in enumerate(ANSWERED_KINDS):
        scene = make_scene(FRESH_SEED + number)
        draw_scene(scene).save(folder / f"{kind}.png")
        asked.append((folder / f"{kind}.png", ask_about(scene, kind, random.Random(number)).text))
    return asked


def ask(model: Path, image: Path, question: str, *options: str | Path) -> str:
    done = run_program("ask", model, *options, "--image", image, question, "--threads", 1)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_llama_mtmd_cli_answers_as_ask_does(
    models: dict[str, Model], questions: list[tuple[Path, str]], stock: StockTools
) -> None:
    model = models["demo"]
    result = model.convert(4, DEFAULTS, "--bundle")
    small, mmproj, bundle = (Path(result[key]) for key in ("model", "mmproj", "bundle"))
    assert bundle.stat().st_size >= small.stat().st_size + mmproj.stat().st_size
    answers = [ask(small, image, text, "--mmproj", mmproj) for image, text in questions]
    assert all(answers)
    assert len(set(answers)) > 1
    assert [stock.ask(small, mmproj, image, text) for image, text in questions] == answers
    assert [ask(bundle, image, text) for image, text in questions] == answers
    assert [stock.ask(bundle, mmproj, image, text) for image, text in questions] == answers
    full = [ask(model.full, image, text, "--mmproj", mmproj) for image, text in questions]
    assert [stock.ask(model.full, mmproj, image, text) for image, text in questions] == full


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_the_golden_files_are_what_llama_cpp_converts_today(case: str, stock: StockTools, tmp_path: Path) -> None:
    script = ROOT / "scripts" / "make_golden.py"
    done = subprocess.run(
        [sys.executable, script, "--llama-cpp", stock.source, "--only", case, "--out", tmp_path],
        check=False, capture_output=True, text=True, timeout=300, env=os.environ | {"NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / f"{case}.json").read_bytes() == (ROOT / "tests" / "golden" / f"{case}.json").read_bytes()
