"""Batches as the losses receive them, and the source that decides which records make up a step.

The records of step k depend only on (seed, epoch, global index), so a run resumes from its step number alone, and another number of
ranks or micro-batches trains on the same records at the same step. Rows are padded on the right, so causal attention needs no mask.
`mask` marks the tokens that are scored; it is built while a record is rendered and never recovered by searching.
Left out: worker processes (token arrays are in memory or memory-mapped, and collating takes microseconds).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from tinyllm.errors import UserError
from tinyllm.mean import Mean

PAD_MULTIPLE = 16  # few distinct widths: kernels are chosen, compiled and cached per shape
_MAX_INSPECTED = 1_000_000  # records whose length is looked up to find the longest


@dataclass(frozen=True)
class _Batch:
    """Base class of the batches below."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that hold a tensor, by name."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}

    def to(self, device: torch.device) -> Self:
        """Return the batch with its tensors on `device`."""
        return self._with({name: _on(device, value) for name, value in self.tensors().items()})

    def _with(self, changes: dict[str, Any]) -> Self:
        return replace(self, **changes)


def _on(device: torch.device, value: Tensor) -> Tensor:
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()  # a copy from pageable memory waits for the device
    return value.to(device, non_blocking=True)


@dataclass(frozen=True)
class TokenBatch(_Batch):
    """Token rows for next-token prediction: pretraining and supervised fine-tuning."""

    ids: Tensor  # (B, T) int64
    mask: Tensor  # (B, T) bool, tokens that are scored; column 0 is never set
    documents: Tensor | None = (
        None  # (B, T) int64, number of the token's document in a packed row, from 1; 0 is padding
    )


@dataclass(frozen=True)
class PreferenceBatch(_Batch):
    """P preference pairs: rows 0..P-1 hold the chosen answers, rows P..2P-1 the rejected ones, each after its prompt."""

    ids: Tensor  # (2P, T) int64
    mask: Tensor  # (2P, T) bool, the answer's tokens with its end token
    real: Tensor  # (2P, T) bool, all tokens but padding
    margin: Tensor  # (P,) float, how much better the chosen answer is, from the data; 0 if they do not say
    ref_log_probs: Tensor | None = None  # (2P,) float, summed log-probability of each answer under the reference
    tokens_per_pair: float | None = None
    """Tokens of the chosen rows (prompt included, first token not) per pair, over the *whole* optimizer step: all micro-batches and
    ranks. Lets a token mean and a pair mean share one count. None: use this batch alone."""
    answer_tokens_per_pair: float | None = None
    """The same for answer tokens only."""

    @property
    def count(self) -> int:
        """Number of pairs."""
        return self.ids.shape[0] // 2

    @property
    def group(self) -> Tensor:
        """(2P,) int64, equal for the two rows of a pair, which begin with the same prompt."""
        return torch.arange(self.count, device=self.ids.device).repeat(2)


@dataclass(frozen=True)
class UnpairedBatch(_Batch):
    """N answers labeled good or bad.

    Rows N..2N-1 repeat the prompts of rows 0..N-1 with answers to *other* prompts. KTO estimates its KL from them.
    """

    ids: Tensor  # (2N, T) int64
    mask: Tensor  # (2N, T) bool, the answer's tokens with its end token
    good: Tensor  # (N,) bool
    ref_log_probs: Tensor | None = None  # (2N,) float, summed log-probability of each answer under the reference
    kl: Tensor | None = None
    """() float, KTO's estimate over the whole optimizer step: all micro-batches and ranks. None: estimate it from this batch alone."""

    @property
    def group(self) -> None:
        """None: the loss computes the two halves apart, so that no prompts are shared."""
        return None


@dataclass(frozen=True)
class Samples(_Batch):
    """Answers sampled from the policy and scored, before advantages are known. Each row is a prompt directly followed by its answer."""

    ids: Tensor  # (B, T) int64
    mask: Tensor  # (B, T) bool, the answer's tokens with its end token, if it has one
    group: Tensor  # (B,) int64, equal for answers to the same prompt
    finished: Tensor  # (B,) bool, ended with an end token, not at max_new_tokens
    reward: Tensor  # (B,) float
    sampler_log_probs: Tensor  # (B, T) float, as reported by the sampler
    old_log_probs: Tensor  # (B, T) float, of the behavior policy, from the training forward pass
    ref_log_probs: Tensor | None = None  # (B, T) float
    values: Tensor | None = None  # (B, T) float, the critic's, before each token
    max_new_tokens: int = 0  # the longest answer that the rollout allows
    only_step: bool = False
    """One step learns from the rollout, so the behavior policy is the policy itself; `old_log_probs` are the sampler's then."""

    def rows(self, indices: Sequence[int] | np.ndarray) -> Self:
        """Return some of the rows, without the columns that are padding in all of them (up to a multiple of `PAD_MULTIPLE`)."""
        index = torch.as_tensor(indices)
        width = padded_width(int(self.mask[index].nonzero()[:, 1].max()) + 1)
        picked = {name: value[index] for name, value in self.tensors().items()}
        return self._with({name: value[:, :width] if value.ndim == 2 else value for name, value in picked.items()})

    def with_advantages(self, advantages: Tensor, returns: Tensor | None = None) -> ScoredSamples:
        """Return the samples with advantages (B, T) and, for a critic, returns (B, T)."""
        values = {f.name: getattr(self, f.name) for f in fields(Samples)}
        return ScoredSamples(**values, advantages=advantages, returns=returns)


