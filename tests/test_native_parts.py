"""What the native module measures besides decoding: kernels, memory and images."""

from __future__ import annotations

import math
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import llama_cpp
import pytest
from llama_cpp import mtmd_cpp

from luq_gguf import bench
from tests.exported import export_both
from tests.picos import build_family

assert mtmd_cpp  # loads libmtmd, which the native module uses
native = bench.load_native()
Types = gguf.GGMLQuantizationType
NO_WEIGHTS = {Types.Q8_1, Types.Q8_K, Types.I8, Types.I16, Types.I32, Types.I64, Types.F64}
WEIGHTS = [one for one in Types if one not in NO_WEIGHTS]
PATCH = 28  # pixels that become one token of the pico model
MIB = 2**20


@pytest.fixture(scope="module")
def models(pico_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Text model and mmproj of the pico checkpoint."""
    return export_both(pico_checkpoint, tmp_path_factory.mktemp("parts"))


@pytest.mark.parametrize("kind", WEIGHTS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("batch", [1, 5])
def test_every_type_of_weights_is_measured(kind: gguf.GGMLQuantizationType, batch: int):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    result = native.kernel(int(kind), 48, 512, batch, threads=2, min_seconds=0, working_set=MIB)
    assert result["bytes"] == 48 * 512 // block * size
    assert result["weights"] == 48 * 512
    assert result["matrices"] == math.ceil(math.ceil(MIB / result["bytes"]) / batch)
    assert len(result["ns"]) == 3
    assert min(result["ns"]) > 0


def test_more_work_takes_longer():
    def median(rows: int, batch: int) -> float:
        return statistics.median(native.kernel(int(Types.Q8_0), rows, 1024, batch, threads=1, min_seconds=0.1)["ns"])

    assert median(4096, 1) > 4 * median(256, 1)
    assert median(1024, 64) > 4 * median(1024, 1)


def test_samples_are_taken_for_the_time_asked_for():
    few = native.kernel(int(Types.Q4_K), 1024, 1024, 1, threads=1, min_seconds=0)
    many = native.kernel(int(Types.Q4_K), 1024, 1024, 1, threads=1, min_seconds=0.5)
    assert len(few["ns"]) == 3
    assert sum(many["ns"]) * many["matrices"] >= 0.5e9
    assert sum(many["ns"][:-1]) * many["matrices"] < 0.5e9


def test_no_cache_holds_the_matrices_unless_told():
    result = native.kernel(int(Types.F16), 512, 1024, 1, threads=1, min_seconds=0)
    assert result["matrices"] * result["bytes"] >= 256 * MIB
    one = native.kernel(int(Types.F16), 512, 1024, 1, threads=1, min_seconds=0, working_set=1)
    assert one["matrices"] == 1
    tiny = native.kernel(int(Types.F32), 1, 1, 1, threads=1, min_seconds=0)
    assert tiny["matrices"] == 8192


@pytest.mark.parametrize("kind", [Types.F16, Types.Q2_K, Types.Q4_0, Types.Q4_K, Types.Q6_K, Types.IQ4_NL, Types.IQ1_M])
def test_matrices_are_arranged_as_a_model_has_them(kind: gguf.GGMLQuantizationType, tmp_path: Path):
    """llama.cpp says while it loads a model how much of it went into rearranged buffers."""
    path = tmp_path / "one.gguf"
    _write_model(path, kind)
    code = f"""
from llama_cpp import llama_cpp as llama
collect = llama.llama_log_callback(lambda level, text, data: print(text.decode(), end=""))
llama.llama_log_set(collect, None)
model = llama.llama_model_load_from_file({str(path).encode()!r}, llama.llama_model_default_params())
assert model
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = re.search(r"(CPU_REPACK|AMX) model buffer size", done.stdout) is not None
    result = native.kernel(int(kind), 256, 256, 1, threads=1, min_seconds=0, working_set=1)
    assert result["repacked"] is loaded


def _write_model(path: Path, kind: gguf.GGMLQuantizationType) -> None:
    """A llama of one layer, its matrices of one type and full of zeros."""
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(256)
    writer.add_block_count(1)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(256)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    zeros = np.zeros((256, 256 // block * size), dtype=np.uint8)
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    for name in ("token_embd", "output", *(f"blk.0.{name}" for name in names)):
        writer.add_tensor(f"{name}.weight", zeros, raw_dtype=kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(256, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


KERNEL = {"type": int(Types.Q4_K), "rows": 64, "columns": 512, "batch": 1, "threads": 1}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"type": -1}, "type must be one that weights have in a GGUF, not -1"),
        ({"type": 4}, "type must be one that weights have in a GGUF, not 4"),
        ({"type": 10**6}, "type must be one that weights have in a GGUF, not 1000000"),
        ({"type": int(Types.Q8_K)}, "type must be one that weights have in a GGUF, not 15"),
        ({"type": int(Types.I32)}, "type must be one that weights have in a GGUF, not 26"),
        ({"rows": 0}, "rows must be 1 to 16777216, not 0"),
        ({"rows": 2**24 + 1}, "rows must be 1 to 16777216, not 16777217"),
        ({"columns": -256}, "columns must be 1 to 16777216, not -256"),
        ({"columns": 500}, "columns must be a multiple of 256 for q4_K, not 500"),
        ({"type": int(Types.Q8_0), "columns": 33}, "columns must be a multiple of 32 for q8_0, not 33"),
        ({"batch": 0}, "batch must be 1 to 65536, not 0"),
        ({"batch": 65537}, "batch must be 1 to 65536, not 65537"),
        ({"threads": 0}, "threads must be 1 to 512, not 0"),
        ({"threads": 513}, "threads must be 1 to 512, not 513"),
        ({"min_seconds": -0.1}, "min_seconds must be 0 to 3600, not -0.1"),
        ({"min_seconds": math.nan}, "min_seconds must be 0 to 3600, not nan"),
        ({"min_seconds": math.inf}, "min_seconds must be 0 to 3600, not inf"),
        ({"working_set": -1}, "working_set must be 0 to 1125899906842624, not -1"),
        ({"rows": 2**63}, "9223372036854775808 is out of range"),
    ],
)
def test_kernels_that_cannot_be(changed: dict[str, float], message: str):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        native.kernel(**KERNEL | changed)


@pytest.mark.parametrize(
    "changed",
    [{"rows": 2**24, "columns": 2**24}, {"working_set": 2**50, "rows": 2**16, "columns": 2**16}],
)
def test_more_memory_than_there_is(changed: dict[str, int]):
    with pytest.raises(ValueError, match=r"^this needs \d+ bytes of memory, but only \d+ are free$") as caught:
        native.kernel(**KERNEL | changed)
    needed, free = map(int, re.findall(r"\d+", str(caught.value)))
    assert needed > free > 0


@pytest.mark.parametrize(
    "changed", [{"type": "q4_K"}, {"rows": 1.5}, {"batch": None}, {"seed": 1}, {"min_seconds": "1"}]
)
def test_kernels_of_wrong_types(changed: dict[str, object]):
    with pytest.raises(TypeError):
        native.kernel(**KERNEL | changed)


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("size", [1, 12345, MIB])
def test_all_threads_read_all_memory(threads: int, size: int):
    result = native.bandwidth(threads, bytes=size, min_seconds=0)
    pages = threads * 4096
    assert result["bytes"] == math.ceil(size / pages) * pages
    words = result["bytes"] // 8
    assert result["checksum"] == words * (words - 1) // 2
    assert len(result["ns"]) == 3
    assert min(result["ns"]) > 0


def test_more_memory_takes_longer():
    small, large = (min(native.bandwidth(1, bytes=size)["ns"]) for size in (64 * MIB, 512 * MIB))
    assert 2 * small < large


def test_no_cache_holds_what_is_read():
    result = native.bandwidth(1)
    assert result["bytes"] >= 256 * MIB
    assert sum(result["ns"]) >= 0.2e9 or len(result["ns"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": 0}, "threads must be 1 to 512, not 0"),
        ({"threads": 513}, "threads must be 1 to 512, not 513"),
        ({"bytes": -1}, "bytes must be 0 to 1125899906842624, not -1"),
        ({"min_seconds": 3601}, "min_seconds must be 0 to 3600, not 3601"),
        ({"bytes": 10**30}, "1000000000000000000000000000000 is out of range"),
    ],
)
def test_memory_that_cannot_be_read(arguments: dict[str, float], message: str):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        native.bandwidth(**{"threads": 1} | arguments)
    with pytest.raises(ValueError, match=r"^this needs 1125899906842624 bytes of memory, but only \d+ are free$"):
        native.bandwidth(1, bytes=2**50)
    with pytest.raises(TypeError):
        native.bandwidth(1.5)


@pytest.mark.parametrize(("width", "height"), [(4, 2), (2, 4), (3, 3)])
def test_an_image_is_encoded_and_read(models: tuple[Path, Path], width: int, height: int):
    size = (width * PATCH, height * PATCH)
    result = native.image(*models, bytes(3 * size[0] * size[1]), *size, threads=1, repeat=3)
    assert result["tokens"] >= width * height
    assert len(result["encode_ns"]) == len(result["prompt_ns"]) == 3
    assert min(result["encode_ns"] + result["prompt_ns"]) > 1000


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen3-vl", "llava-1.5", "gemma-3"])
def test_every_family_is_measured(family: str, tmp_path: Path):
    pair = export_both(build_family(tmp_path / "Pico", family), tmp_path)
    for width, height in ((112, 112), (500, 40), (1, 900)):
        result = native.image(*pair, bytes(3 * width * height), width, height, threads=2, repeat=2)
        assert result["tokens"] > 0
        assert len(result["encode_ns"]) == len(result["prompt_ns"]) == 2
    said = _said_while_running(f"n.decode({str(pair[0])!r}, prompt=300, generate=1, threads=1, repeat=1)['kv_bytes']")
    sizes = [float(size) for size in re.findall(r"CPU KV buffer size = +([0-9.]+) MiB", said)]
    assert sizes
    assert float(said.split()[-1]) / MIB == pytest.approx(sum(sizes), abs=0.005 * len(sizes))


def _said_while_running(call: str) -> str:
    """What llama.cpp logs while it makes a context as the native module does, then the value of a call of that."""
    path = re.search(r"'([^']+\.gguf)'", call)
    assert path
    code = f"""
from llama_cpp import llama_cpp as llama, mtmd_cpp
from luq_gguf import bench
collect = llama.llama_log_callback(lambda level, text, data: print(text.decode(), end=""))
llama.llama_log_set(collect, None)
n = bench.load_native()
model = llama.llama_model_load_from_file({path[1].encode()!r}, llama.llama_model_default_params())
params = llama.llama_context_default_params()
params.n_ctx, params.n_batch = 512, 300
llama.llama_init_from_model(model, params)
print({call})
"""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_a_larger_image_takes_longer(models: tuple[Path, Path]):
    def measure(side: int) -> dict[str, object]:
        return native.image(*models, bytes(3 * side * side), side, side, threads=1, repeat=3)

    small, large = measure(4 * PATCH), measure(16 * PATCH)
    assert (small["tokens"], large["tokens"]) == (16, 256)
    for name in ("encode_ns", "prompt_ns"):
        assert min(large[name]) > 2 * min(small[name])


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 300), (300, 1), (16384, 1)])
def test_images_of_odd_shapes(models: tuple[Path, Path], width: int, height: int):
    assert native.image(*models, bytes(3 * width * height), width, height, threads=1)["tokens"] > 0


