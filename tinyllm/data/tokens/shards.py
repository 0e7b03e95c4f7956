"""Prepared data: the tokens of each split in memory-mapped files, and a manifest.

`prepare` reads documents once. It writes their tokens to chunks (`preparation`) and a few numbers for each to a table (`documents`). With
the table complete it chooses duplicates and validation documents and writes the splits: `train.bin` and `val.bin`, or `train-00000.bin`
and so on where one file would be too large; little-endian uint16, or uint32 for a vocabulary over 65,536. All of this happens in a hidden
folder beside the target, which is renamed into place, so a killed run leaves nothing half-written; the next run reuses its finished
chunks. Memory does not grow with the text, except for one byte per document. `open_shards` checks every file.
Left out: appending, shuffling (`batches`), two `prepare` runs into one folder at once (the stage holds a lock).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tinyllm.data.tokens import memmap
from tinyllm.data.tokens.documents import KEPT, DocumentTable, document_hash, threshold_of_test
from tinyllm.data.tokens.manifest import MANIFEST, PREPARE, VERSION, File, Manifest, Split, read_manifest, writing
from tinyllm.data.tokens.memmap import SHARD_TOKENS, SplitWriter, Tokens
from tinyllm.data.tokens.preparation import CHUNK_BYTES, ChunkEncoder, Encoder, token_type
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.io import strict_json
from tinyllm.io.files import sha256

DEDUP = ("none", "exact", "near")
_FEW = 1000  # held-out documents, of which one must be in val and one in test
Documents = Iterable[str] | Mapping[str, Iterable[str]]


@dataclass(frozen=True)
class Shards:
    """Open shards. Both token streams begin and end with `manifest.endoftext`."""

    path: Path
    manifest: Manifest
    train: Tokens
    val: Tokens

    def documents(self, split: str, limit: int | None = None, *, for_test: float = 0.0) -> list[np.ndarray]:
        """Return the documents of `train`, `val` or `test`, each with its end token.

        `val` and `test` divide the held-out documents, which are in one file, by a hash of their tokens.

        Args:
            limit: the maximum number; the first documents of each source are returned, in proportion to its size.
            for_test: the share of the held-out documents that is `test`; with 0 all are `val`.
        """
        tokens, info = (self.train, self.manifest.train) if split == "train" else (self.val, self.manifest.val)
        limit = info.documents if limit is None else min(limit, info.documents)
        threshold = self._test_threshold(for_test) if split != "train" else 0
        found: list[np.ndarray] = []
        start, before = 1, 0
        for source in info.sources:
            before += source.documents
            share = before * limit // max(1, info.documents) - len(found)  # the shares add up to the limit
            documents = memmap.documents(tokens, self.manifest.endoftext, start, start + source.tokens)
            if split != "train":
                documents = (one for one in documents if (document_hash(one) < threshold) == (split == "test"))
            found += islice(documents, share)
            start += source.tokens
        return found

    def _test_threshold(self, share: float) -> int:
        """Return the hash below which held-out documents are for test. Of many, not all are hashed to find that none is."""
        every = memmap.documents(self.val, self.manifest.endoftext, 1, len(self.val))
        return threshold_of_test(map(document_hash, every if self.manifest.val.documents <= _FEW else ()), share)


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
    chunk_bytes: int = CHUNK_BYTES,
    progress: Callable[[int], None] = lambda size: None,
) -> Manifest:
    """Encode documents into shards under `out`; the same documents and tokenizer give the same bytes.

    Each split begins with an end-of-text token, and every document is followed by one. The split of a document is a function of its
    text, so no text is in both. Two different texts are enough to have one in each split (unless `val_fraction` is 0). Empty documents
    are skipped.

    Args:
        documents: texts, or texts by the name of their source. Their order is kept.
        val_fraction: share of the documents for validation, in [0, 1); not used with `val_documents`.
        val_documents: documents for validation; all of `documents` are then for training.
        sources: the `sources` of the manifest; a function is called after the last document, as in
            `lambda: reader.report.sources()`.
        dedup: `exact` drops documents equal to an earlier one, `near` also those nearly equal (`data.dedup`). `val_documents` come
            first, so their duplicates are not trained on.
        shard_tokens: the maximum number of tokens of a file.
        chunk_bytes: of text, the unit that is not encoded again after a kill.
        progress: called with the number of UTF-8 bytes encoded so far.

    Raises:
        UserError: no documents, `out` holds something else, no disk space. `out` is then unchanged.
    """
    _check_arguments(val_fraction, dedup)
    out = Path(out).absolute()
    train = _by_source(documents)
    val = None if val_documents is None else _by_source(val_documents)
    with _working_folder(out) as work:
        encoder = ChunkEncoder(work / "parts", tokenizer, near=dedup == "near", chunk_bytes=chunk_bytes)
        table = DocumentTable(work, dedup)
        _encode(table, encoder, train, val or {}, progress)
        if not table.documents:
            raise UserError("0 documents to prepare", where=str(out), fix="use documents that are not empty")
        status = table.status()
        names = {"train": list(train), "val": list(train if val is None else val)}
        fraction = val_fraction if val is None else 0.0
        splits = _write(work / "new", names, table, status, encoder, fraction, shard_tokens)
        manifest = Manifest(
            version=VERSION,
            tokenizer_sha256=tokenizer.sha256,
            vocab_size=tokenizer.vocab_size,
            endoftext=tokenizer.endoftext,
            dtype=token_type(tokenizer).name,
            val_fraction=val_fraction if val is None else None,
            dedup=dedup,
            removed=table.removed(status, dict.fromkeys([*(val or ()), *train])),
            **splits,
            sources=tuple(sources() if callable(sources) else sources),
        )
        if not manifest.train.documents:
            what = "0 documents to train on: all of them are validation documents as well"
            raise UserError(what, where=str(out), fix="use other validation documents")
        _publish(work, out, manifest)
    return manifest


def _check_arguments(val_fraction: float, dedup: str) -> None:
    if not 0 <= val_fraction < 1:
        raise UserError(f"val_fraction {val_fraction} is not in [0, 1)", where="val_fraction", fix="set it to 0.05")
    if dedup not in DEDUP:
        raise UserError(f"dedup {dedup!r} is none of {', '.join(DEDUP)}", where="dedup", fix="set it to exact")


def _encode(
    table: DocumentTable,
    encoder: ChunkEncoder,
    train: Mapping[str, Iterable[str]],
    val: Mapping[str, Iterable[str]],
    progress: Callable[[int], None],
) -> None:
    """Encode all sources into chunks and fill the table of documents, validation documents first."""
    with closing(table):
        for name, texts in val.items():
            table.add_source(name, encoder.encode(texts), progress, is_val=True)
        for name, texts in train.items():
            table.add_source(name, encoder.encode(texts), progress, is_val=False)


def _by_source(documents: Documents) -> Mapping[str, Iterable[str]]:
    return documents if isinstance(documents, Mapping) else {"": documents}


def _write(
    folder: Path,
    names: Mapping[str, Sequence[str]],
    table: DocumentTable,
    status: np.ndarray,
    encoder: ChunkEncoder,
    val_fraction: float,
    shard_tokens: int,
) -> dict[str, Split]:
    """Write both splits from the chunks; `names` are the sources of each."""
    with writing(folder):
        folder.mkdir()
    threshold = table.threshold(status, val_fraction) if val_fraction else 0
    with ExitStack() as stack:
        train, val = (
            stack.enter_context(
                closing(
                    SplitWriter(folder, split, names[split], encoder.dtype, encoder.tokenizer.endoftext, shard_tokens)
                )
            )
            for split in ("train", "val")
        )
        for chunk in table.chunks:
            rows, tokens = table.rows(chunk), encoder.tokens(chunk.chunk, chunk.stop - chunk.start)
            lengths, sizes = rows["tokens"].astype(np.int64), rows["bytes"].astype(np.int64)
            kept = status[chunk.start : chunk.stop] == KEPT
            for_val = np.full(len(rows), True) if chunk.is_val else rows["split_hash"] < threshold
            for writer, chosen in ((train, kept & ~for_val), (val, kept & for_val)):
                if chosen.any():
                    chosen_tokens = tokens if chosen.all() else tokens[np.repeat(chosen, lengths + 1)]
                    writer.add(chunk.source, chosen_tokens, lengths[chosen], sizes[chosen])
        return {"train": train.finish(), "val": val.finish()}


@contextmanager
def _working_folder(out: Path) -> Iterator[Path]:
    """Make a hidden folder beside `out` with `parts/` for the chunks, which stay after a failure.

    Raises: UserError for an `out` that exists and holds no shards.
    """
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("this path exists but contains no shards", where=str(out), fix="choose another --name")
    work = out.with_name(f".{out.name}.work")
    chunks = work / "parts"
    with writing(out):
        chunks.mkdir(parents=True, exist_ok=True)
        _clear(work)
    try:
        yield work
        shutil.rmtree(chunks, ignore_errors=True)
    finally:
        _clear(work)
        with suppress(OSError):  # a folder with finished chunks stays for the next run
            chunks.rmdir() if chunks.exists() else None
            work.rmdir()


def _clear(work: Path) -> None:
    """Remove everything but finished chunks."""
    for path in work.iterdir():
        if path.name != "parts":
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _publish(work: Path, out: Path, manifest: Manifest) -> None:
    with writing(out):
        with (work / "new" / MANIFEST).open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(strict_json.dumps(asdict(manifest), indent=2, sort_keys=True, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if out.exists():
            os.replace(out, work / "old")
        os.replace(work / "new", out)


def open_shards(
    directory: str | Path, *, tokenizer_sha256: str | None = None, vocab_size: int | None = None, verify: bool = False
) -> Shards:
    """Open the shards that `prepare` wrote to `directory`.

    Args:
        tokenizer_sha256: refuse shards of any other tokenizer.
        vocab_size: rows of the model's embedding; shards with a larger vocabulary are refused.
        verify: also compare the sha256 of all files (about 1.8 GB/s); existence and size are always checked.

    Raises:
        UserError: no such directory (USAGE); a file or the manifest missing, damaged or of another size, or a tokenizer
            that does not match (INTEGRITY).
    """
    path = Path(directory)
    if not path.is_dir():
        raise UserError("no prepared data here", where=str(path), fix=PREPARE)
    manifest = read_manifest(path / MANIFEST)
    fix = f"prepare them again: {PREPARE}"
    if tokenizer_sha256 is not None and tokenizer_sha256 != manifest.tokenizer_sha256:
        what = f"these shards were made with tokenizer {manifest.tokenizer_sha256}, not with {tokenizer_sha256}"
        raise UserError(what, where=str(path), fix=fix, code=INTEGRITY)
    if vocab_size is not None and manifest.vocab_size > vocab_size:
        what = f"these shards use a vocabulary of {manifest.vocab_size:,}, but the model's has {vocab_size:,}"
        raise UserError(what, where=str(path), fix=fix, code=INTEGRITY)
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    train, val = (
        Tokens([_open_file(path / file.name, file, dtype, verify, fix) for file in split.files])
        for split in (manifest.train, manifest.val)
    )
    return Shards(path, manifest, train, val)


def _open_file(path: Path, file: File, dtype: np.dtype, verify: bool, fix: str) -> np.memmap:
    try:
        size = path.stat().st_size
        expected = file.tokens * dtype.itemsize
        if size != expected:
            what = f"a shard of {size:,} bytes; its manifest says {file.tokens:,} tokens = {expected:,} bytes"
            raise UserError(what, where=str(path), fix=fix, code=INTEGRITY)
        if verify and sha256(path) != file.sha256:
            raise UserError(
                "the shard does not match its sha256 in the manifest", where=str(path), fix=fix, code=INTEGRITY
            )
        return np.memmap(path, dtype, "r")
    except OSError as e:
        raise UserError(f"shard cannot be read: {e.strerror}", where=str(path), fix=fix, code=INTEGRITY) from e
