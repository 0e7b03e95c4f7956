"""Records as tensors: what a loss receives, and which records make up step k.

The records of step k are a pure function of (seed, epoch, global index): resuming needs one integer, and another number of ranks or
micro-batches sees the same records at the same step. All rows are padded on the right, so causal attention needs no mask.
`mask` marks the tokens that are scored; it is made while the record is rendered and never recovered by searching.
Left out: worker processes (the token arrays are in memory or mapped; making a batch takes microseconds).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from tinyllm.errors import UserError
from tinyllm.mean import Mean

B = TypeVar("B")


class _Batch:
    """Adds `to(device)` to the dataclasses below."""

    def to(self: B, device: torch.device) -> B:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in moved.items() if isinstance(v, Tensor)})


@dataclass(frozen=True)
class Rows(_Batch):
    """Text to be predicted: pretraining and supervised fine-tuning."""

    ids: Tensor  # (B, T) int64
    mask: Tensor  # (B, T) bool, tokens that are scored; column 0 never is


@dataclass(frozen=True)
class Pairs(_Batch):
    """Preferences: rows 0..P-1 are the chosen answers, rows P..2P-1 the rejected ones, each after its prompt."""

    ids: Tensor  # (2P, T)
    mask: Tensor  # (2P, T) the answer's tokens, its end token included
    real: Tensor  # (2P, T) everything but padding
    margin: Tensor  # (P,) how much better the chosen one is, where the data say so; else 0
    reference: Tensor | None = None  # (2P,) log-probability of each answer under the reference
    tokens_per_pair: float | None = None
    """Scored tokens of chosen rows (prompt included) per pair over the *whole* optimiser step, over micro-batches and ranks:
    lets a token mean and a pair mean share one count. None: of this batch alone."""
    answer_tokens_per_pair: float | None = None
    """The same for the answers' tokens alone."""

    @property
    def count(self) -> int:
        return self.ids.shape[0] // 2


class Dataset(Protocol):
    """Anything that can turn record numbers into a batch."""

    def __len__(self) -> int: ...

    def length(self, index: int) -> int:
        """Tokens of a record, to sort rows of like length together."""
        ...

    def collate(self, indices: Sequence[int], epoch: int, step: Sequence[int]) -> Any:
        """The batch of these records; `step` are all records of the optimiser step they belong to."""
        ...


class Source:
    """step number -> the micro-batches of this rank.

    Args:
        batch_size: records in an optimiser step over all ranks; must be divisible by their number.
        micro_batch_size: records in a forward pass, at most.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, micro_batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1
    ):
        if batch_size % world_size:
            raise UserError(
                f"batch_size {batch_size} cannot be shared by {world_size} ranks",
                where="train.batch_size",
                fix=f"use {math.ceil(batch_size / world_size) * world_size}",
            )
        self.dataset, self.batch_size, self.micro_batch_size = dataset, batch_size, micro_batch_size
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.metrics: dict[str, Mean] = {}  # a source of plain data has no figures of its own
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __call__(self, step: int) -> list[Any]:
        chosen = self.records(step)
        epoch = step * self.batch_size // len(self.dataset)
        mine = sorted(chosen[self.rank :: self.world_size], key=self.dataset.length)  # alike lengths need less padding
        parts = math.ceil(len(mine) / self.micro_batch_size)
        return [self.dataset.collate(part.tolist(), epoch, chosen) for part in np.array_split(np.array(mine), parts)]

    def records(self, step: int) -> list[int]:
        """The numbers of the records of this step, over all ranks. Epochs follow each other without a gap, each in its own order."""
        first = step * self.batch_size
        return [
            int(self._shuffled(i // len(self.dataset))[i % len(self.dataset)])
            for i in range(first, first + self.batch_size)
        ]

    def _shuffled(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed & (2**64 - 1), epoch]))
            self._epoch, self._order = epoch, generator.permutation(len(self.dataset))
        return self._order

    def passes(self, limit: int) -> Iterator[Any]:
        """This rank's share of the first `limit` records once, in order: for validation."""
        mine = list(range(self.rank, min(limit, len(self.dataset)), self.world_size))
        for start in range(0, len(mine), self.micro_batch_size):
            part = mine[start : start + self.micro_batch_size]
            yield self.dataset.collate(part, 0, part)


class Windows:
    """A stream of tokens cut into rows of `length` + 1: each of its tokens but the first is predicted from those before it.

    Every epoch cuts at another offset, so that no token always stands at a window's edge.
    """

    def __init__(self, tokens: np.ndarray, length: int, *, seed: int, shifted: bool = True):
        self.tokens, self.width, self.seed = tokens, length, seed
        self.rows = (len(tokens) - 1 - (length - 1 if shifted else 0)) // length
        self.shifted = shifted
        if self.rows < 1:
            raise UserError(
                f"{len(tokens)} tokens are too few for one row of {length}",
                where="data",
                fix="add text, or lower data.max_length",
            )

    def __len__(self) -> int:
        return self.rows

    def length(self, index: int) -> int:
        return self.width

    def collate(self, indices: Sequence[int], epoch: int, step: Sequence[int]) -> Rows:
        offset = (
            int(np.random.Generator(np.random.Philox(key=[self.seed, epoch])).integers(self.width))
            if self.shifted
            else 0
        )
        starts = np.asarray(indices) * self.width + offset
        ids = torch.from_numpy(self.tokens[starts[:, None] + np.arange(self.width + 1)].astype(np.int64))
        mask = torch.ones(ids.shape, dtype=torch.bool)
        mask[:, 0] = False
        return Rows(ids, mask)


