"""What would make llama.cpp abort the process is refused before it is handed the file; kept from tests/fuzz."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGUFWriter

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import GGUFError
from luq_gguf.export import export_text, export_vision
from luq_gguf.families import find_family
from luq_gguf.gguf_file import GGUFFile, encode_header, raw_value
from luq_gguf.loadable import open_loadable

LOAD = """
import sys, llama_cpp
llama_cpp.llama_backend_init()
model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), llama_cpp.llama_model_default_params())
options = llama_cpp.llama_context_default_params()
options.n_ctx = 64
context = llama_cpp.llama_init_from_model(model, options) if model else None
tokens = (llama_cpp.llama_token * 1)(5)
sys.exit(9 if not context or llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, 1)) else 0)
"""


@pytest.fixture(scope="module")
def sound(pico_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = Checkpoint.open(pico_checkpoint)
    path = tmp_path_factory.mktemp("loadable") / "text.gguf"
    export_text(checkpoint, find_family(checkpoint.config), path)
    return path


def array_of(kind: str, values: list) -> bytes:
    """A raw array, as gguf itself writes it."""
    writer = GGUFWriter(None, kind)
    packed = writer._pack_val(values, writer.kv_data[0]["general.architecture"].type.ARRAY, add_vtype=True)
    return bytes(packed)


def edited(sound: Path, path: Path, key: str, raw: bytes) -> Path:
    """The sound file with another value of a key."""
    file = GGUFFile.open(sound)
    entries = {name: file.metadata.raw(name) for name in file.metadata} | {key: raw}
    tensors = [(tensor.name, tensor.shape, tensor.type) for tensor in file.tensors.values()]
    path.write_bytes(encode_header(entries, tensors) + sound.read_bytes()[file.data_start :])
    return path


def tokens_with(file: Path, **changes: str) -> list[str]:
    tokens = list(GGUFFile.open(file).metadata["tokenizer.ggml.tokens"])
    for rank, token in changes.items():
        tokens[int(rank.removeprefix("at"))] = token
    return tokens


def load(path: Path) -> int:
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    run = subprocess.run([sys.executable, "-c", LOAD, str(path)], capture_output=True, check=False, env=environment)
    return run.returncode


def test_sections_wider_than_a_head_are_refused(sound: Path, tmp_path: Path) -> None:
    """llama.cpp then writes beyond its memory: often it crashes, sometimes it runs."""
    raw = array_of("i", [999, 12, 12, 0])
    path = edited(sound, tmp_path / "bad.gguf", "qwen2vl.rope.dimension_sections", raw)
    with pytest.raises(GGUFError, match="dimension_sections"):
        open_loadable(path)


@pytest.mark.parametrize("case", ["no layers", "too many layers", "a token twice", "a token cut by a zero"])
def test_what_llama_cpp_aborts_over_is_refused_before(sound: Path, tmp_path: Path, case: str) -> None:
    first = tokens_with(sound)[300]
    key, raw, word = {
        "no layers": ("qwen2vl.block_count", raw_value(0), "block_count is 0"),
        "too many layers": ("qwen2vl.block_count", raw_value(513), "block_count is 513"),
        "a token twice": ("tokenizer.ggml.tokens", array_of("s", tokens_with(sound, at301=first)), "are the same"),
        "a token cut by a zero": (
            "tokenizer.ggml.tokens",
            array_of("s", tokens_with(sound, at301=f"{first}\0x")),
            "are the same",
        ),
    }[case]
    path = edited(sound, tmp_path / "bad.gguf", key, raw)
    GGUFFile.open(path)
    with pytest.raises(GGUFError, match=word):
        open_loadable(path)
    assert load(path) < 0, "llama.cpp no longer aborts: the check may go"


def test_sound_files_pass(sound: Path, tmp_path: Path) -> None:
    assert open_loadable(sound).metadata["qwen2vl.block_count"] == 3
    empty = edited(
        sound, tmp_path / "empty.gguf", "tokenizer.ggml.tokens", array_of("s", tokens_with(sound, at300="", at301=""))
    )
    open_loadable(empty)
    assert load(empty) == 0


def test_a_vision_part_is_no_text_model(pico_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(pico_checkpoint)
    path = tmp_path / "mmproj.gguf"
    export_vision(checkpoint, find_family(checkpoint.config), path)
    with pytest.raises(GGUFError, match="is a vision part, not a text model"):
        open_loadable(path)
