"""The table of all documents of a preparation, on disk: a few numbers for each, and the keys by which duplicates are found.

Duplicates and validation documents are chosen here, once the table is complete. In memory is one byte per document.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyllm.data.tokens import dedup
from tinyllm.data.tokens.manifest import Removed, writing
from tinyllm.data.tokens.preparation import FIELDS, SPLIT_HASHES, Chunk, Encoder, split_hash

KEPT, EXACT, NEAR = range(3)  # the status of a document


@dataclass(frozen=True)
class ChunkRows:
    """The rows of the table with the documents of one chunk."""

    chunk: Path
    source: str
    is_val: bool  # the user named this source for validation
    start: int
    stop: int


class DocumentTable:
    """The table, in files of `folder`.

    Args:
        duplicates: none, exact or near: which ones are looked for.
    """

    def __init__(self, folder: Path, duplicates: str):
        keys = {"none": 0, "exact": 1, "near": 1 + dedup.BANDS}[duplicates]
        self.chunks: list[ChunkRows] = []
        self.documents = self.bytes = 0
        self._paths = [folder / "rows", *(folder / f"keys-{number:02d}" for number in range(keys))]
        with writing(folder):
            self._files = [path.open("wb") for path in self._paths]

    def close(self) -> None:
        for file in self._files:
            file.close()

    def add_source(
        self, source: str, chunks: Generator[Chunk, None, None], progress: Callable[[int], None], *, is_val: bool
    ) -> None:
        """Append all documents of one source."""
        with closing(chunks):  # so that its threads have ended when something fails
            for chunk in chunks:
                columns = [chunk.fields, chunk.fields["key"], *chunk.near_keys.T]
                with writing(self._paths[0]):
                    for file, column in zip(self._files, columns, strict=False):
                        file.write(column.tobytes())
                stop = self.documents + len(chunk.fields)
                self.chunks.append(ChunkRows(chunk.path, source, is_val, self.documents, stop))
                self.documents, self.bytes = stop, self.bytes + int(chunk.fields["bytes"].sum())
                progress(self.bytes)

    def rows(self, chunk: ChunkRows) -> np.ndarray:
        """Return the numbers of a chunk's documents, (documents,) of dtype FIELDS."""
        count, offset = chunk.stop - chunk.start, chunk.start * FIELDS.itemsize
        return np.fromfile(self._paths[0], FIELDS, count, offset=offset)

    def status(self) -> np.ndarray:
        """Return KEPT, EXACT or NEAR (a duplicate of an earlier document) for all documents, uint8 (documents,)."""
        status = np.full(self.documents, KEPT, np.uint8)
        for path in reversed(self._paths[1:]):  # exact duplicates last: they have precedence
            for positions in dedup.duplicate_positions(path):
                status[positions] = EXACT if path == self._paths[1] else NEAR
        return status

    def removed(self, status: np.ndarray, sources: Iterable[str]) -> tuple[Removed, ...]:
        """Return the number of duplicates in each source."""
        counts = {source: np.zeros(3, np.int64) for source in sources}
        for chunk in self.chunks:
            counts[chunk.source] += np.bincount(status[chunk.start : chunk.stop], minlength=3)
        return tuple(Removed(source, int(number[EXACT]), int(number[NEAR])) for source, number in counts.items())

    def threshold(self, status: np.ndarray, val_fraction: float) -> int:
        """Return the split hash below which documents are for validation.

        If a split of a small set would be empty, the threshold is moved just enough to give it one document.
        """
        lowest, highest = SPLIT_HASHES, 0
        for chunk in self.chunks:
            hashes = self.rows(chunk)["split_hash"][status[chunk.start : chunk.stop] == KEPT]
            lowest = min(lowest, int(hashes.min(initial=SPLIT_HASHES)))
            highest = max(highest, int(hashes.max(initial=0)))
        return split_threshold(lowest, highest, val_fraction)


def split_threshold(lowest: int, highest: int, val_fraction: float) -> int:
    """Return the hash below which documents are for validation, given the lowest and highest hash of all documents."""
    return min(max(math.ceil(val_fraction * SPLIT_HASHES), lowest + 1), highest)


def document_hash(document: np.ndarray | Sequence[int]) -> int:
    """Return a number below SPLIT_HASHES that is the same for equal tokens, whatever their type."""
    tokens = np.asarray(document, dtype="<u4").tobytes()
    return int.from_bytes(hashlib.blake2b(tokens, digest_size=6).digest(), "big")


def threshold_of_test(hashes: Iterable[int], share: float) -> int:
    """Return the `document_hash` below which held-out documents are for test.

    Args: hashes: those of few documents, of which two different ones are enough to have one in val and one in test; a single one is val.
    """
    known = set(hashes) if share else ()
    return split_threshold(min(known), max(known), share) if known else math.ceil(share * SPLIT_HASHES)


def documents_for_test(texts: Sequence[str], tokenizer: Encoder, share: float) -> list[bool]:
    """Return which of all held-out documents are for test, as `Shards.documents` divides them."""
    if not share:
        return [False] * len(texts)
    hashes = [document_hash([*ids, tokenizer.endoftext]) for ids in tokenizer.encode_batch(texts)]
    threshold = threshold_of_test(hashes, share)
    return [number < threshold for number in hashes]


def held_out_documents(texts: Iterable[str], val_fraction: float) -> list[str]:
    """Return the documents that preparation puts into the validation split, each once."""
    hashes = {text: split_hash(text) for text in texts if text}
    if not hashes:
        return []
    threshold = split_threshold(min(hashes.values()), max(hashes.values()), val_fraction)
    return [text for text, number in hashes.items() if number < threshold]
