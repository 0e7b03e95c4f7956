"""Encoding long texts word by word: the ids of most words are known from before.

Byte-level BPE merges within the words that a pattern cuts a text into, so the ids of a word do not depend on its neighbours. A regular
expression of Python's finds the words and a table has their ids; only new words go to the tokenizers library. The ids are the same, in a
fifth of its time. What is a letter, a number or a space is asked of the library's own expressions, whose Unicode is not Python's.
Left out: patterns but the one our own vocabularies have, normalisation, characters beyond U+FFFF (Python's expressions are slow there).
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, pre_tokenizers

from tinyllm.text import vocabulary

_MOST_WORDS = 1 << 16  # in the table: about 12 MB
_LONGEST = 64  # characters of a word worth remembering
_OFTEN = 4  # a table that was filled before it was asked so often a word is of no use
_BEYOND = re.compile("[^\0-\uffff]")
# all that the pattern distinguishes, for a last check before it is relied on
_PROBE = "I'll  say: 'Tis ſaid 'ſ, don’t\t\r\n \n12½³ 'RE\xa0x\x85y\x1cz \u2028é\u0301 東京 αβ! ?\n\n  end\u3000 "


class Words:
    """An encoder for one vocabulary. Not for several threads at once."""

    @classmethod
    def of(cls, text: tokenizers.Tokenizer, dtype: np.dtype) -> Words | None:
        """None where the vocabulary cuts text in another way. `text` must know no control tokens."""
        spec = json.loads(text.to_str())
        if spec["normalizer"] is not None or not _is_own_split(spec["pre_tokenizer"]):
            return None
        words = cls(text, dtype)
        found = words.encode(_PROBE)
        same = (
            found is not None
            and np.frombuffer(found, dtype).tolist() == text.encode(_PROBE, add_special_tokens=False).ids
        )
        return words if same else None

    def __init__(self, text: tokenizers.Tokenizer, dtype: np.dtype):
        self._words = _pattern().findall
        self._table = _Table(text, dtype)

    @property
    def useful(self) -> bool:
        """False once most words turn out to be new, as where words are not written apart."""
        return self._table.useful

    def encode(self, text: str) -> bytes | None:
        """The ids, in `dtype`; None for a text with characters that are not dealt with here."""
        if not text.isascii() and _BEYOND.search(text):
            return None
        words = self._words(text)
        self._table.asked += len(words)
        return b"".join(map(self._table.__getitem__, words))


class _Table(dict[str, bytes]):
    """Word to ids. Emptied when it is full: the frequent words are soon back."""

    def __init__(self, text: tokenizers.Tokenizer, dtype: np.dtype):
        super().__init__()
        self.text, self.dtype = text, dtype
        self.asked, self.useful = 0, True

    def __missing__(self, word: str) -> bytes:
        ids = np.array(self.text.encode(word, add_special_tokens=False).ids, self.dtype).tobytes()
        if len(word) <= _LONGEST:
            if len(self) >= _MOST_WORDS:
                self.useful = self.asked >= _OFTEN * len(self)
                self.asked = 0
                self.clear()
            self[word] = ids
        return ids


def _is_own_split(found: dict[str, Any] | None) -> bool:
    """Whether a pre-tokenizer cuts at `vocabulary.SPLIT` and at nothing else, and then only renames bytes."""
    split = {"type": "Split", "pattern": {"Regex": vocabulary.SPLIT}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    steps = [{k: v for k, v in step.items() if k != "trim_offsets"} for step in (found or {}).get("pretokenizers", [])]
    return steps == [split, to_bytes]


@cache
def _pattern() -> re.Pattern[str]:
    """The library's pattern in Python's words: every class written out."""
    inside = {name: _ranges(name) for name in (r"\p{L}", r"\p{N}", r"\s")}

    def written_out(found: re.Match[str]) -> str:
        part = found[0]
        if part.startswith("["):
            for name, ranges in inside.items():
                part = part.replace(name, ranges)
            return part
        return f"[^{inside[part.lower()]}]" if part == r"\S" else f"[{inside[part]}]"

    return re.compile(re.sub(r"\[[^\]]*\]|\\p\{[LN]\}|\\[sS]", written_out, vocabulary.SPLIT))


def _ranges(name: str) -> str:
    """The characters up to U+FFFF of one of the library's classes, as they stand between brackets."""
    characters = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x10000)]))
    split = pre_tokenizers.Split(Regex(f"[^{name}]+"), "removed")
    found = [(characters[start], characters[end - 1]) for _, (start, end) in split.pre_tokenize_str(characters)]
    return "".join(f"\\u{ord(first):04x}-\\u{ord(last):04x}" for first, last in found)
