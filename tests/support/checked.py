"""Run the checks of `tinyllm verify` in this process."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

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


def failures(found: Iterable[CheckResult | dict[str, Any]]) -> set[str]:
    """Return what failed of results, or of the JSON of them, named as in `bugs_of_verify.BUGS`."""
    return {name for name, failed in _parts(found) if failed}


def parts(found: Iterable[CheckResult | dict[str, Any]]) -> set[str]:
    """Return every comparison and every effect that can fail."""
    return {name for name, _ in _parts(found)}


def _parts(found: Iterable[CheckResult | dict[str, Any]]) -> Iterator[tuple[str, bool]]:
    """Yield the name of every part of every check, and whether it failed."""
    for check in (result.to_json() if isinstance(result, CheckResult) else result for result in found):
        if check["status"] == "failed" and not check["compared"]:
            yield check["name"], True
        for row in check["compared"]:
            name, difference = f"{check['name']}: {row['name']}", row["difference"]
            yield name, difference is None or difference > row["allowed"] or not row["n"]
            yield from ((f"{name}: {effect['what']}", not effect["passed"]) for effect in row["effects"])