@pytest.mark.parametrize("container", [bytearray, memoryview])
def test_pixels_in_any_buffer(models: tuple[Path, Path], container: type):
    pixels = bytes(3 * 112 * 112)
    assert native.image(*models, container(pixels), 112, 112, threads=1)["tokens"] == 16


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 0}, "width must be 1 to 16384, not 0"),
        ({"height": 16385}, "height must be 1 to 16384, not 16385"),
        ({"width": 57}, "pixels must be 3 * width * height = 9576 bytes, not 9408"),
        ({"pixels": b""}, "pixels must be 3 * width * height = 9408 bytes, not 0"),
        ({"threads": 0}, "threads must be 1 to 512, not 0"),
        ({"repeat": 0}, "repeat must be 1 to 10000, not 0"),
        ({"repeat": 2**64}, "18446744073709551616 is out of range"),
    ],
)
def test_images_that_cannot_be(models: tuple[Path, Path], changed: dict[str, object], message: str):
    arguments = {"pixels": bytes(3 * 56 * 56), "width": 56, "height": 56, "threads": 1} | changed
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        native.image(*models, **arguments)


@pytest.mark.parametrize("changed", [{"pixels": "text"}, {"pixels": None}, {"width": 1.5}, {"seed": 1}])
def test_images_of_wrong_types(models: tuple[Path, Path], changed: dict[str, object]):
    arguments = {"pixels": bytes(3 * 56 * 56), "width": 56, "height": 56, "threads": 1} | changed
    with pytest.raises(TypeError):
        native.image(*models, **arguments)


