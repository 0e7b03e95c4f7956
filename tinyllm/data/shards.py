"""Prepared data: the tokens of each split in memory-mapped files, with a manifest that says what they are.

`prepare` reads documents once. What it learns of them goes to a table on disk, their tokens to parts (`parts`); with the table complete it
decides which documents are duplicates and which are for validation, and writes the splits: `train.bin`, `val.bin`, or `train-00000.bin` and
so on where one file would be too large, little-endian uint16, or uint32 for a vocabulary over 65,536. All of it happens in a hidden folder
beside the target, which is renamed into place, so a killed run shows nothing; the next one takes up its finished parts. Memory does not
grow with the text: one byte a document, and fixed amounts. `open_shards` believes no file it has not measured.
Left out: appending, shuffling (`batches`), two `prepare` runs into one folder at once (the stage holds a lock).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tinyllm.data import tokens as streams
from tinyllm.data.files import writing
from tinyllm.data.manifest import (
    MANIFEST,
    PREPARE,
    VERSION,
    File,
    Manifest,
    Split,
    read_manifest,
    sha256_of,
)
from tinyllm.data.parts import PART_BYTES, PLACES, Encoder, Parts, token_type
from tinyllm.data.table import KEPT, Table
from tinyllm.data.tokens import SHARD_TOKENS, Tokens, Writer
from tinyllm.errors import INTEGRITY, UserError

DEDUP = ("none", "exact", "near")
Documents = Iterable[str] | Mapping[str, Iterable[str]]


@dataclass(frozen=True)
class Shards:
    """Opened shards. Both streams begin and end with `manifest.endoftext`."""

    path: Path
    manifest: Manifest
    train: Tokens
    val: Tokens

    def documents(self, split: str, most: int | None = None) -> list[np.ndarray]:
        """The documents of `train` or `val`, each with its end; at most so many, of every source its share, the first ones."""
        tokens, facts = (self.train, self.manifest.train) if split == "train" else (self.val, self.manifest.val)
        limit = facts.documents if most is None else min(most, facts.documents)
        found: list[np.ndarray] = []
        start, before = 1, 0
        for origin in facts.sources:
            before += origin.documents
            share = before * limit // max(1, facts.documents) - len(found)  # they add up to the limit
            found += islice(streams.documents(tokens, self.manifest.endoftext, start, start + origin.tokens), share)
            start += origin.tokens
        return found


def place_of(data: bytes) -> float:
    """A fixed point in [0, 1) for each text; validation documents are those below `val_fraction`."""
    return int.from_bytes(hashlib.sha256(data).digest()[:6], "big") / PLACES


def prepare(
    documents: Documents,
    tokenizer: Encoder,
    out: str | Path,
    *,
    val_fraction: float = 0.05,
    val_documents: Documents | None = None,
    sources: Sequence[dict[str, Any]] | Callable[[], Sequence[dict[str, Any]]] = (),
    dedup: str = "exact",
    shard_tokens: int = SHARD_TOKENS,
    part_bytes: int = PART_BYTES,
    progress: Callable[[int], None] = lambda size: None,
) -> Manifest:
    """Encode documents into shards under `out`; the same documents and tokenizer give the same bytes.

    Each document is followed by the end-of-text token, and one opens each split. Which split a document goes to is a function of its
    text alone, so no text is on both sides. With two different texts or more both splits get one (unless `val_fraction` is 0). Empty
    documents are passed over.

    Args:
        documents: texts, or texts by the name of their source. They keep their order.
        val_fraction: share of documents for validation, in [0, 1); unused with `val_documents`.
        val_documents: validation documents given apart; `documents` are then all for training.
        sources: what the documents came from, for the manifest; a function is called after the last document, as in
            `lambda: reader.report.sources()`.
        dedup: `exact` drops every document whose text came before, `near` also those that nearly did (`data.dedup`). Documents for
            validation given apart come first, so what is like them is not trained on.
        shard_tokens: tokens of a file at most.
        part_bytes: of text encoded and written as a piece that need not be made again after a kill.
        progress: is called with the UTF-8 bytes encoded so far.

    Raises:
        UserError: no documents, `out` holds something else, no space. `out` is then as it was.
    """
    out = Path(out).absolute()
    if not 0 <= val_fraction < 1:
        raise UserError(f"val_fraction {val_fraction} is not in [0, 1)", where="val_fraction", fix="set it to 0.05")
    if dedup not in DEDUP:
        raise UserError(f"dedup {dedup!r} is none of {', '.join(DEDUP)}", where="dedup", fix="set it to exact")
    train = _by_source(documents)
    val = None if val_documents is None else _by_source(val_documents)
    with _workshop(out) as work:
        parts = Parts(work / "parts", tokenizer, near=dedup == "near", part_bytes=part_bytes)
        table = Table(work, dedup)
        with closing(table):
            for name, texts in (val or {}).items():
                table.read(name, parts.of(texts), progress, given=True)
            for name, texts in train.items():
                table.read(name, parts.of(texts), progress, given=False)
        if not table.documents:
            raise UserError("0 documents to prepare", where=str(out), fix="give documents that are not empty")
        marks = table.marks()
        names = {"train": list(train), "val": list(train if val is None else val)}
        fraction = val_fraction if val is None else 0.0
        splits = _write(work / "new", names, table, marks, parts, fraction, shard_tokens)
        manifest = Manifest(
            version=VERSION,
            tokenizer_sha256=tokenizer.sha256,
            vocab_size=tokenizer.vocab_size,
            endoftext=tokenizer.endoftext,
            dtype=token_type(tokenizer).name,
            val_fraction=val_fraction if val is None else None,
            dedup=dedup,
            removed=table.removed(marks, dict.fromkeys([*(val or ()), *train])),
            **splits,
            sources=tuple(sources() if callable(sources) else sources),
        )
        if not manifest.train.documents:
            what = "0 documents to train on: all of them are among the validation documents"
            raise UserError(what, where=str(out), fix="give other validation documents")
        _publish(work, out, manifest)
    return manifest


def _by_source(documents: Documents) -> Mapping[str, Iterable[str]]:
    return documents if isinstance(documents, Mapping) else {"": documents}


def _write(
    folder: Path,
    names: Mapping[str, Sequence[str]],
    table: Table,
    marks: np.ndarray,
    parts: Parts,
    val_fraction: float,
    shard_tokens: int,
) -> dict[str, Split]:
    """Both splits, from the parts; `names` are the sources of each."""
    with writing(folder):
        folder.mkdir()
    threshold = table.threshold(marks, val_fraction) if val_fraction else 0
    with ExitStack() as stack:
        train, val = (
            stack.enter_context(
                closing(Writer(folder, split, names[split], parts.dtype, parts.tokenizer.endoftext, shard_tokens))
            )
            for split in ("train", "val")
        )
        for stretch in table.stretches:
            rows, tokens = table.rows(stretch), parts.tokens(stretch.part, stretch.stop - stretch.start)
            lengths, sizes = rows["tokens"].astype(np.int64), rows["bytes"].astype(np.int64)
            kept = marks[stretch.start : stretch.stop] == KEPT
            for_val = np.full(len(rows), True) if stretch.given else rows["place"] < threshold
            for writer, chosen in ((train, kept & ~for_val), (val, kept & for_val)):
                if chosen.any():
                    picked = tokens if chosen.all() else tokens[np.repeat(chosen, lengths + 1)]
                    writer.add(stretch.source, picked, lengths[chosen], sizes[chosen])
        return {"train": train.finish(), "val": val.finish()}


@contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` with `parts/` in it, which outlives a failure. Refuses an `out` that holds no shards."""
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("this is there already and holds no shards", where=str(out), fix="choose another --name")
    work = out.with_name(f".{out.name}.work")
    parts = work / "parts"
    with writing(out):
        parts.mkdir(parents=True, exist_ok=True)
        _clear(work)
    try:
        yield work
        shutil.rmtree(parts, ignore_errors=True)
    finally:
        _clear(work)
        with suppress(OSError):  # with finished parts in it, it stays for the next run
            parts.rmdir() if parts.exists() else None
            work.rmdir()


