import os
from collections.abc import Sequence
from typing import TypeAlias, TypedDict, type_check_only

from typing_extensions import Buffer

_Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

LLAMA_CPP_PYTHON: str

class DecodeError(RuntimeError): ...

@type_check_only
class DecodeResult(TypedDict):
    prompt_ns: list[int]
    generate_ns: list[int]
    prompt_parts: list[tuple[int | None, list[int]]]
    generate_parts: list[tuple[int | None, list[int]]]
    load_ns: int
    model_bytes: int
    parameters: int
    kv_bytes: int
    read_bytes: int
    peak_memory: int
    context: int

@type_check_only
class ImageResult(TypedDict):
    encode_ns: list[int]
    prompt_ns: list[int]
    tokens: int

@type_check_only
class KernelResult(TypedDict):
    ns: list[int]
    bytes: int
    weights: int
    matrices: int
    repacked: bool

@type_check_only
class BandwidthResult(TypedDict):
    ns: list[int]
    bytes: int
    checksum: int

def decode(
    model: _Path,
    *,
    prompt: int,
    generate: int,
    threads: int,
    repeat: int = 3,
    cpus: Sequence[int] | None = None,
    parts: bool = False,
) -> DecodeResult: ...
def image(
    model: _Path,
    mmproj: _Path,
    pixels: Buffer,
    width: int,
    height: int,
    *,
    threads: int,
    repeat: int = 1,
) -> ImageResult: ...
def kernel(
    type: int,  # noqa: A002
    rows: int,
    columns: int,
    batch: int,
    *,
    threads: int,
    min_seconds: float = 0.2,
    working_set: int = 0,
) -> KernelResult: ...
def bandwidth(
    threads: int,
    *,
    bytes: int = 0,  # noqa: A002
    min_seconds: float = 0.2,
) -> BandwidthResult: ...
