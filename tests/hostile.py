"""Helpers of the hostile tests: the program run in this process, what it must say, and ways to break a model folder."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luq_gguf.cli import main
from tests.pico import pico_weights
from tests.pico_files import encode, write_shards

FEW = ("--calib", "shapes", "--samples", "8", "--threads", "1", "--compute-type", "f32", "--low-type", "Q2_K")
PATIENCE = 20
"""Seconds of processor time that no refusal takes, with room for a slow machine."""
MEMORY = 600 << 20
"""More than any refusal takes; what torch and the like take at their import is among it."""
Breaking = Callable[[Path], object]


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the program, run in this process."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return int(ended.value.code or 0), out, err


def assert_refused(
    capfd: pytest.CaptureFixture[str], arguments: tuple[object, ...], *words: str, code: int = 1
) -> None:
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found, _, err = run(capfd, *arguments)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    lines = err.strip().splitlines()
    assert found == code, err
    assert len([line for line in lines if line.startswith("luq-gguf: ")]) == 1, err
    message = lines[-1]
    assert message.startswith("luq-gguf: ")
    assert "; " in message, f"no hint in {message}"
    assert len(message) < 2000
    for word in words:
        assert word in message, message
    for word in ("Traceback", "unexpected", "panicked"):
        assert word not in err, err
    assert time.process_time() - started < PATIENCE
    assert grown < MEMORY, f"{grown:,} bytes"


def assert_nothing_made(*folders: Path) -> None:
    """No file but locks and what is being worked on stands in a folder."""
    for folder in folders:
        left = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"] if folder.exists() else []
        outside = [path for path in left if ".work" not in path.parts]
        assert not outside, outside


def change_json(name: str, **changes: Any) -> Callable[[Path], None]:
    """Keys set to new values; a dotted key (with __ for the dot) is nested, ... takes the key away."""

    def change(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text())
        for key, value in changes.items():
            place = content
            *outer, last = key.split("__")
            for step in outer:
                place = place[int(step) if isinstance(place, list) else step]
            if value is ...:
                del place[last]
            else:
                place[int(last) if isinstance(place, list) else last] = value
        path.write_text(json.dumps(content))

    return change


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def sparse(name: str, size: int, start: bytes = b"") -> Callable[[Path], None]:
    """A file of that size that takes no room on the disk."""

    def change(folder: Path) -> None:
        with (folder / name).open("wb") as handle:
            handle.write(start)
            handle.truncate(size)

    return change


def pipe(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def link_out(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        shutil.move(folder / name, folder.parent / f"stolen-{name}")
        (folder / name).symlink_to(folder.parent / f"stolen-{name}")

    return change


def device(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/dev/zero")

    return change


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """The header of the single shard rewritten, its data left as they are."""

    def rewrite(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        entries = json.loads(data[8 : 8 + length])
        change(entries)
        text = json.dumps(entries).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return rewrite


def entry(**changes: Any) -> Callable[[Path], None]:
    return header(lambda entries: entries["model.norm.weight"].update(changes))


def weights(change: Callable[[dict[str, np.ndarray]], object], dtype: str = "bf16") -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        values = dict(pico_weights(seed=0, layers=3))
        change(values)
        with np.errstate(over="ignore"):
            write_shards(folder, {name: encode(value, dtype) for name, value in values.items()}, dtype, 1)

    return rewrite
