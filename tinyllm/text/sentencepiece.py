"""A sentencepiece BPE vocabulary (`tokenizer.model` of Llama 1 and 2, Mistral, TinyLlama …) as a tokenizer.json.

The file is one protobuf message, ModelProto of sentencepiece's `sentencepiece_model.proto`. The few fields that decide ids are parsed
here, so neither sentencepiece nor protobuf is needed. The order of merges follows from the pieces' scores: higher scores merge first.

Left out and refused: Unigram, word and character models, vocabularies without all 256 bytes, normalization (NFKC, collapsed spaces),
spaces written after a word. They lose text, or need another algorithm.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tinyllm.text import vocabulary

SPACE = "\u2581"  # how a space is written in a piece
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # SentencePiece.Type
_MODELS = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}  # TrainerSpec.model_type


@dataclass(frozen=True)
class Piece:
    """One row of the vocabulary; its id is its position in the file."""

    text: str
    score: float
    type: int


def read(data: bytes, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Convert a `tokenizer.model`: return the content of a tokenizer.json, and the special tokens as in tokenizer_config.json.

    Args:
        where: path of the file, for messages.

    Raises:
        UserError: a kind that is left out (USAGE); a damaged file (INTEGRITY).
    """
    try:
        model = _fields(data)
        pieces = [_piece(raw) for raw in model.get(1, [])]
        trainer, normalizer = (_fields(model[field][-1]) if field in model else {} for field in (2, 3))
        names = {key: _name(trainer, pieces, *at) for key, at in _NAMES.items()}
    except (ValueError, IndexError, TypeError, struct.error) as error:
        raise vocabulary.broken(f"not a sentencepiece model: {error}", where) from error
    kind = _MODELS.get(_number(trainer, 3, 1), "unknown")
    refused = {
        f"a sentencepiece {kind} model": kind != "BPE",
        "a sentencepiece model that changes the text it reads": bool(normalizer.get(2, [b""])[-1]),
        "a sentencepiece model that drops repeated spaces": bool(_number(normalizer, 4, 1)),
        "a sentencepiece model that leaves spaces as they are": not _number(normalizer, 5, 1),
        "a sentencepiece model with spaces after the words": bool(_number(trainer, 24, 0)),
        "a sentencepiece model with unused pieces": any(piece.type == UNUSED for piece in pieces),
    }
    for what, applies in refused.items():
        if applies:
            raise vocabulary.unsupported(f"{what} is not supported, only BPE over bytes that keeps all text", where)
    spec = to_spec(pieces, where, leading_space=bool(_number(normalizer, 3, 1)))
    return spec, {key: name for key, name in names.items() if name is not None}


def to_spec(pieces: Sequence[Piece], where: str, *, leading_space: bool) -> dict[str, Any]:
    """Return the content of a tokenizer.json that encodes to the same ids as sentencepiece.

    Args:
        pieces: in the order of their ids.
        where: path of the file, for messages.
        leading_space: put a space in front of every text.

    Raises:
        UserError: two equal pieces (INTEGRITY).
    """
    vocab = {piece.text: i for i, piece in enumerate(pieces)}
    if len(vocab) < len(pieces):
        raise vocabulary.broken("two pieces are the same", where)
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": i, "content": piece.text, **plain, "special": piece.type != USER_DEFINED}
        for i, piece in enumerate(pieces)
        if piece.type in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prefix = [{"type": "Prepend", "prepend": SPACE}] * leading_space
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * leading_space
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, space]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            "type": "BPE",
            "unk_token": next((piece.text for piece in pieces if piece.type == UNKNOWN), None),
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": _merges(pieces),
        },
    }


def _merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Return all pairs of pieces that make another piece, ordered by its score, highest first.

    sentencepiece merges the two neighbors whose union has the highest score, and the leftmost of equals; a list of merges ranks pairs.
    With the longer left part first among equal scores, both merge a run of spaces (all scored -1e9) from the left.
    """
    scores = {piece.text: piece.score for piece in pieces if piece.type == NORMAL}
    found = [
        (-score, -at, text[:at], text[at:])
        for text, score in scores.items()
        for at in range(1, len(text))
        if text[:at] in scores and text[at:] in scores
    ]
    found.sort(key=lambda merge: merge[:2])
    return [(left, right) for _, _, left, right in found]


_NAMES = {  # tokenizer_config.json's name -> (field of the id, its default, field of the piece) in TrainerSpec
    "bos_token": (41, 1, 46),
    "eos_token": (42, 2, 47),
    "pad_token": (43, -1, 48),
}


def _name(trainer: dict[int, list[Any]], pieces: Sequence[Piece], id_: int, default: int, piece: int) -> str | None:
    """Return a special token by the name the trainer gave it, or by its id; None if it is not a control token of the vocabulary."""
    at = _number(trainer, id_, default)
    control = {p.text for p in pieces if p.type == CONTROL}
    named = trainer[piece][-1].decode() if piece in trainer else pieces[at].text if 0 <= at < len(pieces) else ""
    return named if named in control else None


def _piece(raw: bytes) -> Piece:
    fields = _fields(raw)
    (score,) = struct.unpack("<f", fields.get(2, [b"\0\0\0\0"])[-1])
    return Piece(fields[1][-1].decode() if 1 in fields else "", score, _number(fields, 3, NORMAL))


def _number(fields: dict[int, list[Any]], field: int, default: int) -> int:
    """Return the last value of an int32 or bool field. -1 is stored as 2^64 - 1, which is not a valid id either."""
    value = fields.get(field, [default])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {field} is not a number")
    return value


def _fields(data: bytes) -> dict[int, list[Any]]:
    """Parse a protobuf message: field number -> its values in order, int for varints and bytes for everything else."""
    found: dict[int, list[Any]] = {}
    for field, value in _walk(data):
        found.setdefault(field, []).append(value)
    return found


def _walk(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield field number and value of every entry of a protobuf message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError("the file ends too early")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the variable-length integer at an offset, and the offset behind it."""
    value = shift = 0
    while shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
    raise ValueError("a number of more than 64 bits")
