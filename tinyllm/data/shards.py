"""Prepared data: all tokens of a split in one memory-mapped file, with a manifest that says what they are.

`prepare` writes `train.bin`, `val.bin` (little-endian uint16, or uint32 for a vocabulary over 65,536) and
`manifest.json` into a folder beside the target and renames it into place, so a killed run shows nothing. `open_shards`
believes no file it has not measured. Left out: appending, several files per split, two `prepare` runs into one folder
at once (the last one wins).
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tinyllm.data.manifest import MANIFEST, PREPARE, VERSION, Manifest, Split, document_starts, read_manifest, sha256_of
from tinyllm.errors import INTEGRITY, RESOURCES, UserError

BATCH = 1000  # documents encoded together, on all threads of the tokenizer
BATCH_CHARACTERS = 4 << 20  # or fewer, when they hold this many characters
STALE_SECONDS = 3600  # a partial folder untouched for so long was left by a run that was killed


class Encoder(Protocol):
    """What `prepare` needs of `tinyllm.text.tokenizer.Tokenizer`."""

    @property
    def endoftext(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...


@dataclass(frozen=True)
class Shards:
    """Opened shards. Both arrays are read-only, one-dimensional, and begin and end with `manifest.endoftext`."""

    path: Path
    manifest: Manifest
    train: np.memmap
    val: np.memmap

    def document_starts(self, split: str) -> np.ndarray:
        """Index of the first token of every document of `train` or `val`, int64 (documents,)."""
        return document_starts({"train": self.train, "val": self.val}[split], self.manifest.endoftext)


def place_of(data: bytes) -> float:
    """A fixed point in [0, 1) for each text; validation documents are those below `val_fraction`."""
    return int.from_bytes(hashlib.sha256(data).digest()[:6], "big") / 2**48


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        fix = "free some disk space" if e.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another --name"
        raise UserError(f"shards cannot be written: {e.strerror}", where=str(path), fix=fix, code=RESOURCES) from e


class _Writer:
    """One split's file. Remembers where the document lies that changes sides first, should the other stay empty."""

    def __init__(self, path: Path, dtype: np.dtype, endoftext: int, first: Callable[[float, float], float]):
        self.path, self.dtype, self.endoftext, self.first = path, dtype, endoftext, first
        self.documents = self.bytes = 0
        self.tokens = 1
        self.candidate: float | None = None  # its place; every copy of its text goes with it
        self.spans: list[tuple[int, int, int]] = []  # (first token, end, UTF-8 bytes) of each copy
        with _writing(path):
            self.file = path.open("wb")
            # So that the first document has the context every other one has.
            self.file.write(np.array([endoftext], dtype).tobytes())

    def add(self, ids: Sequence[int], place: float, size: int) -> None:
        start = self.tokens
        self.append(np.array([*ids, self.endoftext], self.dtype), size)
        best = place if self.candidate is None else self.first(place, self.candidate)
        if best != self.candidate:
            self.candidate, self.spans = place, []
        if place == best:
            self.spans.append((start, self.tokens, size))

    def append(self, tokens: np.ndarray, size: int) -> None:
        """One document with its end-of-text token."""
        with _writing(self.path):
            self.file.write(tokens.tobytes())
        self.documents += 1
        self.tokens += len(tokens)
        self.bytes += size

    def hand_over(self, other: _Writer) -> None:
        """Moves all copies of the candidate to the other split's file."""
        self.file.flush()
        written = np.memmap(self.path, self.dtype, "r")
        rest = self.path.with_suffix(".rest")
        with _writing(rest), rest.open("wb") as file:
            kept = 0
            for start, end, size in self.spans:
                other.append(written[start:end], size)
                written[kept:start].tofile(file)
                kept = end
                self.documents -= 1
                self.tokens -= end - start
                self.bytes -= size
            written[kept:].tofile(file)
        del written
        self.file.close()
        with _writing(self.path):
            os.replace(rest, self.path)
            self.file = self.path.open("ab")

    def finish(self) -> Split:
        with _writing(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
        written = np.memmap(self.path, self.dtype, "r")
        starts = document_starts(written, self.endoftext)
        assert len(written) == self.tokens, "tokens were lost on the way to the file"
        assert len(starts) == self.documents, "a text was encoded with <|endoftext|> in it"
        longest = int(np.diff(np.append(starts, len(written))).max(initial=1)) - 1
        return Split(self.documents, self.tokens, self.bytes, longest, sha256_of(self.path))


def prepare(
    documents: Iterable[str],
    tokenizer: Encoder,
    out: str | Path,
    *,
    val_fraction: float = 0.05,
    val_documents: Iterable[str] | None = None,
    sources: Sequence[dict[str, Any]] | Callable[[], Sequence[dict[str, Any]]] = (),
    batch: int = BATCH,
) -> Manifest:
    """Encode documents into shards under `out`; the same documents and tokenizer give the same bytes.

    Each document is followed by the end-of-text token, and one opens each file. Which split a document goes to is a
    function of its text alone, so no text is on both sides. With two different texts or more both splits get one
    (unless `val_fraction` is 0). Memory does not grow with the data. Empty documents are passed over.

    Args:
        val_fraction: share of documents for validation, in [0, 1); unused with `val_documents`.
        val_documents: validation documents given apart; `documents` are then all for training.
        sources: what the documents came from, for the manifest; a function is called after the last document, as in
            `lambda: reader.report.sources()`.
        batch: documents encoded at a time.

    Raises:
        UserError: no documents, `out` holds something else, no space. `out` is then as it was.
    """
    out = Path(out)
    if not 0 <= val_fraction < 1:
        raise UserError(f"val_fraction {val_fraction} is not in [0, 1)", where="val_fraction", fix="set it to 0.05")
    partial = _make_partial(out)
    try:
        dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        with contextlib.ExitStack() as stack:
            train = _Writer(partial / "train.bin", dtype, tokenizer.endoftext, min)
            stack.callback(lambda: train.file.close())  # looked up late: handing over reopens it
            val = _Writer(partial / "val.bin", dtype, tokenizer.endoftext, max)
            stack.callback(lambda: val.file.close())
            if val_documents is None:
                _fill(documents, tokenizer, batch, lambda place: val if place < val_fraction else train)
                _balance(train, val, val_fraction)
            else:
                _fill(documents, tokenizer, batch, lambda place: train)
                _fill(val_documents, tokenizer, batch, lambda place: val)
            if not train.documents:
                raise UserError("0 documents to prepare", where=str(out), fix="give documents that are not empty")
            manifest = Manifest(
                version=VERSION,
                tokenizer_sha256=tokenizer.sha256,
                vocab_size=tokenizer.vocab_size,
                endoftext=tokenizer.endoftext,
                dtype=dtype.name,
                val_fraction=val_fraction if val_documents is None else None,
                train=train.finish(),
                val=val.finish(),
                sources=tuple(sources() if callable(sources) else sources),
            )
        _publish(partial, out, manifest)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _fill(documents: Iterable[str], tokenizer: Encoder, batch: int, writer: Callable[[float], _Writer]) -> None:
    held: list[str] = []
    characters = 0

    def flush() -> None:
        for text, ids in zip(held, tokenizer.encode_batch(held), strict=True):
            data = text.encode()
            place = place_of(data)
            writer(place).add(ids, place, len(data))
        held.clear()

    for text in documents:
        if text:
            held.append(text)
            characters += len(text)
        if len(held) >= batch or characters >= BATCH_CHARACTERS:
            flush()
            characters = 0
    if held:
        flush()


def _balance(train: _Writer, val: _Writer, val_fraction: float) -> None:
    """Chance may leave a small set with an empty side: the document next in line changes over."""
    if not train.documents and val.documents:
        val.hand_over(train)
    elif not val.documents and val_fraction and len(train.spans) < train.documents:
        train.hand_over(val)


def _make_partial(out: Path) -> Path:
    """A new hidden folder beside `out`, after clearing what killed runs left. Refuses an `out` that holds no shards."""
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("this is there already and holds no shards", where=str(out), fix="choose another --name")
    prefix = f".{out.absolute().name}.partial-"
    with _writing(out):
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        for left in out.absolute().parent.glob(f"{glob.escape(prefix)}*"):
            newest = max((path.stat().st_mtime for path in (left, *left.iterdir())), default=0.0)
            if time.time() - newest > STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        partial = out.absolute().with_name(prefix + uuid.uuid4().hex[:12])
        partial.mkdir()
    return partial


def _publish(partial: Path, out: Path, manifest: Manifest) -> None:
    with _writing(out):
        with (partial / MANIFEST).open("w", encoding="utf-8", newline="\n") as file:
            json.dump(asdict(manifest), file, indent=2, sort_keys=True, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        old = partial.with_name(partial.name + "-old")
        if out.exists():
            os.replace(out, old)
        os.replace(partial, out)
        shutil.rmtree(old, ignore_errors=True)


def open_shards(
    directory: str | Path, *, tokenizer_sha256: str | None = None, vocab_size: int | None = None, verify: bool = False
) -> Shards:
    """Open what `prepare` wrote.

    Args:
        tokenizer_sha256: refuse shards of any other tokenizer.
        vocab_size: rows of the model's embedding; shards with a larger vocabulary are refused.
        verify: read both files and compare their sha256 too (about 1.8 GB/s); existence and size are always checked.

    Raises:
        UserError: nothing there (USAGE); a file or the manifest missing, damaged or of another size, or a tokenizer
            that does not match (INTEGRITY).
    """
    path = Path(directory)
    if not path.is_dir():
        raise UserError("no prepared data here", where=str(path), fix=f"{PREPARE}")
    manifest = read_manifest(path / MANIFEST)
    again = f"prepare them again: {PREPARE}"
    if tokenizer_sha256 is not None and tokenizer_sha256 != manifest.tokenizer_sha256:
        what = f"these shards were made with tokenizer {manifest.tokenizer_sha256}, not with {tokenizer_sha256}"
        raise UserError(what, where=str(path), fix=again, code=INTEGRITY)
    if vocab_size is not None and manifest.vocab_size > vocab_size:
        what = f"these shards use a vocabulary of {manifest.vocab_size:,}, the model has {vocab_size:,}"
        raise UserError(what, where=str(path), fix=again, code=INTEGRITY)
    train, val = (
        _open_split(path / f"{name}.bin", manifest, split, verify, again) for name, split in _splits(manifest)
    )
    return Shards(path, manifest, train, val)


def _splits(manifest: Manifest) -> tuple[tuple[str, Split], ...]:
    return ("train", manifest.train), ("val", manifest.val)


def _open_split(file: Path, manifest: Manifest, split: Split, verify: bool, fix: str) -> np.memmap:
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    try:
        size = file.stat().st_size
        expected = split.tokens * dtype.itemsize
        if size != expected:
            what = f"shard of {size:,} bytes, where the manifest says {split.tokens:,} tokens = {expected:,} bytes"
            raise UserError(what, where=str(file), fix=fix, code=INTEGRITY)
        if verify and sha256_of(file) != split.sha256:
            raise UserError("shard differs from its sha256 in the manifest", where=str(file), fix=fix, code=INTEGRITY)
        return np.memmap(file, dtype, "r")
    except OSError as e:
        raise UserError(f"shard cannot be read: {e.strerror}", where=str(file), fix=fix, code=INTEGRITY) from e
