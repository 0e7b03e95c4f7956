"""What a check says: what was compared, how far the two were apart at most, and how far they may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Compared:
    """One comparison. `unit`: nats, a share (`relative`), or what was counted."""

    what: str
    difference: float
    allowed: float
    unit: str = ""

    @property
    def passed(self) -> bool:
        return self.difference <= self.allowed  # nan is no agreement


@dataclass(frozen=True)
class Outcome:
    """What became of a check; `reason` says why it was skipped, or what broke before it could compare."""

    name: str
    status: Literal["ok", "failed", "skipped"]
    compared: list[Compared] = field(default_factory=list)
    reason: str = ""
    seconds: float = 0.0

    def facts(self) -> dict[str, Any]:
        """As JSON, which has no nan and no infinity."""
        rows = [
            {
                "what": c.what,
                "difference": c.difference if abs(c.difference) < float("inf") else None,
                "allowed": c.allowed,
                "unit": c.unit,
                "passed": c.passed,
            }
            for c in self.compared
        ]
        known = {"name": self.name, "status": self.status, "reason": self.reason, "seconds": round(self.seconds, 2)}
        return known | {"compared": rows}


class Skipped(Exception):  # noqa: N818 - nothing went wrong
    """There is nothing to compare here, for the reason given."""


class Broken(Exception):  # noqa: N818
    """The check could not get as far as comparing, for the reason given."""


def furthest(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference; infinite where the shapes differ or there is nothing to compare."""
    if a.shape != b.shape or not a.numel():
        return float("inf")
    wide = torch.float32 if "mps" in (a.device.type, b.device.type) else torch.float64
    return float((a.detach().to(wide).cpu() - b.detach().to(wide).cpu()).abs().max())


def furthest_of(a: Mapping[str, Tensor], b: Mapping[str, Tensor], *, relative: bool = False) -> float:
    """The largest difference over tensors of the same names; `relative`: to the largest number of each tensor."""
    if a.keys() != b.keys() or not a:
        return float("inf")
    found = torch.tensor([furthest(a[name], b[name]) for name in a], dtype=torch.float64)
    if relative:
        found /= torch.tensor([max(float(a[name].abs().max()), 1e-30) for name in a], dtype=torch.float64)
    return float(found.max())  # nan, if there is any
