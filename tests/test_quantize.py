"""Quantizing through llama.cpp: the right types and bytes, and what happens when it fails or is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from gguf import GGMLQuantizationType as Q
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

from luq_gguf.errors import ArtifactError, DiskSpaceError, QuantizeError, RequestError
from luq_gguf.gguf_file import GGUFFile
from luq_gguf.importance import ImatrixNote, read_means
from luq_gguf.planning import is_weight, layer_of
from luq_gguf.quantize import make_part, part_key, quantize_gguf, resolve_types
from luq_gguf.quantizer import Quantizer
from luq_gguf.type_names import HIGH_TYPES, LOW_TYPES, parse_high_type, parse_low_type
from tests.ggufs import Shape, tensor_shapes, write_imatrix, write_text_gguf

SMALL = Shape(layers=12, ffn=256, vocabulary=256)
PLAIN_RUN = """
import ctypes, sys
import llama_cpp
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype, parameters.nthread = int(sys.argv[3]), 1
none = (llama_cpp.llama_cpp.llama_model_imatrix_data * 1)()
parameters.imatrix = ctypes.cast(none, type(parameters.imatrix))
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(parameters)))
"""
QUANTIZE_HERE = """
import sys
from pathlib import Path
from gguf import GGMLQuantizationType as Q
from luq_gguf.gguf_file import GGUFFile
from luq_gguf.planning import is_weight
from luq_gguf.quantize import quantize_gguf
source, target = Path(sys.argv[1]), Path(sys.argv[2])
types = {name: Q.IQ2_XXS if "blk" in name else Q.Q4_K for name in GGUFFile.open(source).tensors if is_weight(name)}
def tell(what, done, total):
    print(done, flush=True)
quantize_gguf(source, target, types, Path(sys.argv[3]), threads=1, progress=tell)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_text_gguf(tmp_path_factory.mktemp("source") / "f16.gguf", SMALL)


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory) -> Path:
    return write_imatrix(tmp_path_factory.mktemp("imatrix") / "imatrix.gguf", tensor_shapes(SMALL))


def all_as(kind: Q, source: Path) -> dict[str, Q]:
    return {name: kind for name in GGUFFile.open(source).tensors if is_weight(name)}


@pytest.mark.parametrize("name", ["Q4_K_M", "Q5_K_M", "Q3_K_L", "IQ4_XS", "Q4_0", "Q8_0", "F16", "BF16"])
def test_high_types_are_those_of_a_plain_run(tmp_path: Path, source: Path, quantizer: Quantizer, name: str):
    command = [sys.executable, "-c", PLAIN_RUN, str(source), str(tmp_path / "plain.gguf"), str(int(HIGH_TYPES[name]))]
    subprocess.run(command, check=True, capture_output=True)
    plain = {tensor.name: tensor.tensor_type for tensor in GGUFReader(tmp_path / "plain.gguf").tensors}
    assert resolve_types(source, name.lower(), "iq1_m", quantizer=quantizer).high == plain


@pytest.mark.parametrize("name", sorted(LOW_TYPES))
def test_every_low_type_is_given_to_all_weights(source: Path, quantizer: Quantizer, name: str):
    resolved = resolve_types(source, "Q4_K_M", name, quantizer=quantizer)
    for tensor, kind in resolved.low.items():
        if not is_weight(tensor):
            assert kind == resolved.high[tensor]
        else:
            assert kind.name == name


@pytest.mark.parametrize("kind", [Q.Q8_0, Q.Q4_0, Q.BF16])
def test_bytes_equal_another_implementation(tmp_path: Path, source: Path, quantizer: Quantizer, kind: Q):
    """gguf's numpy quantizers, which know no importance."""
    types = all_as(kind, source)
    quantize_gguf(source, tmp_path / "out.gguf", types, None, threads=2, quantizer=quantizer)
    before = {tensor.name: tensor for tensor in GGUFReader(source).tensors}
    for tensor in GGUFReader(tmp_path / "out.gguf").tensors:
        expected = before[tensor.name].data
        if is_weight(tensor.name):
            expected = quantize(np.asarray(expected, np.float32), kind)
        assert tensor.data.tobytes() == expected.tobytes(), tensor.name


def test_each_tensor_gets_its_own_type(tmp_path: Path, source: Path, imatrix: Path, quantizer: Quantizer):
    """Layers 1, 10 and 11 tell an anchored pattern from one that is not."""
    types = all_as(Q.Q5_K, source) | {"output.weight": Q.IQ4_XS, "token_embd.weight": Q.Q3_K}
    types |= {name: Q.Q2_K for name in types if name.startswith("blk.1.")}
    quantize_gguf(source, tmp_path / "out.gguf", types, imatrix, quantizer=quantizer)
    found = {tensor.name: tensor.tensor_type for tensor in GGUFReader(tmp_path / "out.gguf").tensors}
    assert found == {name: types.get(name, Q.F32) for name in found}
    assert len(found) == len(tensor_shapes(SMALL))


