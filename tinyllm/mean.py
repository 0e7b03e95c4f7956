"""`Mean`: a sum and a count that have not been divided yet.

Means of unequal parts cannot be averaged; sums and counts can be added. Every loss and metric therefore travels as (total, count) through
micro-batches and ranks and is divided once, at the end. The choice of normalization *is* the choice of `count`: label tokens, pairs,
sequences. Left out: weights, variances, anything that does not add up.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def values(figures: Mapping[str, Mean | float]) -> dict[str, float]:
    """Return figures as numbers, without means that count nothing: repetition of one-token answers has no value, not the value NaN."""
    empty = {name for name, mean in figures.items() if isinstance(mean, Mean) and not float(mean.count)}
    return {k: v.value if isinstance(v, Mean) else v for k, v in figures.items() if k not in empty}


def masked(values: Tensor, mask: Tensor) -> Mean:
    """Return the mean of `values` where `mask` is set; both have the same shape. Values outside the mask may be anything, NaN included."""
    return Mean(values.where(mask, 0.0).sum(), mask.sum())


def over(values: Tensor) -> Mean:
    """Return the mean of all `values`, of any shape."""
    return Mean(values.sum(), values.numel())
