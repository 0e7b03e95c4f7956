"""What a shard folder says of itself: `manifest.json`, written last and read with suspicion.

Left out: older versions, there are none yet.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyllm.errors import INTEGRITY, UserError

VERSION = 1
MANIFEST = "manifest.json"
PREPARE = "tinyllm data prepare"


@dataclass(frozen=True)
class Split:
    """One file. `tokens` counts end-of-text tokens; `bytes` (UTF-8) and `longest` (tokens of one document) do not."""

    documents: int
    tokens: int
    bytes: int
    longest: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    version: int
    tokenizer_sha256: str
    vocab_size: int
    endoftext: int
    dtype: str  # uint16 or uint32
    val_fraction: float | None  # None: the validation documents were given apart
    train: Split
    val: Split
    sources: tuple[dict[str, Any], ...]

    @property
    def fingerprint(self) -> str:
        """sha256 over both splits and the vocabulary: equal exactly when training would see the same."""
        parts = (self.tokenizer_sha256, self.dtype, self.train.sha256, self.val.sha256)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_manifest(file: Path) -> Manifest:
    """Raises: UserError (INTEGRITY) for a manifest that is missing, damaged or of another version."""
    fix = f"prepare the data again: {PREPARE}"
    if not file.is_file():
        raise UserError("no manifest: these are not finished shards", where=str(file), fix=fix, code=INTEGRITY)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        version = data["version"]
        if version == VERSION:
            splits = {name: Split(**data.pop(name)) for name in ("train", "val")}
            manifest = Manifest(**data | splits | {"sources": tuple(data["sources"])})
            _check(manifest)
            return manifest
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as e:
        raise UserError(f"damaged manifest: {e}", where=str(file), fix=fix, code=INTEGRITY) from e
    what = f"shards of version {version!r}; this tinyllm reads version {VERSION}"
    raise UserError(what, where=str(file), fix=fix, code=INTEGRITY)


def _check(manifest: Manifest) -> None:
    counts = [manifest.vocab_size, manifest.endoftext]
    for split in (manifest.train, manifest.val):
        counts += [split.documents, split.tokens - 1, split.bytes, split.longest]
    if manifest.dtype not in ("uint16", "uint32") or not all(type(n) is int and n >= 0 for n in counts):
        raise ValueError("a value that cannot be")


def document_starts(tokens: np.ndarray, endoftext: int) -> np.ndarray:
    """Index of each document's first token, int64 (documents,), of a file that begins and ends with `endoftext`."""
    step = 1 << 24  # the comparison makes a temporary array of this many bytes
    ends = [at + np.flatnonzero(tokens[at : at + step] == endoftext) for at in range(0, len(tokens), step)]
    return np.concatenate(ends)[:-1] + 1


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
