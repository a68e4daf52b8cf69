"""SentencePiece BPE vocabularies for pico checkpoints, as tokenizer.model and as tokenizer.json."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

from tests.pico_files import WORDS, added_token

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


class Piece(NamedTuple):
    """An entry of the vocabulary; its id is its place."""

    text: str
    score: float
    kind: int


def sentence_pieces(first: Iterable[tuple[str, int]], size: int) -> list[Piece]:
    """The given pieces, all bytes, the merges that spell out WORDS, and letters; `size` in all at the most."""
    pieces = [Piece(text, 0.0, kind) for text, kind in first]
    pieces += [Piece(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    letters = [SPACE, *sorted(set(WORDS) - {" "}, key=lambda letter: (-WORDS.count(letter), letter))]
    known = {piece.text for piece in pieces} | set(letters)
    texts: list[str] = []
    for text in (part for word in WORDS.split() for part in (SPACE + word, word)):
        for end in range(2, len(text) + 1):
            if text[:end] not in known and len(pieces) + len(texts) + len(letters) < size:
                texts.append(text[:end])
                known.add(text[:end])
    return pieces + [Piece(text, -float(rank), NORMAL) for rank, text in enumerate([*texts, *letters])]


def merges_of(pieces: list[Piece]) -> list[list[str]]:
    """Every way to put a piece together from two others, best piece first."""
    usable = {piece.text: rank for rank, piece in enumerate(pieces) if piece.kind in (NORMAL, USER_DEFINED)}
    merges = []
    for text in usable:
        halves = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        known = [pair for pair in halves if pair[0] in usable and pair[1] in usable]
        merges += sorted(known, key=lambda pair: (usable[pair[0]], usable[pair[1]]))
    return [list(pair) for pair in merges]


def model_file(pieces: list[Piece], roles: dict[str, int], *, dummy_prefix: bool) -> bytes:
    """`tokenizer.model`: a ModelProto in protobuf's wire format; `roles` are the ids of unk, bos, eos, pad."""
    trainer = _number(3, 2) + _number(4, len(pieces)) + _number(35, 1)
    fields = {"unk": 40, "bos": 41, "eos": 42, "pad": 43}
    for role, rank in roles.items():
        trainer += _number(fields[role], rank) + _block(fields[role] + 5, pieces[rank].text.encode())
    normalizer = _block(1, b"identity") + _number(3, int(dummy_prefix)) + _number(4, 0) + _number(5, 1)
    return b"".join(_block(1, _piece(piece)) for piece in pieces) + _block(2, trainer) + _block(3, normalizer)


def _piece(piece: Piece) -> bytes:
    return _block(1, piece.text.encode()) + b"\x15" + struct.pack("<f", piece.score) + _number(3, piece.kind)


def _block(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    octets = []
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*octets, value])


def piece_tokenizer_json(
    pieces: list[Piece],
    added: dict[str, tuple[int, bool]],
    bos: str,
    *,
    normalizer: dict[str, Any],
    pre_tokenizer: dict[str, Any] | None,
    strip: bool,
) -> dict[str, Any]:
    """The same vocabulary for the tokenizers library; `added` gives ids, and whether they are special."""
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    second_begin = {"SpecialToken": {"id": bos, "type_id": 1}}
    spaces = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoders = [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]
    decoders += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if strip else []
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": rank} | added_token(token, special) for token, (rank, special) in added.items()],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, first],
            "pair": [begin, first, second_begin, second],
            "special_tokens": {bos: {"id": bos, "ids": [added[bos][0]], "tokens": [bos]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece.text: rank for rank, piece in enumerate(pieces)},
            "merges": merges_of(pieces),
        },
    }
