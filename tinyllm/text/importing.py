"""Vocabularies from elsewhere, told apart by looking inside: each becomes the content of a tokenizer.json.

`tokenizer.json` · `vocab.json` with `merges.txt` (also as GPT-2 first named them, `encoder.json` with `vocab.bpe`) · sentencepiece's
`tokenizer.model` · llama2.c's `tokenizer.bin`. Left out, and refused by name: tiktoken (its file has no split pattern), WordPiece, GGUF.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyllm.errors import RESOURCES, UserError
from tinyllm.text import sentencepiece, vocabulary

_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_FILES = ("tokenizer.json", *(vocab for vocab, _ in _PAIRS), "tokenizer.model", "tokenizer.bin")
_ENDOFTEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Found:
    """A vocabulary as it was read."""

    spec: dict[str, Any]
    """as in tokenizer.json"""
    file: Path
    kind: str
    """for people"""
    config: dict[str, Any] = field(default_factory=dict)
    """special tokens by name, as in tokenizer_config.json, where the vocabulary itself names them"""


def read(path: Path) -> Found:
    """A file, or the first that is known in a folder.

    Raises:
        UserError: nothing there, or a kind that is left out (USAGE); damaged (INTEGRITY); unreadable (RESOURCES).
    """
    file = _inside(path) if path.is_dir() else path
    if not file.is_file():
        raise UserError("no tokenizer here", where=str(file), fix="train one with: tinyllm data tokenizer")
    data = b"" if file.suffix == ".json" else _bytes(file)
    if file.suffix == ".json" or data[:1] == b"{":
        spec = vocabulary.read_json(file)
        ids = bool(spec) and all(type(value) is int for value in spec.values())  # "model" is a word of GPT-2's too
        return _pair(file, spec) if ids else Found(spec, file, "tokenizer.json")
    if file.suffix in (".txt", ".bpe") and (vocab := _partner(file, 1)).is_file():
        return _pair(vocab, vocabulary.read_json(vocab))
    if _is_llama2c(data):
        spec, config = _llama2c(data, str(file))
        return Found(spec, file, "llama2.c vocabulary", config)
    if data[:1] == b"\x0a":
        spec, config = sentencepiece.read(data, str(file))
        return Found(spec, file, "sentencepiece model", config)
    raise vocabulary.unsupported(_why_not(data, file), str(file))


def _inside(folder: Path) -> Path:
    known = [folder / name for name in _FILES if (folder / name).is_file()]
    others = [path for path in sorted(folder.iterdir()) if path.name == "vocab.txt" or path.suffix in _OTHER_SUFFIXES]
    return [*known, *others, folder / "tokenizer.json"][0]


_OTHER_SUFFIXES = (".model", ".tiktoken", ".gguf")


def _bytes(file: Path) -> bytes:
    try:
        size = file.stat().st_size
        if size > vocabulary.MOST_BYTES and not file.name.endswith(".gguf"):
            raise UserError(f"{size:,} bytes are no tokenizer", where=str(file), fix="name the tokenizer's file")
        with file.open("rb") as opened:
            return opened.read(vocabulary.MOST_BYTES)
    except OSError as error:
        what, fix = f"cannot be read: {error.strerror}", "give yourself read permission"
        raise UserError(what, where=str(file), fix=fix, code=RESOURCES) from error


def _why_not(data: bytes, file: Path) -> str:
    """The kinds that can be named but not read."""
    kinds = {
        "a tiktoken vocabulary has no pattern that splits text": re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", data),
        "the vocabulary inside a GGUF file is not read": data.startswith(b"GGUF"),
        "merges without the vocabulary beside them": file.suffix == ".bpe" or data.startswith(b"#version"),
        "a list of words (WordPiece) is not supported, only BPE over bytes": file.suffix == ".txt",
    }
    return next((why for why, is_it in kinds.items() if is_it), "this is no tokenizer of a known kind")


# --- vocab.json and merges.txt ---------------------------------------------------------------------------------------------------


def _partner(file: Path, column: int) -> Path:
    """The other file of a pair; `file` stands in `column`."""
    names = {pair[column]: pair[1 - column] for pair in _PAIRS}
    return file.with_name(names.get(file.name, file.name + ".none"))


def _pair(file: Path, vocab: dict[str, int]) -> Found:
    merges, beside = _partner(file, 0), file.with_name("tokenizer_config.json")
    if not merges.is_file():
        names = " or ".join(f"{a} with {b}" for a, b in _PAIRS)
        raise UserError("a vocabulary without its merges", where=str(file), fix=f"put both in one folder: {names}")
    config = vocabulary.read_json(beside) if beside.is_file() else {}
    kind = str(config.get("tokenizer_class", "GPT2Tokenizer")).removesuffix("Fast")
    if kind not in _SPLITS or config.get("add_prefix_space"):
        # the two files are the same for all of them, and do not say how text is split
        raise vocabulary.unsupported(f"vocab.json and merges.txt of a {kind} cannot be read on their own", str(beside))
    normalizer, split = _SPLITS[kind]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": split is None}
    byte_level = level
    if split is not None:
        regex = {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
        byte_level = {"type": "Sequence", "pretokenizers": [regex, level]}
    spec = {
        "version": "1.0",
        "added_tokens": _added(vocab, config, str(beside)),
        "normalizer": normalizer,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": _merges(merges)},
    }
    return Found(spec, file, f"{file.name} and {merges.name} ({kind.removesuffix('Tokenizer')})")


_SPLITS: dict[str, tuple[dict[str, Any] | None, str | None]] = {  # class -> normaliser, pattern; None: GPT-2's own
    "GPT2Tokenizer": (None, None),
    "Qwen2Tokenizer": ({"type": "NFC"}, vocabulary.SPLIT),
}


def _added(vocab: dict[str, int], config: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The control tokens: those of the configuration, and GPT-2's own."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    given = config.get("added_tokens_decoder", {})
    try:
        added = {int(i): {**flags, **token, "id": int(i)} for i, token in given.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise vocabulary.broken(f"added_tokens_decoder: {error}", where) from error
    if _ENDOFTEXT in vocab:
        added.setdefault(vocab[_ENDOFTEXT], {**flags, "id": vocab[_ENDOFTEXT], "content": _ENDOFTEXT})
    return [added[i] for i in sorted(added)]


def _merges(file: Path) -> list[list[str]]:
    try:
        lines = _bytes(file).decode().split("\n")
    except UnicodeDecodeError as error:
        raise vocabulary.broken(f"not UTF-8: {error.reason}", str(file)) from error
    merges = []
    for number, line in enumerate(lines, 1):
        if (number == 1 and line.startswith("#version")) or not line.strip():
            continue
        parts = line.rstrip("\r").split(" ")
        if len(parts) != 2 or not all(parts):
            raise vocabulary.broken(f"not two tokens: {line[:60]!r}", f"{file}:{number}")
        merges.append(parts)
    return merges


# --- llama2.c --------------------------------------------------------------------------------------------------------------------


def _is_llama2c(data: bytes) -> bool:
    """int32 longest token, then for each token float32 score, int32 size, bytes; the first is `<unk>`."""
    return data[8:17] == b"\x05\0\0\0<unk>"


def _llama2c(data: bytes, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """https://github.com/karpathy/llama2.c, tokenizer.py: a sentencepiece model with spaces for U+2581 and no types.

    Llama's layout tells the types: `<unk>`, `<s>`, `</s>` (written with line breaks around them), 256 bytes, pieces.
    """
    pieces, at = [], 4
    try:
        while at < len(data):
            score, size = struct.unpack_from("<fi", data, at)
            text = data[at + 8 : at + 8 + size]
            if size < 0 or len(text) < size:
                raise ValueError("it ends too early")
            pieces.append((text.decode(), score))
            at += 8 + size
    except (ValueError, struct.error) as error:
        raise vocabulary.broken(f"not a llama2.c vocabulary: {error}", where) from error
    control = ["<unk>", "<s>", "</s>"]
    byte_names = [f"<0x{byte:02X}>" for byte in range(256)]
    names = [text.strip("\n") for text, _ in pieces[:3]] + [text for text, _ in pieces[3:259]]
    if names != control + byte_names:
        raise vocabulary.unsupported("a llama2.c vocabulary in another order than Llama's is not supported", where)
    types = [sentencepiece.UNKNOWN] + [sentencepiece.CONTROL] * 2 + [sentencepiece.BYTE] * 256
    types += [sentencepiece.NORMAL] * (len(pieces) - len(types))
    texts = names + [text.replace(" ", sentencepiece.SPACE) for text, _ in pieces[259:]]
    rows = [sentencepiece.Piece(text, score, kind) for text, (_, score), kind in zip(texts, pieces, types, strict=True)]
    return sentencepiece.to_spec(rows, where, leading_space=True), {"bos_token": "<s>", "eos_token": "</s>"}
