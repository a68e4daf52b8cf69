"""What a user sees when the process that does the work ends in an unusual way, or its owner does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SUPERVISE = "import sys; from luq_gguf.guard import supervise; sys.exit(supervise([sys.executable, '-c', sys.argv[1]]))"
STUBBORN = (
    "import signal, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
)


def start(code: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SUPERVISE, code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize(("code", "shown"), [(0, 0), (101, 1), (2, 2)])
def test_the_exit_code_is_that_of_the_work(code: int, shown: int) -> None:
    process = start(f"print('said'); raise SystemExit({code})")
    assert (process.communicate(timeout=60), process.returncode) == (("said\n", ""), shown)


@pytest.mark.parametrize("way", ["os._exit(1)", "os._exit(130)", "signal.raise_signal(signal.SIGINT)"])
def test_a_library_that_gives_up_ends_in_one_line(way: str) -> None:
    """OpenBLAS interrupts its process, as a user would, where it gets no threads."""
    process = start(f"import os, signal, sys; sys.stderr = open(os.devnull, 'w'); {way}")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(stderr.splitlines()) == 1
    assert "same command" in stderr
    assert "interrupted" not in stderr


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGKILL, "want of memory"), (signal.SIGABRT, "crashed"), (signal.SIGSEGV, "crashed")]
)
def test_a_killed_child_ends_in_one_line(number: signal.Signals, words: str) -> None:
    process = start(f"import os; os.kill(os.getpid(), {int(number)})")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(stderr.splitlines()) == 1
    assert all(word in stderr for word in (number.name, words, "same command"))


def test_a_computation_that_does_not_listen_is_stopped_all_the_same() -> None:
    process = start(STUBBORN)
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    work = children_of(process)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - sent < 2
    assert (process.returncode, stderr.startswith("luq-gguf: interrupted")) == (130, True)
    assert len(stderr.splitlines()) == 1
    assert not [one for one in work if one.is_running()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_work_ends_with_its_owner(tmp_path: Path, number: signal.Signals) -> None:
    arguments = ["demo", "--out", str(tmp_path / "out"), "--threads", "1"]
    process = subprocess.Popen([sys.executable, "-m", "luq_gguf", *arguments], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (tmp_path / "out" / ".work").is_dir():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    work = children_of(process)
    assert work
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGKILL, 128 + signal.SIGTERM)
    _, alive = psutil.wait_procs(work, timeout=30)
    assert not alive
