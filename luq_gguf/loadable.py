"""What llama.cpp takes for granted in a GGUF and aborts the process over, checked on the header beforehand.

Found by loading damaged files (tests/fuzz). A file that passes may still be refused by llama.cpp, with a message.
"""

from __future__ import annotations

from pathlib import Path

from luq_gguf.errors import GGUFError
from luq_gguf.gguf_file import GGUFFile

MAX_LAYERS = 512
"""LLAMA_MAX_LAYERS in llama.cpp's llama-hparams.h."""
TOKENS = "tokenizer.ggml.tokens"


def open_loadable(path: Path) -> GGUFFile:
    """A text GGUF that llama.cpp can be handed; raises GGUFError where the file is broken or would end the process."""
    file = GGUFFile.open(path)
    architecture = file.metadata.get("general.architecture")
    if architecture == "clip":
        raise GGUFError(f"{path} is a vision part, not a text model", path=path, hint="give it with --mmproj")
    layers = file.metadata.get(f"{architecture}.block_count", 1)
    if not isinstance(layers, int) or not 1 <= layers <= MAX_LAYERS:
        raise _refused(path, f"block_count is {layers!r}, not a number from 1 to {MAX_LAYERS}")
    deep = file.metadata.get(f"{architecture}.n_deepstack_layers", 0)
    if not isinstance(deep, int) or not 0 <= deep < layers:
        raise _refused(path, f"n_deepstack_layers is {deep!r}, not fewer than its {layers} layers")
    _check_sections(file, str(architecture))
    _check_tokens(file)
    return file


def _check_tokens(file: GGUFFile) -> None:
    """No two tokens may be the same; llama.cpp reads each up to its first zero byte and gives empty ones a name."""
    tokens = file.metadata.get(TOKENS)
    if not isinstance(tokens, list):
        return
    read = (str(token).partition("\0")[0] or f"[EMPTY_{rank}]" for rank, token in enumerate(tokens))
    names = [name for name in read if "\ufffd" not in name]  # what is no UTF-8 is not told apart here
    if len(set(names)) != len(names):
        raise _refused(file.path, f"two of its {len(tokens)} tokens are the same")


def _check_sections(file: GGUFFile, architecture: str) -> None:
    """M-RoPE turns that many pairs of a head's channels; a head must have them."""
    sections = file.metadata.get(f"{architecture}.rope.dimension_sections")
    if sections is None:
        return
    width, heads = (file.metadata.get(f"{architecture}.{key}") for key in ("embedding_length", "attention.head_count"))
    if not isinstance(width, int) or not isinstance(heads, int) or heads < 1:
        return  # by layer, or broken in a way that llama.cpp says
    head = file.metadata.get(f"{architecture}.attention.key_length", width // heads)
    turned = file.metadata.get(f"{architecture}.rope.dimension_count", head)
    numbers = isinstance(sections, list) and all(isinstance(size, int) and size >= 0 for size in sections)
    if not numbers or not isinstance(turned, int) or sum(sections) > turned:
        raise _refused(file.path, f"rope.dimension_sections is {sections!r} for heads of {head!r} channels")


def _refused(path: Path, why: str) -> GGUFError:
    return GGUFError(f"llama.cpp cannot load {path}: {why}", path=path, hint="make or download it again")
