"""The tokens of one split: a stream that lies in one or many files, written in order and read by position.

The stream begins with an end-of-text token, and every document in it is followed by one. The files are that stream cut every so many
tokens, wherever that falls, so joining them in the order of their names gives it back. Left out: files kept open by writers, appending.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyllm.data.files import writing
from tinyllm.data.manifest import File, Origin, Split

SHARD_TOKENS = 1 << 28  # a file of 512 MiB in uint16
_BLOCK = 1 << 20  # tokens looked at together


class Tokens:
    """Read-only tokens behind one number each, over several files that are never joined in memory.

    `tokens[i]` is a token, `tokens[a:b]` an array (a view where it lies in one file), `tokens[array]` an array of the same shape.
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
            return self._picked(index)
        position = range(len(self))[index]  # negative ones, and IndexError behind the end
        return self._between(position, position + 1)[0]

    def _between(self, start: int, stop: int) -> np.ndarray:
        first, last = np.searchsorted(self._ends, [start, max(start, stop - 1)], side="right")
        pieces = []
        for number in range(first, min(last, len(self.files) - 1) + 1):
            before = int(self._ends[number]) - len(self.files[number])
            pieces.append(self.files[number][max(0, start - before) : max(0, stop - before)])
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, self.dtype), *pieces])

    def _picked(self, index: np.ndarray) -> np.ndarray:
        home = np.searchsorted(self._ends, index, side="right")
        found = np.empty(index.shape, self.dtype)
        for number in np.unique(home).tolist():
            here = home == number
            found[here] = self.files[number][index[here] - (int(self._ends[number]) - len(self.files[number]))]
        return found


def documents(tokens: Tokens, endoftext: int, start: int, stop: int) -> Iterator[np.ndarray]:
    """The documents in tokens[start:stop], each with its end; `start` is the first token of one."""
    for at in range(start, stop, _BLOCK):
        for end in (at + 1 + np.flatnonzero(tokens[at : min(stop, at + _BLOCK)] == endoftext)).tolist():
            yield tokens[start:end]
            start = end


class Writer:
    """One split on its way to disk, in files of at most `shard_tokens`, with everything the manifest says of it."""

    def __init__(self, folder: Path, name: str, sources: Sequence[str], dtype: np.dtype, endoftext: int, most: int):
        self.folder, self.name, self.dtype, self.most = folder, name, dtype, most
        self.files: list[File] = []
        self.counts = {source: np.zeros(3, dtype=np.int64) for source in sources}  # documents, tokens, bytes
        self.longest, self.lengths = 0, np.zeros(1, dtype=np.int64)
        self._file: Any = None
        self._append(np.array([endoftext], dtype))  # so that the first document has the context every other one has

    def add(self, source: str, tokens: np.ndarray, lengths: np.ndarray, sizes: np.ndarray) -> None:
        """Documents of one source: all their tokens, each document's end included; tokens without end, bytes (documents,)."""
        self.counts[source] += (len(lengths), len(tokens), int(sizes.sum()))
        self.longest = max(self.longest, int(lengths.max()))
        powers = np.bincount(np.frexp(np.maximum(lengths, 1))[1] - 1)  # of two, rounded down
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
            part, tokens = np.split(tokens, [self.most - self._held])
            data = part.astype(self.dtype, copy=False).tobytes()
            with writing(self._path):
                self._file.write(data)
            self._hash.update(data)
            self._held += len(part)
            if self._held == self.most:
                self._close()

    def _close(self) -> None:
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        self._file = None
        self.files.append(File(self._path.name, self._held, self._hash.hexdigest()))

    def close(self) -> None:
        """Let go of a file that something went wrong with; after `finish` there is none."""
        if self._file is not None:
            self._file.close()

    def finish(self) -> Split:
        """Close the last file. A split that fits one file has a plain name."""
        if self._file is not None:
            self._close()
        if len(self.files) == 1:
            plain = f"{self.name}.bin"
            with writing(self.folder / plain):
                os.replace(self.folder / self.files[0].name, self.folder / plain)
            self.files = [File(plain, self.files[0].tokens, self.files[0].sha256)]
        total = np.sum([*self.counts.values(), np.array([0, 1, 0])], axis=0).tolist()
        of_source = tuple(Origin(source, *counts.tolist()) for source, counts in self.counts.items())
        return Split.of(*total, self.longest, tuple(self.lengths.tolist()), tuple(self.files), of_source)
