"""Importance matrices: the arithmetic of mixing, and files that llama.cpp and gguf read as we do."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from luq_gguf.artifacts import MODALITIES
from luq_gguf.errors import ArtifactError, GGUFError, RequestError
from luq_gguf.imatrix import (
    FLOOR,
    Sums,
    check_coverage,
    check_widths,
    count_floored,
    floor_importance,
    input_of,
    merge_importance,
    mix_importance,
    read_sums,
    sums_of_means,
    weights_of,
    write_imatrix,
    write_sums,
)
from luq_gguf.importance import ImatrixNote, ImportanceMatrix, WeightSums, read_importance, read_means
from luq_gguf.quantize import quantize_gguf
from luq_gguf.quantizer import Quantizer
from tests.ggufs import Shape, write_text_gguf

NAME = "blk.0.attn_output.weight"


def sums_of(image, multimodal_text, text, counts=(4, 6, 5), name=NAME) -> Sums:
    rows = [np.array(row, dtype=np.float64) for row in (image, multimodal_text, text)]
    squares, numbers = dict(zip(MODALITIES, rows, strict=True)), dict(zip(MODALITIES, counts, strict=True))
    return Sums({name: squares}, {name: numbers}, "drawn scenes")


def test_mixing_weighs_the_means():
    sums = sums_of([8, 4], [12, 6], [5, 10])
    for alpha in (0, 0.25, 0.5, 1):
        multimodal, text = np.array([20, 10]) / 10, np.array([5, 10]) / 5
        row = mix_importance(sums, alpha).rows[NAME]
        assert row.dtype == np.float32
        np.testing.assert_allclose(row, alpha * multimodal + (1 - alpha) * text, rtol=2e-7)


@pytest.mark.parametrize("alpha", [0, 0.3, 1])
def test_all_comes_from_one_kind_where_the_other_is_absent(alpha):
    only_text = sums_of([0, 0], [0, 0], [5, 10], counts=(0, 0, 5))
    np.testing.assert_allclose(mix_importance(only_text, alpha).rows[NAME], [1, 2])
    only_images = sums_of([8, 4], [12, 6], [0, 0], counts=(4, 6, 0))
    np.testing.assert_allclose(mix_importance(only_images, alpha).rows[NAME], [2, 1])


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1e12), min_size=1, max_size=20),
    st.lists(st.floats(0, 1e12), min_size=1, max_size=20),
    st.floats(0, 1),
)
def test_importance_is_positive_and_at_least_the_floor(seen, read, alpha):
    width = min(len(seen), len(read))
    sums = sums_of(seen[:width], seen[:width], read[:width])
    row = mix_importance(sums, alpha).rows[NAME]
    assert (row > 0).all()
    assert row.min() >= FLOOR * row.mean(dtype=np.float64) * 0.999


def test_dead_channels_are_floored_and_counted():
    matrix = mix_importance(sums_of([0, 10, 0, 30], [0, 0, 0, 0], [0, 0, 0, 0]), 1)
    np.testing.assert_allclose(matrix.rows[NAME], [1e-5, 1, 1e-5, 3], rtol=1e-6)
    assert count_floored(matrix) == (2, 4)


def test_an_input_that_is_always_zero_counts_evenly():
    matrix = mix_importance(sums_of([0, 0], [0, 0], [0, 0]), 0.5)
    assert matrix.rows[NAME].tolist() == [1, 1]
    assert count_floored(matrix) == (2, 2)


def test_weights_that_share_an_input_share_its_row():
    sums = sums_of([1, 2], [3, 4], [5, 6], name="blk.3.attn_q.weight")
    rows = mix_importance(sums, 0.5).rows
    assert set(rows) == {f"blk.3.attn_{part}.weight" for part in "qkv"}
    assert len({row.tobytes() for row in rows.values()}) == 1
    assert weights_of("blk.1.ffn_gate.weight") == ["blk.1.ffn_gate.weight", "blk.1.ffn_up.weight"]
    assert weights_of("output.weight") == ["output.weight"]
    for weight in ("blk.1.ffn_up.weight", "blk.1.attn_v.weight", "blk.1.ffn_down.weight", "output.weight"):
        assert weight in weights_of(input_of(weight))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 1e300])
@pytest.mark.parametrize("place", range(3))
def test_values_that_cannot_be_are_refused(bad, place):
    rows = [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]
    rows[place][1] = bad
    with pytest.raises(ArtifactError, match=r"blk\.0\.attn_output\.weight"):
        mix_importance(sums_of(*rows), 0.5)


def test_inputs_without_tokens_and_foreign_ratios_are_refused():
    with pytest.raises(ArtifactError, match=r"no token reached the input of blk\.0\.attn_output"):
        mix_importance(sums_of([0], [0], [0], counts=(0, 0, 0)), 0.5)
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(RequestError, match="alpha"):
            mix_importance(sums_of([1], [1], [1]), alpha)


def test_coverage_names_what_is_missing():
    matrix = mix_importance(sums_of([1], [1], [1], name="blk.0.ffn_gate.weight"), 0.5)
    check_coverage(matrix, ["blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"])
    with pytest.raises(ArtifactError, match=r"2 weights, the first is blk\.1\.ffn_up\.weight"):
        check_coverage(matrix, ["blk.0.ffn_up.weight", "blk.1.ffn_up.weight", "blk.1.ffn_down.weight"])


def random_matrix(width: int = 256, tokens: int = 1234) -> ImportanceMatrix:
    rng = np.random.default_rng(0)
    names = ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.11.ffn_down.weight", "output.weight")
    weights = {name: sums_of_means(rng.lognormal(0, 3, width), tokens) for name in names}
    return ImportanceMatrix(weights, ("drawn scenes",))


def test_the_file_has_llama_cpps_form(tmp_path):
    matrix = random_matrix()
    write_imatrix(tmp_path / "imatrix.gguf", matrix)
    reader = gguf.GGUFReader(tmp_path / "imatrix.gguf")
    values = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert values == {
        "general.type": "imatrix",
        "imatrix.datasets": ["drawn scenes"],
        "imatrix.chunk_count": 2,
        "imatrix.chunk_size": 512,
    }
    kinds = {field.types[0] for key, field in reader.fields.items() if key.startswith("imatrix.chunk")}
    assert kinds == {gguf.GGUFValueType.UINT32}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 2 * len(matrix.rows)
    for name, row in matrix.rows.items():
        sums, counts = tensors[f"{name}.in_sum2"], tensors[f"{name}.counts"]
        assert sums.tensor_type == counts.tensor_type == GGMLQuantizationType.F32
        assert (sums.shape.tolist(), counts.shape.tolist()) == ([256, 1], [1, 1])
        assert counts.data.ravel().tolist() == [1234]
        np.testing.assert_allclose(sums.data.ravel() / 1234, row, rtol=1e-6)


def test_what_the_quantizer_reads_is_what_was_written(tmp_path):
    matrix = random_matrix()
    write_imatrix(tmp_path / "imatrix.gguf", matrix)
    means = read_means(tmp_path / "imatrix.gguf", matrix.rows)
    found = read_importance(tmp_path / "imatrix.gguf")
    for name, row in matrix.rows.items():
        np.testing.assert_allclose(means[name], row, rtol=1e-6)
        assert found.rows[name].tobytes() == means[name].tobytes()
    assert (found.tokens, found.dataset) == (1234, "drawn scenes")
    note = ImatrixNote.of(tmp_path / "imatrix.gguf")
    assert (note.entries, note.chunks, note.dataset) == (4, 2, "drawn scenes")


def test_the_same_matrix_gives_the_same_bytes(tmp_path):
    for name in "ab":
        write_imatrix(tmp_path / name, random_matrix())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_of_llama_imatrix_is_read(tmp_path):
    """It drops trailing dimensions of one, and holds several counts where there are experts."""
    path = tmp_path / "foreign.gguf"
    writer = gguf.GGUFWriter(path, arch="")
    writer.kv_data[0].clear()
    writer.add_type("imatrix")
    writer.add_tensor("blk.0.ffn_down.weight.in_sum2", np.array([8, 4, 2], dtype=np.float32))
    writer.add_tensor("blk.0.ffn_down.weight.counts", np.array([2], dtype=np.float32))
    writer.add_tensor("blk.0.ffn_up_exps.weight.in_sum2", np.array([[8, 4], [9, 3]], dtype=np.float32))
    writer.add_tensor("blk.0.ffn_up_exps.weight.counts", np.array([[2], [3]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    rows = read_importance(path).rows
    assert rows["blk.0.ffn_down.weight"].tolist() == [4, 2, 1]
    assert rows["blk.0.ffn_up_exps.weight"].tolist() == [4, 2, 3, 1]


def damaged(path: Path, name: str, value: float) -> Path:
    """The file with the first element of a tensor overwritten."""
    offset = next(tensor.data_offset for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    data = bytearray(path.read_bytes())
    data[offset : offset + 4] = np.float32(value).tobytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("part", ["in_sum2", "counts"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1])
def test_damaged_files_are_refused(tmp_path, part, value):
    write_imatrix(tmp_path / "i.gguf", random_matrix())
    with pytest.raises(ArtifactError, match=r"blk\.11\.ffn_down\.weight"):
        read_importance(damaged(tmp_path / "i.gguf", f"blk.11.ffn_down.weight.{part}", value))


def test_other_files_are_refused(tmp_path):
    write_imatrix(tmp_path / "i.gguf", random_matrix())
    never = read_importance(damaged(tmp_path / "i.gguf", "output.weight.counts", 0))
    check_coverage(never, ["blk.0.attn_q.weight"])
    with pytest.raises(ArtifactError, match=r"nothing on 1 weights, the first is output\.weight"):
        check_coverage(never, never.weights)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((tmp_path / "i.gguf").read_bytes()[:-600])
    model = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(model, arch="qwen2vl")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    for path in (cut, model):
        with pytest.raises(GGUFError):
            read_importance(path)


def test_odd_metadata_and_sizes_end_in_no_traceback(tmp_path):
    path = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(path, arch="")
    writer.add_type("imatrix")
    writer.add_uint32("imatrix.datasets", 7)
    writer.add_string("imatrix.chunk_count", "many")
    for name, counts in (("good", 1), ("odd", 2)):
        writer.add_tensor(f"{name}.in_sum2", np.ones((1, 3), dtype=np.float32))
        writer.add_tensor(f"{name}.counts", np.ones((counts, 1), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert ImatrixNote.of(path) == ImatrixNote("odd.gguf", "", 2, 0)
    assert read_means(path, ["good"])["good"].tolist() == [1, 1, 1]
    with pytest.raises(ArtifactError, match="3 sums but 2 counts of odd"):
        read_importance(path)


@pytest.fixture
def quantizer():
    with Quantizer() as child:
        yield child


def test_llama_cpp_quantizes_important_channels_better(tmp_path, quantizer):
    """The file reaches llama.cpp's quantizer, channel by channel: IQ1_M cannot even start without it."""
    source = write_text_gguf(tmp_path / "source.gguf", Shape(layers=1), select=NAME.__eq__)
    original = gguf.GGUFReader(source).tensors[0].data.astype(np.float64)
    errors = []
    for half in (slice(0, 128), slice(128, 256)):
        squares = np.ones(256)
        squares[half] = 1000.0
        matrix = mix_importance(sums_of(squares, squares, squares), 0.5)
        write_imatrix(tmp_path / "imatrix.gguf", matrix)
        target = tmp_path / "out.gguf"
        types = {NAME: GGMLQuantizationType.IQ1_M}
        quantize_gguf(source, target, types, tmp_path / "imatrix.gguf", threads=1, quantizer=quantizer)
        tensor = gguf.GGUFReader(target).tensors[0]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(original.shape)
        error = ((values - original) ** 2).mean(axis=0)
        errors.append((error[:128].mean(), error[128:].mean()))
    (first_weighed, first_not), (second_not, second_weighed) = errors
    assert first_weighed < first_not
    assert second_weighed < second_not


