"""Reading and merging importance matrices, held against llama-imatrix and llama-quantize."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from luq_gguf.imatrix import merge_importance, write_imatrix
from luq_gguf.imatrix_dat import read_dat
from luq_gguf.importance import ImatrixNote, read_importance, read_means
from luq_gguf.quantize import quantize_gguf
from tests.ggufs import Shape, dat_bytes, tensor_shapes, write_text_gguf
from tests.stock import StockTools

pytestmark = pytest.mark.slow

SMALL = Shape(layers=2)
Values = dict[str, np.ndarray]


def write_matrix(path: Path, rows: dict[str, tuple[np.ndarray, list[int]]], dataset: str) -> Path:
    """llama.cpp's GGUF form, by the gguf library: sums (flat) and counts, in rows by count."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (sums, counts) in rows.items():
        writer.add_tensor(f"{name}.in_sum2", sums.astype(np.float32).reshape(len(counts), -1))
        writer.add_tensor(f"{name}.counts", np.array(counts, np.float32).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_rows(seed: int, counts: int, *, experts: bool = True) -> dict[str, tuple[np.ndarray, list[int]]]:
    random = np.random.default_rng(seed)
    widths = {name: size[1] for name, size in tensor_shapes(SMALL).items() if name.startswith("blk.") and len(size) > 1}
    rows = {name: (random.lognormal(0, 3, width), [counts]) for name, width in widths.items()}
    if experts:
        rows["blk.0.ffn_up_exps.weight"] = (random.lognormal(0, 3, 4 * 32), [counts, 0, 7, counts // 3])
    return rows


def values_in(path: Path) -> Values:
    return {tensor.name: tensor.data.reshape(-1) for tensor in gguf.GGUFReader(path).tensors}


def metadata_in(path: Path) -> dict[str, object]:
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items() if key[:5] != "GGUF."}


def llama_imatrix(stock: StockTools, target: Path, *sources: Path, form: str = "gguf") -> Path:
    """What the tool makes of files when it is given no text: they are merged and written again."""
    inputs = (option for source in sources for option in ("--in-file", source))
    stock.run("llama-imatrix", "-m", "none.gguf", *inputs, "-o", target, "--output-format", form, cwd=target.parent)
    return target


def assert_same(ours: Path, theirs: Path) -> None:
    mine, others = values_in(ours), values_in(theirs)
    assert mine.keys() == others.keys()
    for name, values in mine.items():
        np.testing.assert_array_equal(values, others[name], err_msg=name)
    assert metadata_in(ours) == metadata_in(theirs)


def merged(target: Path, *sources: Path) -> Path:
    write_imatrix(target, merge_importance([read_importance(source) for source in sources]))
    return target


def test_merging_gives_the_numbers_of_llama_imatrix(stock: StockTools, tmp_path: Path) -> None:
    """With what only one file has, with experts, and with the same file twice."""
    first = write_matrix(tmp_path / "first.gguf", random_rows(1, 5120), "first.txt")
    second = write_matrix(tmp_path / "second.gguf", random_rows(2, 777, experts=False), "second.txt")
    alone = write_matrix(tmp_path / "third.gguf", {"output.weight": (np.arange(1, 257), [9999])}, "third.txt")
    for number, sources in enumerate([(first, second), (second, first, alone), (alone, first, first, second)]):
        theirs = llama_imatrix(stock, tmp_path / f"theirs-{number}.gguf", *sources)
        assert_same(merged(tmp_path / f"ours-{number}.gguf", *sources), theirs)


def test_a_dat_of_llama_imatrix_is_read(stock: StockTools, tmp_path: Path) -> None:
    source = write_matrix(tmp_path / "source.gguf", random_rows(3, 5120), "first.txt")
    dat = llama_imatrix(stock, tmp_path / "made.dat", source, form="dat")
    found, original = read_dat(dat), read_importance(source)
    assert found.dataset == "first.txt"
    assert found.entries.keys() == original.weights.keys()
    assert {entry.chunks for entry in found.entries.values()} == {10}
    for name, mean in read_means(dat, original.rows).items():
        np.testing.assert_allclose(mean, original.rows[name], rtol=3e-7)


def test_dats_are_merged_as_llama_imatrix_merges_them(stock: StockTools, tmp_path: Path) -> None:
    """Each chunk stands for 512 tokens; a .dat knows no experts."""
    sources = [
        llama_imatrix(
            stock, tmp_path / f"{seed}.dat",
            write_matrix(tmp_path / f"{seed}.gguf", random_rows(seed, 1000 * seed, experts=seed == 4), f"{seed}.txt"),
            form="dat",
        )
        for seed in (4, 5)
    ]  # fmt: skip
    plain = write_matrix(tmp_path / "plain.gguf", random_rows(6, 3000, experts=False), "6.txt")
    experts = write_matrix(tmp_path / "experts.gguf", random_rows(8, 600), "8.txt")
    orders = [
        sources, sources[:1], [sources[0], plain], [plain, sources[1], sources[0]], [sources[0], experts],
        [experts, sources[0], plain],
    ]  # fmt: skip
    for number, mixed in enumerate(orders):
        theirs = llama_imatrix(stock, tmp_path / f"theirs-{number}.gguf", *mixed)
        assert_same(merged(tmp_path / f"ours-{number}.gguf", *mixed), theirs)


def test_what_llama_imatrix_writes_as_dat_we_write_as_struct_does(stock: StockTools, tmp_path: Path) -> None:
    """The writer that the fast tests trust gives the tool's own bytes."""
    rows = {name: (np.round(sums) + 1, [1024]) for name, (sums, _) in random_rows(7, 1024, experts=False).items()}
    source = write_matrix(tmp_path / "source.gguf", rows, "seventh.txt")
    dat = llama_imatrix(stock, tmp_path / "made.dat", source, form="dat")
    entries = [
        (name.encode(), 2, (sums.astype(np.float32) / np.float32(1024) * np.float32(2)).tolist())
        for name, (sums, _) in sorted(rows.items())
    ]
    assert dat.read_bytes() == dat_bytes(entries, 2, b"seventh.txt")
    assert struct.unpack_from("<i", dat.read_bytes()) == (len(rows),)


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_llama_quantize_takes_the_same_from_a_file(form: str, stock: StockTools, tmp_path: Path) -> None:
    """The same bytes of every tensor, and the same note of the importance matrix."""
    model = write_text_gguf(tmp_path / "model.gguf", SMALL, tokens=SMALL.vocabulary)
    source = write_matrix(tmp_path / "source.gguf", random_rows(8, 5000, experts=False), "eighth.txt")
    matrix = llama_imatrix(stock, tmp_path / f"matrix.{form}", source, form=form)
    stock.run("llama-quantize", "--imatrix", matrix.name, model, "theirs.gguf", "Q4_K_M", 1, cwd=tmp_path)
    reader = gguf.GGUFReader(tmp_path / "theirs.gguf")
    types = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    quantize_gguf(model, tmp_path / "ours.gguf", types, matrix, threads=1)
    theirs, ours = values_in(tmp_path / "theirs.gguf"), values_in(tmp_path / "ours.gguf")
    assert {name: data.tobytes() for name, data in ours.items()} == {
        name: data.tobytes() for name, data in theirs.items()
    }
    noted = {key: value for key, value in metadata_in(tmp_path / "theirs.gguf").items() if "imatrix" in key}
    assert noted == dict(ImatrixNote.of(matrix).pairs())
    assert noted.items() <= metadata_in(tmp_path / "ours.gguf").items()
