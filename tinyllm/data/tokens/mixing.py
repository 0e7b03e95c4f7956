"""Mixing of sources by weight: the source and the row of the n-th row of an epoch.

A weight is a share of the training tokens. An epoch has as many rows as all sources together, and each source has its share of them,
exact to one row. A source with more rows than its share continues in the next epoch where it stopped; one with fewer rows starts again
within the epoch. So all rows of a source are seen equally often, up to one. Nothing is copied: other weights need no new shards. Left
out: weights that change during a run, sampling with replacement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


class Mixture:
    """A map from row numbers 0..len-1 of an epoch to rows of sources: a pure function that stores no list of rows.

    Args:
        rows: number of rows of each source.
        weights: one for each source, on any scale.
    """

    def __init__(self, rows: Sequence[int], weights: Sequence[float]):
        self.rows = np.array(rows, dtype=np.int64)
        self.draws = np.array(_apportioned(sum(rows), weights), dtype=np.int64)  # (sources,) rows in an epoch
        self._ends = np.cumsum(self.draws)
        # where an epoch has every row once, the caller shuffles them
        whole = self.draws == self.rows
        self._strides = np.where(whole, 1, [_stride(row) for row in rows])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, index: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (source, epoch of that source, row in it) of the rows `index` of `epoch`, each int64 in the shape of `index`."""
        source = np.searchsorted(self._ends, index, side="right")
        drawn = epoch * self.draws[source] + index - (self._ends - self.draws)[source]
        source_epoch, row = np.divmod(drawn, self.rows[source])
        return source, source_epoch, row * self._strides[source] % self.rows[source]

    def shares(self) -> np.ndarray:
        """Return each source's share of the rows of an epoch, float (sources,)."""
        return self.draws / len(self)

    def epochs(self, rows: int) -> np.ndarray:
        """Return the number of passes over each source in `rows` rows, float (sources,)."""
        return rows * self.shares() / self.rows


def _apportioned(total: int, weights: Sequence[float]) -> list[int]:
    """Return integers in proportion to the weights that sum to `total` (largest remainder method); each is at least 1."""
    wanted = [total * weight / math.fsum(weights) for weight in weights]
    parts = [max(1, math.floor(share)) for share in wanted]
    order = sorted(range(len(wanted)), key=lambda i: parts[i] - wanted[i])
    for i in order[: max(0, total - sum(parts))]:
        parts[i] += 1
    return parts


def _stride(rows: int) -> int:
    """Return a stride that reaches every part of the rows early: near the golden ratio of `rows`, and coprime to it."""
    step = max(1, round(rows * (math.sqrt(5) - 1) / 2))
    while math.gcd(step, rows) > 1:
        step += 1
    return step
