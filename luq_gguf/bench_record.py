"""The record of a benchmark: what was measured, on which files, with which settings, on which machine.

Takes the samples of `bench`, gives a JSON record with every sample in it; what follows from the samples is left to
`bench_report`. Files are named without their folders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from luq_gguf import __version__
from luq_gguf.artifacts import Record, sha256_of
from luq_gguf.bench import MOST_ROUNDS, BandwidthSamples, DecodeSamples, ImageSamples, PartSamples, sum_by_type
from luq_gguf.gguf_file import GGUFFile
from luq_gguf.machine import Machine, describe_machine
from luq_gguf.progress import Progress, silent

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1, lt=1 << 63)]
Samples = Annotated[tuple[Count, ...], Field(min_length=1)]
"""Nanoseconds, in the order of measuring."""


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("its date is none") from error


class BenchFile(Record, strict=True):
    """One GGUF: `type_bytes` are the bytes of its tensors by their type's name, `parameters` their numbers."""

    name: str
    sha256: Sha256
    bytes: Count
    parameters: Count
    type_bytes: dict[str, Count]

    @property
    def bits_per_weight(self) -> float:
        """Bits that a number takes, over all tensors."""
        return 8 * sum(self.type_bytes.values()) / self.parameters

    @property
    def type_shares(self) -> dict[str, float]:
        """The share of the tensors' bytes by type, the largest first; they add up to 1."""
        total = sum(self.type_bytes.values())
        return {kind: count / total for kind, count in sorted(self.type_bytes.items(), key=lambda item: -item[1])}


class BenchImage(Record, strict=True):
    """The image and the vision part that files were measured with; the size is that after fitting, in pixels.

    `doubts` are what speaks against the vision part belonging to the files.
    """

    sha256: Sha256
    width: Count
    height: Count
    mmproj: BenchFile
    doubts: tuple[str, ...] = ()


class BenchSettings(Record, strict=True):
    """What was asked for: tokens of the prompt, tokens generated after it, rounds, threads, processors to stay on."""

    prompt: Count
    generate: Count
    rounds: Annotated[int, Field(ge=1, le=MOST_ROUNDS)]
    threads: Annotated[tuple[Count, ...], Field(min_length=1)]
    cpus: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    image: BenchImage | None = None


class DecodeRun(Record, strict=True):
    """One file, by its place in the record, with a number of threads; see DecodeSamples."""

    file: Annotated[int, Field(ge=0)]
    threads: Count
    prompt_ns: Samples
    generate_ns: Samples
    load_ns: Samples
    context: Count
    kv_bytes: Annotated[int, Field(ge=0)]
    read_bytes: Count


class TypeRun(Record, strict=True):
    """Where one file's time goes; see PartSamples. Nothing is there where a graph changes from token to token."""

    file: Annotated[int, Field(ge=0)]
    threads: Count
    prompt_ns: dict[str, Samples]
    generate_ns: dict[str, Samples]


class ImageRun(Record, strict=True):
    """One file with the image; see ImageSamples."""

    file: Annotated[int, Field(ge=0)]
    threads: Count
    tokens: Count
    encode_ns: Samples
    prompt_ns: Samples


class BandwidthRun(Record, strict=True):
    """Times of reading `bytes` bytes of memory with a number of threads."""

    threads: Count
    bytes: Count
    ns: Samples


class Versions(Record, strict=True):
    """What measured: `system_info` is what llama.cpp says of how it was built."""

    luq_gguf: str
    llama_cpp_python: str
    system_info: str


class BenchRecord(Record, strict=True):
    """`luq-gguf bench --json FILE`: runs by number of threads, then by file; `peak_memory` is the whole process's."""

    format: Literal["luq-gguf bench 1"] = "luq-gguf bench 1"
    date: Annotated[AwareDatetime, AfterValidator(_in_utc)]
    versions: Versions
    machine: Machine
    settings: BenchSettings
    files: Annotated[tuple[BenchFile, ...], Field(min_length=1)]
    runs: tuple[DecodeRun, ...]
    images: tuple[ImageRun, ...] = ()
    types: tuple[TypeRun, ...] = ()
    bandwidth: tuple[BandwidthRun, ...]
    peak_memory: Count

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        asked, rounds = self.settings, self.settings.rounds
        turns = [(count, file) for count in asked.threads for file in range(len(self.files))]
        if [(run.threads, run.file) for run in self.runs] != turns:
            raise ValueError("its runs are not those of its files and threads")
        if [(run.threads, run.file) for run in self.images] != (turns if asked.image else []):
            raise ValueError("its images are not those of its files and threads")
        if [(run.threads, run.file) for run in self.types] not in (turns, []):
            raise ValueError("its types are not those of its files and threads")
        if [run.threads for run in self.bandwidth] != list(asked.threads):
            raise ValueError("its bandwidths are not those of its threads")
        if any((len(r.prompt_ns), len(r.generate_ns)) != (rounds, rounds * asked.generate) for r in self.runs):
            raise ValueError("its samples are not those of its rounds")
        if any((len(r.encode_ns), len(r.prompt_ns)) != (rounds, rounds) for r in self.images):
            raise ValueError("its samples are not those of its rounds")
        return self

    def labels(self) -> list[str]:
        """The files' names, numbered where two are the same."""
        names = [file.name for file in self.files]
        return [f"{name} #{place}" if names.count(name) > 1 else name for place, name in enumerate(names, 1)]

    def _repr_html_(self) -> str:
        from luq_gguf.notebook import benchmark_html

        return benchmark_html(self)


