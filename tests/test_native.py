"""The native module: samples, errors, threads, signals, and that it shares llama_cpp's libraries."""

from __future__ import annotations

import ast
import contextlib
import ctypes
import importlib.machinery
import importlib.util
import inspect
import itertools
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
from llama_cpp import mtmd_cpp

from luq_gguf import bench
from luq_gguf.families.text_only import Qwen2
from luq_gguf.planning import layer_of
from luq_gguf.profile import DECODER
from luq_gguf.random_gguf import write_random_gguf
from tests.exported import export_both
from tests.pico import HEADS, HIDDEN, build_pico

assert mtmd_cpp  # loads libmtmd, which the native module uses
native = bench.load_native()
STUB = Path(bench.__file__).with_name("_native.pyi")


linux = pytest.mark.skipif(sys.platform != "linux", reason="threads are pinned on Linux only")


@pytest.fixture(scope="module")
def models(pico_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Text model and mmproj of the pico checkpoint."""
    return export_both(pico_checkpoint, tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def model(models: tuple[Path, Path]) -> Path:
    return models[0]


def test_all_samples_come_back(model: Path):
    started = time.monotonic_ns()
    result = native.decode(model, prompt=16, generate=5, threads=1, repeat=4)
    wall = time.monotonic_ns() - started
    assert len(result["prompt_ns"]) == 4
    assert len(result["generate_ns"]) == 20
    assert min(result["prompt_ns"] + result["generate_ns"]) > 1000
    assert 0 < result["load_ns"] + sum(result["prompt_ns"]) + sum(result["generate_ns"]) < wall


def _matrices(model: Path) -> dict[str, int]:
    """Types of the matrices that tokens are multiplied with, by name."""
    found = gguf.GGUFReader(model).tensors
    return {each.name: int(each.tensor_type) for each in found if len(each.shape) > 1 and "token_embd" not in each.name}


def test_parts_are_runs_of_products_with_one_type(tmp_path: Path):
    kinds = (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0)
    mixed = write_random_gguf(tmp_path / "mixed.gguf", *_mixed(kinds))
    result = native.decode(mixed, prompt=8, generate=5, threads=1, repeat=2, parts=True)
    for phase, samples in (("prompt", 2), ("generate", 10)):
        parts = result[f"{phase}_parts"]
        found = [kind for kind, _ in parts]
        assert set(found) == {None, *_matrices(mixed).values()} == {None, *map(int, kinds), 1}
        assert all(left != right for left, right in itertools.pairwise(found))
        assert {len(ns) for _, ns in parts} == {samples}
        layers = [kind for kind in found if kind in (2, 8)]
        assert [kind for kind, _ in itertools.groupby(layers)] == list(map(int, kinds))
        assert [kind for kind in found if kind is not None][-1] == 1, "the output matrix comes last"
        sums = [sum(times) for times in zip(*(ns for _, ns in parts), strict=True)]
        for whole, total in zip(result[f"{phase}_ns"], sums, strict=True):
            assert 0.5 * whole < total <= 1.01 * whole


def _mixed(kinds: tuple[gguf.GGMLQuantizationType, ...]) -> tuple[Qwen2, dict[str, Any]]:
    """A decoder of as many layers as types, its output in F16."""
    sizes = {"num_hidden_layers": len(kinds), "intermediate_size": 512, "hidden_size": 256}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    family = Qwen2(DECODER | sizes)
    types = {}
    for tensor in family.text_tensors():
        layer = layer_of(tensor.name)
        kind = gguf.GGMLQuantizationType.F16 if layer is None else kinds[layer]
        types[tensor.name] = gguf.GGMLQuantizationType.F32 if len(tensor.shape) == 1 else kind
    return family, types


def test_parts_of_a_prompt_in_several_batches(model: Path):
    result = native.decode(model, prompt=1000, generate=2, threads=2, repeat=2, parts=True)
    whole = sum(statistics.median(ns) for _, ns in result["prompt_parts"])
    assert 0.5 < whole / statistics.median(result["prompt_ns"]) < 2
    assert {kind for kind, _ in result["generate_parts"]} == {None, *_matrices(model).values()}


def test_nobody_gets_parts_unasked(model: Path):
    result = native.decode(model, prompt=2, generate=1, threads=1, repeat=1)
    assert (result["prompt_parts"], result["generate_parts"]) == ([], [])
    with_parts = native.decode(model, prompt=2, generate=1, threads=1, repeat=1, parts=True)
    assert with_parts["kv_bytes"] == result["kv_bytes"] > 0


def test_sizes_are_those_of_the_tensors(model: Path):
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(model).tensors}
    result = native.decode(str(model), prompt=1, generate=1, threads=1, repeat=1)
    assert result["model_bytes"] == sum(int(tensor.n_bytes) for tensor in tensors.values())
    assert result["parameters"] == sum(int(tensor.n_elements) for tensor in tensors.values())
    embeddings = tensors["token_embd.weight"]
    assert "output.weight" in tensors
    rows = int(embeddings.shape[1])
    assert result["read_bytes"] == result["model_bytes"] - int(embeddings.n_bytes) * (rows - 1) // rows


def test_a_tied_model_reads_its_embeddings_whole(tmp_path: Path):
    path = export_both(build_pico(tmp_path / "Pico-VL-Instruct", tied=True), tmp_path)[0]
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    result = native.decode(path, prompt=1, generate=1, threads=1, repeat=1)
    assert "output.weight" not in tensors
    embeddings = tensors["token_embd.weight"]
    assert result["read_bytes"] == result["model_bytes"] + int(embeddings.n_bytes) // int(embeddings.shape[1])


@pytest.mark.parametrize(("prompt", "cells"), [(1, 256), (300, 512)])
def test_keys_and_values_of_every_layer_are_counted(model: Path, prompt: int, cells: int):
    reader = gguf.GGUFReader(model)
    fields = {name: reader.fields[f"qwen2vl.{name}"].contents() for name in ("block_count", "attention.head_count_kv")}
    head = HIDDEN // HEADS
    result = native.decode(model, prompt=prompt, generate=1, threads=1, repeat=1)
    values = 2 * int(fields["block_count"]) * int(fields["attention.head_count_kv"]) * head * cells
    assert result["kv_bytes"] == values * np.dtype(np.float16).itemsize


def test_peak_memory_is_that_of_the_process(model: Path):
    result = native.decode(model, prompt=1, generate=1, threads=1, repeat=1)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert result["model_bytes"] < result["peak_memory"] <= peak


@linux
def test_a_pinned_decode_stays_on_its_processors(model: Path):
    """Every thread that exists while it runs, but none of the threads that were there before."""
    allowed = os.sched_getaffinity(0)
    chosen = max(allowed)
    tasks = Path("/proc/self/task")
    before = {int(task.name) for task in tasks.iterdir()}
    seen: dict[int, set[int]] = {}
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.002):
            for task in {int(task.name) for task in tasks.iterdir()} - before - {threading.get_native_id()}:
                with contextlib.suppress(ProcessLookupError):
                    seen[task] = os.sched_getaffinity(task)

    looker = threading.Thread(target=look)
    looker.start()
    native.decode(model, prompt=100, generate=50, threads=3, repeat=10, cpus=[chosen])
    done.set()
    looker.join()
    pinned = [cpus for cpus in seen.values() if cpus == {chosen}]
    assert len(pinned) >= 3
    assert os.sched_getaffinity(0) == allowed
    result = native.decode(model, prompt=4, generate=4, threads=1, repeat=2, cpus=sorted(allowed))
    assert len(result["generate_ns"]) == 8


@pytest.mark.parametrize(
    ("cpus", "message"),
    [
        ([], "cpus must name at least one processor"),
        ([-1], "cpus must be 0 to 1023, not -1"),
        ([0, 1024], "cpus must be 0 to 1023, not 1024"),
        ([0, 10**30], "1000000000000000000000000000000 is out of range"),
        ([1023], "cpus names processors that this process may not use"),
    ],
)
@linux
def test_processors_that_cannot_be(model: Path, cpus: list[int], message: str):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        native.decode(model, prompt=1, generate=1, threads=1, cpus=cpus)
    assert len(native.decode(model, prompt=1, generate=1, threads=1)["generate_ns"]) == 3


@pytest.mark.parametrize("cpus", [0, "0", [0.5], {0}, [None], iter([0])])
def test_processors_of_wrong_types(model: Path, cpus: object):
    with pytest.raises(TypeError):
        native.decode(model, prompt=1, generate=1, threads=1, cpus=cpus)


@pytest.mark.parametrize(("prompt", "generate", "context"), [(1, 1, 256), (200, 56, 256), (200, 57, 512)])
def test_context_is_just_large_enough(model: Path, prompt: int, generate: int, context: int):
    result = native.decode(os.fsencode(model), prompt=prompt, generate=generate, threads=1, repeat=1)
    assert result["context"] == context


def test_a_prompt_takes_longer_than_a_token(model: Path):
    result = native.decode(model, prompt=200, generate=20, threads=1, repeat=3)
    assert min(result["prompt_ns"]) > 5 * min(result["generate_ns"])


def test_times_agree_with_the_same_loop_in_python(model: Path):
    """llama.cpp driven from Python, token by token, is the oracle; it needs no more than a few times as long."""
    ours = statistics.median(native.decode(model, prompt=8, generate=100, threads=1, repeat=2)["generate_ns"])
    llama = llama_cpp.Llama(str(model), n_ctx=256, n_batch=8, n_threads=1, n_threads_batch=1, verbose=False)
    tokens = (llama_cpp.llama_token * 8)(*range(8))
    context = llama.ctx
    samples = []
    assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, 8)) == 0
    for _ in range(100):
        started = time.perf_counter_ns()
        assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, 1)) == 0
        samples.append(time.perf_counter_ns() - started)
    llama.close()
    assert 0.25 < ours / statistics.median(samples) < 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": 0}, "prompt must be 1 to 131071, not 0"),
        ({"prompt": -1}, "prompt must be 1 to 131071, not -1"),
        ({"generate": 0}, "generate must be 1 to 131068, not 0"),
        ({"generate": 131069}, "generate must be 1 to 131068, not 131069"),
        ({"threads": 0}, "threads must be 1 to 512, not 0"),
        ({"threads": 513}, "threads must be 1 to 512, not 513"),
        ({"repeat": 0}, "repeat must be 1 to 10000, not 0"),
        ({"threads": 2**31}, "threads must be 1 to 512, not 2147483648"),
        ({"repeat": 10**30}, "1000000000000000000000000000000 is out of range"),
    ],
)
def test_numbers_out_of_range(model: Path, changed: dict[str, int], message: str):
    numbers = {"prompt": 4, "generate": 1, "threads": 1, "repeat": 1} | changed
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        native.decode(model, **numbers)


def test_more_tokens_than_the_model_knows(model: Path):
    limit = int(gguf.GGUFReader(model).fields["qwen2vl.context_length"].contents())
    with pytest.raises(ValueError, match=rf"prompt \+ generate must be at most {limit} for .*, not {limit + 1}"):
        native.decode(model, prompt=limit, generate=1, threads=1)


@pytest.mark.parametrize("arguments", [{"prompt": 1.5}, {"prompt": "4"}, {"seed": 1}, {"prompt": None}])
def test_wrong_types(model: Path, arguments: dict[str, object]):
    with pytest.raises(TypeError):
        native.decode(model, **({"prompt": 4, "generate": 1, "threads": 1} | arguments))


def test_a_path_with_a_null_byte():
    with pytest.raises(ValueError, match="null byte"):
        native.decode("model\0.gguf", prompt=1, generate=1, threads=1)


def test_files_that_are_no_model(models: tuple[Path, Path], tmp_path: Path):
    text = tmp_path / "notes.gguf"
    text.write_text("not a model")
    fifo = tmp_path / "fifo.gguf"
    os.mkfifo(fifo)
    for path, message in (
        (tmp_path / "gone.gguf", f"cannot open {tmp_path}/gone.gguf: No such file or directory"),
        (text, f"{text} is no GGUF"),
        (tmp_path, f"{tmp_path} is no GGUF"),
        (fifo, f"{fifo} is no GGUF"),
        (models[1], f"llama.cpp cannot load {models[1]}: llama_model_load: error loading model: CLIP"),
    ):
        with pytest.raises(native.DecodeError) as caught:
            native.decode(path, prompt=1, generate=1, threads=1)
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.1, 0.5, 0.99])
def test_cut_files(model: Path, tmp_path: Path, share: float):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[: max(4, int(model.stat().st_size * share))])
    with pytest.raises(native.DecodeError, match=r"llama\.cpp cannot load"):
        native.decode(cut, prompt=1, generate=1, threads=1)


def test_threads_do_not_disturb_each_other(models: tuple[Path, Path]):
    """Good and bad files at once: everyone gets its own samples, and its own reason."""

    def run(index: int) -> object:
        try:
            return native.decode(models[index % 2], prompt=16, generate=8 + index, threads=1, repeat=3)
        except native.DecodeError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, range(16)))
    for index, result in enumerate(results):
        if index % 2:
            assert "CLIP cannot be used" in result
        else:
            assert len(result["generate_ns"]) == 3 * (8 + index)


def test_the_log_callback_is_put_back(models: tuple[Path, Path], capfd: pytest.CaptureFixture[str]):
    lines: list[bytes] = []
    collect = llama_cpp.llama_log_callback(lambda level, text, data: lines.append(text))
    nothing = ctypes.c_void_p(0)
    llama_cpp.llama_log_set(collect, nothing)
    try:
        native.decode(models[0], prompt=1, generate=1, threads=1)
        with pytest.raises(native.DecodeError):
            native.decode(models[1], prompt=1, generate=1, threads=1)
        assert not lines
        path = str(models[1]).encode()
        assert not llama_cpp.llama_model_load_from_file(path, llama_cpp.llama_model_default_params())
        assert any(b"CLIP cannot be used" in line for line in lines)
    finally:
        from llama_cpp._logger import llama_log_callback

        llama_cpp.llama_log_set(llama_log_callback, nothing)
    assert capfd.readouterr().err == ""


CALLS = {
    "decode": lambda models: native.decode(models[0], prompt=100, generate=50, threads=1, repeat=20),
    "pinned": lambda models: native.decode(
        models[0], prompt=100, generate=50, threads=1, repeat=20, cpus=[min(os.sched_getaffinity(0))]
    ),
    "image": lambda models: native.image(*models, bytes(3 * 112 * 112), 112, 112, threads=1, repeat=20),
    "kernel": lambda models: native.kernel(12, 4096, 4096, 1, threads=1, min_seconds=0.5),
    "bandwidth": lambda models: native.bandwidth(2, min_seconds=0.5),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_gil_is_released(models: tuple[Path, Path], name: str):
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.wait(0.002):
            ticks.append(time.monotonic())

    ticker = threading.Thread(target=tick)
    ticker.start()
    started = time.monotonic()
    CALLS[name](models)
    ended = time.monotonic()
    done.set()
    ticker.join()
    during = sum(started < moment < ended for moment in ticks)
    assert during > (ended - started) / 0.02


@pytest.mark.parametrize(
    "call",
    [
        "decode(model, prompt=1, generate=200, threads=1, repeat=10000)",
        "decode(model, prompt=200, generate=1, threads=1, repeat=10000)",
        "decode(model, prompt=200, generate=1, threads=1, repeat=10000, cpus=[min(os.sched_getaffinity(0))])",
        "image(model, mmproj, bytes(3 * 112 * 112), 112, 112, threads=1, repeat=10000)",
        "kernel(12, 4096, 4096, 1, threads=1, min_seconds=3600)",
        "kernel(18, 4096, 14336, 512, threads=1, min_seconds=3600)",
        "kernel(0, 64, 64, 1, threads=2, min_seconds=3600)",
        "bandwidth(2, min_seconds=3600)",
    ],
)
def test_ctrl_c_stops_it_within_a_second(models: tuple[Path, Path], call: str):
    code = f"""
import os, time
from llama_cpp import mtmd_cpp
from luq_gguf import bench
native = bench.load_native()
model, mmproj = {str(models[0])!r}, {str(models[1])!r}
print("ready", flush=True)
try:
    native.{call}
except KeyboardInterrupt:
    print(time.monotonic())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        sent = time.monotonic()
        stopped = float(child.stdout.readline())
    assert 0 <= stopped - sent < 1
    assert child.returncode == 0


def test_only_one_copy_of_every_library_is_mapped(models: tuple[Path, Path]):
    code = f"""
from pathlib import Path
from llama_cpp import mtmd_cpp
from luq_gguf.bench import load_native, measure_decode
model, mmproj = {str(models[0])!r}, {str(models[1])!r}
measure_decode(Path(model), prompt=4, generate=1, threads=1, repeat=1)
load_native().image(model, mmproj, bytes(3 * 56 * 56), 56, 56, threads=1)
load_native().kernel(12, 256, 256, 1, threads=2, working_set=1)
for line in open("/proc/self/maps"):
    print(line.split()[-1])
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    mapped = {
        path for path in output.split() if Path(path).name.startswith(("libllama.", "libmtmd.", "libggml", "_native"))
    }
    names = sorted(Path(path).name.split(".")[0] for path in mapped)
    assert names == ["_native", "libggml", "libggml-base", "libggml-cpu", "libllama", "libmtmd"]
    folders = {Path(path).parent for path in mapped if Path(path).name.startswith("lib")}
    assert folders == {Path(llama_cpp.__file__).parent / "lib"}


def test_alone_it_refuses_to_load():
    """Imported before llama_cpp it would bring a second copy of llama.cpp; it has no path to one."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    command = [sys.executable, "-c", "import luq_gguf._native"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert re.search("ImportError: lib(llama|mtmd)", done.stderr)


def test_modules_share_no_state():
    """Multi-phase initialisation: each module object has an exception class of its own."""
    spec = importlib.util.spec_from_file_location("luq_gguf._native", native.__file__)
    assert spec
    assert isinstance(spec.loader, importlib.machinery.ExtensionFileLoader)
    second = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(second)
    assert second.DecodeError is not native.DecodeError
    with pytest.raises(second.DecodeError):
        second.decode("/", prompt=1, generate=1, threads=1)
    assert native.__file__.endswith(".abi3.so")


def test_the_stub_says_what_the_module_has():
    tree = ast.parse(STUB.read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assigned = {node.target.id for node in tree.body if isinstance(node, ast.AnnAssign)}
    constants = {name for name in assigned if not name.startswith("_")}
    real = {name for name, node in classes.items() if not node.decorator_list}
    public = {name for name in dir(native) if not name.startswith("__")}
    assert public == set(functions) | constants | real
    assert issubclass(native.DecodeError, RuntimeError)
    for name, node in functions.items():
        assert _stubbed_parameters(node) == _real_parameters(getattr(native, name))


def _stubbed_parameters(node: ast.FunctionDef) -> dict[str, tuple[bool, object]]:
    """Whether each parameter goes by its name only, and its default."""
    arguments = node.args
    assert not arguments.defaults
    plain = {argument.arg: (False, inspect.Parameter.empty) for argument in arguments.args}
    named = {
        argument.arg: (True, ast.literal_eval(default) if default else inspect.Parameter.empty)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    }
    return plain | named


def _real_parameters(function: Callable[..., object]) -> dict[str, tuple[bool, object]]:
    parameters = inspect.signature(function).parameters
    return {name: (one.kind is one.KEYWORD_ONLY, one.default) for name, one in parameters.items()}


def test_the_stub_says_what_comes_back(models: tuple[Path, Path]):
    tree = ast.parse(STUB.read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    results = {
        "DecodeResult": native.decode(models[0], prompt=1, generate=1, threads=1),
        "ImageResult": native.image(*models, bytes(3 * 56 * 56), 56, 56, threads=1),
        "KernelResult": native.kernel(0, 64, 64, 1, threads=1, working_set=1),
        "BandwidthResult": native.bandwidth(1, bytes=1),
    }
    assert len(results["DecodeResult"]["prompt_ns"]) == 3
    parts = native.decode(models[0], prompt=1, generate=1, threads=1, parts=True)["prompt_parts"]
    assert all(isinstance(part, tuple) and isinstance(part[1], list) for part in parts)
    assert {type(kind) for kind, _ in parts} == {int, type(None)}
    assert len(results["ImageResult"]["prompt_ns"]) == 1
    for name, result in results.items():
        stubbed = {item.target.id: ast.unparse(item.annotation) for item in classes[name].body}
        kinds = {key: "list[int]" if isinstance(value, list) else type(value).__name__ for key, value in result.items()}
        parts = {key: "list[tuple[int | None, list[int]]]" for key in kinds if key.endswith("_parts")}
        assert kinds | parts == stubbed
