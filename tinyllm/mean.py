"""`Mean`: a sum and a count that have not been divided yet.

Means of unequal parts cannot be averaged; sums and counts can be added. Every loss and metric therefore travels as (total, count) through
micro-batches and ranks and is divided once, at the end. The choice of normalization *is* the choice of `count`: label tokens, pairs,
sequences. Left out: weights, variances, anything that does not add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mean:
    """total / count, both scalars (tensors or numbers). The sum of two is the mean over both of their parts."""

    total: Tensor | float
    count: Tensor | float

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """The mean as a float; NaN if nothing was counted, so that an empty mask is not read as a loss of 0."""
        count = float(self.count)
        return float(self.total) / count if count else float("nan")


def masked(values: Tensor, mask: Tensor) -> Mean:
    """Return the mean of `values` where `mask` is set; both have the same shape. Values outside the mask may be anything, NaN included."""
    return Mean(values.where(mask, 0.0).sum(), mask.sum())


def over(values: Tensor) -> Mean:
    """Return the mean of all `values`, of any shape."""
    return Mean(values.sum(), values.numel())
