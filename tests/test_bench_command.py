"""`luq-gguf bench` and `bench-compare` from outside: real runs, every form, every refusal in one line."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image

from luq_gguf import __version__, bench
from luq_gguf.artifacts import read_record
from luq_gguf.bench_record import BenchRecord
from luq_gguf.bench_run import BenchRequest, run_bench
from luq_gguf.cli import main
from luq_gguf.cli.bench import name_outputs
from luq_gguf.errors import RequestError
from luq_gguf.machine import describe_machine
from luq_gguf.processors import default_threads
from tests.exported import export_speed_files
from tests.program import run_program

QUICK = ("--prompt", "8", "--generate", "2", "--threads", "1", "--repeat", "1")


@pytest.fixture(scope="module")
def models(pico_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bench-command")
    paths = export_speed_files(pico_checkpoint, folder)
    paths["image"] = folder / "image.png"
    Image.new("RGB", (112, 112), "teal").save(paths["image"])
    return paths


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return int(ended.value.code or 0), out, err


def refused(capfd: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """The one line that was said."""
    got, out, err = run(capfd, *arguments)
    assert got == code, err
    assert out == ""
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("luq-gguf: ")]
    assert line == err.splitlines()[-1]
    return line


def test_everything_at_once(models: dict[str, Path], tmp_path: Path, capfd):
    targets = {form: tmp_path / f"run.{form}" for form in ("json", "csv", "md", "svg")}
    options = ("--mmproj", models["mmproj"], "--image", models["image"], "--threads", "1,2", "--repeat", 2)
    forms = ("--json", targets["json"], "--csv", targets["csv"], "--markdown", targets["md"], "--plot", targets["svg"])
    counts = ("--prompt", 8, "--generate", 3)
    code, out, err = run(capfd, "bench", models["f16"], models["f32"], *counts, *options, *forms)
    assert code == 0, err
    for words in (
        "prompt, 8 tokens, 2 threads",
        "generation, 3 tokens, 1 thread",
        "against f16.gguf",
        "image encoding",
    ):
        assert words in out
    assert out.splitlines()[-1] == "wrote " + ", ".join(str(targets[form]) for form in ("json", "csv", "md", "svg"))
    assert "time by type, 2 threads" in out
    for stage in ("measuring speed", "measuring types", "measuring images", "measuring memory", "hashing files"):
        assert f"{stage}: 0 of" in err
    record = read_record(targets["json"], BenchRecord)
    check_record(record, models)
    rows = list(csv.DictReader(io.StringIO(targets["csv"].read_text())))
    assert len(rows) == 2 * 2 * 4
    assert {row["verdict"] for row in rows if row["file"] == "f32.gguf"} == {"too few rounds to tell"}
    assert "| f16.gguf |" in targets["md"].read_text()
    assert "<svg" in targets["svg"].read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in targets.values())


def check_record(record: BenchRecord, models: dict[str, Path]) -> None:
    asked = record.settings
    assert (asked.prompt, asked.generate, asked.rounds, asked.threads, asked.cpus) == (8, 3, 2, (1, 2), None)
    assert asked.image is not None
    assert asked.image.mmproj.name == "mmproj.gguf"
    assert record.machine.same_cpu(describe_machine())
    assert record.versions.luq_gguf == __version__
    assert "CPU" in record.versions.system_info
    assert timedelta() <= datetime.now(UTC) - record.date < timedelta(hours=1)
    for file, name in zip(record.files, ("f16", "f32"), strict=True):
        data = models[name].read_bytes()
        assert (file.name, file.bytes, file.sha256) == (f"{name}.gguf", len(data), hashlib.sha256(data).hexdigest())
        assert sum(file.type_shares.values()) == pytest.approx(1)
    assert list(record.files[0].type_bytes) != list(record.files[1].type_bytes)
    assert [(run.threads, run.file) for run in record.types] == [(run.threads, run.file) for run in record.runs]
    for run in record.types:
        assert set(run.prompt_ns) == set(run.generate_ns) == {("F16", "F32")[run.file], "other"}
    assert asked.image.doubts == ()
    assert str(models["f16"].parent) not in record.model_dump_json()


def test_without_a_file_forms_are_printed(models: dict[str, Path], capfd):
    code, out, _ = run(capfd, "bench", "--json", models["f16"], models["f32"], *QUICK)
    assert code == 0
    assert [Path(sample["path"]).name for sample in json.loads(out)] == ["f16.gguf", "f32.gguf"]
    code, out, _ = run(capfd, "bench", models["f16"], *QUICK, "--csv")
    assert code == 0
    assert [row["phase"] for row in csv.DictReader(io.StringIO(out))] == ["prompt", "generation"]
    code, out, _ = run(capfd, "bench", "--markdown", models["f16"], *QUICK)
    assert code == 0
    assert out.startswith("**prompt, 8 tokens, 1 thread**\n\n| file |")


def test_forms_take_only_files_of_their_name():
    given = ["--json", "a.gguf", "--csv", "b.csv", "--markdown", "-", "--json=c.json", "--csv"]
    assert name_outputs(given) == [
        "--json",
        "-",
        "a.gguf",
        "--csv",
        "b.csv",
        "--markdown",
        "-",
        "--json=c.json",
        "--csv",
        "-",
    ]
    assert name_outputs(["--json", "R.JSON", "--markdown", "--force"]) == [
        "--json",
        "R.JSON",
        "--markdown",
        "-",
        "--force",
    ]
    assert name_outputs([]) == []


def test_threads_when_nobody_says(models: dict[str, Path]):
    files = (models["f16"],)
    assert BenchRequest(files).counts() == (default_threads(),)
    assert BenchRequest(files, cpus=(0,)).counts() == (1,)
    assert BenchRequest(files, threads=(3, 1)).counts() == (3, 1)
    record, measured = run_bench(BenchRequest(files, prompt=4, generate=1, rounds=1))
    assert record.settings.threads == (default_threads(),)
    assert len(measured.decodes) == 1


def test_a_run_on_one_processor(models: dict[str, Path], tmp_path: Path, capfd):
    cpu = min(os.sched_getaffinity(0))
    code, out, err = run(capfd, "bench", models["f16"], *QUICK, "--cpus", cpu, "--json", tmp_path / "run.json")
    assert code == 0, err
    assert f"on processors {cpu};" in out
    assert read_record(tmp_path / "run.json", BenchRecord).settings.cpus == (cpu,)


def test_the_same_file_twice_is_hashed_once(models: dict[str, Path]):
    heard = []
    request = BenchRequest((models["f16"], models["f16"]), prompt=4, generate=1, rounds=1, threads=(1,))
    record, _ = run_bench(request, lambda what, done, total: heard.append((what, done, total)))
    assert record.files[0] == record.files[1]
    assert [entry for entry in heard if entry[0] == "hashing files"] == [
        ("hashing files", 0, 1),
        ("hashing files", 1, 1),
    ]


REFUSED = [
    (("--threads", "0,1"), "--threads is '0,1'; give numbers from 1 to 512"),
    (("--threads", "513"), "--threads is '513'"),
    (("--threads", "two"), "--threads is 'two'; give numbers like 1,2,4"),
    (("--threads", "1,2,1"), "threads 1,2,1 name a number twice"),
    (("--cpus", "x"), "--cpus is 'x'; name processors like 0-3,8"),
    (("--cpus", "1000"), "cpus names processors that this process may not use"),
    (("--prompt", 0), "'--prompt'"),
    (("--prompt", 10**6), "prompt must be 1 to 131071, not 1000000"),
    (("--prompt", 100_000), "prompt + generate must be at most "),
    (("--generate", 10**12), "generate must be 1 to "),
    (("--repeat", 0), "'--repeat'"),
    (("--repeat", 1001), "repeat must be at most 1000, not 1001"),
    (("--json", "--csv"), "--json and --csv cannot both be printed"),
    (("--plot", "sweep.png"), "a plot needs two numbers of threads"),
    (("--plot", "sweep.txt", "--threads", "1,2"), "sweep.txt is no name of a plot"),
    (("--image", "image.png"), "a vision part and an image belong together"),
    (("--mmproj", "mmproj.gguf"), "a vision part and an image belong together"),
    (("--json=.",), ". is a folder"),
    (("--json=model.gguf",), "model.gguf would be overwritten"),
    (("--csv", "run.csv", "--markdown=run.csv"), "run.csv would be overwritten"),
    (("--rabbits", 3), "--rabbits"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=lambda value: " ".join(map(str, value))[:30])
def test_requests_that_cannot_be_met(models: dict[str, Path], tmp_path: Path, monkeypatch, capfd, options, words):
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model.gguf"
    model.write_bytes(models["f16"].read_bytes())
    base = [] if "--threads" in options or "--plot" in options else ["--threads", 1]
    assert words in refused(capfd, 2, "bench", model, *base, *options)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert model.read_bytes() == models["f16"].read_bytes()


def test_an_input_is_never_overwritten(models: dict[str, Path], tmp_path: Path, capfd):
    model = tmp_path / "model.json"
    model.write_bytes(models["f16"].read_bytes())
    assert "would be overwritten" in refused(capfd, 2, "bench", model, *QUICK, "--json", model)
    assert model.read_bytes() == models["f16"].read_bytes()


def test_files_that_cannot_be_measured(models: dict[str, Path], tmp_path: Path, capfd):
    data = models["f16"].read_bytes()
    unknown = data.replace(b"qwen2vl", b"qwen9vl")
    for name, content in (("text", b"no model"), ("cut", data[:-5000]), ("unknown", unknown), ("empty", b"")):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        assert f"{name}.gguf" in refused(capfd, 1, "bench", models["f16"], path, *QUICK)
    assert "gone.gguf" in refused(capfd, 1, "bench", tmp_path / "gone.gguf", *QUICK)
    sight = ("--mmproj", models["f32"], "--image", models["image"])
    assert "f32.gguf is no vision part" in refused(capfd, 1, "bench", models["f16"], *QUICK, *sight)
    sight = ("--mmproj", models["mmproj"], "--image", models["f32"])
    assert "no image that can be read" in refused(capfd, 1, "bench", models["f16"], *QUICK, *sight)


def test_a_file_larger_than_memory_needs_force(models: dict[str, Path], monkeypatch, capfd):
    monkeypatch.setattr(bench, "free_memory", lambda: 1000)
    size = models["f16"].stat().st_size
    line = refused(capfd, 2, "bench", models["f16"], *QUICK)
    assert f"f16.gguf needs {size:,} bytes of memory, 1,000 bytes are free" in line
    assert "--force" in line
    code, out, _ = run(capfd, "bench", models["f16"], *QUICK, "--force")
    assert (code, "f16.gguf" in out) == (0, True)


def test_nothing_is_loaded_before_the_checks(models: dict[str, Path], tmp_path: Path, monkeypatch):
    monkeypatch.setattr(bench, "load_native", lambda: pytest.fail("loaded"))
    monkeypatch.setattr(bench, "free_memory", lambda: 1000)
    with pytest.raises(RequestError, match="bytes are free"):
        run_bench(BenchRequest((models["f16"],)))


@pytest.fixture(scope="module")
def records(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The program's records of one file at two times."""
    folder = tmp_path_factory.mktemp("records")
    for name in ("old", "new"):
        done = run_program("bench", models["f16"], *QUICK[:-1], 6, "--json", folder / f"{name}.json")
        assert done.returncode == 0, done.stderr
    return folder / "old.json", folder / "new.json"


