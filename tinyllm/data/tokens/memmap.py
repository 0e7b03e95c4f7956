"""The token stream of one split in one or several memory-mapped files.

The stream begins with an end-of-text token, and every document is followed by one. The files are equal parts of the stream, cut without
regard to documents; concatenated in the order of their names they are the stream. Left out: appending.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyllm.data.tokens.manifest import File, SourceCounts, Split, writing

SHARD_TOKENS = 1 << 28  # a file of 512 MiB in uint16
_BLOCK = 1 << 20  # tokens searched at a time


class Tokens:
    """A read-only array of tokens over several files, without joining them in memory.

    `tokens[i]` is a token, `tokens[a:b]` an array (a view if it is within one file), `tokens[array]` an array of the same shape.
    """

    def __init__(self, files: Sequence[np.ndarray]):
        self.files = tuple(files)
        self.dtype = self.files[0].dtype
        self._ends = np.cumsum([len(file) for file in self.files])  # (files,)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self._between(start, stop)[::step] if step > 0 else self[np.arange(start, stop, step)]
        if isinstance(index, np.ndarray):
            return self._gather(index)
        position = range(len(self))[index]  # handles negative indices, raises IndexError
        return self._between(position, position + 1)[0]

    def _between(self, start: int, stop: int) -> np.ndarray:
        first, last = np.searchsorted(self._ends, [start, max(start, stop - 1)], side="right")
        pieces = []
        for number in range(first, min(last, len(self.files) - 1) + 1):
            before = int(self._ends[number]) - len(self.files[number])
            pieces.append(self.files[number][max(0, start - before) : max(0, stop - before)])
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, self.dtype), *pieces])

    def _gather(self, index: np.ndarray) -> np.ndarray:
        numbers = np.searchsorted(self._ends, index, side="right")
        tokens = np.empty(index.shape, self.dtype)
        for number in np.unique(numbers).tolist():
            inside = numbers == number
            tokens[inside] = self.files[number][index[inside] - (int(self._ends[number]) - len(self.files[number]))]
        return tokens


def documents(tokens: Tokens, endoftext: int, start: int, stop: int) -> Iterator[np.ndarray]:
    """Yield the documents in tokens[start:stop], each with its end token; `start` is the first token of a document."""
    for at in range(start, stop, _BLOCK):
        for end in (at + 1 + np.flatnonzero(tokens[at : min(stop, at + _BLOCK)] == endoftext)).tolist():
            yield tokens[start:end]
            start = end


class SplitWriter:
    """Writes one split in files of at most `max_tokens`, and counts what the manifest needs."""

    def __init__(
        self, folder: Path, name: str, sources: Sequence[str], dtype: np.dtype, endoftext: int, max_tokens: int
    ):
        self.folder, self.name, self.dtype, self.max_tokens = folder, name, dtype, max_tokens
        self.files: list[File] = []
        self.counts = {source: np.zeros(3, dtype=np.int64) for source in sources}  # documents, tokens, bytes
        self.longest, self.lengths = 0, np.zeros(1, dtype=np.int64)
        self._file: Any = None
        self._append(np.array([endoftext], dtype))  # so that the first document has the same context as all others

    def add(self, source: str, tokens: np.ndarray, lengths: np.ndarray, sizes: np.ndarray) -> None:
        """Append documents of one source.

        Args:
            tokens: of all of them, end tokens included.
            lengths: (documents,) tokens without the end token.
            sizes: (documents,) UTF-8 bytes.
        """
        self.counts[source] += (len(lengths), len(tokens), int(sizes.sum()))
        self.longest = max(self.longest, int(lengths.max()))
        powers = np.bincount(np.frexp(np.maximum(lengths, 1))[1] - 1)  # floor(log2(length))
        self.lengths = np.pad(self.lengths, (0, max(0, len(powers) - len(self.lengths))))
        self.lengths[: len(powers)] += powers
        self._append(tokens)

    def _append(self, tokens: np.ndarray) -> None:
        while len(tokens):
            if self._file is None:
                self._path = self.folder / f"{self.name}-{len(self.files):05d}.bin"
                with writing(self._path):
                    self._file = self._path.open("wb")
                self._hash, self._held = hashlib.sha256(), 0
            part, tokens = np.split(tokens, [self.max_tokens - self._held])
            data = part.astype(self.dtype, copy=False).tobytes()
            with writing(self._path):
                self._file.write(data)
            self._hash.update(data)
            self._held += len(part)
            if self._held == self.max_tokens:
                self._close()

    def _close(self) -> None:
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        self._file = None
        self.files.append(File(self._path.name, self._held, self._hash.hexdigest()))

    def close(self) -> None:
        """Close a file left open by an error; after `finish` there is none."""
        if self._file is not None:
            self._file.close()

    def finish(self) -> Split:
        """Close the last file and return the split's manifest entry. A single file is renamed to a name without a number."""
        if self._file is not None:
            self._close()
        if len(self.files) == 1:
            plain = f"{self.name}.bin"
            with writing(self.folder / plain):
                os.replace(self.folder / self.files[0].name, self.folder / plain)
            self.files = [File(plain, self.files[0].tokens, self.files[0].sha256)]
        total = np.sum([*self.counts.values(), np.array([0, 1, 0])], axis=0).tolist()
        of_source = tuple(SourceCounts(source, *counts.tolist()) for source, counts in self.counts.items())
        return Split.of(*total, self.longest, tuple(self.lengths.tolist()), tuple(self.files), of_source)
