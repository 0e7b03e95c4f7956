"""The result of a symptom check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinyllm.diagnostics.run_log import Evidence

Severity = Literal["broken", "warning", "note"]
Causes = tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """A symptom with its evidence, its possible causes (most likely first), and one thing to try.

    severity: broken: the result should not be used; warning: something went wrong; note: expected, but worth knowing.
    check: the name of the function that found it.
    """

    severity: Severity
    symptom: str
    evidence: tuple[Evidence, ...]
    causes: Causes
    try_this: str
    check: str = ""
