"""Measuring real files, images and memory, in turn; what is refused, and in which words."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from PIL import Image

from luq_gguf import bench
from luq_gguf.bench import (
    DecodeSamples,
    fit_picture,
    measure_bandwidth,
    measure_decode,
    measure_files,
    measure_images,
    measure_parts,
    measure_sweep,
    require_memory,
    sum_by_type,
)
from luq_gguf.errors import GGUFError, RequestError
from luq_gguf.processors import default_threads
from tests.exported import export_speed_files

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
    kv_bytes=2**20,
    read_bytes=2 * 2**30,
    peak_memory=4 * 2**30,
)


@pytest.fixture(scope="module")
def models(pico_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return export_speed_files(pico_checkpoint, tmp_path_factory.mktemp("bench"))


def test_medians_not_means():
    assert MADE.prompt_tps == pytest.approx(250)
    assert MADE.generate_tps == pytest.approx(1 / 0.030)


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


def test_a_sweep_takes_every_file_with_every_number_of_threads_in_turn(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    native, turns = bench.load_native(), []

    class Listening(SimpleNamespace):
        def decode(self, path, *, threads, **rest):
            turns.append((path.stem, threads, rest["cpus"]))
            return native.decode(path, threads=threads, **rest)

    monkeypatch.setattr(bench, "load_native", lambda: Listening(DecodeError=native.DecodeError))
    paths, cpus = [models["f16"], models["f32"]], sorted(os.sched_getaffinity(0))
    samples = measure_sweep(paths, prompt=4, generate=2, threads=[1, 2], repeat=2, cpus=cpus)
    order = [("f16", 1, cpus), ("f32", 1, cpus), ("f16", 2, cpus), ("f32", 2, cpus)]
    assert turns == order * 2
    assert [(Path(sample.path).stem, sample.threads) for sample in samples] == [turn[:2] for turn in order]
    assert {len(sample.generate_ns) for sample in samples} == {4}


def test_what_a_token_reads_and_a_context_holds(models: dict[str, Path]):
    small, large = measure_files([models["f16"], models["f32"]], prompt=4, generate=2, threads=1, repeat=1)
    assert 0 < small.read_bytes < small.model_bytes
    assert 1.9 < large.read_bytes / small.read_bytes < 2.1
    assert small.kv_bytes == large.kv_bytes > 0
    assert large.peak_memory >= small.peak_memory > small.model_bytes


def test_where_the_time_goes(models: dict[str, Path]):
    heard = []
    paths = [models["f16"], models["f32"]]
    found = measure_parts(
        paths,
        prompt=8,
        generate=40,
        threads=[1, 2],
        progress=lambda what, done, total: heard.append((what, done, total)),
    )
    assert heard == [("measuring types", done, 4) for done in range(5)]
    assert [(each.path, each.threads) for each in found] == [(str(path), count) for count in (1, 2) for path in paths]
    for each, kinds in zip(found, [{"F16", "other"}, {"F32", "other"}] * 2, strict=True):
        assert {part.kind for part in each.prompt} == {part.kind for part in each.generate} == kinds
        assert {len(part.ns) for part in each.prompt} == {1}
        assert {len(part.ns) for part in each.generate} == {16}
        totals = sum_by_type(each.generate)
        assert set(totals) == kinds
        for token in range(16):
            assert sum(ns[token] for ns in totals.values()) == sum(part.ns[token] for part in each.generate) > 0


def test_images_take_turns(models: dict[str, Path]):
    picture = fit_picture(models["mmproj"], Image.new("RGB", (200, 120), "teal"))
    paths = [models["f16"], models["f32"]]
    samples = measure_images(paths, models["mmproj"], picture, threads=[1], repeat=2)
    assert [sample.path for sample in samples] == [str(path) for path in paths]
    for sample in samples:
        assert sample.tokens == picture.width * picture.height // 28**2
        assert (len(sample.encode_ns), len(sample.prompt_ns)) == (2, 2)
        assert min(sample.encode_ns + sample.prompt_ns) > 0


def test_an_image_on_one_processor(models: dict[str, Path]):
    before = os.sched_getaffinity(0)
    picture = fit_picture(models["mmproj"], Image.new("RGB", (112, 112)))
    cpus = [min(before)]
    (sample,) = measure_images([models["f16"]], models["mmproj"], picture, threads=[1], repeat=1, cpus=cpus)
    assert len(sample.encode_ns) == 1
    assert os.sched_getaffinity(0) == before


def test_a_text_model_is_no_vision_part(models: dict[str, Path]):
    with pytest.raises(GGUFError, match=r"f16\.gguf is no vision part"):
        fit_picture(models["f16"], Image.new("RGB", (112, 112)))


def test_memory_with_each_number_of_threads():
    heard = []
    found = measure_bandwidth([1, 2], progress=lambda what, done, total: heard.append((what, done, total)))
    assert heard == [("measuring memory", done, 2) for done in range(3)]
    assert [each.threads for each in found] == [1, 2]
    assert all(min(each.ns) > 0 and each.bytes > 0 for each in found)


def test_processors_that_are_not_there(models: dict[str, Path]):
    before = os.sched_getaffinity(0)
    for measure in (
        lambda: measure_sweep([models["f16"]], prompt=1, generate=1, threads=[1], repeat=1, cpus=[1000]),
        lambda: measure_bandwidth([1], cpus=[1000]),
    ):
        with pytest.raises(RequestError, match="processors that this process may not use"):
            measure()
    assert os.sched_getaffinity(0) == before


def test_memory_is_asked_for_before_loading(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    size, beside = models["f16"].stat().st_size, models["mmproj"].stat().st_size
    monkeypatch.setattr(bench, "free_memory", lambda: size)
    require_memory([models["f16"]])
    with pytest.raises(RequestError) as caught:
        require_memory([models["f16"], models["f32"]])
    larger = models["f32"].stat().st_size
    assert caught.value.message == f"{models['f32']} needs {larger:,} bytes of memory, {size:,} bytes are free"
    with pytest.raises(RequestError, match=f"needs {size + beside:,} bytes"):
        require_memory([models["f16"]], models["mmproj"])


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
        ({"repeat": 1001}, "repeat must be at most 1000, not 1001"),
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
    with pytest.raises(GGUFError, match="is a vision part, not a text model") as caught:
        measure_decode(models["mmproj"])
    assert caught.value.exit_code == GGUFError.exit_code
    assert caught.value.hint
    assert "\n" not in str(caught.value)