class Answers:
    """Conversations as token rows with the mask of what the assistant said."""

    def __init__(self, rows: Sequence[tuple[Sequence[int], Sequence[bool]]], pad: int):
        self.rows = [(np.asarray(ids, dtype=np.int64), np.asarray(mask, dtype=bool)) for ids, mask in rows]
        self.pad = pad

    def __len__(self) -> int:
        return len(self.rows)

    def length(self, index: int) -> int:
        return len(self.rows[index][0])

    def collate(self, indices: Sequence[int], epoch: int, step: Sequence[int]) -> Rows:
        chosen = [self.rows[i] for i in indices]
        ids = right_padded([ids for ids, _ in chosen], self.pad)
        mask = right_padded([mask for _, mask in chosen], False)
        mask[:, 0] = False
        return Rows(ids, mask)


def scored_documents(
    documents: Iterable[Sequence[int]], context: int, begin: int
) -> list[tuple[list[int], list[bool]]]:
    """Rows that score every token of every document once, each document behind the token `begin` that is not scored.

    A document longer than `context` is read through windows that overlap by half, so no token is judged with less than half a context.
    """
    rows: list[tuple[list[int], list[bool]]] = []
    for document in documents:
        ids = [begin, *(int(i) for i in document)]
        start, scored = 0, 1
        while scored < len(ids):
            row = ids[start : start + context]
            rows.append((row, [position >= scored for position in range(start, start + len(row))]))
            scored = start + len(row)
            start = scored - context // 2
    return rows


@dataclass(frozen=True)
class TokenPair:
    """One preference as token ids."""

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]
    margin: float = 0.0


class Preferences:
    """Preference pairs; `reference` (N, 2), once it is known, holds each answer's log-probability under the reference."""

    def __init__(self, pairs: Sequence[TokenPair], pad: int):
        self.pairs, self.pad = pairs, pad
        self.reference: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def length(self, index: int) -> int:
        pair = self.pairs[index]
        return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))

    def collate(self, indices: Sequence[int], epoch: int, step: Sequence[int]) -> Pairs:
        chosen = [self.pairs[i] for i in indices]
        rows = [(p.prompt, p.chosen) for p in chosen] + [(p.prompt, p.rejected) for p in chosen]
        whole = [self.pairs[i] for i in step]
        return Pairs(
            ids=right_padded([[*prompt, *answer] for prompt, answer in rows], self.pad),
            mask=right_padded([[False] * len(prompt) + [True] * len(answer) for prompt, answer in rows], False),
            real=right_padded([[True] * (len(prompt) + len(answer)) for prompt, answer in rows], False),
            margin=torch.tensor([p.margin for p in chosen]),
            reference=None if self.reference is None else self.reference[list(indices)].T.reshape(-1),
            tokens_per_pair=sum(len(p.prompt) - 1 + len(p.chosen) for p in whole) / len(whole),
            answer_tokens_per_pair=sum(len(p.chosen) for p in whole) / len(whole),
        )


@dataclass(frozen=True)
class Samples(_Batch):
    """Answers the policy wrote, with what is needed to learn from them. Rows hold prompt and answer without a gap."""

    ids: Tensor  # (B, T)
    mask: Tensor  # (B, T) the answer's tokens; the end token, where there is one, is among them
    group: Tensor  # (B,) int64, equal for answers to the same prompt
    finished: Tensor  # (B,) bool, ended by its end token and not by the length
    reward: Tensor  # (B,) float
    sampled: Tensor  # (B, T) log-probabilities as the sampler reported them
    old: Tensor  # (B, T) log-probabilities of the behaviour policy, from the training forward
    reference: Tensor | None = None  # (B, T)
    values: Tensor | None = None  # (B, T) the critic's, before each token
    advantage: Tensor | None = None  # (B, T)
    returns: Tensor | None = None  # (B, T)

    def rows(self, indices: Sequence[int]) -> Samples:
        """Some of the rows, with columns that only padding fills cut off (to a multiple of `WIDTH_STEP`)."""
        index = torch.as_tensor(indices)
        width = rounded_up(int(self.mask[index].nonzero()[:, 1].max()) + 1)
        picked = {f.name: getattr(self, f.name) for f in fields(self)}
        cut = {
            k: (v[index][:, :width] if v.ndim == 2 else v[index]) for k, v in picked.items() if isinstance(v, Tensor)
        }
        return replace(self, **cut)


WIDTH_STEP = (
    16  # few distinct widths: kernels are chosen, compiled and cached per shape, and each shape costs time and memory
)


def rounded_up(width: int) -> int:
    return -(-width // WIDTH_STEP) * WIDTH_STEP


def right_padded(rows: Sequence[Sequence[Any] | np.ndarray], fill: int | float | bool) -> Tensor:
    """Rows of unequal lengths as one tensor (B, T), filled up on the right to the longest, and on to a multiple of `WIDTH_STEP`."""
    arrays = [np.asarray(row) for row in rows]
    kind = {bool: np.bool_, int: np.int64, float: np.float32}[type(fill)]
    out = np.full((len(arrays), rounded_up(max(map(len, arrays)))), fill, dtype=kind)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(out)
