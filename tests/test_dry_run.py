"""`convert --dry-run` from outside, and the check that `convert` itself begins with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from luq_gguf import artifacts, dry_run, machine_rates, resources
from luq_gguf.amounts import format_bytes
from luq_gguf.cli.dry_run import format_seconds
from luq_gguf.costs import Costs, DiskCost, Shape, StageCost
from luq_gguf.demo import CHECKPOINT
from luq_gguf.errors import DiskSpaceError, MemoryLimitError
from luq_gguf.job import open_job
from luq_gguf.pipeline import Settings, analyze, convert
from luq_gguf.progress import silent
from luq_gguf.quantizer import Quantizer
from tests.hostile import run
from tests.program import QUICK, Run, listing, result_of, run_program
from tests.test_cli import assert_refused, write_sparse_giant

MIB, GIB = 1 << 20, 1 << 30
STAGES = ["pictures", "layers", "mmproj", "quantize", "assemble", "judge"]
SETTINGS = Settings(calib="shapes", low_type="Q2_K", samples=10, threads=1)


@pytest.fixture(scope="module")
def said(pico_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a dry run says in JSON of the conversion that the fixture `converted` makes, by depth."""
    out = tmp_path_factory.mktemp("dry") / "deep" / "out"
    done = run_program(
        "convert", pico_checkpoint, "--out", out, "--low-layers", 1, "--order", "depth", *QUICK, "--dry-run", "--json"
    )
    assert not out.parent.exists()
    return result_of(done)


def test_the_json_has_every_stage_and_both_numbers(said: dict) -> None:
    assert [stage["name"] for stage in said["stages"]] == STAGES
    assert all(stage["seconds"] > 0 and stage["memory_bytes"] > 100 * MIB for stage in said["stages"])
    assert said["seconds"] == pytest.approx(sum(stage["seconds"] for stage in said["stages"]))
    assert said["peak_memory_bytes"] == max(stage["memory_bytes"] for stage in said["stages"])
    assert said["peak_memory_bytes"] < GIB
    assert said["available_memory_bytes"] > 0
    assert said["model_bytes"] + said["mmproj_bytes"] <= said["final_disk_bytes"]
    assert said["scratch_disk_bytes"] > 0
    assert (said["low_layers"], said["layers"], said["fits"], said["refusal"]) == (1, 3, True, None)
    (place,) = said["places"]
    assert 0 < place["needed"] < place["free"]


def test_the_sizes_are_those_of_the_files(said: dict, converted: Run) -> None:
    result = result_of(converted)
    assert Path(result["mmproj"]).stat().st_size == said["mmproj_bytes"]
    assert Path(result["model"]).stat().st_size == pytest.approx(said["model_bytes"], rel=0.05)  # another layer is low


def test_the_table_says_what_the_json_says(said: dict, pico_checkpoint: Path, tmp_path: Path, capfd) -> None:
    code, out, err = run(
        capfd, "convert", pico_checkpoint, "--out", tmp_path / "out", "--low-layers", 1, "--order", "depth", *QUICK,
        "--dry-run",
    )  # fmt: skip
    assert code == 0, err
    for stage in said["stages"]:
        row = next(line for line in out.splitlines() if line.startswith(stage["name"]))
        assert format_bytes(stage["memory_bytes"]) in row
    assert f"text model {said['model_bytes']:,} bytes" in out
    assert f"vision part {said['mmproj_bytes']:,}" in out
    assert format_bytes(said["peak_memory_bytes"]) in out
    assert format_bytes(said["scratch_disk_bytes"]) in out
    assert "nothing was done" in out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_beside_a_conversion_changes_nothing(copy_of_converted: Path, pico_checkpoint: Path, capfd) -> None:
    before = listing(copy_of_converted)
    folders = sorted(path for path in copy_of_converted.rglob("*") if path.is_dir())
    code, out, err = run(
        capfd, "convert", pico_checkpoint, "--out", copy_of_converted, "--low-layers", 2, *QUICK, "--dry-run", "--json"
    )
    assert code == 0, err
    assert listing(copy_of_converted) == before
    assert sorted(path for path in copy_of_converted.rglob("*") if path.is_dir()) == folders
    found = json.loads(out)
    assert [stage["name"] for stage in found["stages"]] == [name for name in STAGES if name not in STAGES[:2]]
    assert any("earlier run" in note for note in found["notes"])


