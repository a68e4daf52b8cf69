"""What survives a run that is killed or interrupted, and what keeps two runs apart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from luq_gguf.artifacts import lock_folder
from luq_gguf.errors import BusyError
from luq_gguf.pipeline import Settings, convert
from tests.program import QUICK, Run, command, listing, result_of, run_program

QUICK_SETTINGS = Settings(calib="shapes", low_type="Q2_K", samples=10, threads=1)
HOLD = """
import sys, time
from pathlib import Path
from luq_gguf.artifacts import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def wait_for(found: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 240
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)


def start(pico_checkpoint: Path, out: Path, *more: str | int) -> subprocess.Popen[str]:
    arguments = command("convert", pico_checkpoint, "--out", out, "--low-layers", 1, *QUICK, *more, "--json")
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_run_goes_on_and_gives_the_same_bytes(converted: Run, pico_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(pico_checkpoint, out)
    try:
        wait_for(lambda: any((out / ".work" / "parts").glob("*.gguf")), process)
    finally:
        process.kill()
        process.communicate()
    final = [path.name for path in out.iterdir() if path.is_file() and not path.name.startswith(".")]
    assert "manifest.json" not in final
    kept = listing(out / ".work")
    finished = {name: state for name, state in kept.items() if not Path(name).name.startswith(".")}
    (out / ".leftover.gguf.4194305.partial").write_bytes(b"of a process that cannot be")
    (out / ".work" / ".header.x.4194305.partial").mkdir()
    result = result_of(run_program("convert", pico_checkpoint, "--out", out, "--low-layers", 1, *QUICK, "--json"))
    assert "analyze" not in result["seconds"]
    assert Path(result["model"]).read_bytes() == Path(result_of(converted)["model"]).read_bytes()
    after = listing(out / ".work")
    assert {name: after[name] for name in finished if name.startswith("parts/")} == {
        name: state for name, state in finished.items() if name.startswith("parts/")
    }
    assert not list(out.rglob("*.partial"))


def test_a_killed_run_whose_parts_move_goes_on_with_the_file_that_grew(
    converted: Run, pico_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(pico_checkpoint, out, "--no-keep-parts")
    try:
        wait_for(lambda: any((out / ".work").glob("growing-*/journal.json")), process)
    finally:
        process.kill()
        process.communicate()
    (journal,) = (out / ".work").glob("growing-*/journal.json")
    (grown,) = journal.parent.glob("*.gguf")
    assert len(json.loads(journal.read_text())["parts"]) >= 1
    assert not [path for path in out.iterdir() if path.is_file()]
    inode = grown.stat().st_ino
    arguments = ("convert", pico_checkpoint, "--out", out, "--low-layers", 1, *QUICK, "--no-keep-parts", "--json")
    result = result_of(run_program(*arguments))
    assert "analyze" not in result["seconds"]
    assert Path(result["model"]).stat().st_ino == inode
    assert Path(result["model"]).read_bytes() == Path(result_of(converted)["model"]).read_bytes()
    assert not list(out.rglob("*.partial"))
    assert not list((out / ".work").glob("growing-*"))
    assert not (out / ".work" / "parts").exists()


@pytest.mark.parametrize("moment", ["analysis", "parts", "growing"])
def test_an_interrupted_run_says_so_and_leaves_nothing(pico_checkpoint: Path, tmp_path: Path, moment: str) -> None:
    out = tmp_path / "out"
    slow = ("--low-type", "IQ1_M", "--low-layers", 3)  # whose tables take seconds
    process = start(pico_checkpoint, out, *slow, *(("--no-keep-parts",) if moment == "growing" else ()))
    try:
        if moment == "analysis":
            wait_for((out / ".work").is_dir, process)
            time.sleep(1)
        else:
            made = "parts/*.gguf" if moment == "parts" else "growing-*/journal.json"
            wait_for(lambda: any((out / ".work").glob(made)), process)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        taken = time.monotonic() - sent
    finally:
        process.kill()
    if process.returncode == 0:
        pytest.fail("the run was over before it could be interrupted")
    assert process.returncode == 130, stderr
    assert taken < 2
    assert stdout == ""
    assert "Traceback" not in stderr
    assert stderr.strip().splitlines()[-1].startswith("luq-gguf: interrupted")
    assert not list(out.rglob("*.partial"))
    assert not [path for path in out.iterdir() if path.is_file()]


def test_two_processes_do_not_clear_each_other_away(copy_of_converted: Path, pico_checkpoint: Path) -> None:
    busy = copy_of_converted / f".other.gguf.{os.getppid()}.partial"
    busy.write_bytes(b"still being written")
    gone = copy_of_converted / ".other.gguf.4194305.partial"
    gone.write_bytes(b"half")
    convert(str(pico_checkpoint), copy_of_converted, replace(QUICK_SETTINGS, low_layers=0))
    assert busy.exists()
    assert not gone.exists()


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_ends(
    pico_checkpoint: Path, copy_of_converted: Path
) -> None:
    other = (pico_checkpoint, "--out", copy_of_converted, "--low-layers", 2, *QUICK)
    before = listing(copy_of_converted)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, copy_of_converted / ".work"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for arguments in (("convert", *other), ("plan", copy_of_converted), ("imatrix", copy_of_converted)):
            refused = run_program(*arguments)
            assert refused.returncode == 1
            assert refused.stderr.startswith(f"luq-gguf: another run is working in {copy_of_converted}")
            assert len(refused.stderr.splitlines()) == 1
        assert listing(copy_of_converted) == before
    finally:
        holder.kill()
        holder.communicate()
    assert run_program("convert", *other).returncode == 0


def test_a_shared_work_folder_is_locked_too(pico_checkpoint: Path, tmp_path: Path) -> None:
    with lock_folder(tmp_path / "work"), pytest.raises(BusyError, match="work"):
        convert(str(pico_checkpoint), tmp_path / "out", replace(QUICK_SETTINGS, work=tmp_path / "work"))
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_file()]
