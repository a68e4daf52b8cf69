"""The C core from C, under the address, undefined-behaviour and leak sanitizers; and how its build fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.exported import export_both

ROOT = Path(__file__).resolve().parent.parent
FIND = ROOT / "native" / "find_llama_cpp.py"


def test_find_llama_cpp_names_what_is_installed():
    import llama_cpp

    output = subprocess.check_output([sys.executable, FIND], text=True)
    version, include, *libraries = output.split(";")
    assert version == llama_cpp.__version__
    assert (Path(include) / "llama.h").is_file()
    assert {Path(library).parent for library in libraries} == {Path(llama_cpp.__file__).parent / "lib"}
    assert [Path(library).stem for library in libraries] == ["libllama", "libmtmd", "libggml", "libggml-base"]


def test_find_llama_cpp_says_what_is_missing():
    done = subprocess.run([sys.executable, "-I", "-S", FIND], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install llama-cpp-python" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["decode_driver", "bench_driver"])
def test_the_core_under_sanitizers(pico_checkpoint: Path, tmp_path: Path, driver: str):
    pair = export_both(pico_checkpoint, tmp_path)
    _, include, *libraries = subprocess.check_output([sys.executable, FIND], text=True).split(";")
    sources = [*sorted((ROOT / "native").glob("luq_*.c")), ROOT / f"tests/native/{driver}.c"]
    warnings = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror")
    sanitizers = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    subprocess.run(
        ["cc", "-std=c11", "-D_POSIX_C_SOURCE=200809L", "-g", "-O1", *warnings, *sanitizers, "-I", ROOT / "native",
         "-isystem", include, *sources, *libraries, "-pthread", "-o", tmp_path / "driver"],
        check=True,
    )  # fmt: skip
    # llama.cpp's thread pool of OpenMP lives as long as the process, so its few blocks are no leak.
    suppressions = tmp_path / "leaks.txt"
    suppressions.write_text("leak:libgomp\n")
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(Path(libraries[0]).parent),
        "ASAN_OPTIONS": "detect_leaks=1",
        "LSAN_OPTIONS": f"suppressions={suppressions}:print_suppressions=0",
    }
    done = subprocess.run([tmp_path / "driver", *pair], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