def test_an_image_that_the_model_has_no_room_for(models: tuple[Path, Path], tmp_path: Path):
    short = tmp_path / "short.gguf"
    data = models[0].read_bytes()
    limit = int(gguf.GGUFReader(models[0]).fields["qwen2vl.context_length"].contents())
    name = b"qwen2vl.context_length" + (4).to_bytes(4, "little")
    assert data.count(name + limit.to_bytes(4, "little")) == 1
    short.write_bytes(data.replace(name + limit.to_bytes(4, "little"), name + (8).to_bytes(4, "little")))
    with pytest.raises(ValueError, match=rf"^the tokens of the image must be at most 8 for {short}, not \d+$"):
        native.image(short, models[1], bytes(3 * 112 * 112), 112, 112, threads=1)


def test_files_that_see_nothing(models: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    text = tmp_path / "notes.gguf"
    text.write_text("not a model")
    for pair, message in (
        ((tmp_path / "gone.gguf", models[1]), f"cannot open {tmp_path}/gone.gguf: No such file or directory"),
        ((models[0], tmp_path / "gone.gguf"), f"cannot open {tmp_path}/gone.gguf: No such file or directory"),
        ((models[0], text), f"{text} is no GGUF"),
        ((models[0], models[0]), f"llama.cpp cannot load {models[0]}: "),
        ((models[1], models[1]), f"llama.cpp cannot load {models[1]}: llama_model_load: error loading model: CLIP"),
    ):
        with pytest.raises(native.DecodeError) as caught:
            native.image(*pair, bytes(3 * 56 * 56), 56, 56, threads=1)
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99])
def test_cut_vision_parts(models: tuple[Path, Path], tmp_path: Path, share: float):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(models[1].read_bytes()[: int(models[1].stat().st_size * share)])
    with pytest.raises(native.DecodeError, match=r"llama\.cpp cannot load"):
        native.image(models[0], cut, bytes(3 * 56 * 56), 56, 56, threads=1)