def many_sums() -> Sums:
    rng = np.random.default_rng(0)
    names = [f"blk.{layer}.{weight}.weight" for layer in (0, 2, 10) for weight in ("attn_q", "ffn_down")]
    squares = {name: {key: rng.random(6) * 1e9 for key in MODALITIES} for name in [*names, "output.weight"]}
    counts = {name: dict(zip(MODALITIES, (3, 4, 2**40), strict=True)) for name in squares}
    return Sums(squares, counts, "my set.jsonl")


def test_sums_survive_their_file(tmp_path):
    sums = many_sums()
    write_sums(tmp_path / "s.safetensors", sums)
    found = read_sums(tmp_path / "s.safetensors")
    assert (found.counts, found.dataset) == (sums.counts, sums.dataset)
    for name, rows in sums.squares.items():
        for key, row in rows.items():
            assert found.squares[name][key].tobytes() == row.tobytes()
    assert mix_importance(found, 0.3).rows.keys() == mix_importance(sums, 0.3).rows.keys()
    named = [name for name in found.squares if name.startswith("blk.")]
    assert [int(name.split(".")[1]) for name in named] == [0, 0, 2, 2, 10, 10]


def test_broken_sums_are_refused(tmp_path):
    path = tmp_path / "s.safetensors"
    write_sums(path, many_sums())
    whole, data = load_file(path), path.read_bytes()
    key = "blk.2.attn_q.weight|text"
    note = {"format": "luq-gguf sums 1", "dataset": "x"}
    changes = [
        ({name: row for name, row in whole.items() if name != key}, note),
        (whole | {key: whole[key][:3]}, note),
        (whole | {key: whole[key].astype(np.float32)}, note),
        (whole | {f"{key}|count": np.array([-1])}, note),
        (whole, note | {"format": "luq-gguf sums 0"}),
        ({}, note),
    ]
    for tensors, header in changes:
        save_file(tensors, path, {"luq_gguf": json.dumps(header)})
        with pytest.raises(ArtifactError, match=r"s\.safetensors"):
            read_sums(path)
    for content in (data[:-5], data[:20], b"", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"s\.safetensors"):
            read_sums(path)
    with pytest.raises(ArtifactError, match="gone"):
        read_sums(tmp_path / "gone")


