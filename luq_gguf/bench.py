"""Times of GGUF files on this CPU, measured by the native module.

Takes paths and numbers of tokens, gives every sample in nanoseconds. Several files take turns, round by round, so that
a machine that slows down slows all of them. Knows nothing of plans, and leaves statistics to `bench_statistics`.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from gguf import GGMLQuantizationType

from luq_gguf.errors import GGUFError, RequestError, RunError
from luq_gguf.gguf_file import GGUFFile
from luq_gguf.images import fit_to_grid
from luq_gguf.loadable import open_loadable
from luq_gguf.machine import free_memory
from luq_gguf.processors import default_threads
from luq_gguf.progress import Progress, silent
from luq_gguf.projectors import projector_of

if TYPE_CHECKING:
    from PIL import Image

    from luq_gguf._native import DecodeResult, ImageResult

MOST_ROUNDS = 1000
SPLIT_TOKENS = 16
"""At most so many tokens are generated to see where their time goes."""
OTHER = "other"
"""Beside the types of weights: the time of what multiplies with none, as attention and norms."""
Result = TypeVar("Result")
Turn = tuple[Path, int]
"""What a turn measures: a file with a number of threads."""


@dataclass(frozen=True)
class DecodeSamples:
    """What was measured with one file; times in nanoseconds, one entry a sample, in the order of measuring.

    `prompt_ns` are whole prompts of `prompt` tokens, `generate_ns` single-token decodes after them, `load_ns` the
    times from opening the file to a ready context. `model_bytes` and `parameters` are those of all tensors,
    `kv_bytes` what the context's keys and values take, `read_bytes` the weights that a generated token reads, and
    `peak_memory` the most that the whole process has held until then.
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
    kv_bytes: int
    read_bytes: int
    peak_memory: int

    @property
    def prompt_tps(self) -> float:
        """Tokens per second of the median prompt."""
        return self.prompt * 1e9 / statistics.median(self.prompt_ns)

    @property
    def generate_tps(self) -> float:
        """Tokens per second of the median single-token decode."""
        return 1e9 / statistics.median(self.generate_ns)


@dataclass(frozen=True)
class Part:
    """Products with weights of one type that follow each other, or what lies between (OTHER): nanoseconds of each."""

    kind: str
    ns: tuple[int, ...]


@dataclass(frozen=True)
class PartSamples:
    """Where the time of one file goes: `prompt` has a sample a prompt, `generate` one a token.

    Parts stand in the order of computing, and their times add up to the whole. There are none where the graph changes
    from token to token.
    """

    path: str
    threads: int
    prompt: tuple[Part, ...]
    generate: tuple[Part, ...]


@dataclass(frozen=True)
class ImageSamples:
    """What was measured with one file and an image; times in nanoseconds, one entry a round.

    `encode_ns` is the vision part's time, `prompt_ns` that of the text model for the image's `tokens`.
    """

    path: str
    threads: int
    tokens: int
    encode_ns: tuple[int, ...]
    prompt_ns: tuple[int, ...]


@dataclass(frozen=True)
class BandwidthSamples:
    """Times in nanoseconds of reading `bytes` bytes that are in no cache."""

    threads: int
    bytes: int
    ns: tuple[int, ...]


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
    counts = (default_threads() if threads is None else threads,)
    return measure_sweep(paths, prompt=prompt, generate=generate, threads=counts, repeat=repeat, progress=progress)


def measure_sweep(
    paths: Sequence[Path],
    *,
    prompt: int,
    generate: int,
    threads: Sequence[int],
    repeat: int,
    cpus: Sequence[int] | None = None,
    progress: Progress = silent,
) -> list[DecodeSamples]:
    """Time files with several numbers of threads, on the processors `cpus` where they are given.

    Gives all files with the first number of threads, then with the next. Turns and errors as measure_files.
    """
    _check_files(paths, repeat)
    native = load_native()

    def decode(turn: Turn) -> DecodeResult:
        with _native_errors(native, turn[0]):
            result: DecodeResult = native.decode(
                turn[0], prompt=prompt, generate=generate, threads=turn[1], repeat=1, cpus=cpus
            )
        return result

    turns = [(path, count) for count in threads for path in paths]
    found = _take_turns(decode, turns, repeat, "measuring speed", progress)
    return [_join(turn, prompt, generate, results) for turn, results in zip(turns, found, strict=True)]


def measure_parts(
    paths: Sequence[Path],
    *,
    prompt: int,
    generate: int,
    threads: Sequence[int],
    cpus: Sequence[int] | None = None,
    progress: Progress = silent,
) -> list[PartSamples]:
    """Time one prompt and up to SPLIT_TOKENS tokens of files part by part; order and errors as measure_sweep."""
    _check_files(paths, 1)
    native = load_native()
    tokens = min(generate, SPLIT_TOKENS)

    def decode(turn: Turn) -> DecodeResult:
        with _native_errors(native, turn[0]):
            result: DecodeResult = native.decode(
                turn[0], prompt=prompt, generate=tokens, threads=turn[1], repeat=1, cpus=cpus, parts=True
            )
        return result

    turns = [(path, count) for count in threads for path in paths]
    found = _take_turns(decode, turns, 1, "measuring types", progress)
    return [
        PartSamples(str(path), count, _parts(result["prompt_parts"]), _parts(result["generate_parts"]))
        for (path, count), (result,) in zip(turns, found, strict=True)
    ]


def sum_by_type(parts: Sequence[Part]) -> dict[str, tuple[int, ...]]:
    """Nanoseconds by type, decode by decode."""
    found: dict[str, tuple[int, ...]] = {}
    for part in parts:
        before = found.get(part.kind, (0,) * len(part.ns))
        found[part.kind] = tuple(total + more for total, more in zip(before, part.ns, strict=True))
    return found


