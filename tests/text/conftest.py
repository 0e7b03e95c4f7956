"""Small vocabularies, one of each kind that the tokenizer reads."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import foreign_tokenizers
from tests.support.vocabularies import model, pieces_of
from tinyllm.data import world
from tinyllm.text.tokenizer import Tokenizer

TEXTS = [
    "Once upon a time, there was a little girl named Lily. She didn't like 2024 or 1999.\n\nThe end.\r\n",
    "你好，世界。从前有一只小猫，它很喜欢玩。小猫说：“你好！”",
    "def f(x):\n    return x + 1  # café, naïve 😀👍🏽 <|im_end|> </s>\t\tдобрый день",
    "user\nassistant\nsystem\ntool\n",
] * 20


@pytest.fixture(scope="session")
def trained() -> Tokenizer:
    return Tokenizer.train(TEXTS, 400)


@pytest.fixture(scope="session")
def sentencepiece_spec() -> dict:
    """A sentencepiece-style tokenizer.json whose merges spell a control token and join a line break to a letter."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [("<", "/"), ("s", ">"), ("</", "s>"), ("\u2581", "H"), ("H", "i"), ("\n", "Hi")]
    pieces = [*"\u2581\n</s>Hi", *(a + b for a, b in merges if a + b not in tokens)]
    vocab = {token: i for i, token in enumerate(tokens + pieces)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": token, **flags, "special": True} for i, token in enumerate(tokens[:3])]
    added.append({"id": len(vocab), "content": "<tool>", **flags, "special": True})
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    back = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    return {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, space]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                back,
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


@pytest.fixture(scope="session")
def sentencepiece(sentencepiece_spec: dict, load_spec: Callable[..., Tokenizer]) -> Tokenizer:
    return load_spec(sentencepiece_spec, {"bos_token": "<s>", "eos_token": {"content": "</s>"}})


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A vocabulary as that of a small model: 512 tokens, sentencepiece style, no chat tokens; saved and read as tokenizer.json."""
    folder = tmp_path_factory.mktemp("stories")
    pieces = pieces_of([record["text"] for record in world.documents(200)])
    (folder / "tokenizer.model").write_bytes(model(pieces))
    Tokenizer.load(folder / "tokenizer.model").save(folder / "hf", model_max_length=512)
    return Tokenizer.load(folder / "hf")


@pytest.fixture(scope="session")
def load_spec(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tokenizer]:
    """Return a function that writes a tokenizer.json, and a config, into a new folder and loads them."""

    def load(spec: dict, config: dict | None = None) -> Tokenizer:
        folder = tmp_path_factory.mktemp("tokenizer")
        (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
        if config is not None:
            (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return Tokenizer.load(folder)

    return load


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from the kind of a foreign tokenizer to the folder with its files."""
    root = tmp_path_factory.mktemp("foreign")
    return functools.cache(lambda kind: foreign_tokenizers.write(kind, root / kind))


@pytest.fixture(scope="session")
def theirs_of(folder_of: Callable[[str], Path]) -> Callable[[str], Any]:
    """Return a function from the kind of a foreign tokenizer to that of transformers."""
    transformers = pytest.importorskip("transformers")

    @functools.cache
    def theirs(kind: str) -> Any:
        # transformers reads this one with another split than its tokenizer.json has; see `smollm2`
        auto = transformers.PreTrainedTokenizerFast if kind == "smollm2" else transformers.AutoTokenizer
        return auto.from_pretrained(folder_of(kind))

    return theirs
