"""`Mean`: a mean that has not been divided yet.

Means of unequal parts cannot be averaged; totals and counts can be added. Every loss and every metric therefore travels as
(total, count) through micro-batches and ranks and is divided once, at the end. The choice of normalisation *is* the choice of
`count`: label tokens, pairs, sequences. Left out: weights, variances, anything that does not add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mean:
    """total / count, where both are scalars (tensors or numbers). Adding two of them pools what they were taken over."""

    total: Tensor | float
    count: Tensor | float

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """The mean as a float; nan where nothing was counted, so that an empty mask is seen rather than read as a loss of 0."""
        count = float(self.count)
        return float(self.total) / count if count else float("nan")


def masked(values: Tensor, mask: Tensor) -> Mean:
    """Pool `values` where `mask` is set; both of one shape. Masked-out values may be anything, nan included."""
    return Mean(values.where(mask, 0.0).sum(), mask.sum())


def over(values: Tensor) -> Mean:
    """Pool all of `values`, any shape."""
    return Mean(values.sum(), values.numel())
