"""The figures of a tokenizer report, compared with their definitions."""

from __future__ import annotations

import pytest

from tinyllm.text import measuring
from tinyllm.text.measuring import measure
from tinyllm.text.tokenizer import Tokenizer

TEXTS = ["Once upon a time, there was a little girl named Lily.", "你好，世界", "", "x" * 300, "Once upon"]


def test_figures_follow_their_definitions(trained: Tokenizer) -> None:
    found = measure({"it": trained}, TEXTS)["it"].to_dict()
    ids = [trained.encode(text) for text in TEXTS]
    tokens, size = sum(map(len, ids)), sum(len(text.encode()) for text in TEXTS)
    used = {i for row in ids for i in row}
    assert (found["documents"], found["bytes"], found["tokens"]) == (5, size, tokens)
    assert found["bytes_per_token"] == pytest.approx(size / tokens)
    assert found["tokens_per_document"] == pytest.approx(tokens / 5)
    assert found["used_tokens"] == len(used)
    assert found["unused_share"] == pytest.approx(1 - len(used) / (400 - 4))
    assert found["control_tokens"] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    assert found["inexact_documents"] == 0
    longest = found["longest_tokens"]
    assert [row["bytes"] for row in longest] == sorted((row["bytes"] for row in longest), reverse=True)
    assert longest[0]["bytes"] == max(trained.byte_lengths())
    for row in longest:
        assert row["used"] == sum(ids_.count(row["id"]) for ids_ in ids)
        assert row["text"] == trained.decode([row["id"]])


def test_batching_changes_nothing_and_all_vocabularies_see_the_same_text(
    trained: Tokenizer, sentencepiece: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "BATCH_CHARACTERS", 1000)
    texts = [f"{i} Once upon a time" * 20 for i in range(60)]
    both = measure({"a": trained, "b": sentencepiece}, iter(texts))
    assert both["a"].tokens == sum(len(trained.encode(text)) for text in texts)
    assert both["b"].tokens == sum(len(sentencepiece.encode(text)) for text in texts)
    assert both["a"].bytes == both["b"].bytes == sum(map(len, texts))


def test_documents_that_are_not_reconstructed_are_counted(sentencepiece: Tokenizer) -> None:
    """U+2581 is a space in this kind of vocabulary."""
    found = measure({"it": sentencepiece}, ["a b", "a\u2581b \x1b[2J", "c"])["it"].to_dict()
    assert (found["inexact_documents"], found["first_inexact"]) == (1, "a\u2581b [2J")


def test_figures_without_any_text(trained: Tokenizer) -> None:
    found = measure({"it": trained}, [])["it"].to_dict()
    assert (found["documents"], found["bytes_per_token"], found["unused_share"]) == (0, 0.0, 1.0)