def measure_images(
    paths: Sequence[Path],
    mmproj: Path,
    image: Image.Image,
    *,
    threads: Sequence[int],
    repeat: int,
    cpus: Sequence[int] | None = None,
    progress: Progress = silent,
) -> list[ImageSamples]:
    """Time files in turn with an image of the size that `fit_picture` makes; order and errors as measure_sweep."""
    _check_files(paths, repeat)
    native = load_native()
    pixels = image.convert("RGB").tobytes()

    def look(turn: Turn) -> ImageResult:
        with _native_errors(native, turn[0]), _pinned(cpus):
            result: ImageResult = native.image(
                turn[0], mmproj, pixels, image.width, image.height, threads=turn[1], repeat=1
            )
        return result

    turns = [(path, count) for count in threads for path in paths]
    found = _take_turns(look, turns, repeat, "measuring images", progress)
    return [_join_images(turn, results) for turn, results in zip(turns, found, strict=True)]


def measure_bandwidth(
    threads: Sequence[int], *, cpus: Sequence[int] | None = None, progress: Progress = silent
) -> list[BandwidthSamples]:
    """Time reading memory with each number of threads; raises as measure_sweep."""
    native = load_native()
    found = []
    for done, count in enumerate(threads):
        progress("measuring memory", done, len(threads))
        with _native_errors(native, Path("memory")), _pinned(cpus):
            result = native.bandwidth(count)
        found.append(BandwidthSamples(count, result["bytes"], tuple(result["ns"])))
    progress("measuring memory", len(threads), len(threads))
    return found


def fit_picture(mmproj: Path, image: Image.Image) -> Image.Image:
    """The image in the size in which a vision part takes it; raises GGUFError where `mmproj` is none."""
    metadata = GGUFFile.open(mmproj).metadata
    if metadata.get("general.architecture") != "clip":
        raise GGUFError(f"{mmproj} is no vision part", path=mmproj, hint="give the model's mmproj")
    return fit_to_grid(image, projector_of(metadata).limits(metadata, mmproj, None))


def require_memory(paths: Sequence[Path], mmproj: Path | None = None) -> None:
    """Raise RequestError where a file, with its vision part, is larger than the free memory."""
    free, beside = free_memory(), mmproj.stat().st_size if mmproj else 0
    for path in paths:
        needed = path.stat().st_size + beside
        if needed > free:
            raise RequestError(
                f"{path} needs {needed:,} bytes of memory, {free:,} bytes are free",
                hint="close other programs, take a smaller file, or read it from the disk over and over with --force",
            )


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


def _check_files(paths: Sequence[Path], repeat: int) -> None:
    if not paths:
        raise RequestError("there is no file to measure", hint="name at least one GGUF")
    if repeat < 1:
        raise RequestError(f"repeat must be at least 1, not {repeat}", hint="ask for one round or more")
    if repeat > MOST_ROUNDS:
        raise RequestError(f"repeat must be at most {MOST_ROUNDS}, not {repeat}", hint="ask for fewer rounds")
    for path in paths:
        open_loadable(path)


def _take_turns(
    measure: Callable[[Turn], Result], turns: Sequence[Turn], repeat: int, what: str, progress: Progress
) -> list[list[Result]]:
    """Every turn in the first round, then every turn in the next; the results of each turn."""
    found: list[list[Result]] = [[] for _ in turns]
    for round_number in range(repeat):
        for index, turn in enumerate(turns):
            progress(what, round_number * len(turns) + index, repeat * len(turns))
            found[index].append(measure(turn))
    progress(what, repeat * len(turns), repeat * len(turns))
    return found


@contextlib.contextmanager
def _native_errors(native: ModuleType, path: Path) -> Iterator[None]:
    """The native module's exceptions become ours here."""
    try:
        yield
    except ValueError as error:
        raise RequestError(str(error), hint="ask for other numbers of tokens, threads or processors") from error
    except native.DecodeError as error:
        raise RunError(str(error), hint="check the file, or make it again") from error
    except MemoryError as error:
        raise RunError(f"not enough memory to run {path}", hint="ask for fewer tokens") from error


@contextlib.contextmanager
def _pinned(cpus: Sequence[int] | None) -> Iterator[None]:
    """Keep this thread, and those that it starts meanwhile, on some processors; raises ValueError for wrong ones."""
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    if not before.issuperset(cpus):
        raise ValueError("cpus names processors that this process may not use")
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _join(turn: Turn, prompt: int, generate: int, results: list[DecodeResult]) -> DecodeSamples:
    first = results[0]
    return DecodeSamples(
        path=str(turn[0]),
        prompt=prompt,
        generate=generate,
        threads=turn[1],
        prompt_ns=tuple(sample for result in results for sample in result["prompt_ns"]),
        generate_ns=tuple(sample for result in results for sample in result["generate_ns"]),
        load_ns=tuple(result["load_ns"] for result in results),
        model_bytes=first["model_bytes"],
        parameters=first["parameters"],
        context=first["context"],
        kv_bytes=first["kv_bytes"],
        read_bytes=first["read_bytes"],
        peak_memory=max(result["peak_memory"] for result in results),
    )


def _parts(found: Sequence[tuple[int | None, list[int]]]) -> tuple[Part, ...]:
    return tuple(Part(OTHER if kind is None else GGMLQuantizationType(kind).name, tuple(ns)) for kind, ns in found)


def _join_images(turn: Turn, results: list[ImageResult]) -> ImageSamples:
    return ImageSamples(
        path=str(turn[0]),
        threads=turn[1],
        tokens=results[0]["tokens"],
        encode_ns=tuple(sample for result in results for sample in result["encode_ns"]),
        prompt_ns=tuple(sample for result in results for sample in result["prompt_ns"]),
    )
