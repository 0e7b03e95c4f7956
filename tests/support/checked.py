"""Run the checks of `tinyllm verify` in this process."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from tinyllm.diagnostics import checks, verify
from tinyllm.diagnostics.checks import objectives
from tinyllm.diagnostics.checks.result import CheckResult

SLOW = {"ranks", "resume", "transformers"}  # they start other processes, or import a large library


def run_checks(
    path: Path | None = None, *, only: Collection[str] = (), skip: Collection[str] = SLOW
) -> dict[str, CheckResult]:
    """Run the checks named in `only`, or all but those in `skip`, with three objectives instead of all. Returns name -> result."""
    chosen = [c for c in checks.CHECKS if (c.name in only if only else c.name not in skip)]
    results: list[CheckResult] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "CHECKS", chosen)
        patch.setattr(objectives, "names", lambda: ["next_token", "dpo", "grpo"])
        verify.run(path, "cpu", results.append)
    return {result.name: result for result in results}


def failed(results: dict[str, CheckResult]) -> set[str]:
    """Return the names of the checks that failed."""
    return {name for name, result in results.items() if result.status == "failed"}