def _clear(work: Path) -> None:
    """Remove everything but finished parts."""
    for path in work.iterdir():
        if path.name != "parts":
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _publish(work: Path, out: Path, manifest: Manifest) -> None:
    with writing(out):
        with (work / "new" / MANIFEST).open("w", encoding="utf-8", newline="\n") as file:
            json.dump(asdict(manifest), file, indent=2, sort_keys=True, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        if out.exists():
            os.replace(out, work / "old")
        os.replace(work / "new", out)


def open_shards(
    directory: str | Path, *, tokenizer_sha256: str | None = None, vocab_size: int | None = None, verify: bool = False
) -> Shards:
    """Open what `prepare` wrote.

    Args:
        tokenizer_sha256: refuse shards of any other tokenizer.
        vocab_size: rows of the model's embedding; shards with a larger vocabulary are refused.
        verify: read all files and compare their sha256 too (about 1.8 GB/s); existence and size are always checked.

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
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    train, val = (
        Tokens([_open_file(path / file.name, file, dtype, verify, again) for file in split.files])
        for split in (manifest.train, manifest.val)
    )
    return Shards(path, manifest, train, val)


def _open_file(path: Path, file: File, dtype: np.dtype, verify: bool, fix: str) -> np.memmap:
    try:
        size = path.stat().st_size
        expected = file.tokens * dtype.itemsize
        if size != expected:
            what = f"shard of {size:,} bytes, where the manifest says {file.tokens:,} tokens = {expected:,} bytes"
            raise UserError(what, where=str(path), fix=fix, code=INTEGRITY)
        if verify and sha256_of(path) != file.sha256:
            raise UserError("shard differs from its sha256 in the manifest", where=str(path), fix=fix, code=INTEGRITY)
        return np.memmap(path, dtype, "r")
    except OSError as e:
        raise UserError(f"shard cannot be read: {e.strerror}", where=str(path), fix=fix, code=INTEGRITY) from e
