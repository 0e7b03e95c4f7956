"""Vocabularies of other programs, recognized by their content and converted to the content of a tokenizer.json.

`tokenizer.json` · `vocab.json` with `merges.txt` (also under GPT-2's first names, `encoder.json` with `vocab.bpe`) · sentencepiece's
`tokenizer.model` · llama2.c's `tokenizer.bin`. Left out and refused by name: tiktoken (its file has no split pattern), WordPiece, GGUF.
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
WHOLE = "tokenizer.json"
_FILES = (WHOLE, *(vocab for vocab, _ in _PAIRS), "tokenizer.model", "tokenizer.bin")
_ENDOFTEXT = "<|endoftext|>"
_OTHER_SUFFIXES = (".model", ".tiktoken", ".gguf")


@dataclass(frozen=True)
class Found:
    """A vocabulary that was read from a file."""

    spec: dict[str, Any]
    """content of a tokenizer.json"""
    file: Path
    kind: str
    """kind of the file, for messages"""
    config: dict[str, Any] = field(default_factory=dict)
    """special tokens by name, as in tokenizer_config.json, where the vocabulary itself names them"""

    @property
    def is_whole(self) -> bool:
        """True for a tokenizer.json, False for a vocabulary that was converted."""
        return self.kind == WHOLE


def read(path: Path) -> Found:
    """Read a vocabulary from a file, or from the first known file in a folder.

    Raises:
        UserError: no vocabulary, or one of an unsupported kind (USAGE); a damaged one (INTEGRITY); an unreadable file (RESOURCES).
    """
    file = _file_in(path) if path.is_dir() else path
    if not file.is_file():
        raise UserError("no tokenizer found", where=str(file), fix="train one with: tinyllm data tokenizer")
    data = b"" if file.suffix == ".json" else _bytes(file)
    if file.suffix == ".json" or data[:1] == b"{":
        spec = vocabulary.read_json(file)
        is_vocab = bool(spec) and all(
            type(value) is int for value in spec.values()
        )  # keys do not tell: "model" is a token, too
        return _pair(file, spec) if is_vocab else Found(spec, file, WHOLE)
    if file.suffix in (".txt", ".bpe") and (vocab := _partner(file, 1)).is_file():
        return _pair(vocab, vocabulary.read_json(vocab))
    if _is_llama2c(data):
        spec, config = _llama2c(data, str(file))
        return Found(spec, file, "llama2.c vocabulary", config)
    if data[:1] == b"\x0a":
        spec, config = sentencepiece.read(data, str(file))
        return Found(spec, file, "sentencepiece model", config)
    raise vocabulary.unsupported(_reason(data, file), str(file))


def is_in(folder: Path) -> bool:
    """Return whether a folder holds a vocabulary, of whatever kind."""
    return _file_in(folder).is_file()


def _file_in(folder: Path) -> Path:
    """Return the vocabulary's file in a folder: one that can be read, one that is refused by name, or a missing tokenizer.json."""
    known = [folder / name for name in _FILES if (folder / name).is_file()]
    others = [path for path in sorted(folder.iterdir()) if path.name == "vocab.txt" or path.suffix in _OTHER_SUFFIXES]
    return [*known, *others, folder / "tokenizer.json"][0]


def _bytes(file: Path) -> bytes:
    try:
        size = file.stat().st_size
        if size > vocabulary.MOST_BYTES and not file.name.endswith(".gguf"):
            raise UserError(
                f"{size:,} bytes are too many for a tokenizer", where=str(file), fix="name the tokenizer's file"
            )
        with file.open("rb") as opened:
            return opened.read(vocabulary.MOST_BYTES)
    except OSError as error:
        what, fix = f"cannot be read: {error.strerror}", "give yourself read permission"
        raise UserError(what, where=str(file), fix=fix, code=RESOURCES) from error


def _reason(data: bytes, file: Path) -> str:
    """Return the reason why a file cannot be read, by the kind that it is recognized as."""
    kinds = {
        "a tiktoken vocabulary lacks the pattern that splits text": re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", data),
        "vocabularies in GGUF files are not supported": data.startswith(b"GGUF"),
        "these are merges without their vocabulary": file.suffix == ".bpe" or data.startswith(b"#version"),
        "a list of words (WordPiece) is not supported, only BPE over bytes": file.suffix == ".txt",
    }
    return next((reason for reason, matches in kinds.items() if matches), "this is not a tokenizer of a known kind")


