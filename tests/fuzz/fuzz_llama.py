"""Damaged GGUFs that our own reader lets through, loaded by llama.cpp in children that may crash.

Every case is a fork that loads the file through `Runtime` and evaluates three tokens. What it dies of is counted by
llama.cpp's own last words, so that what a cheap check of ours could refuse is seen.
"""

from __future__ import annotations

import os
import random
import re
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import LuqError
from luq_gguf.export import export_text
from luq_gguf.families import find_family
from luq_gguf.loadable import open_loadable
from luq_gguf.runtime import Runtime
from tests.fuzz.mutations import damage_gguf
from tests.pico import build_pico

PATIENCE = 20.0
ACCEPTED, REFUSED, RAISED = 0, 3, 4
TELLING = re.compile(r"GGML_ASSERT\(.*|GGML_ABORT.*|terminate called.*|what\(\):.*|\w+Error: .*")


def fuzz_llama(seed: int, cases: int) -> dict[str, Any]:
    """One row of results, as `fuzz_readers` gives them; crashes are contained, their kinds are listed."""
    import llama_cpp  # noqa: F401 - once, before the forks

    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    findings: list[dict[str, Any]] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="luq-fuzz-") as name:
        folder = Path(name)
        sound = _sound_file(folder)
        path = folder / "case.gguf"
        for case in range(cases):
            path.write_bytes(_damaged(sound, random.Random(f"llama {seed} {case}")))
            kind, what = _outcome(path, folder / "log")
            counts[kind] += 1
            if kind not in {"accepted", "refused", "refused before"}:
                kinds[what] += 1
                findings.append({"case": case, "kind": kind, "what": what})
    return {
        "reader": "llama", "cases": cases, "seed": seed, "counts": dict(counts),
        "seconds": round(time.monotonic() - started, 1), "findings": findings[:50],
        "kinds": dict(kinds.most_common(20)),
    }  # fmt: skip


def _sound_file(folder: Path) -> bytes:
    checkpoint = Checkpoint.open(build_pico(folder / "pico", layers=1))
    export_text(checkpoint, find_family(checkpoint.config, checkpoint), folder / "text.gguf")
    return (folder / "text.gguf").read_bytes()


def _damaged(sound: bytes, rng: random.Random) -> bytes:
    """Damage that keeps the size of the header, so that most of it passes our reader."""
    if rng.random() < 0.4:
        return damage_gguf(sound, rng)
    content = bytearray(sound)
    for _ in range(rng.randint(1, 3)):
        head = rng.choice((900, 25_000))
        place = rng.randrange(24, head)
        width = rng.choice((1, 1, 2, 4))
        number = rng.choice((0, 1, 2, 255, 1 << 31, rng.randrange(1 << 32)))
        content[place : place + width] = number.to_bytes(8, "little")[:width]
    return bytes(content)


def _outcome(path: Path, log: Path) -> tuple[str, str]:
    try:
        open_loadable(path)
    except LuqError:
        return "refused before", ""
    child = os.fork()
    if child == 0:
        _load(path, log)
    status = _wait(child)
    said = log.read_text(errors="replace")
    if status is None:
        return "slow", f"no end after {PATIENCE:.0f} seconds"
    if os.WIFSIGNALED(status):
        return "crash", f"{signal.Signals(os.WTERMSIG(status)).name}: {_last_words(said)}"
    code = os.WEXITSTATUS(status)
    return {ACCEPTED: "accepted", REFUSED: "refused"}.get(code, "exception"), _last_words(said) or f"exit code {code}"


def _load(path: Path, log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ["GGML_NO_BACKTRACE"] = "1"
    code = RAISED
    try:
        with Runtime(path, threads=1, context=64) as runtime:
            runtime.extend([1, 2, 3])
        code = ACCEPTED
    except LuqError:
        code = REFUSED
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def _wait(child: int) -> int | None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _last_words(said: str) -> str:
    found = TELLING.findall(said)
    return re.sub(r"0x[0-9a-f]+|\d{4,}", "N", found[-1])[:120] if found else ""
