"""Packing: several documents in a row that do not attend to each other, so that little of a batch is padding.

Best-fit decreasing (arXiv 2404.10830): the longest first, each into the fullest row that still has room for it. A row numbers its
documents (`TokenBatch.documents`); attention and positions stay within a document, so a packed row scores as its documents would alone.
The assignment of documents to rows is kept in memory, about a hundred bytes a document. A stream (`PretrainDataset`) keeps nothing.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tinyllm.data.datasets.batches import TokenBatch, right_padded
from tinyllm.data.datasets.datasets import SFTDataset
from tinyllm.errors import UserError


class Stream(Protocol):
    """An array of token ids, or `data.tokens.Tokens`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray: ...


class PackedSFTDataset:
    """Conversations, packed whole into rows of at most `length` tokens. A record is a row, so `train.batch_size` counts rows."""

    def __init__(self, rows: Sequence[tuple[Sequence[int], Sequence[bool]]], pad: int, length: int):
        self.conversations, self.pad = SFTDataset(rows, pad), pad
        self.bins = best_fit([self.conversations.length(i) for i in range(len(self.conversations))], length)

    def __len__(self) -> int:
        return len(self.bins)

    def length(self, index: int) -> int:
        return sum(map(self.conversations.length, self.bins[index]))

    def collate(self, indices: Sequence[int], epoch: int, step: Sequence[int]) -> TokenBatch:
        packed = [[self.conversations.rows[i] for i in self.bins[index]] for index in indices]
        masks = [np.concatenate([np.append(False, mask[1:]) for _, mask in row]) for row in packed]
        numbers = [np.repeat(np.arange(1, len(row) + 1), [len(ids) for ids, _ in row]) for row in packed]
        ids = right_padded([np.concatenate([ids for ids, _ in row]) for row in packed], self.pad)
        return TokenBatch(ids, right_padded(masks, False), right_padded(numbers, 0))


class PackedPretrainDataset:
    """Documents of a token stream, packed into rows. A document of more than `length` tokens is split into pieces.

    As in a stream, a piece begins with the token before it (the end of the previous document, or the last token of the previous
    piece), which is not scored: every token of every document is scored once an epoch. The rows are the same in every epoch; their
    order differs.

    Args:
        tokens: a stream that begins with `end`, and in which `end` follows every document.
        length: scored tokens in a row, at most.

    Raises:
        UserError: the stream holds no document.
    """

    def __init__(self, tokens: Stream, length: int, *, end: int, pad: int):
        self.tokens, self.width, self.pad = tokens, length, pad
        ends = _positions(tokens, end)
        sizes = np.diff(ends)  # (documents,) tokens of each with its end token
        if not len(sizes):
            raise UserError("the training data hold no document", where="data", fix="add text")
        pieces = -(-sizes // length)  # (documents,)
        number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # 0, 1, ... within a document
        self.starts = np.repeat(ends[:-1], pieces) + number * length  # (pieces,) position of the unscored token
        self.sizes = np.minimum(np.repeat(sizes, pieces) - number * length, length) + 1  # (pieces,)
        bins = best_fit(self.sizes.tolist(), length + 1)
        self.order = np.fromiter((piece for row in bins for piece in row), np.int64, len(self.sizes))
        self.ends = np.cumsum([len(row) for row in bins])  # (rows,) end of each row in `order`
        self.documents = len(sizes)

    def __len__(self) -> int:
        return len(self.ends)

    def length(self, index: int) -> int:
        return int(self.sizes[self._pieces(index)].sum())

    def collate(self, indices: Sequence[int], epoch: int, step: Sequence[int]) -> TokenBatch:
        rows = [self._pieces(index) for index in indices]
        ids = [
            np.concatenate([self.tokens[self.starts[p] : self.starts[p] + self.sizes[p]] for p in row]) for row in rows
        ]
        numbers = [np.repeat(np.arange(1, len(row) + 1), self.sizes[row]) for row in rows]
        masks = [np.diff(n, prepend=0) == 0 for n in numbers]  # all but the first of each piece
        return TokenBatch(right_padded(ids, self.pad), right_padded(masks, False), right_padded(numbers, 0))

    def _pieces(self, index: int) -> np.ndarray:
        return self.order[self.ends[index - 1] if index else 0 : self.ends[index]]

    def padding(self) -> tuple[float, float]:
        """Return the fraction of padding in the packed rows, and the fraction with one piece per row."""
        used, row = int(self.sizes.sum()), self.width + 1
        return 1 - used / (len(self) * row), 1 - used / (len(self.sizes) * row)


def _positions(tokens: Stream, end: int) -> np.ndarray:
    """Return the positions of `end`, int64, searching the stream in blocks."""
    step = 1 << 22
    return np.concatenate([at + np.flatnonzero(tokens[at : at + step] == end) for at in range(0, len(tokens), step)])


def best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Return item numbers in bins of at most `capacity`: largest item first, each into the fullest bin that still has room for it.

    Bins are indexed by the space they have left. That has few distinct values, so an item costs O(log capacity) whatever the number of
    bins.
    """
    bins: list[list[int]] = []
    by_space: dict[int, list[int]] = {}  # space left -> bins
    spaces: list[int] = []  # its keys, sorted
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        size = sizes[item]
        at = bisect.bisect_left(spaces, size)
        if at < len(spaces):
            space = spaces[at]
            number = by_space[space].pop()
            if not by_space[space]:
                del by_space[space], spaces[at]
        else:
            space, number = capacity, len(bins)
            bins.append([])
        bins[number].append(item)
        rest = space - size
        if rest not in by_space:
            by_space[rest] = []
            bisect.insort(spaces, rest)
        by_space[rest].append(number)
    return bins
