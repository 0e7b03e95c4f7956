"""The content of a tokenizer.json, read and checked for `Tokenizer`: the bytes of each token, and an encoder without control tokens.

Left out: everything but BPE that can spell all 256 bytes. Any other vocabulary would lose text, so it is refused.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from tinyllm.errors import INTEGRITY, UserError
from tinyllm.io import strict_json, untrusted_files

MOST_BYTES = 48 << 20  # of a tokenizer.json; Gemma's has 34 MB
_MAX_IDS_PER_TOKEN = 8  # the highest id may be so many times the number of tokens
_PROBE_CHARACTERS = 32  # of a regular expression, that it is probed with
UNSPELLABLE = "unspellable"  # begins the name of an unknown token that does not exist
_COPY = "copy the tokenizer files again from their source"
# Qwen2's split, character for character, so that GGUF readers know this vocabulary as `pre = qwen2`, whatever its merges.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def text_encoder(spec: dict[str, Any], protected: set[str]) -> tokenizers.Tokenizer:
    """Return an encoder that knows no control token: none is matched in text, and no merge produces one.

    The library's `encode_special_tokens` alone would do only the first, only for tokens flagged special.
    All other added tokens are matched as in the complete vocabulary.

    Args:
        spec: content of a tokenizer.json.
        protected: names of the control tokens.
    """
    encoder = tokenizers.Tokenizer.from_str(strict_json.dumps(renamed(spec, protected)[0]))
    encoder.encode_special_tokens = True
    return encoder


def renamed(spec: dict[str, Any], protected: set[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a vocabulary in which control tokens have names that nobody can guess, and these names by the old ones.

    All ids stay. Merges that spell a control token are dropped, and so is dropout, which would make ids random.
    """
    nonce = f"control{secrets.token_hex(16)}"
    names = {token["content"]: f"{nonce}n{token['id']}n" for token in spec["added_tokens"]}
    names = {old: new for old, new in names.items() if old in protected}
    added = [
        token | {"content": names[token["content"]], "special": True} if token["content"] in names else token
        for token in spec["added_tokens"]
    ]
    vocab = {names.get(token, token): i for token, i in spec["model"]["vocab"].items()}
    merges = [(a, b) for a, b in spec["model"]["merges"] if a in vocab and b in vocab and a + b in vocab]
    model = spec["model"] | {"vocab": vocab, "merges": merges, "dropout": None}
    return without_unknown(spec | {"added_tokens": added, "model": model}), names