def without_memory(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    monkeypatch.setattr(resources, "available_memory", lambda: available)
    monkeypatch.setattr(dry_run, "available_memory", lambda: available)


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_want_of_memory_is_said_with_both_numbers(
    pico_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd, form: tuple[str, ...]
) -> None:
    without_memory(monkeypatch, 200 * MIB)
    arguments = ("convert", pico_checkpoint, "--out", tmp_path / "out", *QUICK)
    code, out, err = run(capfd, *arguments, "--dry-run", *form)
    assert code == 1
    assert "does not fit" in out or json.loads(out)["fits"] is False
    line = err.strip().splitlines()[-1]
    assert "bytes of memory" in line
    assert f"{200 * MIB:,} bytes are available" in line
    assert "close other programs" in line
    code, out, err = run(capfd, *arguments)
    assert (code, out) == (1, "")
    assert err.strip().splitlines()[-1] == line
    assert not list((tmp_path / "out").rglob("*.gguf"))


def test_the_error_carries_what_is_needed_and_available(
    pico_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_memory(monkeypatch, 300 * MIB)
    with pytest.raises(MemoryLimitError) as caught:
        convert(str(pico_checkpoint), tmp_path / "out", SETTINGS)
    assert caught.value.available == 300 * MIB < caught.value.needed < GIB
    monkeypatch.setattr(resources, "available_memory", lambda: caught.value.needed)
    monkeypatch.setattr(resources, "process_limit", lambda: 100 * MIB)
    with pytest.raises(MemoryLimitError, match="ulimit"):
        convert(str(pico_checkpoint), tmp_path / "out", SETTINGS)


def test_an_analysis_alone_refuses_what_does_not_fit(
    pico_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        without_memory(patched, 200 * MIB)
        code, _, err = run(capfd, "analyze", pico_checkpoint, "--out", out, "--calib", "shapes", "--samples", 10)
    assert code == 1
    assert f"{200 * MIB:,} bytes are available" in err.strip().splitlines()[-1]
    monkeypatch.setattr(artifacts.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(DiskSpaceError, match="analyzing") as caught:
        analyze(str(pico_checkpoint), out, SETTINGS)
    assert 1000 == caught.value.free < caught.value.needed < 64 * MIB
    assert not (out / "scores.json").exists()


@pytest.mark.parametrize("options", [{}, {"order": "mix"}, {"max_drop": 0.1}, {"sequential": True}])
@pytest.mark.parametrize("model", ["pico", "demo"])
def test_small_models_fit_into_a_gigabyte(pico_checkpoint: Path, tmp_path: Path, options: dict, model: str) -> None:
    folder = pico_checkpoint if model == "pico" else CHECKPOINT
    found = dry_run.foresee(str(folder), tmp_path / "out", Settings(calib="shapes", threads=1, **options))
    assert found.costs.peak.memory_bytes < GIB
    assert found.refusal is None
    assert all(stage.seconds is not None and stage.seconds > 0 for stage in found.costs.stages)


def test_want_of_disk_is_said_after_the_table(tmp_path: Path, capfd) -> None:
    write_sparse_giant(tmp_path / "giant", 2 * shutil.disk_usage(tmp_path).free)
    done = run_program("convert", tmp_path / "giant", "--out", tmp_path / "out", "--dry-run", "--calib", "shapes")
    assert_refused(done, 1, " needs ", "bytes free")
    assert "does not fit" in done.stdout
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_refused_by_the_conversion_with_the_same_numbers(
    pico_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = dry_run.foresee(str(pico_checkpoint), tmp_path / "out", SETTINGS)
    (place,) = found.places
    assert place.needed == found.costs.disk.together
    usage = SimpleNamespace(free=place.needed - 1)
    monkeypatch.setattr(artifacts.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DiskSpaceError) as caught:
        convert(str(pico_checkpoint), tmp_path / "out", SETTINGS)
    assert (caught.value.needed, caught.value.free) == (place.needed, place.needed - 1)


def test_two_disks_are_counted_apart(pico_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    job = open_job(str(pico_checkpoint), tmp_path / "out", replace(SETTINGS, work=tmp_path / "work"), silent)
    disk = DiskCost(text=100, mmproj=20, bundle=0, records=5, analyzing=300, making=150)
    costs = Costs((StageCost("layers", 1),), disk)
    assert [place.needed for place in resources.places(job, costs)] == [300]
    stat = Path.stat

    def on_another_disk(path: Path, **options: bool) -> os.stat_result:
        found = list(stat(path, **options))
        found[2] += path.name == "work"
        return os.stat_result(found)

    monkeypatch.setattr(Path, "stat", on_another_disk)
    assert [place.needed for place in resources.places(job, costs)] == [125, 300]
    monkeypatch.undo()
    (tmp_path / "work" / "parts").mkdir()
    (tmp_path / "work" / "parts" / "a.gguf").write_bytes(bytes(40))
    assert [place.needed for place in resources.places(job, costs)] == [260]


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("--max-size", "10KB"), 2, "smallest"),
        (("--low-layers", "9"), 2, "9 low layers"),
        (("--samples", "0"), 2, "--samples"),
    ],
)
def test_what_a_conversion_refuses_a_dry_run_refuses(
    pico_checkpoint: Path, tmp_path: Path, capfd, arguments: tuple[str, ...], code: int, word: str
) -> None:
    found, out, err = run(
        capfd, "convert", pico_checkpoint, "--out", tmp_path / "out", "--calib", "shapes", *arguments, "--dry-run"
    )
    assert (found, out) == (code, "")
    assert word in err
    assert not (tmp_path / "out").exists()


def test_rates_are_positive_and_leave_nothing(tmp_path: Path) -> None:
    shape = Shape(256, 512, 256, 128, 128, 3, 512, 500_000, 131_072, 131_072)
    with Quantizer() as quantizer:
        kinds = ("Q4_K", "IQ1_M", "Q8_0", "F32")
        rates = machine_rates.measure_rates(shape, "bf16", kinds, tmp_path / "not" / "there", 2, quantizer)
    assert rates.quantized.keys() == {"Q4_K", "IQ1_M", "Q8_0"}
    assert min(rates.products, rates.single, rates.disk, *rates.quantized.values()) > 0
    assert rates.quantized["IQ1_M"] < rates.quantized["Q8_0"]
    assert rates.threads == 2
    assert list(tmp_path.iterdir()) == []


def test_the_check_loads_no_torch() -> None:
    code = (
        "import sys\nimport luq_gguf.resources, luq_gguf.groundwork, luq_gguf.costs, luq_gguf.durations\n"
        "heavy = {'torch', 'transformers', 'llama_cpp', 'sklearn'} & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (5.26, "5.3 s"), (42, "42 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_times_are_said_as_people_do(seconds: float, said: str) -> None:
    assert format_seconds(seconds) == said
