import os
from typing import TypedDict, type_check_only

LLAMA_CPP_PYTHON: str

class DecodeError(RuntimeError): ...

@type_check_only
class DecodeResult(TypedDict):
    prompt_ns: list[int]
    generate_ns: list[int]
    load_ns: int
    model_bytes: int
    parameters: int
    context: int

def decode(
    model: str | bytes | os.PathLike[str] | os.PathLike[bytes],
    *,
    prompt: int,
    generate: int,
    threads: int,
    repeat: int = 3,
) -> DecodeResult: ...