def matrix_of(rows: dict[str, tuple[list[float], list[int]]], dataset: str = "set") -> ImportanceMatrix:
    weights = {
        name: WeightSums(np.array(sums, np.float32), np.array(counts, np.int64))
        for name, (sums, counts) in rows.items()
    }
    return ImportanceMatrix(weights, (dataset,), Path(f"{dataset}.gguf"))


def plain(matrix: ImportanceMatrix) -> dict[str, tuple[list[float], list[int]]]:
    return {name: (entry.sums.tolist(), entry.counts.tolist()) for name, entry in matrix.weights.items()}


def test_merging_adds_sums_and_counts_and_keeps_what_one_has():
    first = matrix_of({"a": ([1, 2], [10]), "b": ([5], [3])}, "first")
    second = matrix_of({"c": ([7, 8], [1]), "a": ([30, 40], [5])}, "second")
    merged = merge_importance([first, second, second])
    assert plain(merged) == {"a": ([61, 82], [20]), "b": ([5], [3]), "c": ([14, 16], [2])}
    assert (merged.datasets, merged.tokens) == (("first", "second", "second"), 20)
    np.testing.assert_allclose(merged.rows["a"], [61 / 20, 82 / 20], rtol=1e-7)


def test_experts_keep_their_counts_and_a_single_count_is_for_each():
    experts = matrix_of({"e": ([1, 2, 3, 4], [2, 0])})
    whole = matrix_of({"e": ([10, 20, 30, 40], [5])})
    assert plain(merge_importance([experts, experts]))["e"] == ([2, 4, 6, 8], [4, 0])
    assert experts.rows["e"].tolist() == [0.5, 1, 1, 1]
    for pair in ([experts, whole], [whole, experts]):
        assert plain(merge_importance(pair))["e"] == ([11, 22, 33, 44], [7, 5])


