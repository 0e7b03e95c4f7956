"""What a tokenizer.json holds, read for `Tokenizer`: the bytes of each token, and an encoder that knows only text.

Left out: everything but BPE that can spell all 256 bytes; a vocabulary that cannot would lose text, so it is refused.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from tinyllm.errors import INTEGRITY, RESOURCES, UserError


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
        raise _unsupported(f"a {model['type']} vocabulary of this kind is not supported, only BPE over bytes", where)
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
        raise _unsupported("the vocabulary cannot spell every byte, so text would be lost", where)
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
    """Refuse ids the library would quietly change: two tokens on one id, added tokens that leave a gap."""
    vocab = spec["model"]["vocab"]
    if isinstance(vocab, dict) and len(set(vocab.values())) < len(vocab):
        raise broken("two tokens share one id", where)
    for added in spec.get("added_tokens", []):
        if whole.token_to_id(added["content"]) != added["id"]:
            raise broken(f"added token {added['content']!r} cannot have id {added['id']}", where)


def named_tokens(config: dict[str, Any], whole: tokenizers.Tokenizer, where: str) -> dict[str, str]:
    """The start, end and padding tokens of a tokenizer_config.json, each a string or an object with `content`."""
    named: dict[str, str] = {}
    for key in ("bos_token", "eos_token", "pad_token"):
        value = config.get(key)
        token = value.get("content") if isinstance(value, dict) else value
        if token is None:
            continue
        if not isinstance(token, str) or whole.token_to_id(token) is None:
            raise broken(f"{key} {token!r} is not in the vocabulary", where)
        named[key] = token
    return named


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
    try:
        found = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror}", where=str(file), fix="give yourself read permission", code=RESOURCES
        ) from error
    except (ValueError, RecursionError) as error:
        raise broken(f"not JSON: {error}", str(file)) from error
    if not isinstance(found, dict):
        raise broken("not a JSON object", str(file))
    return found


def broken(what: str, where: str) -> UserError:
    return UserError(what, where=where, fix="copy the tokenizer files again from where they came", code=INTEGRITY)


def _unsupported(what: str, where: str) -> UserError:
    return UserError(what, where=where, fix="train a tokenizer with: tinyllm data prepare")