# --- vocab.json and merges.txt ---------------------------------------------------------------------------------------------------


def _partner(file: Path, column: int) -> Path:
    """Return the other file of a pair; `column` is the place of `file` in `_PAIRS`."""
    names = {pair[column]: pair[1 - column] for pair in _PAIRS}
    return file.with_name(names.get(file.name, file.name + ".none"))


def _pair(file: Path, vocab: dict[str, int]) -> Found:
    """Convert vocab.json and the merges beside it."""
    merges, beside = _partner(file, 0), file.with_name("tokenizer_config.json")
    if not merges.is_file():
        names = " or ".join(f"{a} with {b}" for a, b in _PAIRS)
        raise UserError(
            "this is a vocabulary without its merges", where=str(file), fix=f"put both in one folder: {names}"
        )
    config = vocabulary.read_json(beside) if beside.is_file() else {}
    kind = str(config.get("tokenizer_class", "GPT2Tokenizer")).removesuffix("Fast")
    if kind not in _SPLITS or config.get("add_prefix_space"):
        # The two files have the same form for all classes, and do not tell how text is split.
        raise vocabulary.unsupported(f"vocab.json and merges.txt of a {kind} cannot be read on their own", str(beside))
    normalizer, split = _SPLITS[kind]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": split is None}
    pre_tokenizer = level
    if split is not None:
        regex = {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [regex, level]}
    spec = {
        "version": "1.0",
        "added_tokens": _added(vocab, config, str(beside)),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": _merges(merges)},
    }
    return Found(spec, file, f"{file.name} and {merges.name} ({kind.removesuffix('Tokenizer')})")


_SPLITS: dict[str, tuple[dict[str, Any] | None, str | None]] = {  # class -> normalizer, pattern (None: GPT-2's)
    "GPT2Tokenizer": (None, None),
    "Qwen2Tokenizer": ({"type": "NFC"}, vocabulary.SPLIT),
}


def _added(vocab: dict[str, int], config: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Return the control tokens: those of tokenizer_config.json, and GPT-2's end of text."""
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
    """Read the pairs of a merges.txt, best first."""
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
            raise vocabulary.broken(f"expected two tokens, found {line[:60]!r}", f"{file}:{number}")
        merges.append(parts)
    return merges


# --- llama2.c --------------------------------------------------------------------------------------------------------------------


def _is_llama2c(data: bytes) -> bool:
    """Return True for int32 longest token, then for each token float32 score, int32 size, bytes; the first token is `<unk>`."""
    return data[8:17] == b"\x05\0\0\0<unk>"


def _llama2c(data: bytes, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Convert a llama2.c vocabulary (https://github.com/karpathy/llama2.c, tokenizer.py), and name its special tokens.

    It is a sentencepiece model with spaces for U+2581 and without types. These follow from Llama's order: `<unk>`, `<s>`, `</s>`
    (written with line breaks around them), 256 bytes, pieces.
    """
    pieces, at = [], 4
    try:
        while at < len(data):
            score, size = struct.unpack_from("<fi", data, at)
            text = data[at + 8 : at + 8 + size]
            if size < 0 or len(text) < size:
                raise ValueError("the file ends too early")
            pieces.append((text.decode(), score))
            at += 8 + size
    except (ValueError, struct.error) as error:
        raise vocabulary.broken(f"not a llama2.c vocabulary: {error}", where) from error
    control = ["<unk>", "<s>", "</s>"]
    byte_names = [f"<0x{byte:02X}>" for byte in range(256)]
    names = [text.strip("\n") for text, _ in pieces[:3]] + [text for text, _ in pieces[3:259]]
    if names != control + byte_names:
        raise vocabulary.unsupported("a llama2.c vocabulary in an order other than Llama's is not supported", where)
    types = [sentencepiece.UNKNOWN] + [sentencepiece.CONTROL] * 2 + [sentencepiece.BYTE] * 256
    types += [sentencepiece.NORMAL] * (len(pieces) - len(types))
    texts = names + [text.replace(" ", sentencepiece.SPACE) for text, _ in pieces[259:]]
    rows = [sentencepiece.Piece(text, score, kind) for text, (_, score), kind in zip(texts, pieces, types, strict=True)]
    return sentencepiece.to_spec(rows, where, leading_space=True), {"bos_token": "<s>", "eos_token": "</s>"}