@pytest.mark.parametrize("other", [([1, 2, 3], [1]), ([1, 2, 3, 4], [1, 1, 1, 1])])
def test_matrices_of_different_models_are_not_merged(other):
    first, second = matrix_of({"a": ([1, 2, 3, 4], [1, 1])}), matrix_of({"a": other}, "other")
    with pytest.raises(ArtifactError, match=r"other\.gguf has . channels in . matrices of a,.* 4 in 2"):
        merge_importance([first, second])
    with pytest.raises(ArtifactError, match=r"a, merged, in other\.gguf holds NaN, infinite"):
        merge_importance([matrix_of({"a": ([3e38], [1])}), matrix_of({"a": ([3e38], [1])}, "other")])


values = st.floats(0, 2.0**60, width=32)
rows = st.tuples(st.lists(values, min_size=6, max_size=6), st.sampled_from([[1], [7], [2**40], [0, 3], [5, 2**24]]))


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), rows, min_size=1))
def test_floored_matrices_survive_their_file_and_floor_only_once(tmp_path_factory, table):
    """Else `quantize` would give other bytes than `convert`, which floors before it writes."""
    path = tmp_path_factory.getbasetemp() / "floored.gguf"
    floored = floor_importance(matrix_of(table))
    again = floor_importance(floored)
    assert plain(again) == plain(floored)
    for name, entry in floored.weights.items():
        for row in entry.means.astype(np.float64).reshape(entry.counts.size, -1):
            assert row.min() > 0
            assert row.min() >= FLOOR * row.mean() * 0.999
        kept = entry.sums.reshape(entry.counts.size, -1)
        before = np.array(table[name][0], np.float32).reshape(kept.shape)
        assert (
            (kept == before) | (before < 1.001 * FLOOR * before.mean(axis=1, keepdims=True)) | (before < 1e-20)
        ).all()
    write_imatrix(path, floored)
    found = read_importance(path)
    assert plain(found) == plain(floored)
    assert (found.datasets, found.tokens) == (floored.datasets, floored.tokens)
    assert count_floored(found) == count_floored(floored)


