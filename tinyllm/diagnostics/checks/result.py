"""Results of a check: the comparisons it made, the largest differences found, and the differences allowed.

Two equal quantities prove nothing where nothing is under test: a gradient of zero does not depend on ranks either. So a comparison
counts the values it compared, and demands that its effects, such as that of an adapter, are large enough to be seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Status = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Effect:
    """A quantity that is zero where nothing is under test.

    what: as in "effect of the adapter".
    least: the smallest value with which the comparison means something.
    """

    what: str
    value: float
    least: float

    @property
    def passed(self) -> bool:
        return self.least <= self.value < float("inf")  # False for NaN

    def to_json(self) -> dict[str, Any]:
        return {"what": self.what, "value": _finite(self.value), "least": self.least, "passed": self.passed}


@dataclass(frozen=True)
class Comparison:
    """One comparison.

    name: unique within the check.
    what: the two quantities that were compared.
    unit: nats, `relative`, or what is counted.
    n: the number of values that were compared.
    effects: what must be large enough to be seen.
    """

    name: str
    what: str
    difference: float
    allowed: float
    unit: str = ""
    n: int = field(kw_only=True)
    effects: Sequence[Effect] = field(default=(), kw_only=True)

    @property
    def passed(self) -> bool:
        """True if the difference is allowed (not NaN), and anything was under test."""
        return self.difference <= self.allowed and self.n > 0 and all(effect.passed for effect in self.effects)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "what": self.what,
            "difference": _finite(self.difference),
            "allowed": self.allowed,
            "unit": self.unit,
            "n": self.n,
            "effects": [effect.to_json() for effect in self.effects],
            "passed": self.passed,
        }


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
        known = {"name": self.name, "status": self.status, "reason": self.reason, "seconds": round(self.seconds, 2)}
        return known | {"compared": [comparison.to_json() for comparison in self.comparisons]}


class CheckSkipped(Exception):  # noqa: N818 - not an error
    """The check does not apply to this target or machine. The message gives the reason."""


class CheckError(Exception):
    """The check failed before it could compare anything. The message gives the reason."""


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


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


def smallest_difference_by_name(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Return the difference of the tensors that differ least, each by its largest value; 0 where there are none."""
    return min((max_difference(a[name], b[name]) for name in a), default=0.0)


def count(tensors: Mapping[str, Tensor]) -> int:
    """Return the number of values in all tensors."""
    return sum(tensor.numel() for tensor in tensors.values())
