"""Results of a check: the comparisons it made, the largest differences found, and the differences allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Status = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Comparison:
    """One comparison.

    what: the two quantities that were compared.
    unit: nats, `relative`, or what is counted.
    """

    what: str
    difference: float
    allowed: float
    unit: str = ""

    @property
    def passed(self) -> bool:
        return self.difference <= self.allowed  # False for NaN


@dataclass(frozen=True)
class CheckResult:
    """The result of one check. `reason` says why it was skipped, or which error ended it."""

    name: str
    status: Status
    comparisons: list[Comparison] = field(default_factory=list)
    reason: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values; NaN and infinity, which JSON lacks, become None."""
        rows = [
            {
                "what": c.what,
                "difference": c.difference if abs(c.difference) < float("inf") else None,
                "allowed": c.allowed,
                "unit": c.unit,
                "passed": c.passed,
            }
            for c in self.comparisons
        ]
        known = {"name": self.name, "status": self.status, "reason": self.reason, "seconds": round(self.seconds, 2)}
        return known | {"compared": rows}


class CheckSkipped(Exception):  # noqa: N818 - not an error
    """The check does not apply to this target or machine. The message gives the reason."""


class CheckError(Exception):
    """The check failed before it could compare anything. The message gives the reason."""


def largest(differences: Sequence[float]) -> float:
    """Return the largest difference; NaN if any is, which `max` may pass over."""
    return next((value for value in differences if value != value), max(differences))


def max_difference(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference; infinity where the shapes differ or the tensors are empty."""
    if a.shape != b.shape or not a.numel():
        return float("inf")
    wide = torch.float32 if "mps" in (a.device.type, b.device.type) else torch.float64  # MPS has no float64
    return float((a.detach().to(wide).cpu() - b.detach().to(wide).cpu()).abs().max())


def max_difference_by_name(a: Mapping[str, Tensor], b: Mapping[str, Tensor], *, relative: bool = False) -> float:
    """Return the largest difference between tensors of the same name; infinity where the names differ.

    relative: divide by the largest absolute value of each tensor of `a`.
    """
    if a.keys() != b.keys() or not a:
        return float("inf")
    scale = {name: max(float(a[name].abs().max()), 1e-30) if relative else 1.0 for name in a}
    return largest([max_difference(a[name], b[name]) / scale[name] for name in a])