@dataclass(frozen=True)
class Measured:
    """All samples of a benchmark, as `bench` gives them."""

    decodes: Sequence[DecodeSamples]
    bandwidth: Sequence[BandwidthSamples]
    images: Sequence[ImageSamples] = ()
    parts: Sequence[PartSamples] = ()


def make_record(
    paths: Sequence[Path], settings: BenchSettings, measured: Measured, progress: Progress = silent
) -> BenchRecord:
    """The record of what was measured with `paths`, in their order; raises GGUFError where one cannot be read."""
    files = _describe_files(paths, progress)
    count = len(paths)
    return BenchRecord(
        date=datetime.now(UTC).replace(microsecond=0),
        versions=_versions(),
        machine=describe_machine(),
        settings=settings,
        files=tuple(files[path] for path in paths),
        runs=tuple(_decode_run(rank % count, samples) for rank, samples in enumerate(measured.decodes)),
        images=tuple(_image_run(rank % count, samples) for rank, samples in enumerate(measured.images)),
        types=tuple(_type_run(rank % count, samples) for rank, samples in enumerate(measured.parts)),
        bandwidth=tuple(BandwidthRun(threads=m.threads, bytes=m.bytes, ns=m.ns) for m in measured.bandwidth),
        peak_memory=max(samples.peak_memory for samples in measured.decodes),
    )


def describe_image(source: Path, size: tuple[int, int], mmproj: Path, doubts: tuple[str, ...] = ()) -> BenchImage:
    """An image file, the size it is fitted to, and the vision part with what speaks against it."""
    described = describe_file(mmproj)
    return BenchImage(sha256=sha256_of(source), width=size[0], height=size[1], mmproj=described, doubts=doubts)


def describe_file(path: Path) -> BenchFile:
    """Size, hash and tensors of a GGUF; raises GGUFError where it cannot be read."""
    header = GGUFFile.open(path)
    type_bytes: dict[str, int] = {}
    for tensor in header.tensors.values():
        type_bytes[tensor.type.name] = type_bytes.get(tensor.type.name, 0) + tensor.nbytes
    return BenchFile(
        name=path.name,
        sha256=sha256_of(path),
        bytes=header.size,
        parameters=sum(prod(tensor.shape) for tensor in header.tensors.values()),
        type_bytes=type_bytes,
    )


def _describe_files(paths: Sequence[Path], progress: Progress) -> Mapping[Path, BenchFile]:
    """Every file once, however often it was named."""
    found: dict[Path, BenchFile] = {}
    distinct = list(dict.fromkeys(paths))
    for done, path in enumerate(distinct):
        progress("hashing files", done, len(distinct))
        found[path] = describe_file(path)
    progress("hashing files", len(distinct), len(distinct))
    return found


def _decode_run(place: int, samples: DecodeSamples) -> DecodeRun:
    return DecodeRun(
        file=place, threads=samples.threads, prompt_ns=samples.prompt_ns, generate_ns=samples.generate_ns,
        load_ns=samples.load_ns, context=samples.context, kv_bytes=samples.kv_bytes, read_bytes=samples.read_bytes,
    )  # fmt: skip


def _image_run(place: int, samples: ImageSamples) -> ImageRun:
    return ImageRun(
        file=place, threads=samples.threads, tokens=samples.tokens, encode_ns=samples.encode_ns,
        prompt_ns=samples.prompt_ns,
    )  # fmt: skip


def _type_run(place: int, samples: PartSamples) -> TypeRun:
    prompt, generate = sum_by_type(samples.prompt), sum_by_type(samples.generate)
    return TypeRun(file=place, threads=samples.threads, prompt_ns=prompt, generate_ns=generate)


def _versions() -> Versions:
    import llama_cpp

    said = llama_cpp.llama_print_system_info().decode(errors="replace")
    return Versions(luq_gguf=__version__, llama_cpp_python=llama_cpp.__version__, system_info=said.strip())
