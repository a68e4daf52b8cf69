"""Tokens per second of GGUF files on this CPU, measured by the native module.

Takes paths and numbers of tokens, gives every sample in nanoseconds and the medians. Several files take
turns, round by round, so that a machine that slows down slows all of them. Knows nothing of plans.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from luq_gguf.errors import RequestError, RunError
from luq_gguf.loadable import open_loadable
from luq_gguf.processors import default_threads
from luq_gguf.progress import Progress, silent

if TYPE_CHECKING:
    from luq_gguf._native import DecodeResult


@dataclass(frozen=True)
class DecodeSamples:
    """What was measured with one file; times in nanoseconds, one entry a sample, in the order of measuring.

    `prompt_ns` are whole prompts of `prompt` tokens, `generate_ns` single-token decodes after them, `load_ns` the
    times from opening the file to a ready context. `model_bytes` and `parameters` are those of all tensors.
    """

    path: str
    prompt: int
    generate: int
    threads: int
    prompt_ns: tuple[int, ...]
    generate_ns: tuple[int, ...]
    load_ns: tuple[int, ...]
    model_bytes: int
    parameters: int
    context: int

    @property
    def prompt_tps(self) -> float:
        """Tokens per second of the median prompt."""
        return self.prompt * 1e9 / statistics.median(self.prompt_ns)

    @property
    def generate_tps(self) -> float:
        """Tokens per second of the median single-token decode."""
        return 1e9 / statistics.median(self.generate_ns)


def measure_decode(
    path: Path,
    *,
    prompt: int = 64,
    generate: int = 32,
    threads: int | None = None,
    repeat: int = 3,
    progress: Progress = silent,
) -> DecodeSamples:
    """Time `repeat` rounds of a prompt and of single tokens with one file; see measure_files."""
    return measure_files([path], prompt=prompt, generate=generate, threads=threads, repeat=repeat, progress=progress)[0]


def measure_files(
    paths: Sequence[Path],
    *,
    prompt: int = 64,
    generate: int = 32,
    threads: int | None = None,
    repeat: int = 3,
    progress: Progress = silent,
) -> list[DecodeSamples]:
    """Time files in turn (A B A B ...), each turn with a round to warm up that is not counted.

    `threads` None takes the physical cores that this process may use. Raises GGUFError for a file that is none,
    RequestError for numbers out of range, RunError where llama.cpp cannot load or run a file.
    """
    if not paths:
        raise RequestError("there is no file to measure", hint="name at least one GGUF")
    if repeat < 1:
        raise RequestError(f"repeat must be at least 1, not {repeat}", hint="ask for one round or more")
    for path in paths:
        open_loadable(path)
    threads = default_threads() if threads is None else threads
    rounds: list[list[DecodeResult]] = [[] for _ in paths]
    for turn in range(repeat):
        for index, path in enumerate(paths):
            progress("measuring speed", turn * len(paths) + index, repeat * len(paths))
            rounds[index].append(_decode(path, prompt, generate, threads))
    progress("measuring speed", repeat * len(paths), repeat * len(paths))
    return [_join(path, prompt, generate, threads, results) for path, results in zip(paths, rounds, strict=True)]


def format_bench(samples: Iterable[DecodeSamples]) -> str:
    """A plain table: file, size of its tensors, bits per weight, tokens per second of prompt and generation."""
    rows = [("file", "GiB", "bits/weight", "threads", "prompt tokens/s", "tokens/s", "slowest .. fastest")]
    for sample in samples:
        slowest, fastest = 1e9 / max(sample.generate_ns), 1e9 / min(sample.generate_ns)
        rows.append(
            (
                Path(sample.path).name,
                f"{sample.model_bytes / 2**30:.3f}",
                f"{8 * sample.model_bytes / sample.parameters:.2f}",
                f"{sample.threads}",
                f"{sample.prompt_tps:.1f}",
                f"{sample.generate_tps:.1f}",
                f"{slowest:.1f} .. {fastest:.1f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def _decode(path: Path, prompt: int, generate: int, threads: int) -> DecodeResult:
    """One turn of one file; the native module's exceptions become ours here."""
    native = load_native()
    try:
        result: DecodeResult = native.decode(path, prompt=prompt, generate=generate, threads=threads, repeat=1)
    except ValueError as error:
        raise RequestError(str(error), hint="ask for other numbers of tokens or threads") from error
    except native.DecodeError as error:
        raise RunError(str(error), hint="check the file, or make it again") from error
    except MemoryError as error:
        raise RunError(f"not enough memory to run {path}", hint="ask for fewer tokens") from error
    return result


def load_native() -> ModuleType:
    """The native module, after llama_cpp: so both use the one copy of llama.cpp that llama_cpp loads."""
    import llama_cpp
    import llama_cpp.mtmd_cpp

    try:
        from luq_gguf import _native
    except ImportError as error:
        raise RunError(f"the native module cannot be loaded: {error}", hint="install luq_gguf again") from error
    if llama_cpp.__version__ != _native.LLAMA_CPP_PYTHON:
        raise RunError(
            f"the native module was built for llama-cpp-python {_native.LLAMA_CPP_PYTHON}, "
            f"but {llama_cpp.__version__} is installed",
            hint="install luq_gguf again",
        )
    return _native


def _join(path: Path, prompt: int, generate: int, threads: int, results: list[DecodeResult]) -> DecodeSamples:
    first = results[0]
    return DecodeSamples(
        path=str(path),
        prompt=prompt,
        generate=generate,
        threads=threads,
        prompt_ns=tuple(sample for result in results for sample in result["prompt_ns"]),
        generate_ns=tuple(sample for result in results for sample in result["generate_ns"]),
        load_ns=tuple(result["load_ns"] for result in results),
        model_bytes=first["model_bytes"],
        parameters=first["parameters"],
        context=first["context"],
    )
