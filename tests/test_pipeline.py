"""The whole path on pico checkpoints: what is made, what is made again, and what survives being killed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from luq_gguf import pipeline
from luq_gguf.artifacts import Plan, sha256_of
from luq_gguf.importance import read_importance
from luq_gguf.pipeline import Settings, convert
from tests.pico import build_pico
from tests.program import QUICK, Run, listing, result_of, run_program

QUICK_SETTINGS = Settings(calib="shapes", low_type="Q2_K", samples=10, threads=1)
KEYS = {
    "model", "mmproj", "size_bytes", "bits_per_weight", "low_layers", "order", "entropy", "types", "plan", "scores",
    "imatrix", "report", "seconds",
}  # fmt: skip
WEIGHTS = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}


def tensors_of(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of every tensor, read by the gguf library."""
    return {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in GGUFReader(path).tensors}


def test_the_json_object_is_the_contract(converted: Run) -> None:
    result = result_of(converted)
    assert result.keys() >= KEYS
    model, mmproj = Path(result["model"]), Path(result["mmproj"])
    assert result["size_bytes"] == model.stat().st_size
    read = GGUFReader(model)
    assert result["types"] == {tensor.name: tensor.tensor_type.name for tensor in read.tensors}
    weights = sum(math.prod(tensor.shape.tolist()) for tensor in read.tensors)
    bits = 8 * sum(tensor.n_bytes for tensor in read.tensors)
    assert result["bits_per_weight"] == pytest.approx(bits / weights)
    assert sorted(result["order"]) == [0, 1, 2]
    assert result["low_layers"] == result["order"][:1]
    assert len(result["entropy"]) == 3
    lowest = min(range(3), key=lambda layer: result["entropy"][layer])
    assert result["order"][0] == lowest
    for name in ("plan", "scores", "imatrix", "report"):
        assert Path(result[name]).is_file()
    assert {"analyze", "quantize", "assemble"} <= result["seconds"].keys()
    assert all(seconds >= 0 for seconds in result["seconds"].values())
    assert mmproj.is_file()


def test_stdout_is_the_result_and_stderr_the_progress(converted: Run) -> None:
    assert len(converted.stdout.strip().splitlines()) == 1
    assert "quantize: 4 of 4" in converted.stderr
    assert "{" not in converted.stderr


def test_the_folder_holds_what_is_promised(converted: Run, pico_checkpoint: Path) -> None:
    result = result_of(converted)
    out = Path(result["model"]).parent
    name = pico_checkpoint.name
    assert Path(result["model"]).name == f"{name}-LUQ-1of3-Q2_K.gguf"
    assert Path(result["mmproj"]).name == f"mmproj-{name}-F16.gguf"
    files = {path.name for path in out.iterdir() if path.is_file()}
    assert files >= {"plan.json", "scores.json", "imatrix.gguf", "manifest.json", "tensor-types.txt"}
    assert not [name for name in files if name.startswith(".")]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["files"].keys() == files - {"manifest.json"}
    for file, record in manifest["files"].items():
        assert record["sha256"] == sha256_of(out / file)
        assert record["bytes"] == (out / file).stat().st_size
    assert {"llama-cpp-python", "luq-gguf", "torch"} <= manifest["versions"].keys()
    assert manifest["settings"]["low_type"] == "Q2_K"


def test_only_the_low_layers_have_the_low_type(converted: Run) -> None:
    result = result_of(converted)
    low = {f"blk.{layer}.{name}.weight" for layer in result["low_layers"] for name in WEIGHTS}
    assert {name for name, kind in result["types"].items() if kind == "Q2_K"} == low
    others = {kind for name, kind in result["types"].items() if name not in low}
    assert others == {"F32", "Q4_K", "Q6_K"}
    metadata = GGUFReader(result["model"])
    assert metadata.get_field("general.architecture").contents() == "qwen2vl"
    assert metadata.get_field("tokenizer.ggml.tokens") is not None


def test_the_mmproj_is_the_exported_one_and_both_files_name_the_tool(converted: Run, exported: Path) -> None:
    """The 16-bit export names nobody: it is the file that llama.cpp's converter writes."""
    result = result_of(converted)
    key, tool = "general.quantized_by", f"luq-gguf {importlib.metadata.version('luq-gguf')}"
    plain = next(exported.glob("mmproj-*-F16.gguf"))
    assert tensors_of(Path(result["mmproj"])) == tensors_of(plain)
    assert metadata_of(Path(result["mmproj"])) == metadata_of(plain) | {key: tool}
    assert metadata_of(Path(result["model"]))[key] == tool
    assert not any(key in metadata_of(path) for path in exported.glob("*.gguf"))


