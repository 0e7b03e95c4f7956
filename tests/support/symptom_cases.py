"""Cases for the symptom checks of `tinyllm explain`: which finding a synthetic run must, or must not, have.

CASES = [
    found("eval_turned", "sft", "warning", "world:4000", held_out={"loss": [5.4, 2.5, 2.6]}),
    absent("eval_turned", "sft", held_out={"loss": [5.4, 2.5, 2.55]}, why="evaluation noise"),
    unseen("eval_turned", "sft", "eval loss", held_out={"loss": []}),
]

@pytest.mark.parametrize("case", CASES, ids=str)
def test_finding(case: Case, tmp_path: Path) -> None:
    case.check_in(tmp_path)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import synthetic_runs


@dataclass(frozen=True)
class Case:
    """A synthetic run, and the finding of one check: its severity and a part of its advice, or no finding (severity None).

    missing: the figure that the check lacks, or a part of the reason why it does not apply; empty: it has examined the run.
    """

    check: str
    stage: str
    severity: str | None
    advice: str
    why: str
    run: dict[str, Any] = field(repr=False)
    missing: str = ""

    def __str__(self) -> str:
        expected = f"{self.severity} {self.advice}" if self.severity else "absent"
        expected = f"unseen, {self.missing}" if self.missing else expected
        return f"{self.check}: {self.stage}, {self.why or expected}"

    def check_in(self, folder: Path) -> None:
        """Write the run to `folder` and compare the finding."""
        run = synthetic_runs.write_run(folder / "run", self.stage, **self.run)
        findings, left_out = synthetic_runs.findings(run), synthetic_runs.left_out(run)
        if self.severity is None:
            assert self.check not in findings, findings[self.check]
            reason = f"{left_out[self.check].figure} {left_out[self.check].why}" if self.check in left_out else ""
            assert bool(reason) == bool(self.missing), reason or f"{self.check} has examined the run"
            assert self.missing in reason
            return
        assert self.check in findings, list(findings)
        finding = findings[self.check]
        assert finding.severity == self.severity
        whole = re.escape(self.advice) + r"(?![\d.])"  # 0.0001 is not the beginning of 0.00015
        assert re.search(whole, finding.try_this), finding.try_this
        assert finding.evidence
        assert finding.causes


def found(check: str, stage: str, severity: str, advice: str, *, why: str = "", **run: Any) -> Case:
    """A run in which the check finds its symptom. `run`: arguments of `synthetic_runs.write_run`."""
    return Case(check, stage, severity, advice, why, run)


def absent(check: str, stage: str, *, why: str = "", **run: Any) -> Case:
    """A run that the check examines, and in which it finds nothing."""
    return Case(check, stage, None, "", why, run)


def unseen(check: str, stage: str, missing: str, *, why: str = "", **run: Any) -> Case:
    """A run in which the check cannot examine anything, because of a missing figure or of the run's settings."""
    return Case(check, stage, None, "", why, run, missing)
