"""The word encoder gives the ids of the library for every text."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.text import words
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.text.words import Words

U2 = np.dtype("<u2")
# Characters that the pattern distinguishes, and those on which Unicode versions of regular expressions differ: long s, dotted I, title
# case, marks, Roman numerals, separators that only one takes for a space, private use, half-width and unassigned characters.
EDGE_CASES = [
    "'",
    "s",
    "S",
    "ſ",
    "t",
    "re",
    "LL",
    "ve",
    " ",
    "  ",
    "\t",
    "\n",
    "\r",
    "\r\n",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x85",
    "\xa0",
    "\u1680",
]
EDGE_CASES += [
    "\u2028",
    "\u3000",
    "\u200b",
    "\ufeff",
    "\0",
    "\x7f",
    "a",
    "B",
    "é",
    "e\u0301",
    "ß",
    "İ",
    "K",
    "ǅ",
    "ª",
    "1",
    "٣",
    "½",
    "²",
    "Ⅷ",
]
EDGE_CASES += [
    "東",
    "京",
    "ا",
    "अ",
    "\u0903",
    ".",
    "!",
    "?",
    "-",
    "—",
    "’",
    "_",
    "€",
    "\ue000",
    "\ufffd",
    "\uffff",
    "\u0378",
    "<|endoftext|>",
]
TEXTS = [
    "I'll say that don't is DON'T.\n\n  Twice, 12 times;   東京 and é",
    "the old fox\tsaw the hen \r\n by the river",
] * 4


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 400)


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer) -> Words:
    return tokenizer.words(U2)


def ids(encoder: Words, text: str) -> list[int] | None:
    found = encoder.encode(text)
    return None if found is None else np.frombuffer(found, U2).tolist()


@given(parts=st.lists(st.sampled_from(EDGE_CASES), max_size=30))
@settings(max_examples=1500, deadline=None)
def test_ids_equal_the_library_s_on_all_classes_of_the_pattern(
    tokenizer: Tokenizer, encoder: Words, parts: list[str]
) -> None:
    text = "".join(parts)
    assert ids(encoder, text) == tokenizer.encode(text)


def test_ids_equal_the_library_s_on_every_character(tokenizer: Tokenizer, encoder: Words) -> None:
    """Every character of the Basic Multilingual Plane beside a letter, a number, a space, a line end and a punctuation mark."""
    characters = [chr(c) for c in range(0x10000) if not 0xD800 <= c < 0xE000]
    texts = [f"a{c}b {c} 1{c}2 \n{c}\n!{c}. '{c}" for c in characters]
    for text, expected in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids(encoder, text) == expected, ascii(text)


def test_characters_above_ffff_are_left_to_the_library(tokenizer: Tokenizer, encoder: Words) -> None:
    assert encoder.encode("\U00020000") is None
    assert encoder.encode("fine 😀") is None
    assert ids(encoder, "fine") == tokenizer.encode("fine")
    assert encoder.encode("") == b""


def test_full_table_is_cleared_and_reports_when_it_is_not_useful(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "_MAX_WORDS", 8)
    encoder = tokenizer.words(U2)
    for number in range(50):
        text = f"the old fox saw a{'b' * (number % 20)} and the c{'d' * (number % 30)} " * 8
        assert ids(encoder, text) == tokenizer.encode(text)
        assert len(encoder._table) <= 8
    assert encoder.useful
    for number in range(50):  # words that never come back
        encoder.encode(f"x{'y' * number}z")
    assert not encoder.useful


def test_long_words_are_not_cached(tokenizer: Tokenizer) -> None:
    encoder = tokenizer.words(U2)
    before = len(encoder._table)
    assert ids(encoder, "x" * 1000) == tokenizer.encode("x" * 1000)
    assert len(encoder._table) == before


def test_ids_are_written_in_the_given_dtype(tokenizer: Tokenizer) -> None:
    found = tokenizer.words(np.dtype("<u4")).encode("the old fox")
    assert np.frombuffer(found, "<u4").tolist() == tokenizer.encode("the old fox")


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "Digits", "individual_digits": True}},
    ],
)
def test_other_vocabularies_are_left_to_the_library(tokenizer: Tokenizer, change: dict) -> None:
    import json

    spec = json.loads(tokenizer._text.to_str())
    assert Words.of(tokenizers.Tokenizer.from_str(json.dumps(spec)), U2) is not None
    assert Words.of(tokenizers.Tokenizer.from_str(json.dumps(spec | change)), U2) is None


def test_pattern_that_python_reads_differently_is_not_used(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    for pattern in (r"\w+|\W+", r" ?\w+|\s+|[^\w\s]+"):
        monkeypatch.setattr(words, "_pattern", lambda pattern=pattern: re.compile(pattern))
        assert Words.of(tokenizer._text, U2) is None
