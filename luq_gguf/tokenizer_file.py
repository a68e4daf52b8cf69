"""`tokenizer.json` of a checkpoint, loaded by the tokenizers library within bounds.

The one place where that library is called on a file that anyone may have made: whatever it does with it, panics of
its Rust code too, ends in a CheckpointError. Only byte-level BPE with a pattern that is known is let in, and the BPE of
SentencePiece, which has none, since a pattern of a stranger can take forever on a harmless text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import CheckpointError, LuqError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.json"
HINT = "download the tokenizer's original files again"
SPLITTERS = {"Sequence", "Split", "ByteLevel"}
SPACE_SPLITTERS = {"Sequence", "Split", "Metaspace"}


def load_tokenizer(checkpoint: Checkpoint, pattern: str | None) -> Tokenizer:
    """The tokenizer, without truncation and padding; it splits texts by `pattern` and nothing else.

    None asks for the tokenizer of SentencePiece, which falls back to bytes and splits at most at spaces.

    Raises CheckpointError where the file is missing, broken, or of another kind.
    """
    content = checkpoint.side_json(FILE)
    if not content:
        raise CheckpointError(f"{checkpoint.folder} has no {FILE}", hint="download the tokenizer's files too")
    require_pattern(checkpoint, content, pattern)
    from tokenizers import Tokenizer

    with tokenizing(checkpoint):
        tokenizer = Tokenizer.from_file(str(checkpoint.folder / FILE))
        tokenizer.no_truncation()  # a file may have been saved with either
        tokenizer.no_padding()
        _require_ids(checkpoint, tokenizer, content.get("added_tokens"))
    return tokenizer


def _require_ids(checkpoint: Checkpoint, tokenizer: Tokenizer, added: object) -> None:
    """The library gives an added token that would leave a gap another id than the file says."""
    for token in added if isinstance(added, list) else ():
        if (found := tokenizer.token_to_id(token["content"])) != token["id"]:
            raise CheckpointError(
                f"{checkpoint.folder / FILE} says that {token['content']} is token {token['id']}, it comes to {found}",
                hint=HINT,
            )


def is_sentencepiece(checkpoint: Checkpoint) -> bool:
    """Whether the tokenizer is SentencePiece's: it falls back to bytes instead of beginning with them."""
    model = checkpoint.side_json(FILE).get("model")
    return isinstance(model, dict) and model.get("byte_fallback") is True


def text_of_token(checkpoint: Checkpoint, name: str) -> str:
    """The text of "bos_token" or "eos_token" in tokenizer_config.json; empty where there is none."""
    stated = checkpoint.side_json("tokenizer_config.json").get(name)
    text = stated.get("content") if isinstance(stated, dict) else stated
    return text if isinstance(text, str) else ""


def require_pattern(checkpoint: Checkpoint, content: dict[str, Any], pattern: str | None) -> None:
    """Raise CheckpointError unless the content of tokenizer.json splits texts by `pattern` and nothing else."""
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise CheckpointError(f"the tokenizer of {checkpoint.folder} is no BPE tokenizer", hint=HINT)
    splits = list(_objects(content.get("pre_tokenizer")))
    kinds = {item["type"] for item in splits if isinstance(item.get("type"), str)}
    patterns = [item["Regex"] for item in splits if "Regex" in item]
    wanted, known = ([], SPACE_SPLITTERS) if pattern is None else ([pattern], SPLITTERS)
    fits = (model.get("byte_fallback") is True) == (pattern is None)
    if not fits or patterns != wanted or not kinds <= known:
        raise CheckpointError(
            f"the tokenizer of {checkpoint.folder} does not split texts as this family does", hint=HINT
        )
    for part in ("normalizer", "decoder"):
        if any("Regex" in item or item.get("type") == "Precompiled" for item in _objects(content.get(part))):
            raise CheckpointError(
                f"the {part} in {checkpoint.folder / FILE} has a pattern, which llama.cpp would not follow", hint=HINT
            )


def _objects(content: object) -> Iterator[dict[str, Any]]:
    """All objects within plain JSON, however deep it is."""
    left = [content]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            yield item
        if isinstance(item, dict | list):
            left.extend(reversed(list(item.values()) if isinstance(item, dict) else item))


@contextlib.contextmanager
def tokenizing(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn whatever the tokenizers library raises within the block into a CheckpointError."""
    try:
        yield
    except (LuqError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"cannot read {checkpoint.folder / FILE}: {_first_line(error)}", hint=HINT) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