def test_dead_channels_of_a_brought_matrix_are_floored_and_counted():
    floored = floor_importance(
        matrix_of({"a": ([0, 10, 0, 30], [10]), "b": ([0, 0], [10]), "c": ([0, 8, 0, 0], [2, 0])})
    )
    np.testing.assert_allclose(floored.rows["a"], [1e-5, 1, 1e-5, 3], rtol=1e-6)
    assert floored.rows["b"].tolist() == [1, 1]
    np.testing.assert_allclose(floored.rows["c"], [2e-5, 4, 1, 1], rtol=1e-6)
    assert count_floored(floored) == (2 + 2 + 3, 10)


def test_widths_of_another_model_are_refused_by_the_weights_name():
    matrix = matrix_of({"a": ([1, 2], [1]), "e": ([1, 2, 3, 4], [1, 1])})
    check_widths(matrix, {"a": 2, "e": 4, "not in it": 9})
    with pytest.raises(ArtifactError, match=r"set\.gguf has 4 channels of e, this model has 6"):
        check_widths(matrix, {"a": 2, "e": 6})


def test_counts_that_cannot_be_are_refused(tmp_path):
    write_imatrix(tmp_path / "i.gguf", random_matrix())
    with pytest.raises(ArtifactError, match=r"output\.weight, up to 1e\+30"):
        read_importance(damaged(tmp_path / "i.gguf", "output.weight.counts", 1e30))
