"""Cases for the symptom checks of `tinyllm explain`: which finding a synthetic run must, or must not, have.

CASES = [
    found("eval_turned", "sft", "warning", "world:4000", held_out={"loss": [5.4, 2.5, 2.6]}),
    absent("eval_turned", "sft", held_out={"loss": [5.4, 2.5, 2.55]}, why="evaluation noise"),
]

@pytest.mark.parametrize("case", CASES, ids=str)
def test_finding(case: Case, tmp_path: Path) -> None:
    case.check_in(tmp_path)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import synthetic_runs


@dataclass(frozen=True)
class Case:
    """A synthetic run, and the finding of one check: its severity and a part of its advice, or no finding (severity None)."""

    check: str
    stage: str
    severity: str | None
    advice: str
    why: str
    run: dict[str, Any] = field(repr=False)

    def __str__(self) -> str:
        expected = f"{self.severity} {self.advice}" if self.severity else "absent"
        return f"{self.check}: {self.stage}, {self.why or expected}"

    def check_in(self, folder: Path) -> None:
        """Write the run to `folder` and compare the finding."""
        findings = synthetic_runs.findings(synthetic_runs.write_run(folder / "run", self.stage, **self.run))
        if self.severity is None:
            assert self.check not in findings, findings[self.check]
            return
        assert self.check in findings, list(findings)
        finding = findings[self.check]
        assert finding.severity == self.severity
        assert self.advice in finding.try_this
        assert finding.evidence
        assert finding.causes


def found(check: str, stage: str, severity: str, advice: str, *, why: str = "", **run: Any) -> Case:
    """A run in which the check finds its symptom. `run`: arguments of `synthetic_runs.write_run`."""
    return Case(check, stage, severity, advice, why, run)


def absent(check: str, stage: str, *, why: str = "", **run: Any) -> Case:
    """A run in which the check finds nothing."""
    return Case(check, stage, None, "", why, run)
