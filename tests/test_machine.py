"""A machine that says no: a full or read-only disk, too few file handles, too little memory."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from luq_gguf import pipeline
from luq_gguf.failures import MEMORY_LINE, describe_failure
from luq_gguf.pipeline import Settings
from tests.program import QUICK, command, run_program


def final_files(folder: Path) -> list[str]:
    """Names that a user would take for results."""
    return sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def run_limited(limit: Callable[[], None], *arguments: str | int | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, timeout=600, preexec_fn=limit
    )


def last_line(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.startswith("luq-gguf: ")]
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    assert "unexpected" not in stderr
    return lines[0]


@pytest.mark.parametrize("megabytes", [0.05, 0.4, 1])
@pytest.mark.parametrize("options", [(), ("--no-keep-parts",)])
def test_a_file_that_cannot_grow_is_a_full_disk(
    pico_checkpoint: Path, tmp_path: Path, megabytes: float, options: tuple[str, ...]
) -> None:
    """A limit on the size of files stops writers as a full disk does, also those in llama.cpp."""
    size = int(megabytes * 1e6)
    arguments = ("convert", pico_checkpoint, "--out", tmp_path / "out", "--low-layers", 1, *QUICK, *options)
    done = run_limited(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)), *arguments)
    assert done.returncode == 1
    assert "full" in last_line(done.stderr)
    assert final_files(tmp_path / "out") == []
    assert not list((tmp_path / "out").rglob("*.partial"))
    again = run_program(*arguments)
    assert again.returncode == 0, again.stderr


def test_too_few_file_handles_are_named(pico_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("convert", pico_checkpoint, "--out", tmp_path / "out", "--low-layers", 1, *QUICK)
    done = run_limited(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8)), *arguments)
    assert done.returncode == 1
    assert "ulimit -n" in last_line(done.stderr)
    assert final_files(tmp_path / "out") == []


@pytest.mark.parametrize("megabytes", [150, 400, 800])
def test_too_little_memory_is_one_line_and_the_next_run_goes_on(
    pico_checkpoint: Path, tmp_path: Path, megabytes: int
) -> None:
    size = megabytes << 20
    arguments = ("convert", pico_checkpoint, "--out", tmp_path / "out", "--low-layers", 1, *QUICK)
    done = run_limited(lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size)), *arguments)
    assert done.returncode == 1
    assert "memory" in last_line(done.stderr)
    assert final_files(tmp_path / "out") == []
    again = run_program(*arguments)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    "said", ["error return without exception set", "<f> returned NULL without setting an exception"]
)
def test_what_python_says_of_an_extension_that_got_no_memory_is_told_as_that(said: str) -> None:
    assert describe_failure(SystemError(said)) == (MEMORY_LINE, 1)


FULL = """
set -e
mount -t tmpfs -o size=12m tmpfs "$1"
( tries=0
  while ! ls "$1"/out/.work/{moment} >/dev/null 2>&1 && [ $tries -lt 6000 ]; do sleep 0.01; tries=$((tries + 1)); done
  dd if=/dev/zero of="$1/fill" bs=64k >/dev/null 2>&1 ) &
filler=$!
set +e
shift 1
"$@"; first=$?
wait $filler
ls "{place}"/out >&2
rm "{place}/fill"
"$@"; second=$?
cp -r "{place}"/out "{place}-kept"
echo "$first $second"
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["analyzing-*/layers.safetensors", "parts/*.gguf", "growing-*/journal.json"])
def test_a_disk_that_fills_in_the_middle(pico_checkpoint: Path, tmp_path: Path, moment: str) -> None:
    """In a mount namespace of its own, on a disk of 12 MB; the space is free again for the second run."""
    place = tmp_path / "disk"
    place.mkdir()
    moved = ("--no-keep-parts",) if moment.startswith("growing") else ()
    convert = command("convert", pico_checkpoint, "--out", place / "out", "--low-layers", 1, *QUICK, *moved)
    script = FULL.format(moment=moment, place=place)
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", place, *convert],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["1 0"], done.stderr
    assert "full" in last_line(done.stderr)
    listed = done.stderr[done.stderr.index("luq-gguf: ") :].splitlines()[1:]
    assert not [name for name in listed if name.endswith((".gguf", ".json", ".safetensors"))]
    settings = Settings(low_layers=1, calib="shapes", low_type="Q2_K", samples=10, threads=1)
    expected = pipeline.convert(str(pico_checkpoint), tmp_path / "expected", settings)
    kept = Path(f"{place}-kept") / expected.model.name
    assert kept.read_bytes() == expected.model.read_bytes()
    shutil.rmtree(f"{place}-kept")


@pytest.mark.slow
def test_a_read_only_folder_is_refused_at_once(pico_checkpoint: Path, tmp_path: Path) -> None:
    convert = command("convert", pico_checkpoint, "--out", tmp_path / "disk" / "out", "--low-layers", 1, *QUICK)
    (tmp_path / "disk").mkdir()
    script = 'mount -t tmpfs -o ro tmpfs "$1" && shift && exec "$@"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", tmp_path / "disk", *convert],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 1
    line = last_line(done.stderr)
    assert all(words in line for words in ("disk/out", "Read-only file system", "another folder"))
