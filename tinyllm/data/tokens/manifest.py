"""The manifest of a shard folder: `manifest.json`, written last and checked when it is read.

Left out: older versions; the text is prepared again.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tinyllm.errors import INTEGRITY, UserError
from tinyllm.io import files

VERSION = 2
MANIFEST = "manifest.json"
PREPARE = "tinyllm data prepare"
T = TypeVar("T")

writing = partial(files.writing, what="shards cannot be written", fix="choose another --name")


@dataclass(frozen=True)
class File:
    """One file of a split; `name` is without a folder."""

    name: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class SourceCounts:
    """The part of a split that comes from one source. The sources follow each other in this order after the first token."""

    source: str
    documents: int
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Removed:
    """Number of documents of one source that were removed as exact or near duplicates of earlier ones."""

    source: str
    exact: int
    near: int


@dataclass(frozen=True)
class Split:
    """`tokens` include end-of-text tokens, also those of a source; `bytes` (UTF-8) and lengths do not."""

    documents: int
    tokens: int
    bytes: int
    bytes_per_token: float
    """of text, without end-of-text tokens"""
    longest: int
    """tokens of the longest document"""
    lengths: tuple[int, ...]
    """number of documents of 1, 2 to 3, 4 to 7, ... tokens: entry k is for 2^k to 2^(k+1) - 1"""
    files: tuple[File, ...]
    sources: tuple[SourceCounts, ...]

    @classmethod
    def of(cls, documents: int, tokens: int, size: int, *rest: Any) -> Split:
        """Return a split with `bytes_per_token` computed; `rest` are the fields after it."""
        return cls(documents, tokens, size, _ratio(documents, tokens, size), *rest)


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`."""

    version: int
    tokenizer_sha256: str
    vocab_size: int
    endoftext: int
    dtype: str  # uint16 or uint32
    val_fraction: float | None  # None: the validation documents have sources of their own
    dedup: str  # none, exact or near
    removed: tuple[Removed, ...]
    train: Split
    val: Split
    sources: tuple[dict[str, Any], ...]  # the files of text with their hashes

    @property
    def fingerprint(self) -> str:
        """sha256 of both splits and the tokenizer: equal if and only if training would see the same tokens."""
        hashes = [",".join(file.sha256 for file in split.files) for split in (self.train, self.val)]
        return hashlib.sha256("\n".join((self.tokenizer_sha256, self.dtype, *hashes)).encode()).hexdigest()


def read_manifest(file: Path) -> Manifest:
    """Read and check a manifest. Raises: UserError (INTEGRITY) if it is missing, damaged or of another version."""
    fix = f"prepare the data again: {PREPARE}"
    if not file.is_file():
        raise UserError("no manifest: the shards are incomplete", where=str(file), fix=fix, code=INTEGRITY)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        version = data["version"]
        if version == VERSION:
            splits = {name: _split(data[name]) for name in ("train", "val")}
            removed = _all(Removed, data["removed"])
            manifest = Manifest(**data | splits | {"removed": removed, "sources": tuple(data["sources"])})
            _check(manifest)
            return manifest
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as e:
        raise UserError(f"damaged manifest: {e}", where=str(file), fix=fix, code=INTEGRITY) from e
    what = f"shards of version {version!r}; expected version {VERSION}"
    raise UserError(what, where=str(file), fix=fix, code=INTEGRITY)


def _split(data: dict[str, Any]) -> Split:
    parts = {"files": _all(File, data["files"]), "sources": _all(SourceCounts, data["sources"])}
    return Split(**data | parts | {"lengths": tuple(data["lengths"])})


def _all(kind: type[T], rows: list[dict[str, Any]]) -> tuple[T, ...]:
    return tuple(kind(**row) for row in rows)


def _ratio(documents: int, tokens: int, size: int) -> float:
    return round(size / max(1, tokens - documents - 1), 4)


def _counts(row: Any) -> list[Any]:
    return [getattr(row, field.name) for field in fields(row) if field.type == "int"]


def _check(manifest: Manifest) -> None:
    counts = [manifest.vocab_size, manifest.endoftext, *(n for row in manifest.removed for n in _counts(row))]
    for split in (manifest.train, manifest.val):
        counts += [*_counts(split), split.tokens - 1, *split.lengths]
        counts += [n for row in (*split.files, *split.sources) for n in _counts(row)]
    if manifest.dtype not in ("uint16", "uint32") or not all(type(n) is int and n >= 0 for n in counts):
        raise ValueError("an invalid value")
    for name, split in (("train", manifest.train), ("val", manifest.val)):
        _check_sums(split)
        # these names are opened as files, so only names that `prepare` gives are accepted
        if not split.files or not all(re.fullmatch(rf"{name}(-\d{{5,}})?\.bin", file.name) for file in split.files):
            raise ValueError(f"unexpected file names of the split {name}")


def _check_sums(split: Split) -> None:
    total = [sum(column) for column in zip(*map(_counts, split.sources), strict=True)] or [0, 0, 0]
    if total != [split.documents, split.tokens - 1, split.bytes] or sum(split.lengths) != split.documents:
        raise ValueError("counts do not add up")
    if sum(file.tokens for file in split.files) != split.tokens:
        raise ValueError("tokens of the files do not add up")
    if split.bytes_per_token != _ratio(split.documents, split.tokens, split.bytes):
        raise ValueError("bytes_per_token is not bytes divided by tokens")
