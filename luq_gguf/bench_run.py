"""A whole benchmark: checks what was asked for, measures decoding, images and memory, and makes the record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luq_gguf.bench import fit_picture, measure_bandwidth, measure_images, measure_parts, measure_sweep, require_memory
from luq_gguf.bench_record import BenchRecord, BenchSettings, Measured, describe_image, make_record
from luq_gguf.errors import RequestError
from luq_gguf.gguf_file import GGUFFile
from luq_gguf.images import load_image
from luq_gguf.loadable import open_loadable
from luq_gguf.processors import default_threads
from luq_gguf.progress import Progress, silent
from luq_gguf.projectors import doubt_pair

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Sight:
    """A vision part, an image file, and that image in the size in which the vision part takes it.

    `doubts` are what speaks against the vision part belonging to the files.
    """

    mmproj: Path
    source: Path
    picture: Image.Image
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class BenchRequest:
    """What to measure; see BenchSettings. `threads` () takes one for each core, of `cpus` where they are given.

    `mmproj` and `image` come together; `force` measures files that are larger than the free memory. Raises
    RequestError for what cannot be.
    """

    files: tuple[Path, ...]
    prompt: int = 128
    generate: int = 32
    rounds: int = 6
    threads: tuple[int, ...] = ()
    cpus: tuple[int, ...] | None = None
    mmproj: Path | None = None
    image: Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if (self.mmproj is None) != (self.image is None):
            raise RequestError("a vision part and an image belong together", hint="give both --mmproj and --image")
        if len(set(self.threads)) < len(self.threads):
            shown = ",".join(map(str, self.threads))
            raise RequestError(f"threads {shown} name a number twice", hint="name each once")

    def counts(self) -> tuple[int, ...]:
        """The numbers of threads to measure with."""
        most = default_threads()
        return self.threads or (min(most, len(self.cpus)) if self.cpus else most,)


def run_bench(request: BenchRequest, progress: Progress = silent) -> tuple[BenchRecord, Measured]:
    """Measure; gives the record and the samples that it holds.

    Raises RequestError for numbers out of range and for a file larger than the free memory, GGUFError for what is no
    GGUF, ImageError for what is no image, RunError where llama.cpp cannot load or run a file.
    """
    sight = _open_all(request)
    measured = _measure(request, sight, progress)
    settings = BenchSettings(
        prompt=request.prompt,
        generate=request.generate,
        rounds=request.rounds,
        threads=request.counts(),
        cpus=request.cpus,
        image=describe_image(sight.source, sight.picture.size, sight.mmproj, sight.doubts) if sight else None,
    )
    return make_record(request.files, settings, measured, progress), measured


def _open_all(request: BenchRequest) -> Sight | None:
    """Look at every file before any is loaded."""
    opened = [open_loadable(path).metadata for path in request.files]
    sight = None
    if request.mmproj is not None and request.image is not None:
        picture = fit_picture(request.mmproj, load_image(request.image))
        vision = GGUFFile.open(request.mmproj).metadata
        doubts = [doubt for metadata in opened if (doubt := doubt_pair(metadata, vision, request.mmproj))]
        sight = Sight(request.mmproj, request.image, picture, tuple(dict.fromkeys(doubts)))
    if not request.force:
        require_memory(request.files, request.mmproj)
    return sight


def _measure(request: BenchRequest, sight: Sight | None, progress: Progress) -> Measured:
    files, counts, rounds, cpus = request.files, request.counts(), request.rounds, request.cpus
    decodes = measure_sweep(
        files, prompt=request.prompt, generate=request.generate, threads=counts, repeat=rounds, cpus=cpus,
        progress=progress,
    )  # fmt: skip
    parts = measure_parts(
        files, prompt=request.prompt, generate=request.generate, threads=counts, cpus=cpus, progress=progress
    )
    images = (
        measure_images(files, sight.mmproj, sight.picture, threads=counts, repeat=rounds, cpus=cpus, progress=progress)
        if sight
        else []
    )
    return Measured(decodes, measure_bandwidth(counts, cpus=cpus, progress=progress), images, parts)