def test_everything_at_once(models: tuple[Path, Path]):
    """All that is measured, in threads beside each other; everyone gets its own answer."""

    def run(index: int) -> bool:
        if index % 4 == 0:
            return len(native.image(*models, bytes(3 * 56 * 56), 56, 56, threads=2, repeat=5)["encode_ns"]) == 5
        if index % 4 == 1:
            return native.kernel(int(Types.Q4_K), 8 * index, 256, 1, threads=2)["weights"] == 8 * index * 256
        if index % 4 == 2:
            return native.bandwidth(2, bytes=index * MIB)["bytes"] == index * MIB
        with pytest.raises(native.DecodeError, match="cannot load"):
            native.image(models[0], models[0], bytes(3 * 56 * 56), 56, 56, threads=1)
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(1, 17)))


def test_the_vision_log_goes_where_llama_cpp_logs(models: tuple[Path, Path]):
    """It is ours while an image is measured, and llama.cpp's own callback gets it afterwards."""
    code = f"""
import llama_cpp
from llama_cpp import llama_cpp as llama, mtmd_cpp
from luq_gguf import bench
lines = []
collect = llama.llama_log_callback(lambda level, text, data: lines.append(text))
llama.llama_log_set(collect, None)
bench.load_native().image({str(models[0])!r}, {str(models[1])!r}, bytes(3 * 56 * 56), 56, 56, threads=1)
assert not lines
model = llama.llama_model_load_from_file({str(models[0]).encode()!r}, llama.llama_model_default_params())
lines.clear()
assert not mtmd_cpp.mtmd_init_from_file(b"/nowhere", model, mtmd_cpp.mtmd_context_params_default())
assert any(b"/nowhere" in line for line in lines), lines
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert llama_cpp.__version__ == native.LLAMA_CPP_PYTHON