def without_unknown(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a vocabulary without unknown token, so that no text is lost: the library raises an error for what it cannot spell."""
    unknown = None if not missing_bytes(spec) else f"{UNSPELLABLE}{secrets.token_hex(16)}"
    return spec | {"model": spec["model"] | {"unk_token": unknown}}


def missing_bytes(spec: dict[str, Any]) -> list[int]:
    """Return the bytes that no token spells. Some never occur in UTF-8; a text with one of the others cannot be encoded."""
    names = _byte_names(bool(parts(spec["pre_tokenizer"], "ByteLevel")))
    control = {token["content"] for token in spec["added_tokens"] if token["special"]}
    return [byte for name, byte in names.items() if name not in spec["model"]["vocab"] or name in control]


def _byte_names(byte_level: bool) -> dict[str, int]:
    return _byte_alphabet() if byte_level else {f"<0x{byte:02X}>": byte for byte in range(256)}


def bytes_of(spec: dict[str, Any], protected: set[str], where: str) -> dict[int, bytes]:
    """Return the bytes that each id decodes to, in byte-level and sentencepiece-style vocabularies; added tokens give their names.

    Raises:
        UserError: not BPE, or neither over bytes nor with tokens for them (USAGE).
    """
    model = spec["model"]
    if model["type"] != "BPE" or model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        raise unsupported(f"a {model['type']} vocabulary of this kind is not supported, only BPE over bytes", where)
    byte_level = bool(parts(spec["pre_tokenizer"], "ByteLevel"))
    if byte_level:
        alphabet = _byte_alphabet()

        def piece(token: str) -> bytes:
            encoded = all(char in alphabet for char in token)
            return bytes(alphabet[char] for char in token) if encoded else token.encode()
    else:

        def piece(token: str) -> bytes:
            byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
            return bytes.fromhex(byte[1]) if byte else token.replace("\u2581", " ").encode()

    names_a_byte = any(token["content"] in _byte_names(False) for token in spec["added_tokens"])
    if not byte_level and (names_a_byte or not model["byte_fallback"]):
        raise unsupported("the vocabulary cannot spell every byte, so text would be lost", where)
    table = {i: piece(token) for token, i in model["vocab"].items()}
    for token in spec["added_tokens"]:
        name = token["content"]
        table[token["id"]] = name.encode() if byte_level or name in protected else piece(name)
    return table


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's character for each byte, mapped to the byte: itself where it is visible, else the next one from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def parts(component: dict[str, Any] | None, kind: str) -> list[dict[str, Any]]:
    """Return the components of one `kind` in a pre-tokenizer, post-processor or decoder, which may be a nested sequence."""
    if component is None:
        return []
    inner = [part for key in ("pretokenizers", "processors", "decoders") for part in component.get(key, [])]
    return [component] * (component["type"] == kind) + [found for part in inner for found in parts(part, kind)]


def leading_space(spec: dict[str, Any]) -> bool:
    """Return whether decoding removes a space in front of a text, which encoding has put there."""
    metaspace = [part for part in parts(spec["decoder"], "Metaspace") if part["prepend_scheme"] != "never"]
    return bool(parts(spec["decoder"], "Strip") or metaspace)


def check_ids(spec: dict[str, Any], whole: tokenizers.Tokenizer, where: str) -> None:
    """Refuse ids that the library would silently change, and ids far above the number of tokens, since tables have a row for each.

    Args:
        whole: the library's tokenizer made from `spec`.
        where: path of the file, for messages.

    Raises:
        UserError: two tokens with one id, an added token with another id than in the file, or a too high id (INTEGRITY).
    """
    vocab = spec["model"]["vocab"]
    if isinstance(vocab, dict):
        if len(set(vocab.values())) < len(vocab):
            raise broken("two tokens share one id", where)
        if vocab and max(vocab.values()) > _MAX_IDS_PER_TOKEN * len(vocab):
            raise broken(f"id {max(vocab.values()):,} is too high for {len(vocab):,} tokens", where)
    for added in spec.get("added_tokens", []):
        if whole.token_to_id(added["content"]) != added["id"]:
            raise broken(
                f"added token {untrusted_files.short_repr(added['content'])} cannot have id {added['id']}", where
            )


def contains(whole: tokenizers.Tokenizer, token: str) -> bool:
    """Return whether a token is in the vocabulary, added tokens included."""
    try:
        return whole.token_to_id(token) is not None
    except UnicodeEncodeError:  # a lone surrogate
        return False


def probe(encoder: tokenizers.Tokenizer, spec: dict[str, Any], where: str) -> None:
    """Refuse regular expressions on which the engine gives up because they match a text in too many ways.

    They are tried on repetitions of the characters that they contain.

    Raises:
        UserError: the engine gave up (INTEGRITY).
    """
    patterns = [p for p in _patterns([spec.get("normalizer"), spec.get("pre_tokenizer")]) if p != SPLIT]
    if not patterns:
        return
    characters = list(dict.fromkeys([*"a1 \n", *"".join(patterns)]))[:_PROBE_CHARACTERS]
    try:
        with _silent():
            for pair in combinations_with_replacement(characters, 2):
                encoder.encode("".join(pair) * 32 + "\0", add_special_tokens=False)
    except BaseException as error:
        raise given_up(error, where) from None


def _patterns(component: Any) -> Iterator[str]:
    """Yield every regular expression in a normalizer or pre-tokenizer."""
    if isinstance(component, dict):
        if isinstance(component.get("Regex"), str):
            yield component["Regex"]
        component = list(component.values())
    if isinstance(component, list):
        for part in component:
            yield from _patterns(part)


def given_up(error: BaseException, where: str) -> BaseException:
    """Return the exception to raise for an error of the library.

    Its panics mean that the regex engine gave up. They do not derive from `Exception`, so that callers must catch `BaseException`.
    """
    if type(error).__name__ != "PanicException":
        return error
    what = f"the regex engine gave up on its pattern ({untrusted_files.short_repr(str(error))})"
    return UserError(what, where=where, fix="use another tokenizer", code=INTEGRITY)


@contextmanager
def _silent() -> Iterator[None]:
    """Discard the lines that Rust writes to the standard error stream before it panics."""
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)


def control(token: str) -> AddedToken:
    """Return a control token for the library: flagged special, and matched before normalization."""
    return AddedToken(token, special=True, normalized=False)


def flag_special(whole: tokenizers.Tokenizer, tokens: Iterable[str], named: set[str]) -> None:
    """Make tokens of the vocabulary control tokens, in place.

    Added tokens keep their other flags; they keep being text unless they are `named`, as in transformers.
    """
    added = {token.content: token for token in whole.get_added_tokens_decoder().values()}
    changed = []
    for name in tokens:
        token = added.get(name, control(name))
        if name not in added or (name in named and not token.special):
            token.special = True
            changed.append(token)
    if changed:
        whole.add_special_tokens(changed)


def flags(token: AddedToken) -> dict[str, Any]:
    """Return an entry of `added_tokens_decoder` in tokenizer_config.json."""
    return {
        "content": token.content,
        "lstrip": token.lstrip,
        "normalized": token.normalized,
        "rstrip": token.rstrip,
        "single_word": token.single_word,
        "special": token.special,
    }


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a tokenizer's JSON file; see `untrusted_files.read_json` for errors."""
    return untrusted_files.read_json(file, max_bytes=MOST_BYTES, fix=_COPY)


def broken(what: str, where: str) -> UserError:
    """Return the error for a damaged vocabulary (INTEGRITY)."""
    return UserError(what, where=where, fix=_COPY, code=INTEGRITY)


def unsupported(what: str, where: str) -> UserError:
    """Return the error for a vocabulary of a kind that is left out (USAGE)."""
    fix = "give the tokenizer.json of the same model, or train one with: tinyllm data tokenizer"
    return UserError(what, where=where, fix=fix)