def metadata_of(path: Path) -> dict[str, Any]:
    """All that a reader finds but the counts of what is there."""
    return {key: field.contents() for key, field in GGUFReader(path).fields.items() if not key.startswith("GGUF.")}


@pytest.fixture(scope="module")
def exported(pico_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 16-bit files of the same checkpoint."""
    out = tmp_path_factory.mktemp("exported")
    done = run_program("export", pico_checkpoint, "--out", out)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) == 2
    return out


def test_it_equals_a_whole_file_run_byte_for_byte(converted: Run, exported: Path, tmp_path: Path) -> None:
    result = result_of(converted)
    source = next(exported.glob("*-BF16.gguf"))
    arguments = ("--plan", result["plan"], "--imatrix", result["imatrix"], "--out", tmp_path / "whole.gguf")
    done = run_program("quantize", source, *arguments)
    assert done.returncode == 0, done.stderr
    assert tensors_of(tmp_path / "whole.gguf") == tensors_of(Path(result["model"]))
    assert (tmp_path / "whole.gguf").read_bytes() == Path(result["model"]).read_bytes()


def test_verify_accepts_it_and_lists_what_differs(converted: Run, exported: Path, tmp_path: Path) -> None:
    result = result_of(converted)
    good = run_program("verify", result["model"], "--plan", result["plan"])
    assert (good.returncode, good.stderr) == (0, "")
    other = run_program("verify", next(exported.glob("*-BF16.gguf")), "--plan", result["plan"])
    assert other.returncode == 1
    lines = other.stdout.splitlines()
    assert sum("the plan says" in line and line.startswith("blk.") for line in lines) == 21
    assert "Traceback" not in other.stderr
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(Path(result["model"]).read_bytes()[:-40])
    broken = run_program("verify", cut, "--plan", result["plan"])
    assert broken.returncode == 1
    assert "cut.gguf" in broken.stdout + broken.stderr


def test_the_number_of_threads_changes_no_byte(converted: Run, pico_checkpoint: Path, tmp_path: Path) -> None:
    result = result_of(converted)
    work = Path(result["model"]).parent / ".work"
    analysis = next(work.glob("analysis-*"))
    shutil.copytree(analysis, tmp_path / "work" / analysis.name)
    settings = replace(QUICK_SETTINGS, low_layers=1, threads=2, work=tmp_path / "work")
    made = convert(str(pico_checkpoint), tmp_path / "out", settings)
    assert "analyze" not in made.seconds
    assert made.seconds["quantize"] > 0
    assert made.model.read_bytes() == Path(result["model"]).read_bytes()
    for name in ("plan", "imatrix", "scores"):
        assert getattr(made, f"{name}_path").read_bytes() == Path(result[name]).read_bytes()


def test_a_second_run_touches_nothing(copy_of_converted: Path, pico_checkpoint: Path) -> None:
    before = listing(copy_of_converted)
    result = result_of(
        run_program("convert", pico_checkpoint, "--out", copy_of_converted, "--low-layers", 1, *QUICK, "--json")
    )
    assert result["seconds"] == {}
    assert Path(result["model"]).stat().st_size == result["size_bytes"]
    assert listing(copy_of_converted) == before


def test_another_budget_makes_only_what_is_new(copy_of_converted: Path, pico_checkpoint: Path) -> None:
    work = copy_of_converted / ".work"
    before = listing(work)
    made = convert(str(pico_checkpoint), copy_of_converted, replace(QUICK_SETTINGS, low_layers=2))
    after = listing(work)
    assert "analyze" not in made.seconds
    assert {name for name in after if name.startswith("analysis-")} == {
        name for name in before if name.startswith("analysis-")
    }
    new = after.keys() - before.keys()
    assert sorted(name.partition("/")[0] for name in new) == ["judged", "judged", "parts"]
    assert all(after[name] == state for name, state in before.items() if name != "imatrix.gguf")
    assert made.plan.size_bytes == made.model.stat().st_size
    again = convert(str(pico_checkpoint), copy_of_converted, replace(QUICK_SETTINGS, low_layers=1))
    assert listing(work).keys() == after.keys()
    assert "analyze" not in again.seconds


def test_a_conversion_can_be_planned_again(copy_of_converted: Path, tmp_path: Path) -> None:
    before = json.loads((copy_of_converted / "plan.json").read_text())
    done = run_program("plan", copy_of_converted, "--low-layers", 2, "--low-type", "Q2_K", "--json")
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout)
    assert after == json.loads((copy_of_converted / "plan.json").read_text())
    assert after["order"] == before["order"]
    assert after["low_layers"] == sorted(before["order"][:2])
    assert after["size_bytes"] < before["size_bytes"]
    (copy_of_converted / "model.json").unlink()
    refused = run_program("plan", copy_of_converted, "--low-layers", 1)
    assert (refused.returncode, "model.json" in refused.stderr) == (1, True)


def test_without_parts_only_the_analysis_stays(copy_of_converted: Path, pico_checkpoint: Path) -> None:
    settings = replace(QUICK_SETTINGS, low_layers=0, keep_parts=False)
    convert(str(pico_checkpoint), copy_of_converted, settings)
    assert not (copy_of_converted / ".work" / "parts").exists()
    assert list((copy_of_converted / ".work").glob("analysis-*"))


def test_a_result_that_was_changed_is_made_again(copy_of_converted: Path, pico_checkpoint: Path) -> None:
    model = next(copy_of_converted.glob("*-LUQ-*.gguf"))
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    made = convert(str(pico_checkpoint), copy_of_converted, replace(QUICK_SETTINGS, low_layers=1))
    assert "analyze" not in made.seconds
    assert model.read_bytes() == whole


def test_a_changed_checkpoint_is_noticed(copy_of_converted: Path, pico_checkpoint: Path, tmp_path: Path) -> None:
    before = next(copy_of_converted.glob("*-LUQ-*.gguf")).read_bytes()
    build_pico(tmp_path / pico_checkpoint.name, seed=1)
    made = convert(str(tmp_path / pico_checkpoint.name), copy_of_converted, replace(QUICK_SETTINGS, low_layers=1))
    assert "analyze" in made.seconds
    assert made.model.name == next(copy_of_converted.glob("*-LUQ-*.gguf")).name
    assert made.model.read_bytes() != before


def test_changed_samples_are_noticed(tmp_path: Path, pico_checkpoint: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    settings = replace(QUICK_SETTINGS, low_layers=1, calib=rows)
    texts = [f"red circle number {number}" for number in range(12)]

    def converted_with(*lines: str) -> pipeline.Conversion:
        rows.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        return convert(str(pico_checkpoint), tmp_path / "out", settings)

    first = converted_with(*texts)
    importance = read_importance(first.imatrix_path)
    assert converted_with(*texts).seconds == {}
    second = converted_with(*texts[:-1], "a blue square and a green star")
    assert "analyze" in second.seconds
    changed = read_importance(second.imatrix_path)
    assert any((importance.rows[name] != changed.rows[name]).any() for name in importance.rows)


@pytest.mark.parametrize(
    ("low_type", "high_type", "low_layers", "options"),
    [("Q2_K", "Q4_K_M", 0, {}), ("Q2_K", "Q4_K_M", 3, {"tied": True, "dtype": "f16"}), ("IQ1_M", "Q4_K_M", 2, {}),
     ("Q4_0", "Q8_0", 2, {"layers": 4, "tied": True}), ("Q3_K", "Q5_K_S", 1, {"form": "transformers5"}),
     ("Q2_K", "F16", 1, {"dtype": "f32"})],
)  # fmt: skip
def test_the_predicted_size_is_the_size(
    tmp_path: Path, low_type: str, high_type: str, low_layers: int, options
) -> None:
    model = build_pico(tmp_path / "model", **options)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"what is in picture {number}?"}) + "\n" for number in range(4)))
    settings = Settings(low_layers=low_layers, low_type=low_type, high_type=high_type, threads=1, calib=rows)
    made = convert(str(model), tmp_path / "out", settings)
    assert made.model.stat().st_size == made.plan.size_bytes
    types = {name: kind for name, (kind, _) in tensors_of(made.model).items()}
    assert types == made.plan.types
    assert ("output.weight" in types) is not options.get("tied", False)
    assert sum(kind == low_type for kind in types.values()) == 7 * low_layers


def test_plan_of_an_analysis_is_the_plan_of_a_conversion(converted: Run, pico_checkpoint: Path, tmp_path: Path) -> None:
    result = result_of(converted)
    work = Path(result["model"]).parent / ".work"
    analyzed = tmp_path / "analysis"
    settings = ("--calib", "shapes", "--samples", 10, "--work", tmp_path / "work")
    shutil.copytree(next(work.glob("analysis-*")), tmp_path / "work" / next(work.glob("analysis-*")).name)
    scores = run_program("analyze", pico_checkpoint, "--out", analyzed, *settings, "--json")
    assert json.loads(scores.stdout) == json.loads(Path(result["scores"]).read_text())
    for name in ("scores.json", "sums.safetensors", "imatrix.gguf", "reference.safetensors"):
        assert (analyzed / name).is_file()
    done = run_program("plan", analyzed, "--low-layers", 1, "--low-type", "Q2_K")
    assert done.returncode == 0, done.stderr
    assert (analyzed / "plan.json").read_text() == Path(result["plan"]).read_text()
    types = Path(result["plan"]).with_name("tensor-types.txt").read_text()
    assert (analyzed / "tensor-types.txt").read_text() == types
    budget = run_program("plan", analyzed, "--max-size", result["size_bytes"], "--low-type", "Q2_K", "--json")
    assert json.loads(budget.stdout)["size_bytes"] <= result["size_bytes"]
    before = read_importance(analyzed / "imatrix.gguf")
    assert run_program("imatrix", analyzed, "--alpha", "0.1").returncode == 0
    after = read_importance(analyzed / "imatrix.gguf")
    assert any((before.rows[name] != after.rows[name]).any() for name in before.rows)


def test_the_table_of_sizes_holds_for_the_files(pico_checkpoint: Path, converted: Run, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    for path in pico_checkpoint.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, tmp_path / "bare")
    done = run_program("plan", tmp_path / "bare", "--low-type", "Q2_K", "--json")
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    plan = Plan.model_validate_json(Path(result_of(converted)["plan"]).read_bytes())
    assert len(table["sizes"]) == 4
    assert table["sizes"] == sorted(table["sizes"], reverse=True)
    assert abs(table["sizes"][0] - plan.high_size_bytes) < 1000


def test_a_bundle_holds_both_files(copy_of_converted: Path, pico_checkpoint: Path, tmp_path: Path) -> None:
    settings = replace(QUICK_SETTINGS, low_layers=1, bundle=True)
    made = convert(str(pico_checkpoint), copy_of_converted, settings)
    assert made.bundle is not None
    done = run_program("unbundle", made.bundle, "--out", tmp_path / "apart")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "apart" / made.model.name).read_bytes() == made.model.read_bytes()
    assert (tmp_path / "apart" / made.mmproj.name).read_bytes() == made.mmproj.read_bytes()
    again = convert(str(pico_checkpoint), copy_of_converted, settings)
    assert (again.seconds, again.bundle) == ({}, made.bundle)


def test_two_conversions_give_the_same_files(converted: Run, pico_checkpoint: Path, tmp_path: Path) -> None:
    first = Path(result_of(converted)["model"]).parent
    convert(str(pico_checkpoint), tmp_path / "second", replace(QUICK_SETTINGS, low_layers=1))
    names = {path.name for path in first.iterdir() if path.is_file()}
    assert names == {path.name for path in (tmp_path / "second").iterdir() if path.is_file()}
    for name in names - {"manifest.json", "report.html"}:  # which tell how long it took
        assert (tmp_path / "second" / name).read_bytes() == (first / name).read_bytes(), name
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (first, tmp_path / "second")]
    for manifest in manifests:
        del manifest["seconds"], manifest["files"]["report.html"]
        for record in manifest["files"].values():
            del record["changed_ns"]
    assert manifests[0] == manifests[1]


def test_the_manifest_names_model_samples_and_seeds(converted: Run, pico_checkpoint: Path) -> None:
    manifest = json.loads((Path(result_of(converted)["model"]).parent / "manifest.json").read_text())
    shard = pico_checkpoint / "model.safetensors"
    with shard.open("rb") as handle:
        header = handle.read(int.from_bytes(handle.read(8), "little"))
    assert manifest["checkpoint_files"] == {
        "config.json": sha256_of(pico_checkpoint / "config.json"),
        "model.safetensors": hashlib.sha256(header).hexdigest(),
    }
    assert len(manifest["calibration"]) == 64
    assert (manifest["settings"]["seed"], manifest["settings"]["samples"]) == (0, 10)
