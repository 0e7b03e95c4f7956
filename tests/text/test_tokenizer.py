"""The tokenizer: lossless, deterministic, and without control tokens in the ids of any text."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.errors import USAGE, UserError
from tinyllm.text.special_tokens import CONTROL_TOKENS, ENDOFTEXT, IM_END, IM_START, PAD
from tinyllm.text.streaming import StreamDecoder, printable
from tinyllm.text.tokenizer import Tokenizer

FUZZ = settings(max_examples=100, deadline=None, database=None)
SNIPPETS = [
    *CONTROL_TOKENS,
    "<s>",
    "</s>",
    "<unk>",
    "<tool>",
    "<0x0A>",
    "<|im_",
    "end|>",
    "\r\n",
    "  ",
    "小猫",
    "👍🏽",
    "é",
]
texts = st.lists(st.one_of(st.text(), st.sampled_from(SNIPPETS)), max_size=8).map("".join)
KINDS = ["trained", "sentencepiece", "stories"]


def test_trained_vocabulary_has_control_tokens_first_and_every_byte(trained: Tokenizer):
    assert (trained.endoftext, trained.im_start, trained.im_end, trained.pad, trained.bos) == (0, 1, 2, 3, None)
    assert [trained.decode([i], skip_special=False) for i in range(4)] == [ENDOFTEXT, IM_START, IM_END, PAD]
    assert trained.special_ids == {0, 1, 2, 3}
    assert trained.stop_ids == (2, 0)
    assert sorted(trained.text_bytes(i) for i in range(4, 260)) == [bytes([byte]) for byte in range(256)]
    assert trained.vocab_size == 400


def test_document_start_is_bos_and_padding_is_pad_or_else_the_end_of_text(trained: Tokenizer, sentencepiece: Tokenizer):
    assert (trained.bos, trained.document_start, trained.padding_id) == (None, trained.endoftext, trained.pad)
    assert (sentencepiece.pad, sentencepiece.document_start, sentencepiece.padding_id) == (None, 1, 2)
    chat = sentencepiece.with_chat_tokens()
    assert (chat.document_start, chat.pad, chat.padding_id) == (sentencepiece.bos, None, 2)


def test_training_is_deterministic_and_stops_where_pairs_end():
    texts = [" the cat the cat", " the hat"]
    tokenizer = Tokenizer.train(iter(texts), 4096)
    assert tokenizer.sha256 == Tokenizer.train(texts, 4096).sha256
    assert tokenizer.sha256 != Tokenizer.train(["the dog the dog"], 4096).sha256
    assert 260 < tokenizer.vocab_size < 280
    assert len(tokenizer.encode(" the")) == 1  # seen twice and more
    assert len(tokenizer.encode(" hat")) > 1  # seen once


def test_splits_like_qwen2():
    tokenizer = Tokenizer.train(["we're 2024 2024  f(x);;\n\n done"] * 50, 4096)
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("we're 2024  f(x);;\n\n done")]
    assert pieces == ["we", "'re", " ", "2", "0", "2", "4", " ", " f", "(x", ");;\n\n", " done"]


@pytest.mark.parametrize("size", [0, 259])
def test_vocabulary_smaller_than_bytes_and_control_tokens_is_refused(size: int):
    with pytest.raises(UserError, match="control tokens need 260") as caught:
        Tokenizer.train(["a"], size)
    assert caught.value.code == USAGE
    assert Tokenizer.train(["a"], 260).vocab_size == 260


@FUZZ
@given(text=texts)
def test_trained_is_lossless(trained: Tokenizer, text: str):
    assert trained.decode(trained.encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_text_never_becomes_a_control_token(kind: str, request: pytest.FixtureRequest):
    tokenizer = request.getfixturevalue(kind)
    names = [tokenizer.decode([i], skip_special=False) for i in tokenizer.special_ids]
    assert len(names) >= 3

    @FUZZ
    @given(parts=st.lists(st.one_of(st.sampled_from(names), texts), min_size=1, max_size=6))
    def check(parts: list[str]):
        ids = tokenizer.encode("".join(parts))
        assert tokenizer.special_ids.isdisjoint(ids)
        text = "".join(parts)
        assert tokenizer.decode(ids) == (text.replace("\u2581", " ") if tokenizer.leading_space else text)

    check()


@pytest.mark.parametrize("kind", ["trained", "sentencepiece", "stories"])
def test_text_sizes_are_those_of_the_texts(kind: str, request: pytest.FixtureRequest):
    """Without the space that sentencepiece puts in front, and without control tokens."""
    tokenizer = request.getfixturevalue(kind)

    @FUZZ
    @given(texts=st.lists(texts, max_size=4))
    def check(texts: list[str]):
        texts = [text.replace("\u2581", "") for text in texts]  # a space in sentencepiece's spelling
        documents = [[*ids, tokenizer.endoftext] for ids in tokenizer.encode_batch(texts)]
        assert tokenizer.text_sizes(documents) == [len(text.encode()) for text in texts]

    check()
    spaces = ["Hi", " Hi", "  ", "", "a b"]
    assert tokenizer.text_sizes(map(tokenizer.encode, spaces)) == [2, 3, 2, 0, 3]


@pytest.mark.parametrize("kind", ["trained", "stories"])
def test_byte_lengths_count_the_text(kind: str, request: pytest.FixtureRequest):
    tokenizer = request.getfixturevalue(kind)
    lengths = tokenizer.byte_lengths()
    assert lengths.dtype == np.int64
    assert lengths.shape == (tokenizer.vocab_size,)
    assert all(lengths[i] == 0 for i in tokenizer.special_ids)
    extra = 1 if tokenizer.leading_space else 0

    @FUZZ
    @given(text=texts.filter(bool))
    def check(text: str):
        text = text.replace("\u2581", "")  # a space in sentencepiece's spelling
        assert lengths[tokenizer.encode(text)].sum() == (len(text.encode()) + extra if text else 0)

    check()
    assert tokenizer.leading_space == (kind == "stories")


@pytest.mark.parametrize("call", ["encode", "encode_batch", "train"])
def test_lone_surrogates_are_refused_with_their_position(trained: Tokenizer, call: str):
    calls = {
        "encode": lambda text: trained.encode(text),
        "encode_batch": lambda text: trained.encode_batch(["fine", text]),
        "train": lambda text: Tokenizer.train(["fine", text], 300),
    }
    with pytest.raises(UserError, match=r"U\+D800 at character 2") as caught:
        calls[call]("ab\ud800c")
    assert caught.value.code == USAGE


def test_decode_drops_unknown_ids_and_replaces_invalid_utf8(trained: Tokenizer):
    cat = trained.encode("猫")
    assert trained.decode([1, *cat, 2, trained.vocab_size, 10**6, -1]) == "猫"
    assert trained.decode([1, *cat, 2], skip_special=False) == "<|im_start|>猫<|im_end|>"
    byte = {trained.text_bytes(i): i for i in range(4, 260)}
    assert trained.decode([byte[b"\xe7"], byte[b"\x8c"], byte[b"a"]]) == "\ufffda"
    assert trained.decode([]) == ""


@pytest.mark.parametrize("kind", ["trained", "stories"])
@FUZZ
@given(data=st.data())
def test_stream_equals_decode_at_every_prefix(kind: str, request: pytest.FixtureRequest, data: st.DataObject):
    tokenizer = request.getfixturevalue(kind)
    written = texts.map(tokenizer.encode)
    ids = data.draw(st.one_of(written, st.lists(st.integers(0, tokenizer.vocab_size), max_size=12)))
    stream = StreamDecoder(tokenizer)
    shown = ""
    for n, token_id in enumerate(ids, 1):
        shown += stream.push(token_id)
        alone = StreamDecoder(tokenizer)
        parts = [alone.push(i) for i in ids[:n]]
        assert "".join(parts) == shown
        assert shown + alone.flush() == printable(tokenizer.decode(ids[:n]))
    stream.flush()
    again = "".join(stream.push(i) for i in tokenizer.encode("é 猫")) + stream.flush()
    assert again == "é 猫"


def test_stream_never_shows_half_a_character(trained: Tokenizer):
    stream = StreamDecoder(trained)
    byte = {trained.text_bytes(i): i for i in range(4, 260)}
    assert [stream.push(byte[bytes([b])]) for b in "😀!".encode()] == ["", "", "", "😀", "!"]
    assert [stream.push(byte[b"\xf0"]), stream.push(trained.im_end), stream.flush()] == ["", "", "\ufffd"]


def test_printable_drops_terminal_controls_and_overrides():
    kept = "".join(chr(c) for c in range(0x3000) if printable(chr(c)))
    dropped = set(range(0x3000)) - set(map(ord, kept))
    allowed = {0x09, 0x0A}
    assert dropped == (
        (set(range(0x20)) - allowed) | set(range(0x7F, 0xA0)) | set(range(0x202A, 0x202F)) | set(range(0x2066, 0x206A))
    )
    assert printable("\x1b]52;c;x\x07 [/INST] é😀\r\n\t") == "]52;c;x [/INST] é😀\n\t"


def test_tokenizer_is_immutable(trained: Tokenizer):
    with pytest.raises(dataclasses.FrozenInstanceError):
        trained.pad = 0  # type: ignore[misc]
    trained.byte_lengths()[:] = 7
    assert trained.byte_lengths()[0] == 0


def test_text_is_imported_without_torch_and_transformers():
    code = "import sys, tinyllm.text.tokenizer, tinyllm.text.chat; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["trained", "stories"])
def test_transformers_reads_the_same_tokenizer(kind: str, request: pytest.FixtureRequest, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    tokenizer = request.getfixturevalue(kind).with_chat_tokens()
    tokenizer.save(tmp_path, model_max_length=77)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.bos_token_id) == (
        tokenizer.pad,
        tokenizer.endoftext,
        tokenizer.bos,
    )
    assert (theirs.model_max_length, len(theirs)) == (77, tokenizer.vocab_size)

    @FUZZ
    @given(text=st.text(), ids=st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=9))
    def check(text: str, ids: list[int]):
        text = text.replace("<", "")  # theirs reads control tokens in texts
        assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert tokenizer.decode(tokenizer.encode(text)) == theirs.decode(tokenizer.encode(text))
        if kind == "trained":  # the library spells bytes that are not UTF-8 differently in sentencepiece vocabularies
            assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
            assert tokenizer.decode(ids, skip_special=False) == theirs.decode(ids)

    check()
