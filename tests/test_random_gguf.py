"""GGUFs of random blocks: of the shapes and types that were asked for, loadable, sane, and the same every time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from gguf import GGUFReader
from gguf.quants import dequantize

from luq_gguf.bench import measure_decode
from luq_gguf.errors import DiskSpaceError
from luq_gguf.families import find_family
from luq_gguf.random_gguf import DEVIATION, ROWS, RandomBlocks, write_random_gguf
from tests.picos import FAMILIES, build_family

KINDS = [
    Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q6_K, Q.Q5_K, Q.Q4_K, Q.Q3_K, Q.Q2_K, Q.Q4_0, Q.Q5_0, Q.IQ4_NL, Q.IQ4_XS, Q.IQ3_S,
    Q.IQ3_XXS, Q.IQ2_S, Q.IQ2_XS, Q.IQ2_XXS, Q.IQ1_M, Q.IQ1_S,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_rows_are_of_their_type_and_sane(kind: Q) -> None:
    raw = np.frombuffer(RandomBlocks().rows(kind, 512), np.uint8).reshape(ROWS, -1)
    values = dequantize(raw.view(np.float32 if kind == Q.F32 else np.float16 if kind == Q.F16 else np.uint8), kind)
    assert values.shape == (ROWS, 512)
    assert np.isfinite(values).all()
    assert DEVIATION / 3 < values.std() < 3 * DEVIATION
    assert len(np.unique(values, axis=0)) == ROWS


def types_of(family, kind: Q) -> dict[str, Q]:
    return {tensor.name: kind if len(tensor.shape) > 1 else Q.F32 for tensor in family.text_tensors()}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_familys_file_runs(tmp_path: Path, name: str) -> None:
    config = json.loads((build_family(tmp_path / "pico", name) / "config.json").read_text())
    family = find_family(config)
    path = write_random_gguf(tmp_path / "random.gguf", family, types_of(family, Q.Q4_K))
    read, types = GGUFReader(path).tensors, types_of(family, Q.Q4_K)
    found = {tensor.name: (tuple(reversed(tensor.shape.tolist())), tensor.tensor_type) for tensor in read}
    assert found == {tensor.name: (tensor.shape, types[tensor.name]) for tensor in family.text_tensors()}
    samples = measure_decode(path, prompt=8, generate=3, threads=1, repeat=1)
    assert samples.generate_tps > 0
    assert samples.model_bytes == sum(tensor.n_bytes for tensor in read)


def test_it_is_the_same_every_time_and_may_have_fewer_layers(tmp_path: Path) -> None:
    config = json.loads((build_family(tmp_path / "pico", "qwen3") / "config.json").read_text())
    family = find_family(config)
    one, two = (write_random_gguf(tmp_path / name, family, types_of(family, Q.IQ1_M)) for name in ("a", "b"))
    assert one.read_bytes() == two.read_bytes()
    less = GGUFReader(write_random_gguf(tmp_path / "c", family, types_of(family, Q.IQ1_M), layers=1))
    assert less.fields["qwen3.block_count"].contents() == 1
    assert {tensor.name.split(".")[1] for tensor in less.tensors if tensor.name.startswith("blk.")} == {"0"}
    assert measure_decode(tmp_path / "c", prompt=4, generate=2, threads=1, repeat=1).generate_tps > 0


def test_a_full_disk_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((build_family(tmp_path / "pico", "qwen3") / "config.json").read_text())
    family = find_family(config)

    def refuse(*_: object) -> None:
        raise DiskSpaceError("full", needed=2, free=1)

    monkeypatch.setattr("luq_gguf.random_gguf.require_space", refuse)
    with pytest.raises(DiskSpaceError):
        write_random_gguf(tmp_path / "random.gguf", family, types_of(family, Q.Q4_K))
    assert not (tmp_path / "random.gguf").exists()