@dataclass(frozen=True, kw_only=True)
class ScoredSamples(Samples):
    """Samples with advantages: what the losses of online algorithms receive."""

    advantages: Tensor  # (B, T) float
    returns: Tensor | None = None  # (B, T) float, the critic's targets


class Dataset(Protocol):
    """Records by number, and how some of them become a batch."""

    def __len__(self) -> int: ...

    def length(self, index: int) -> int:
        """Return the number of tokens of a record. Rows of similar length are batched together."""
        ...

    def collate(self, indices: Sequence[int], epoch: int, step: Sequence[int]) -> Any:
        """Return a batch of these records. `step` lists all records of the optimizer step they belong to."""
        ...


class Source:
    """Map a step number to the micro-batches of this rank.

    Args:
        batch_size: records in an optimizer step over all ranks; must be divisible by their number.
        micro_batch_size: records in a forward pass, at most.

    Raises:
        UserError: batch_size is not divisible by world_size.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, micro_batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1
    ):
        if batch_size % world_size:
            raise UserError(
                f"batch_size {batch_size} is not divisible by the {world_size} ranks",
                where="train.batch_size",
                fix=f"use {math.ceil(batch_size / world_size) * world_size}",
            )
        self.dataset, self.batch_size, self.micro_batch_size = dataset, batch_size, micro_batch_size
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.metrics: dict[str, Mean] = {}  # part of the interface; recorded data have none
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)
        self._offset = 0  # of the record numbers, if steps had another batch size before

    def __call__(self, step: int) -> list[Any]:
        chosen = self.records(step)
        epoch = self.position(step) // len(self.dataset)
        mine = sorted(
            chosen[self.rank :: self.world_size], key=self.dataset.length
        )  # similar lengths need less padding
        parts = math.ceil(len(mine) / self.micro_batch_size)
        return [self.dataset.collate(part.tolist(), epoch, chosen) for part in np.array_split(np.array(mine), parts)]

    def records(self, step: int) -> list[int]:
        """Return the record numbers of a step over all ranks. Epochs follow each other without a gap, each in an order of its own."""
        first = self.position(step)
        return [
            int(self._shuffled(i // len(self.dataset))[i % len(self.dataset)])
            for i in range(first, first + self.batch_size)
        ]

    def position(self, step: int) -> int:
        """Return the number of records used before `step`, over all ranks and epochs."""
        return step * self.batch_size + self._offset

    def start_at(self, step: int, position: int) -> None:
        """Let `step` begin with record number `position`; the batch size may have been another one until then."""
        self._offset = position - step * self.batch_size

    def _shuffled(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed & (2**64 - 1), epoch]))
            self._epoch, self._order = epoch, generator.permutation(len(self.dataset))
        return self._order

    def largest(self) -> Any:
        """Return the longest records as one micro-batch: if a step of these fits into memory, every step does."""
        rows = min(self.micro_batch_size, self.batch_size // self.world_size, len(self.dataset))
        stride = 1 + len(self.dataset) // _MAX_INSPECTED
        numbers = heapq.nlargest(rows, range(0, len(self.dataset), stride), key=self.dataset.length)
        return self.dataset.collate(numbers, 0, numbers)

    def describe(self, step: int) -> str:
        """Return the record numbers of a step as text for an error message."""
        numbers = self.records(step)
        return f"records {', '.join(map(str, numbers[:8]))}{', ...' if len(numbers) > 8 else ''}"

    def state(self, step: int) -> dict[str, Tensor]:
        """Return what a resumed run needs for step `step` besides its number: nothing for recorded data."""
        return {}

    def restore(self, step: int, tensors: dict[str, Tensor]) -> bool:
        """Restore what `state` returned."""
        return True

    def dummy_batch(self) -> list[Any]:
        """Return one batch of one record, for a rank without records that must still take part in collective calls."""
        return [self.dataset.collate([0], 0, [0])]

    def in_order(self, limit: int) -> Iterator[Any]:
        """Yield this rank's share of the first `limit` records once, in order: for validation."""
        whole = range(min(limit, len(self.dataset)))
        mine = list(whole[self.rank :: self.world_size])
        for start in range(0, len(mine), self.micro_batch_size):
            part = mine[start : start + self.micro_batch_size]
            yield self.dataset.collate(part, 0, whole)


def padded_width(width: int) -> int:
    """Return `width` rounded up to a multiple of `PAD_MULTIPLE`."""
    return -(-width // PAD_MULTIPLE) * PAD_MULTIPLE


def right_padded(rows: Sequence[Sequence[Any] | np.ndarray], fill: int | float | bool) -> Tensor:
    """Stack rows of unequal length into one tensor (B, T), padded on the right with `fill`.

    T is the longest row rounded up to a multiple of `PAD_MULTIPLE`. The dtype follows `fill`: bool, int64 or float32.
    """
    arrays = [np.asarray(row) for row in rows]
    dtype = {bool: np.bool_, int: np.int64, float: np.float32}[type(fill)]
    out: np.ndarray = np.full((len(arrays), padded_width(max(map(len, arrays)))), fill, dtype=dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(out)
