"""What a tokenizer.json holds, read for `Tokenizer`: the bytes of each token, and an encoder that knows only text.

Left out: everything but BPE that can spell all 256 bytes; a vocabulary that cannot would lose text, so it is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from tinyllm import foreign
from tinyllm.errors import INTEGRITY, UserError

MOST_BYTES = 48 << 20  # of a tokenizer.json: Gemma's has 34 MB
_MOST_GAPS = 8  # ids for each token
_MOST_LETTERS = 32  # of a pattern, that it is tried on
_COPY = "copy the tokenizer files again from where they came"
# Qwen2's split, character for character: GGUF readers know this vocabulary as `pre = qwen2` then, whatever its merges.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def text_encoder(spec: dict[str, Any]) -> tokenizers.Tokenizer:
    """An encoder that knows no control token: they are not matched in the text, and no merge leads to one.

    The library's `encode_special_tokens` would do only the first, only for tokens flagged special, and until someone
    switches it off.
    """
    control = {token["content"] for token in spec["added_tokens"]}
    ids = {token["id"] for token in spec["added_tokens"]}
    vocab = {token: i for token, i in spec["model"]["vocab"].items() if token not in control}
    assert ids.isdisjoint(vocab.values()), "check_ids lets no control token share its id"
    merges = [(a, b) for a, b in spec["model"]["merges"] if a in vocab and b in vocab and a + b in vocab]
    # No unknown token: every byte is in the vocabulary. No dropout: ids would be random.
    model = spec["model"] | {"vocab": vocab, "merges": merges, "unk_token": None, "dropout": None}
    return tokenizers.Tokenizer.from_str(json.dumps(spec | {"added_tokens": [], "model": model}))


def bytes_of(spec: dict[str, Any], where: str) -> dict[int, bytes]:
    """Id -> the bytes it decodes to, in byte-level and in sentencepiece-style vocabularies; control tokens by name."""
    model = spec["model"]
    if model["type"] != "BPE" or model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        raise unsupported(f"a {model['type']} vocabulary of this kind is not supported, only BPE over bytes", where)
    byte_level = bool(parts(spec["pre_tokenizer"], "ByteLevel"))
    if byte_level:
        alphabet = _byte_alphabet()
        single = list(alphabet)

        def piece(token: str) -> bytes:
            known = all(char in alphabet for char in token)
            return bytes(alphabet[char] for char in token) if known else token.encode()
    else:
        single = [f"<0x{byte:02X}>" for byte in range(256)]

        def piece(token: str) -> bytes:
            byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
            return bytes.fromhex(byte[1]) if byte else token.replace("\u2581", " ").encode()

    control = {token["content"]: token["id"] for token in spec["added_tokens"]}
    spelled = all(token in model["vocab"] and token not in control for token in single)
    if not spelled or not (byte_level or model["byte_fallback"]):
        raise unsupported("the vocabulary cannot spell every byte, so text would be lost", where)
    table = {i: piece(token) for token, i in model["vocab"].items()}
    return table | {i: token.encode() for token, i in control.items()}


def _byte_alphabet() -> dict[str, int]:
    """The character GPT-2 writes for each byte: itself where it is visible, else the next free one from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def parts(component: dict[str, Any] | None, kind: str) -> list[dict[str, Any]]:
    """The components of one `kind` in a pre-tokenizer or decoder, which may be nested sequences."""
    if component is None:
        return []
    inner = [*component.get("pretokenizers", []), *component.get("decoders", [])]
    return [component] * (component["type"] == kind) + [found for part in inner for found in parts(part, kind)]


def check_ids(spec: dict[str, Any], whole: tokenizers.Tokenizer, where: str) -> None:
    """Refuse ids the library would quietly change: two tokens on one id, added tokens that leave a gap; and ids far beyond their number,
    since a table of all of them is made."""
    vocab = spec["model"]["vocab"]
    if isinstance(vocab, dict):
        if len(set(vocab.values())) < len(vocab):
            raise broken("two tokens share one id", where)
        if vocab and max(vocab.values()) > _MOST_GAPS * len(vocab):
            raise broken(f"{len(vocab):,} tokens, and one of them has id {max(vocab.values()):,}", where)
    for added in spec.get("added_tokens", []):
        if whole.token_to_id(added["content"]) != added["id"]:
            raise broken(f"added token {foreign.short(added['content'])} cannot have id {added['id']}", where)


def named_tokens(config: dict[str, Any], whole: tokenizers.Tokenizer, where: str) -> dict[str, str]:
    """The start, end and padding tokens of a tokenizer_config.json, each a string or an object with `content`."""
    named: dict[str, str] = {}
    for key in ("bos_token", "eos_token", "pad_token"):
        value = config.get(key)
        token = value.get("content") if isinstance(value, dict) else value
        if token is None:
            continue
        if not isinstance(token, str) or not _knows(whole, token):
            raise broken(f"{key} {foreign.short(token)} is not in the vocabulary", where)
        named[key] = token
    return named


def _knows(whole: tokenizers.Tokenizer, token: str) -> bool:
    try:
        return whole.token_to_id(token) is not None
    except UnicodeEncodeError:  # half a character
        return False


def probe(encoder: tokenizers.Tokenizer, spec: dict[str, Any], where: str) -> None:
    """Refuse regular expressions that can match one text in too many ways: on repetitions of their own letters, the engine gives up."""
    patterns = [p for p in _patterns([spec.get("normalizer"), spec.get("pre_tokenizer")]) if p != SPLIT]
    if not patterns:
        return
    letters = list(dict.fromkeys([*"a1 \n", *"".join(patterns)]))[:_MOST_LETTERS]
    try:
        with _silent():
            for pair in combinations_with_replacement(letters, 2):
                encoder.encode("".join(pair) * 32 + "\0", add_special_tokens=False)
    except BaseException as error:
        raise given_up(error, where) from None


def _patterns(component: Any) -> Iterator[str]:
    """Every regular expression in a normalizer or pre-tokenizer."""
    if isinstance(component, dict):
        if isinstance(component.get("Regex"), str):
            yield component["Regex"]
        component = list(component.values())
    if isinstance(component, list):
        for part in component:
            yield from _patterns(part)


def given_up(error: BaseException, where: str) -> BaseException:
    """What to raise for an error of the library: its panics are no `Exception`, and mean that a regular expression was given up."""
    if type(error).__name__ != "PanicException":
        return error
    what = f"its pattern is given up by the regex engine ({foreign.short(str(error))})"
    return UserError(what, where=where, fix="use another tokenizer", code=INTEGRITY)


@contextmanager
def _silent() -> Iterator[None]:
    """Without the lines that Rust writes to the standard error stream by itself before it panics."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def control(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def flags(token: AddedToken) -> dict[str, Any]:
    """One entry of `added_tokens_decoder` in tokenizer_config.json."""
    return {
        "content": token.content,
        "lstrip": token.lstrip,
        "normalized": token.normalized,
        "rstrip": token.rstrip,
        "single_word": token.single_word,
        "special": token.special,
    }


def read_json(file: Path) -> dict[str, Any]:
    return foreign.read_json(file, most=MOST_BYTES, fix=_COPY)


def broken(what: str, where: str) -> UserError:
    return UserError(what, where=where, fix=_COPY, code=INTEGRITY)


def unsupported(what: str, where: str) -> UserError:
    fix = "give the tokenizer.json of the same model, or train one with: tinyllm data tokenizer"
    return UserError(what, where=where, fix=fix)
