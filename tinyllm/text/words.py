"""A faster encoder for large amounts of text: the ids of each word are cached.

Byte-level BPE merges only within the words that a pattern splits a text into, so the ids of a word do not depend on its neighbors. A
regular expression of Python's `re` finds the words, and a table has their ids; only new words go to the tokenizers library. The ids
are the same, in a fifth of the time. The classes of letters, numbers and spaces are read from the library's own regular expressions,
because its version of Unicode is not Python's.
Left out: patterns other than that of vocabularies trained here, normalization, characters above U+FFFF (`re` is slow there).
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

_MAX_WORDS = 1 << 16  # in the table, about 12 MB
_MAX_LENGTH = 64  # characters of a word that is cached
_MIN_LOOKUPS = 4  # per word before the table is full; with fewer, most words are new and the table does not help
_ABOVE_FFFF = re.compile("[^\0-\uffff]")
# Everything that the pattern distinguishes, to compare with the library before the encoder is used.
_PROBE = "I'll  say: 'Tis ſaid 'ſ, don’t\t\r\n \n12½³ 'RE\xa0x\x85y\x1cz \u2028é\u0301 東京 αβ! ?\n\n  end\u3000 "


class Words:
    """An encoder for one vocabulary. Not safe for several threads."""

    @classmethod
    def of(cls, text: tokenizers.Tokenizer, dtype: np.dtype) -> Words | None:
        """Return an encoder to ids of `dtype`, or None where the vocabulary splits text differently.

        Args:
            text: the library's tokenizer without control tokens (`vocabulary.text_encoder`).
        """
        spec = json.loads(text.to_str())
        in_text = any(not token["special"] for token in spec["added_tokens"])  # added tokens that text may contain
        if in_text or spec["normalizer"] is not None or not _is_own_split(spec["pre_tokenizer"]):
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
        """False once most words turned out to be new, as in scripts without spaces between words."""
        return self._table.useful

    def encode(self, text: str) -> bytes | None:
        """Return the ids as bytes of `dtype`, or None for a text with characters above U+FFFF."""
        if not text.isascii() and _ABOVE_FFFF.search(text):
            return None
        words = self._words(text)
        self._table.lookups += len(words)
        return b"".join(map(self._table.__getitem__, words))


class _Table(dict[str, bytes]):
    """Word to ids, as bytes. Cleared when it is full; frequent words are soon cached again."""

    def __init__(self, text: tokenizers.Tokenizer, dtype: np.dtype):
        super().__init__()
        self.text, self.dtype = text, dtype
        self.lookups, self.useful = 0, True

    def __missing__(self, word: str) -> bytes:
        ids = np.array(self.text.encode(word, add_special_tokens=False).ids, self.dtype).tobytes()
        if len(word) <= _MAX_LENGTH:
            if len(self) >= _MAX_WORDS:
                self.useful = self.lookups >= _MIN_LOOKUPS * len(self)
                self.lookups = 0
                self.clear()
            self[word] = ids
        return ids


def _is_own_split(found: dict[str, Any] | None) -> bool:
    """Return True for a pre-tokenizer that splits at `vocabulary.SPLIT` only, and then maps bytes to characters."""
    split = {"type": "Split", "pattern": {"Regex": vocabulary.SPLIT}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    steps = [{k: v for k, v in step.items() if k != "trim_offsets"} for step in (found or {}).get("pretokenizers", [])]
    return steps == [split, to_bytes]


@cache
def _pattern() -> re.Pattern[str]:
    """Return the library's pattern for Python's `re`, with every character class written out."""
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
    """Return the characters up to U+FFFF of one of the library's classes, as ranges for a bracket expression."""
    characters = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x10000)]))
    split = pre_tokenizers.Split(Regex(f"[^{name}]+"), "removed")
    found = [(characters[start], characters[end - 1]) for _, (start, end) in split.pre_tokenize_str(characters)]
    return "".join(f"\\u{ord(first):04x}-\\u{ord(last):04x}" for first, last in found)
