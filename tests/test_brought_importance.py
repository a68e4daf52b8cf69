"""Importance matrices that the user brings: taken by `convert` and `quantize`, added by `imatrix`, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from luq_gguf.pipeline import Settings, plan_from_analysis
from tests.ggufs import dat_bytes, write_imatrix
from tests.program import QUICK, Run, listing, result_of, run_program


@pytest.fixture(scope="module")
def shapes(converted: Run) -> dict[str, tuple[int, ...]]:
    """Numpy shapes of the pico model's weights, by the gguf library."""
    tensors = gguf.GGUFReader(result_of(converted)["model"]).tensors
    return {tensor.name: tuple(tensor.shape.tolist()[::-1]) for tensor in tensors}


def layer_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    return {name: size[1] for name, size in shapes.items() if name.startswith("blk.") and len(size) == 2}


def values_of(random: np.random.Generator, width: int) -> list[float]:
    """Of a dead channel, then of others."""
    return [0.0, *(0.01 + random.random(width - 1)).tolist()]


def write_dat(path: Path, widths: dict[str, int], *, seed: int = 5, dataset: bytes = b"code.txt") -> Path:
    random = np.random.default_rng(seed)
    rows = [(name.encode(), 3, values_of(random, width)) for name, width in widths.items()]
    path.write_bytes(dat_bytes(rows, 3, dataset))
    return path


def sums_of(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.data.reshape(-1) for tensor in gguf.GGUFReader(path).tensors}


def metadata_of(path: Path) -> dict[str, object]:
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


def tensors_of(path: Path) -> dict[str, bytes]:
    return {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors}


def convert(model: Path, out: Path, *options: str | Path) -> Run:
    return run_program("convert", model, "--out", out, "--low-layers", 1, *QUICK, *options)


