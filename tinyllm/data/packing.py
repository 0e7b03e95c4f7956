"""Several documents in a row that do not see each other, so that little of a batch is padding.

Best-fit decreasing (arXiv 2404.10830): the longest first, each into the fullest row that still takes it. A row names each token's
document (`Rows.documents`); the model attends and counts positions within a document, so a packed row reads as its documents would
alone. Which pieces lie in which row is kept in memory: about a hundred bytes a document. A stream (`datasets.Windows`) keeps nothing.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tinyllm.data.batches import Rows, right_padded
from tinyllm.data.datasets import Answers
from tinyllm.errors import UserError


class Stream(Protocol):
    """What pretraining reads: `data.tokens.Tokens` or an array."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray: ...


class Packed:
    """Conversations with several in a row. A record is a row: `train.batch_size` counts rows. None is cut."""

    def __init__(self, rows: Sequence[tuple[Sequence[int], Sequence[bool]]], pad: int, length: int):
        self.answers, self.pad = Answers(rows, pad), pad
        self.bins = best_fit([self.answers.length(i) for i in range(len(self.answers))], length)

    def __len__(self) -> int:
        return len(self.bins)

    def length(self, index: int) -> int:
        return sum(map(self.answers.length, self.bins[index]))

    def collate(self, indices: Sequence[int], epoch: int, step: Sequence[int]) -> Rows:
        packed = [[self.answers.rows[i] for i in self.bins[index]] for index in indices]
        masks = [np.concatenate([np.append(False, mask[1:]) for _, mask in row]) for row in packed]
        numbers = [np.repeat(np.arange(1, len(row) + 1), [len(ids) for ids, _ in row]) for row in packed]
        ids = right_padded([np.concatenate([ids for ids, _ in row]) for row in packed], self.pad)
        return Rows(ids, right_padded(masks, False), right_padded(numbers, 0))


class PackedDocuments:
    """The documents of a stream, each whole in a row where it fits, else in pieces of `length` tokens.

    As in a stream, a piece begins with the token before it (the end of the document before, or the last token of its own piece
    before), which is not scored: every token of every document is scored once an epoch. The rows are the same in every epoch, in
    another order.

    Args:
        tokens: a stream that begins with `end`, and in which every document is followed by it.
        length: scored tokens in a row, at most.
    """

    def __init__(self, tokens: Stream, length: int, *, end: int, pad: int):
        self.tokens, self.width, self.pad = tokens, length, pad
        ends = _positions(tokens, end)
        sizes = np.diff(ends)  # (documents,) tokens of each, its end included
        if not len(sizes):
            raise UserError("there is no document to train on", where="data", fix="add text")
        pieces = -(-sizes // length)  # of each document
        number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # 0, 1, ... within a document
        self.starts = np.repeat(ends[:-1], pieces) + number * length  # (pieces,) of the token that is not scored
        self.sizes = np.minimum(np.repeat(sizes, pieces) - number * length, length) + 1  # (pieces,)
        bins = best_fit(self.sizes.tolist(), length + 1)
        self.order = np.fromiter((piece for row in bins for piece in row), np.int64, len(self.sizes))
        self.ends = np.cumsum([len(row) for row in bins])  # of each row, in `order`
        self.documents = len(sizes)

    def __len__(self) -> int:
        return len(self.ends)

    def length(self, index: int) -> int:
        return int(self.sizes[self._pieces(index)].sum())

    def collate(self, indices: Sequence[int], epoch: int, step: Sequence[int]) -> Rows:
        rows = [self._pieces(index) for index in indices]
        ids = [
            np.concatenate([self.tokens[self.starts[p] : self.starts[p] + self.sizes[p]] for p in row]) for row in rows
        ]
        numbers = [np.repeat(np.arange(1, len(row) + 1), self.sizes[row]) for row in rows]
        masks = [np.diff(n, prepend=0) == 0 for n in numbers]  # all but the first of each piece
        return Rows(right_padded(ids, self.pad), right_padded(masks, False), right_padded(numbers, 0))

    def _pieces(self, index: int) -> np.ndarray:
        return self.order[self.ends[index - 1] if index else 0 : self.ends[index]]

    def padding(self) -> tuple[float, float]:
        """The share of padding in the rows, and what it would be with one piece a row."""
        used, room = int(self.sizes.sum()), self.width + 1
        return 1 - used / (len(self) * room), 1 - used / (len(self.sizes) * room)


def _positions(tokens: Stream, end: int) -> np.ndarray:
    """Where `end` stands, int64, looked for a block at a time."""
    step = 1 << 22
    return np.concatenate([at + np.flatnonzero(tokens[at : at + step] == end) for at in range(0, len(tokens), step)])


def best_fit(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Item numbers in bins of at most `room`: the largest first, each into the fullest bin that still takes it.

    Bins are kept by the room they have left, of which there are few, so an item costs O(log room) however many bins there are.
    """
    bins: list[list[int]] = []
    with_left: dict[int, list[int]] = {}  # room left -> bins
    lefts: list[int] = []  # its keys, sorted
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        size = sizes[item]
        at = bisect.bisect_left(lefts, size)
        if at < len(lefts):
            left = lefts[at]
            number = with_left[left].pop()
            if not with_left[left]:
                del with_left[left], lefts[at]
        else:
            left, number = room, len(bins)
            bins.append([])
        bins[number].append(item)
        rest = left - size
        if rest not in with_left:
            with_left[rest] = []
            bisect.insort(lefts, rest)
        with_left[rest].append(number)
    return bins
