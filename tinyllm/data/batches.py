"""Records as tensors: what a loss receives, and which records make up step k.

The records of step k are a pure function of (seed, epoch, global index): resuming needs one integer, and another number of ranks or
micro-batches sees the same records at the same step. All rows are padded on the right, so causal attention needs no mask.
`mask` marks the tokens that are scored; it is made while the record is rendered and never recovered by searching.
Left out: worker processes (the token arrays are in memory or mapped; making a batch takes microseconds).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from tinyllm.errors import UserError
from tinyllm.mean import Mean

B = TypeVar("B")
_LOOKED_AT = 1_000_000  # records, to find the longest


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
    documents: Tensor | None = None  # (B, T) int64, which document of a packed row a token is of, from 1; 0 is padding


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

    def largest(self) -> Any:
        """The longest records as one micro-batch: if a step of these fits into memory, every step does."""
        rows = min(self.micro_batch_size, self.batch_size // self.world_size, len(self.dataset))
        every = 1 + len(self.dataset) // _LOOKED_AT  # of very many records only some are looked at
        numbers = heapq.nlargest(rows, range(0, len(self.dataset), every), key=self.dataset.length)
        return self.dataset.collate(numbers, 0, numbers)

    def describe(self, step: int) -> str:
        """Which records a step is made of, for a message about it."""
        numbers = self.records(step)
        return f"records {', '.join(map(str, numbers[:8]))}{', ...' if len(numbers) > 8 else ''}"

    def state(self, step: int) -> dict[str, Tensor]:
        """What step `step` needs beside its number: of plain data, nothing."""
        return {}

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Take up where `state` was taken."""

    def spare(self) -> list[Any]:
        """A batch of one record, for a rank that has none of its own and must still take part in what all ranks do."""
        return [self.dataset.collate([0], 0, [0])]

    def passes(self, limit: int) -> Iterator[Any]:
        """This rank's share of the first `limit` records once, in order: for validation."""
        whole = range(min(limit, len(self.dataset)))
        mine = list(whole[self.rank :: self.world_size])
        for start in range(0, len(mine), self.micro_batch_size):
            part = mine[start : start + self.micro_batch_size]
            yield self.dataset.collate(part, 0, whole)


@dataclass(frozen=True)
class Judged(_Batch):
    """Single answers, each called good or bad: rows 0..N-1. Rows N..2N-1 hold the same prompts with answers to *other* prompts, from
    which KTO estimates how far the policy has moved as a whole."""

    ids: Tensor  # (2N, T)
    mask: Tensor  # (2N, T) the answer's tokens, its end token included
    good: Tensor  # (N,) bool
    reference: Tensor | None = None  # (2N,) log-probability of each answer under the reference
    kl: Tensor | None = (
        None  # () the estimate, of the whole optimiser step, over micro-batches and ranks. None: of this batch alone
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
    budget: int = 0  # the most tokens an answer may have

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