def test_brought_matrices_are_merged_and_take_the_place_of_the_measured_one(
    copy_of_converted: Path, pico_checkpoint: Path, shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    measured = next(copy_of_converted.glob("*-LUQ-*.gguf")).read_bytes()
    text = write_dat(tmp_path / "text.dat", layer_weights(shapes))
    other = write_imatrix(tmp_path / "other.gguf", shapes)
    brought = ("--imatrix", text, "--imatrix", other)
    result = result_of(convert(pico_checkpoint, copy_of_converted, *brought, "--json"))
    model = Path(result["model"])
    assert model.read_bytes() != measured
    assert model.stat().st_size == result["size_bytes"]
    assert "analyze" not in result["seconds"]
    first, second, found = (path_sums for path_sums in map(sums_of, (other, other, Path(result["imatrix"]))))
    dat = np.random.default_rng(5)
    for name, width in layer_weights(shapes).items():
        sums = second[f"{name}.in_sum2"] + np.float32(512) * np.array(values_of(dat, width), np.float32)
        np.testing.assert_array_equal(found[f"{name}.in_sum2"], sums.astype(np.float32))
        assert found[f"{name}.counts"].tolist() == [37 + 3 * 512]
    assert found["output.weight.in_sum2"].tobytes() == first["output.weight.in_sum2"].tobytes()
    assert metadata_of(Path(result["imatrix"]))["imatrix.datasets"] == ["code.txt", "seeded noise"]
    assert metadata_of(model)["quantize.imatrix.dataset"] == "code.txt"
    assert run_program("verify", copy_of_converted).returncode == 0

    before = listing(copy_of_converted)
    again = convert(pico_checkpoint, copy_of_converted, *brought)
    assert "nothing to do" in again.stdout
    assert listing(copy_of_converted) == before
    write_dat(text, layer_weights(shapes), seed=6)
    changed = result_of(convert(pico_checkpoint, copy_of_converted, *brought, "--json"))
    assert "quantize" in changed["seconds"]


def test_dead_channels_are_raised_and_told(
    copy_of_converted: Path, pico_checkpoint: Path, shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    text = write_dat(tmp_path / "text.dat", layer_weights(shapes))
    done = convert(pico_checkpoint, copy_of_converted, "--imatrix", text)
    assert done.returncode == 0, done.stderr
    widths = layer_weights(shapes)
    counted = f"importance: {len(widths)} of {sum(widths.values()):,} channels stand at the floor"
    assert counted in done.stdout
    written = sums_of(copy_of_converted / "imatrix.gguf")
    for name in widths:
        row = written[f"{name}.in_sum2"].astype(np.float64)
        assert row[0] == pytest.approx(1e-5 * row.mean(), rel=1e-4)
    result = result_of(convert(pico_checkpoint, copy_of_converted, "--imatrix", text, "--json"))
    assert result["floored_channels"] == len(widths)
    plan = json.loads(Path(result["plan"]).read_text())
    assert Path(result["model"]).stat().st_size == plan["size_bytes"]


def refuse(kind: str, tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[tuple[str | Path, ...], str]:
    """The options of a conversion that must not begin, and what its error says."""
    widths = layer_weights(shapes)
    name = next(name for name in reversed(widths) if "ffn_down" in name)
    path = tmp_path / "brought.dat"
    if kind == "another model":
        write_dat(path, widths | {name: widths[name] // 2})
        return ("--imatrix", path), f"has {widths[name] // 2} channels of {name}, this model has {widths[name]}"
    if kind == "a weight too few":
        write_dat(path, {key: width for key, width in widths.items() if key != name})
        return ("--imatrix", path), f"has nothing on 1 weights, the first is {name}"
    if kind == "two models":
        write_dat(path, widths)
        other = write_dat(tmp_path / "other.dat", {name: 16})
        return ("--imatrix", path, "--imatrix", other), f"other.dat has 16 channels in 1 matrices of {name}"
    if kind == "a model":
        path = tmp_path / "model.gguf"
        gguf.GGUFWriter(path, "qwen2vl").close()
        writer = gguf.GGUFWriter(path, "qwen2vl")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return ("--imatrix", path), "model.gguf is no importance matrix"
    if kind == "gone":
        return ("--imatrix", tmp_path / "gone.dat"), "cannot read"
    path.write_bytes(write_dat(path, widths).read_bytes()[:-30])
    return ("--imatrix", path), "is neither a GGUF nor a sound .dat"


@pytest.mark.parametrize("kind", ["another model", "a weight too few", "two models", "a model", "gone", "cut"])
def test_what_cannot_be_used_is_refused_before_the_model_is_measured(
    kind: str, pico_checkpoint: Path, shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    options, message = refuse(kind, tmp_path, shapes)
    done = convert(pico_checkpoint, tmp_path / "out", *options)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} <= {"lock"}


def test_imatrix_merges_with_the_measured_one(
    copy_of_converted: Path, shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    text = write_dat(tmp_path / "text.dat", layer_weights(shapes))
    ours = sums_of(shutil.copy(copy_of_converted / "imatrix.gguf", tmp_path / "before.gguf"))
    done = run_program("imatrix", copy_of_converted, "--merge", text, "--merge", text)
    assert done.returncode == 0, done.stderr
    assert "channels stand at the floor" in done.stdout
    found = sums_of(copy_of_converted / "imatrix.gguf")
    assert found.keys() == ours.keys()
    random = np.random.default_rng(5)
    for name, width in layer_weights(shapes).items():
        added = np.float32(512) * np.array(values_of(random, width), np.float32)
        np.testing.assert_array_equal(found[f"{name}.in_sum2"], ours[f"{name}.in_sum2"] + added + added)
        np.testing.assert_array_equal(found[f"{name}.counts"], ours[f"{name}.counts"] + 2 * 3 * 512)
    bad = run_program("imatrix", copy_of_converted, "--merge", write_dat(tmp_path / "bad.dat", {"output.weight": 5}))
    assert bad.returncode == 1
    assert "bad.dat has 5 channels in 1 matrices of output.weight" in bad.stderr
    assert sums_of(copy_of_converted / "imatrix.gguf").keys() == ours.keys()


def test_quantize_takes_both_forms(
    converted: Run, pico_checkpoint: Path, shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    assert run_program("export", pico_checkpoint, "--out", tmp_path).returncode == 0
    source = next(tmp_path.glob("*-BF16.gguf"))
    text = write_dat(tmp_path / "text.dat", layer_weights(shapes))
    options = ("--plan", result_of(converted)["plan"], "--threads", 1)
    done = run_program("quantize", source, *options, "--imatrix", text, "--out", tmp_path / "of-dat.gguf")
    assert done.returncode == 0, done.stderr
    noted = metadata_of(tmp_path / "of-dat.gguf")
    assert noted["quantize.imatrix.file"] == "text.dat"
    assert noted["quantize.imatrix.dataset"] == "code.txt"
    assert noted["quantize.imatrix.chunks_count"] == 3
    assert noted["quantize.imatrix.entries_count"] == len(layer_weights(shapes))

    writer = gguf.GGUFWriter(tmp_path / "same.gguf", "")
    writer.add_type("imatrix")
    for name, width in layer_weights(shapes).items():
        row = np.array(read_dat_row(text, name, width), np.float32)
        writer.add_tensor(f"{name}.in_sum2", row.reshape(1, -1))
        writer.add_tensor(f"{name}.counts", np.array([[3]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    same = run_program("quantize", source, *options, "--imatrix", tmp_path / "same.gguf", "--out", tmp_path / "of.gguf")
    assert same.returncode == 0, same.stderr
    assert tensors_of(tmp_path / "of.gguf") == tensors_of(tmp_path / "of-dat.gguf")

    narrow = write_dat(tmp_path / "narrow.dat", dict.fromkeys(layer_weights(shapes), 8))
    bad = run_program("quantize", source, *options, "--imatrix", narrow, "--out", tmp_path / "bad.gguf")
    assert bad.returncode == 1
    assert "narrow.dat has 8 channels of blk.0." in bad.stderr
    assert not (tmp_path / "bad.gguf").exists()


def read_dat_row(path: Path, name: str, width: int) -> list[float]:
    """The values that follow a name, its chunks and their number."""
    data = path.read_bytes()
    start = data.index(name.encode()) + len(name) + 8
    return np.frombuffer(data, "<f4", width, start).tolist()


def test_a_plan_follows_the_matrix_that_stands_beside_it(
    copy_of_converted: Path, pico_checkpoint: Path, shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    """A quantized file names the data set, so its name is part of the size."""
    text = write_dat(tmp_path / "text.dat", layer_weights(shapes), dataset=b"a rather long name " * 4)
    result = result_of(convert(pico_checkpoint, copy_of_converted, "--imatrix", text, "--json"))
    settings = Settings(calib="shapes", low_layers=1, low_type="Q2_K")
    assert plan_from_analysis(copy_of_converted, settings)[0].size_bytes == result["size_bytes"]
    assert run_program("imatrix", copy_of_converted, "--alpha", "0.4").returncode == 0
    assert plan_from_analysis(copy_of_converted, settings)[0].size_bytes < result["size_bytes"]


def test_analyze_tells_of_dead_channels_too(copy_of_converted: Path, pico_checkpoint: Path) -> None:
    done = run_program("analyze", pico_checkpoint, "--out", copy_of_converted, "--samples", 10)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("importance: "))
    low, total = (int(word.replace(",", "")) for word in line.split() if word[0].isdigit() and word != "1e-5")
    sums = sums_of(copy_of_converted / "imatrix.gguf")
    rows = [row for name, row in sums.items() if name.endswith(".in_sum2")]
    assert total == sum(row.size for row in rows)
    assert low == sum(int((row < 1.001e-5 * row.mean(dtype=np.float64)).sum()) for row in rows)
