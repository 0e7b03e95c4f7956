"""Sources in the proportions asked for: which row of which source the n-th row of an epoch is.

A weight is a share of the training tokens. An epoch has as many rows as all sources together, and each source fills its share of them,
exact to one row. A source with more rows than its share is left off in the middle and gone on with in the next epoch; one with fewer
begins again within the epoch. So every row of a source is seen equally often, give or take one. Nothing is copied: changing the weights
needs no new shards. Left out: weights that change during a run, sampling with replacement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


class Mixture:
    """Row numbers 0..len-1 of an epoch to (source, its lap, its row): a pure function, and no list of rows is kept.

    Args:
        rows: what each source has.
        weights: of any scale; a single source needs none.
    """

    def __init__(self, rows: Sequence[int], weights: Sequence[float]):
        self.rows = np.array(rows, dtype=np.int64)
        self.draws = np.array(_apportioned(sum(rows), weights), dtype=np.int64)  # rows of an epoch, (sources,)
        self._ends = np.cumsum(self.draws)
        # where an epoch takes every row once, their order within it is the caller's business
        whole = self.draws == self.rows
        self._strides = np.where(whole, 1, [_stride(row) for row in rows])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def find(self, index: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(source, how often it was gone through before, row in it) of rows `index` of `epoch`, each int64 and of its shape."""
        source = np.searchsorted(self._ends, index, side="right")
        turn = epoch * self.draws[source] + index - (self._ends - self.draws)[source]
        lap, row = np.divmod(turn, self.rows[source])
        return source, lap, row * self._strides[source] % self.rows[source]

    def shares(self) -> np.ndarray:
        """Of the rows of an epoch, float (sources,)."""
        return self.draws / len(self)

    def laps(self, rows: int) -> np.ndarray:
        """How often each source is gone through in `rows` rows, float (sources,)."""
        return rows * self.shares() / self.rows


def _apportioned(total: int, weights: Sequence[float]) -> list[int]:
    """`total` in proportion to the weights, in whole numbers: the largest remainders are rounded up. Every share has at least one."""
    wanted = [total * weight / math.fsum(weights) for weight in weights]
    found = [max(1, math.floor(share)) for share in wanted]
    order = sorted(range(len(wanted)), key=lambda i: found[i] - wanted[i])
    for i in order[: max(0, total - sum(found))]:
        found[i] += 1
    return found


def _stride(rows: int) -> int:
    """A step through all rows of a source that comes to every part of it soon: near the golden section, and coprime to `rows`."""
    step = max(1, round(rows * (math.sqrt(5) - 1) / 2))
    while math.gcd(step, rows) > 1:
        step += 1
    return step
