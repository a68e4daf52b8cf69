"""Statistics and the table from samples made by hand; measuring with real files; every refusal."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from luq_gguf.bench import DecodeSamples, format_bench, measure_decode, measure_files
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import GGUFError, RequestError, RunError
from luq_gguf.export import export_text, export_vision
from luq_gguf.families import find_family
from luq_gguf.processors import default_threads

MADE = DecodeSamples(
    path="folder/made.gguf",
    prompt=100,
    generate=2,
    threads=4,
    prompt_ns=(400_000_000, 200_000_000, 9_000_000_000),
    generate_ns=(10_000_000, 20_000_000, 40_000_000, 1_000_000_000),
    load_ns=(5, 6),
    model_bytes=3 * 2**30,
    parameters=6 * 2**30,
    context=256,
)


@pytest.fixture(scope="module")
def models(pico_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bench")
    checkpoint = Checkpoint.open(pico_checkpoint)
    family = find_family(checkpoint.config, checkpoint)
    paths = {name: folder / f"{name}.gguf" for name in ("f16", "f32", "mmproj")}
    export_text(checkpoint, family, paths["f16"], dtype="f16")
    export_text(checkpoint, family, paths["f32"], dtype="f32")
    export_vision(checkpoint, family, paths["mmproj"])
    return paths


def test_medians_not_means():
    assert MADE.prompt_tps == pytest.approx(250)
    assert MADE.generate_tps == pytest.approx(1 / 0.030)


def test_the_table():
    assert format_bench([MADE]) == (
        "file         GiB  bits/weight  threads  prompt tokens/s  tokens/s  slowest .. fastest\n"
        "made.gguf  3.000         4.00        4            250.0      33.3        1.0 .. 100.0"
    )


def test_files_take_turns(models: dict[str, Path]):
    heard = []
    samples = measure_files(
        [models["f16"], models["f32"]],
        prompt=8,
        generate=3,
        threads=1,
        repeat=2,
        progress=lambda what, done, total: heard.append((what, done, total)),
    )
    assert heard == [("measuring speed", done, 4) for done in range(5)]
    for sample, name in zip(samples, ("f16", "f32"), strict=True):
        assert sample.path == str(models[name])
        assert (len(sample.prompt_ns), len(sample.generate_ns), len(sample.load_ns)) == (2, 6, 2)
        assert (sample.prompt, sample.generate, sample.threads) == (8, 3, 1)
    assert 1.9 < samples[1].model_bytes / samples[0].model_bytes < 2
    assert samples[0].parameters == samples[1].parameters


def test_one_file_with_defaults(models: dict[str, Path]):
    sample = measure_decode(models["f16"])
    assert sample.threads == default_threads()
    assert (len(sample.prompt_ns), len(sample.generate_ns)) == (3, 96)
    assert min(sample.prompt_tps, sample.generate_tps) > 1
    assert DecodeSamples(**asdict(sample)) == sample


def test_threads_by_default():
    assert 1 <= default_threads() <= (psutil.cpu_count(logical=False) or os.cpu_count())
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import luq_gguf.processors as p; "
    output = subprocess.check_output([sys.executable, "-c", code + "print(p.default_threads())"], text=True)
    assert output == "1\n"


def test_importing_it_is_cheap():
    code = (
        "import sys, luq_gguf.bench; print(sorted({'llama_cpp', 'torch', 'transformers', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"threads": 0}, "threads must be 1 to 512, not 0"),
        ({"prompt": 0}, "prompt must be 1 to 131071, not 0"),
        ({"generate": 10**9}, "generate must be 1 to 131008, not 1000000000"),
        ({"repeat": 0}, "repeat must be at least 1, not 0"),
        ({"prompt": 100_000}, "prompt + generate must be at most "),
    ],
)
def test_malformed_requests(models: dict[str, Path], numbers: dict[str, int], message: str):
    with pytest.raises(RequestError) as caught:
        measure_decode(models["f16"], **numbers)
    assert caught.value.message.startswith(message)
    assert caught.value.exit_code == 2


def test_no_file_at_all():
    with pytest.raises(RequestError, match="no file to measure"):
        measure_files([])


def broken(kind: str, good: Path, folder: Path) -> Path:
    path = folder / f"{kind}.gguf"
    if kind == "text":
        path.write_text("not a model")
    elif kind == "empty":
        path.touch()
    elif kind == "cut":
        path.write_bytes(good.read_bytes()[:-5000])
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["gone", "text", "empty", "cut", "folder"])
def test_files_that_are_no_gguf(models: dict[str, Path], tmp_path: Path, kind: str):
    path = broken(kind, models["f16"], tmp_path)
    with pytest.raises(GGUFError, match=path.name) as caught:
        measure_files([models["f16"], path], prompt=1, generate=1)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_model(models: dict[str, Path]):
    with pytest.raises(RunError, match="CLIP cannot be used as main model") as caught:
        measure_decode(models["mmproj"])
    assert caught.value.exit_code == 1
    assert caught.value.hint
    assert "\n" not in str(caught.value)