@pytest.mark.parametrize("kind", [Q.IQ1_M, Q.IQ2_S, Q.Q3_K])
def test_neither_threads_nor_buffers_change_a_byte(
    tmp_path: Path, source: Path, imatrix: Path, quantizer: Quantizer, monkeypatch, kind: Q
):
    results = set()
    for threads, rows in [(1, 1 << 29), (2, 1 << 29), (3, 1 << 14)]:
        monkeypatch.setattr("luq_gguf.quantize.BUFFER_BYTES", rows)
        target = tmp_path / f"{threads}.gguf"
        quantize_gguf(source, target, all_as(kind, source), imatrix, threads=threads, quantizer=quantizer)
        results.add(target.read_bytes())
    assert len(results) == 1


def test_importance_lowers_the_weighted_error(tmp_path: Path, source: Path, quantizer: Quantizer):
    """Half of the channels count a thousand times more; they must come out nearer to the original."""
    writer = GGUFWriter(tmp_path / "half.gguf", "imatrix")
    writer.add_type("imatrix")
    row = np.ones((1, 256), np.float32)
    row[:, ::2] = 1000
    for name in all_as(Q.Q2_K, source):
        writer.add_tensor(f"{name}.in_sum2", row * 5)
        writer.add_tensor(f"{name}.counts", np.array([[5.0]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    errors = []
    for number, matrix in enumerate([None, tmp_path / "half.gguf"]):
        target = tmp_path / f"{number}.gguf"
        quantize_gguf(source, target, all_as(Q.Q2_K, source), matrix, quantizer=quantizer)
        found = next(row for row in GGUFReader(target).tensors if row.name == "blk.3.attn_q.weight")
        original = next(row for row in GGUFReader(source).tensors if row.name == "blk.3.attn_q.weight")
        errors.append((dequantize(found.data, Q.Q2_K) - np.asarray(original.data, np.float32))[:, ::2].std())
    assert errors[1] < 0.9 * errors[0]


def test_progress_counts_tensors(tmp_path: Path, source: Path, imatrix: Path, quantizer: Quantizer):
    seen = []
    quantize_gguf(
        source, tmp_path / "o.gguf", all_as(Q.Q4_0, source), imatrix, quantizer=quantizer,
        progress=lambda *told: seen.append(told),
    )  # fmt: skip
    total = len(tensor_shapes(SMALL))
    assert seen == [("quantize", done, total) for done in range(1, total + 1)]


def test_one_child_serves_many_jobs(source: Path):
    with Quantizer() as child:
        resolve_types(source, "Q4_K_M", "IQ1_M", quantizer=child)
        first = child._process.pid
        resolve_types(source, "Q4_K_M", "IQ1_S", quantizer=child)
        assert child._process.pid == first
    assert not psutil.pid_exists(first)


def test_modules_in_the_working_folder_are_not_imported(tmp_path: Path, source: Path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert resolve_types(source, "Q4_K_M", "IQ1_M").low["blk.0.attn_q.weight"] == Q.IQ1_M


@pytest.mark.parametrize(("given", "known"), [("IQ9", "IQ1_M"), ("Q4_K_M", "Q4_K"), ("F32", "Q4_0"), ("", "Q4_0")])
def test_unknown_low_types_list_the_known(given: str, known: str):
    with pytest.raises(RequestError, match=f"unknown low type '{given}'; known are .*{known}"):
        parse_low_type(given)


@pytest.mark.parametrize("given", ["Q4", "IQ2_XXL", "GUESSED"])
def test_unknown_high_types_list_the_known(given: str):
    with pytest.raises(RequestError, match=f"unknown high type '{given}'; known are .*Q4_K_M"):
        parse_high_type(given)


def test_high_type_aliases():
    assert parse_high_type("q4_k") == parse_high_type("Q4_K_M") == 15


def test_a_missing_importance_is_an_error_with_the_log(tmp_path: Path, source: Path, quantizer: Quantizer):
    with pytest.raises(QuantizeError, match=r"blk\.0\.attn_k\.weight") as caught:
        quantize_gguf(source, tmp_path / "o.gguf", all_as(Q.IQ1_M, source), None, quantizer=quantizer)
    assert "The result will be garbage" in caught.value.log
    assert len(caught.value.log.splitlines()) <= 20
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    quantize_gguf(source, tmp_path / "o.gguf", all_as(Q.Q4_0, source), None, quantizer=quantizer)


def test_a_bad_importance_is_an_error(tmp_path: Path, source: Path, quantizer: Quantizer):
    shapes = {name: (*size[:-1], 128) for name, size in tensor_shapes(SMALL).items()}
    narrow = write_imatrix(tmp_path / "narrow.gguf", shapes)
    with pytest.raises(QuantizeError, match="imatrix size 128 is different from tensor size 256"):
        quantize_gguf(source, tmp_path / "o.gguf", all_as(Q.Q4_0, source), narrow, quantizer=quantizer)
    (tmp_path / "text.gguf").write_text("no GGUF at all")
    with pytest.raises(ArtifactError, match="neither a GGUF nor a sound"):
        quantize_gguf(source, tmp_path / "o.gguf", all_as(Q.Q4_0, source), tmp_path / "text.gguf", quantizer=quantizer)
    assert not (tmp_path / "o.gguf").exists()


def test_a_weight_without_a_type_is_an_error(tmp_path: Path, source: Path):
    types = all_as(Q.Q4_0, source)
    del types["blk.7.ffn_up.weight"]
    with pytest.raises(QuantizeError, match=r"no type is given for blk\.7\.ffn_up\.weight"):
        quantize_gguf(source, tmp_path / "o.gguf", types, None)


def test_a_type_that_a_row_cannot_take_is_an_error(tmp_path: Path):
    odd = write_text_gguf(tmp_path / "odd.gguf", Shape(layers=1, ffn=288, vocabulary=64))
    with pytest.raises(QuantizeError, match=r"blk\.0\.ffn_down\.weight cannot be Q4_K: .* 288 .* 256"):
        quantize_gguf(odd, tmp_path / "o.gguf", all_as(Q.Q4_K, odd), None)


def test_a_full_disk_is_told_before(tmp_path: Path, monkeypatch):
    huge = write_text_gguf(tmp_path / "huge.gguf", Shape(layers=1, hidden=1 << 18, ffn=1 << 20), hole=True)
    with pytest.raises(DiskSpaceError, match="bytes free"):
        quantize_gguf(huge, tmp_path / "o.gguf", all_as(Q.Q8_0, huge), None)


def broken_source(path: Path, layers: int) -> Path:
    """Sound as a GGUF, but no model."""
    writer = GGUFWriter(path, "qwen2vl")
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length"):
        writer.add_uint32(f"qwen2vl.{key}", layers)
    writer.add_tensor("blk.0.attn_q.weight", np.ones((4, 256), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_that_llama_cpp_refuses_is_an_error(tmp_path: Path, quantizer: Quantizer):
    path = broken_source(tmp_path / "broken.gguf", 1)
    with pytest.raises(QuantizeError, match=r"could not quantize .*: key not found in model"):
        resolve_types(path, "Q4_K_M", "IQ1_M", quantizer=quantizer)


def test_an_assertion_inside_llama_cpp_is_an_error(tmp_path: Path):
    """More layers than LLAMA_MAX_LAYERS."""
    path = broken_source(tmp_path / "broken.gguf", 100_000)
    with Quantizer() as child, pytest.raises(QuantizeError) as caught:
        quantize_gguf(path, tmp_path / "o.gguf", all_as(Q.Q4_0, path), None, quantizer=child)
    message = str(caught.value)
    assert "ended by SIGABRT: llama.cpp/src/llama-model.cpp" in message
    assert "GGML_ASSERT(hparams.n_layer_all" in message
    assert "\n" not in message
    assert "GGML_ASSERT" in caught.value.log.splitlines()[-1]
    assert list(tmp_path.iterdir()) == [path]


def test_a_child_that_dies_is_an_error_and_the_next_job_gets_a_new_one(tmp_path: Path, source: Path, imatrix: Path):
    def kill(what: str, done: int, total: int) -> None:
        if done == 3:
            os.kill(child._process.pid, signal.SIGABRT)

    with Quantizer() as child:
        types = all_as(Q.IQ3_XXS, source)
        with pytest.raises(QuantizeError, match="its process ended by SIGABRT") as caught:
            quantize_gguf(source, tmp_path / "o.gguf", types, imatrix, threads=1, quantizer=child, progress=kill)
        assert "3/ " in caught.value.log
        assert list(tmp_path.iterdir()) == []
        quantize_gguf(source, tmp_path / "o.gguf", all_as(Q.Q4_0, source), imatrix, quantizer=child)
    assert (tmp_path / "o.gguf").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopping_the_owner_stops_the_child(tmp_path: Path, source: Path, imatrix: Path, number: signal.Signals):
    target = tmp_path / "out" / "o.gguf"
    target.parent.mkdir()
    command = [sys.executable, "-c", QUANTIZE_HERE, str(source), str(target), str(imatrix)]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"1\n"
    children = psutil.Process(owner.pid).children()
    assert len(children) == 1
    owner.send_signal(number)
    started = time.monotonic()
    _, errors = owner.communicate(timeout=20)
    assert psutil.wait_procs(children, timeout=5)[1] == []
    assert time.monotonic() - started < 5
    assert not target.exists()
    if number == signal.SIGINT:
        assert b"KeyboardInterrupt" in errors
        assert list(target.parent.iterdir()) == []


def test_parts_are_made_once_and_broken_ones_again(tmp_path: Path, source: Path, quantizer: Quantizer):
    calls = []

    def export(path: Path) -> None:
        calls.append(path)
        write_text_gguf(path, SMALL, select=lambda name: layer_of(name) == 4)

    types, part = all_as(Q.Q4_0, source), tmp_path / "parts" / "4.gguf"
    part.parent.mkdir()
    assert make_part(export, part, types, None, quantizer=quantizer)
    first = part.read_bytes()
    assert not make_part(export, part, types, None, quantizer=quantizer)
    part.write_bytes(first[:-40])
    assert make_part(export, part, types, None, quantizer=quantizer)
    assert part.read_bytes() == first
    assert make_part(export, part, types | {"blk.4.attn_q.weight": Q.Q8_0}, None, quantizer=quantizer)
    assert len(calls) == 3
    assert list(part.parent.iterdir()) == [part]
    assert set(GGUFFile.open(part).tensors) == {name for name in tensor_shapes(SMALL) if layer_of(name) == 4}


def test_a_part_whose_export_fails_leaves_nothing(tmp_path: Path, source: Path):
    def export(path: Path) -> None:
        path.write_bytes(b"half")
        raise ArtifactError("the checkpoint is gone", path=path)

    with pytest.raises(ArtifactError, match="gone"):
        make_part(export, tmp_path / "part.gguf", all_as(Q.Q4_0, source), None)
    assert list(tmp_path.iterdir()) == []


def test_part_keys_change_with_what_the_bytes_depend_on(tmp_path: Path, imatrix: Path):
    types = {"blk.0.attn_q.weight": Q.IQ1_M, "blk.0.attn_norm.weight": Q.F32}
    key = part_key("digest", "bf16", types, imatrix)
    assert key == part_key("digest", "bf16", dict(reversed(types.items())), imatrix)
    same = write_imatrix(tmp_path / "same.gguf", {"blk.0.attn_q.weight": (256, 256)} | tensor_shapes(SMALL), seed=2)
    others = [
        part_key("another", "bf16", types, imatrix),
        part_key("digest", "f16", types, imatrix),
        part_key("digest", "bf16", types | {"blk.0.attn_q.weight": Q.IQ1_S}, imatrix),
        part_key("digest", "bf16", types, None),
        part_key("digest", "bf16", types, same),
    ]
    assert len({key, *others}) == 6


def test_a_part_key_heeds_only_its_own_rows_of_the_importance(tmp_path: Path):
    both = {"blk.0.attn_q.weight": (4, 256), "blk.1.attn_q.weight": (4, 256)}
    more = write_imatrix(tmp_path / "more.gguf", both)
    less = write_imatrix(tmp_path / "less.gguf", dict(list(both.items())[:1]))
    types = {"blk.0.attn_q.weight": Q.IQ1_M}
    assert part_key("d", "f16", types, more) == part_key("d", "f16", types, less)
    assert part_key("d", "f16", {"blk.1.attn_q.weight": Q.IQ1_M}, more) != part_key("d", "f16", types, more)


def test_means_are_those_of_llama_quantize(tmp_path: Path):
    """tools/quantize rounds counts and divides in float32; a weight that was never reached counts evenly."""
    writer = GGUFWriter(tmp_path / "m.gguf", "imatrix")
    writer.add_array("imatrix.datasets", ["ä" * 100, "second"])
    writer.add_uint32("imatrix.chunk_count", 0)
    sums = np.array([[3.0, 1.0, 0.1]], np.float32)
    for name, count in {"a": 2.5, "b": 0.0, "c": 3.0}.items():
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", np.array([[count]], np.float32))
    writer.add_tensor("d.in_sum2", sums)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    means = read_means(tmp_path / "m.gguf", ["a", "b", "c", "absent"])
    third = (sums / np.float32(3)).reshape(-1)
    assert {name: row.tolist() for name, row in means.items()} == {
        "a": third.tolist(), "b": [1, 1, 1], "c": third.tolist(),
    }  # fmt: skip
    with pytest.raises(ArtifactError, match="no counts of d"):
        read_means(tmp_path / "m.gguf", ["d"])
    assert ImatrixNote.of(tmp_path / "m.gguf").pairs() == [
        ("quantize.imatrix.file", "m.gguf"), ("quantize.imatrix.dataset", "ä" * 63),
        ("quantize.imatrix.entries_count", 4),
    ]  # fmt: skip
