"""Vocabularies in the files of other programs, written by hand: sentencepiece, llama2.c, and a pair of vocab.json and merges.txt."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from tinyllm.text.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN
from tinyllm.text.tokenizer import Tokenizer

SPACE = "\u2581"
SIZE = 512  # tokens of `pieces_of`'s vocabularies: three control tokens, 256 bytes, and the pieces


def message(fields: dict[int, int | bytes | float]) -> bytes:
    """Return a protobuf message; a float is written as fixed32."""
    found = b""
    for number, value in fields.items():
        if isinstance(value, float):
            found += varint(number << 3 | 5) + struct.pack("<f", value)
        elif isinstance(value, int):
            found += varint(number << 3) + varint(value % (1 << 64))
        else:
            found += varint(number << 3 | 2) + varint(len(value)) + value
    return found


def varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def model(
    pieces: Sequence[tuple[str, float, int]] = (), trainer: dict | None = None, normalizer: dict | None = None
) -> bytes:
    """Return a sentencepiece model: unknown, start, end, 256 bytes, and the given pieces."""
    rows = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    rows += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    data = b"".join(message({1: message({1: t.encode(), 2: s, 3: k})}) for t, s, k in [*rows, *pieces])
    return data + message({2: message({3: 2, 35: 1, **(trainer or {})}), 3: message({4: 0, **(normalizer or {})})})


def bin_of(pieces: Sequence[tuple[str, float, int]], *, order: int = 1) -> bytes:
    """Return a llama2.c vocabulary: spaces for U+2581, line breaks around the start and end tokens."""
    rows = [("<unk>", 0.0), ("\n<s>\n", 0.0), ("\n</s>\n", 0.0)][::order]
    rows += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    rows += [(text.replace(SPACE, " "), score) for text, score, _ in pieces]
    body = b"".join(struct.pack("<fi", s, len(t.encode())) + t.encode() for t, s in rows)
    return struct.pack("<i", 7) + body


def pair(tokenizer: Tokenizer, folder: Path, config: dict | None = None) -> Path:
    """Write vocab.json and merges.txt of a byte-level vocabulary."""
    spec = json.loads(tokenizer._whole.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(spec["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in spec["merges"]))
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def pieces_of(texts: Sequence[str], size: int = SIZE) -> list[tuple[str, float, int]]:
    """Return the pieces of a vocabulary of `size` tokens: characters, then the most frequent pairs, merged one after another."""
    words = Counter(SPACE + word for text in texts for word in text.split())
    split = {word: list(word) for word in words}
    pieces = sorted({character for word in words for character in word})
    while len(pieces) < size - 259:
        counts: Counter[tuple[str, str]] = Counter()
        for word, parts in split.items():
            for two in pairwise(parts):
                counts[two] += words[word]
        a, b = max(counts, key=lambda two: (counts[two], two))
        pieces.append(a + b)
        split = {word: _merged(parts, a, b) for word, parts in split.items()}
    assert len(pieces) == size - 259, "fewer characters or a larger vocabulary"
    return [(piece, float(-rank), NORMAL) for rank, piece in enumerate(pieces)]


def _merged(parts: list[str], a: str, b: str) -> list[str]:
    found: list[str] = []
    for part in parts:
        if found and found[-1] == a and part == b:
            found[-1] = a + b
        else:
            found.append(part)
    return found
