"""Errors of some rows, against those of whole files that llama.cpp's quantizer wrote with the same importance."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q

from luq_gguf.importance import read_means
from luq_gguf.quantize import quantize_gguf
from luq_gguf.quantizer import Quantizer
from tests.ggufs import Shape, tensor_shapes, write_imatrix, write_text_gguf

KINDS = (Q.Q4_K, Q.Q2_K, Q.IQ2_XXS, Q.IQ1_M)
SHAPE = Shape(layers=1)
WEIGHTS = [name for name, size in tensor_shapes(SHAPE).items() if name.startswith("blk.") and len(size) > 1]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("rows")
    source = write_text_gguf(folder / "16.gguf", SHAPE, select=lambda name: name.startswith("blk."))
    return source, write_imatrix(folder / "imatrix.gguf", tensor_shapes(SHAPE))


def values_of(path: Path) -> dict[str, np.ndarray]:
    rows = gguf.GGUFReader(path).tensors
    return {row.name: gguf.quants.dequantize(row.data, row.tensor_type).astype(np.float64) for row in rows}


def errors_in(quantizer: Quantizer, source: Path, imatrix: Path | str, rows: int) -> dict[str, dict[str, float]]:
    job = {"source": str(source), "types": [kind.name for kind in KINDS], "rows": rows, "imatrix": str(imatrix)}
    return quantizer.run(job, lambda line: None)["errors"]


def test_all_rows_have_the_error_of_the_file_that_llama_cpp_writes(files: tuple[Path, Path], tmp_path: Path) -> None:
    source, imatrix = files
    means, before = read_means(imatrix, WEIGHTS), values_of(source)
    with Quantizer() as quantizer:
        found = errors_in(quantizer, source, imatrix, 10_000)
        for kind in KINDS:
            quantize_gguf(source, tmp_path / "q.gguf", dict.fromkeys(WEIGHTS, kind), imatrix, quantizer=quantizer)
            after = values_of(tmp_path / "q.gguf")
            for name in WEIGHTS:
                weights = means[name].astype(np.float64)
                wanted = ((after[name] - before[name]) ** 2 * weights).sum() / (before[name] ** 2 * weights).sum()
                assert found[name][kind.name] == pytest.approx(wanted, rel=1e-5), (name, kind)


def test_a_few_rows_tell_the_error_of_all(files: tuple[Path, Path]) -> None:
    source, imatrix = files
    with Quantizer() as quantizer:
        few, every = (errors_in(quantizer, source, imatrix, rows) for rows in (16, 10_000))
    assert few.keys() == set(WEIGHTS)
    for name in WEIGHTS:
        assert few[name] == pytest.approx(every[name], rel=0.15)
        assert few[name]["Q4_K"] < few[name]["Q2_K"] < few[name]["IQ2_XXS"] < few[name]["IQ1_M"] < 1


def test_without_importance_all_channels_count_alike(files: tuple[Path, Path]) -> None:
    source, imatrix = files
    with Quantizer() as quantizer:
        plain, weighted = (errors_in(quantizer, source, matrix, 64) for matrix in ("", imatrix))
    assert plain.keys() == weighted.keys()
    assert plain != weighted


def test_without_importance_errors_are_those_of_a_file_made_without(files: tuple[Path, Path], tmp_path: Path) -> None:
    """And a type that llama.cpp makes with importance only is left out, not aborted on."""
    source, _ = files
    before = values_of(source)
    with Quantizer() as quantizer:
        found = errors_in(quantizer, source, "", 10_000)
        for kind in (Q.Q4_K, Q.Q2_K):
            quantize_gguf(source, tmp_path / "q.gguf", dict.fromkeys(WEIGHTS, kind), None, quantizer=quantizer)
            after = values_of(tmp_path / "q.gguf")
            for name in WEIGHTS:
                wanted = ((after[name] - before[name]) ** 2).sum() / (before[name] ** 2).sum()
                assert found[name][kind.name] == pytest.approx(wanted, rel=1e-5), (name, kind)
    assert all("IQ2_XXS" not in kinds for kinds in found.values())


def test_types_whose_blocks_do_not_fill_a_row_are_left_out(tmp_path: Path) -> None:
    source = write_text_gguf(tmp_path / "16.gguf", Shape(layers=1, hidden=128, ffn=256), select=WEIGHTS.__contains__)
    with Quantizer() as quantizer:
        found = errors_in(quantizer, source, "", 4)
    assert found["blk.0.attn_q.weight"] == {}
    assert set(found["blk.0.ffn_down.weight"]) == {"Q4_K", "Q2_K", "IQ1_M"}
