"""SentencePiece vocabularies as GGUF metadata: `tokenizer.model` where it is there, else `tokenizer.json`.

`tokenizer.model` is a protobuf message; its few fields are read by the protobuf library through SentencePiece's own
description of them, and no tokenizer is made of a file that anyone may have written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gguf

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import CheckpointError
from luq_gguf.families.metadata import add_special_tokens, first_line, require_sane_files
from luq_gguf.small_files import read_small
from luq_gguf.tokenizer_file import HINT, load_tokenizer

FILE = "tokenizer.model"
UNUSED_SCORE, ADDED_SCORE = -10000.0, -1000.0
SPACE = "\u2581"
LOOKS_SPECIAL = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
"""Tokens that some checkpoints do not call special although they are."""
BYTE_LENGTH = len("<0x00>")


@dataclass
class Vocabulary:
    """Text, score and llama.cpp type of every token."""

    texts: list[str]
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)

    @classmethod
    def empty(cls, size: int) -> Vocabulary:
        """Names for tokens that are not there."""
        unused = int(gguf.TokenType.UNUSED)
        return cls([f"[PAD{rank}]" for rank in range(size)], [UNUSED_SCORE] * size, [unused] * size)

    def put(self, rank: int, text: str, score: float, kind: gguf.TokenType) -> None:
        """Give a token; ids beyond the model's are left out, as llama.cpp's converter does."""
        if rank < len(self.texts):
            self.texts[rank], self.scores[rank], self.types[rank] = text, score, int(kind)


def add_sentencepiece(writer: gguf.GGUFWriter, checkpoint: Checkpoint, vocabulary_size: int) -> None:
    """Add the vocabulary with its scores, the special tokens and the chat template; raises CheckpointError."""
    require_sane_files(checkpoint)
    load_tokenizer(checkpoint, None)
    vocabulary = read_vocabulary(checkpoint, vocabulary_size)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.texts)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    add_special_tokens(writer, checkpoint, n_vocab=vocabulary_size)


def read_vocabulary(checkpoint: Checkpoint, size: int) -> Vocabulary:
    """All `size` tokens: the pieces, then what was added to them."""
    vocabulary = Vocabulary.empty(size)
    if not _put_pieces(checkpoint, vocabulary):
        _put_merges(checkpoint, vocabulary)
    for text, rank in checkpoint.side_json("added_tokens.json").items():
        vocabulary.put(_rank(checkpoint, rank), text, ADDED_SCORE, gguf.TokenType.USER_DEFINED)
    added = checkpoint.side_json("tokenizer_config.json").get("added_tokens_decoder")
    for rank, token in (added if isinstance(added, dict) else {}).items():
        _put_added(checkpoint, vocabulary, _rank(checkpoint, rank), token)
    return vocabulary


def _put_pieces(checkpoint: Checkpoint, vocabulary: Vocabulary) -> bool:
    """Put in the pieces of tokenizer.model; says whether there is one."""
    path = checkpoint.side_file(FILE)
    if path is None:
        return False
    from google.protobuf.message import DecodeError
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    try:
        pieces = ModelProto.FromString(read_small(path)).pieces
        for rank, piece in enumerate(pieces):
            vocabulary.put(rank, piece.piece, piece.score, gguf.TokenType(piece.type))
    except (DecodeError, OSError, UnicodeError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {first_line(error)}", hint=HINT) from error
    if not pieces:
        raise CheckpointError(f"{path} has no pieces", hint=HINT)
    return True


def _put_merges(checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
    """Put in the pieces of tokenizer.json: SentencePiece's score of a piece is its merge's rank, negative."""
    model: dict[str, Any] = checkpoint.side_json("tokenizer.json")["model"]
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        left, right = pair if isinstance(pair, list) else pair.split(" ", 1)
        ranks.setdefault(left + right, rank)
    for text, rank in model["vocab"].items():
        kind = gguf.TokenType.NORMAL
        if text == model.get("unk_token"):
            kind = gguf.TokenType.UNKNOWN
        elif len(text) == BYTE_LENGTH and text.startswith("<0x"):
            kind = gguf.TokenType.BYTE
        score = -float(ranks.get(text, len(ranks))) if kind == gguf.TokenType.NORMAL else 0.0
        vocabulary.put(rank, text, score, kind)


def _put_added(checkpoint: Checkpoint, vocabulary: Vocabulary, rank: int, token: object) -> None:
    text = token.get("content") if isinstance(token, dict) else None
    if not isinstance(token, dict) or not isinstance(text, str):
        raise CheckpointError(f"added token {rank} of {checkpoint.folder} has no content", hint=HINT)
    if token.get("special") or _looks_special(text):
        vocabulary.put(rank, text, ADDED_SCORE, gguf.TokenType.CONTROL)
    else:
        vocabulary.put(rank, text.replace(SPACE, " "), ADDED_SCORE, gguf.TokenType.USER_DEFINED)


def _looks_special(text: str) -> bool:
    marked = text.startswith(("<|", "<\uff5c")) and text.endswith(("|>", "\uff5c>"))
    return text in LOOKS_SPECIAL or marked or (text.startswith("<unused") and text.endswith(">"))


def _rank(checkpoint: Checkpoint, rank: object) -> int:
    try:
        found = int(str(rank))
    except ValueError:
        found = -1
    if found < 0:
        raise CheckpointError(f"an added token of {checkpoint.folder} has the id {str(rank)[:40]!r}", hint=HINT)
    return found