def test_two_runs_compare(records: tuple[Path, Path], capfd):
    code, out, err = run(capfd, "bench-compare", *records)
    assert (code, err) == (0, "")
    assert "the same CPU: " in out
    assert out.count("f16.gguf") == 2
    code, out, _ = run(capfd, "bench-compare", *records, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["same_cpu"] is True
    assert [change["phase"] for change in found["changes"]] == ["prompt", "generation"]
    for change in found["changes"]:
        assert change["ratio"]["low"] <= change["ratio"]["median"] <= change["ratio"]["high"]
        assert change["verdict"] in {"faster", "slower", "no difference beyond noise"}


def test_runs_that_do_not_compare(records: tuple[Path, Path], models: dict[str, Path], tmp_path: Path, capfd):
    content = json.loads(records[0].read_text())
    content["files"][0]["sha256"] = "0" * 64
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    assert "no file in common" in refused(capfd, 2, "bench-compare", other, records[1])
    other.write_text(records[0].read_text()[:-100])
    assert "other.json is no valid BenchRecord" in refused(capfd, 1, "bench-compare", records[0], other)
    assert "gone.json" in refused(capfd, 1, "bench-compare", tmp_path / "gone.json", other)
    assert "f16.gguf is no valid BenchRecord" in refused(capfd, 1, "bench-compare", models["f16"], records[0])


@pytest.mark.parametrize("command", ["bench", "bench-compare"])
def test_help_ends_with_an_example(command: str, capfd):
    code, out, _ = run(capfd, command, "--help")
    assert code == 0
    assert f"Example: luq-gguf {command} " in " ".join(out.split())


def test_help_needs_no_heavy_import():
    code = (
        "import sys\nfrom luq_gguf.cli.app import app\n"
        "try:\n    app(['bench', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'llama_cpp', 'sklearn', 'matplotlib', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
