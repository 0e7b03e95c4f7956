"""`tinyllm explain RUN`: what went wrong in a run, from its own log: symptom, evidence, likely causes, and one thing to try.

It reads three files of one run directory and imports no torch. The checks are in `symptoms`. Findings are an answer, not a failure: the
exit code is 0 whatever they say. Left out: comparing runs, looking into data or weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tinyllm.errors import UserError
from tinyllm.stages.parents import RUNS
from tinyllm.stages.symptoms import CHECKS
from tinyllm.stages.symptoms.log import FACTS, METRICS, Finding, Log, Point, is_run, read
from tinyllm.train.progress import say
from tinyllm.train.run import FAST_DEV_RUN

_SEVEREST_FIRST = ("broken", "warning", "note")
_MOVED = {"pretrain": "bits_per_byte", "sft": "loss", "rm": "accuracy", "online": "reward"}  # as the stages report it
_FROM_ZERO = 0.01  # margins begin at 0 where there is a reference, up to rounding


def run(folder: Path | None) -> dict[str, Any]:
    """Explain the run in `folder`, or the newest under runs/. UserError (exit 2) where there is none."""
    log = read(_chosen(folder))
    findings = _findings(log)
    return {
        "schema_version": 1,
        "stage": "explain",
        "run": log.folder.as_posix(),
        "of": log.stage,
        "status": log.facts.get("status"),
        "step": log.step,
        "steps": log.steps,
        "moved": _moved(log),
        "healthy": all(f.severity == "note" for f in findings),
        "checks": len(CHECKS[log.family]),
        "damaged_lines": log.damaged,
        "other_name": FAST_DEV_RUN not in log.folder.name and any(_changes_settings(f) for f in findings),
        "findings": [asdict(f) for f in findings],
    }


def _findings(log: Log) -> list[Finding]:
    found = [(check, check(log)) for check in CHECKS[log.family]]
    named = [replace(finding, check=check.__name__) for check, finding in found if finding is not None]
    return sorted(named, key=lambda finding: _SEVEREST_FIRST.index(finding.severity))


def _changes_settings(finding: Finding) -> bool:
    """Whether its advice is a changed setting, and not to give the same command again."""
    return "--set" in finding.try_this and "tinyllm" not in finding.try_this


def figure_of(family: str, margins: float | None) -> str:
    """The figure that only learning moves. `margins` before the first step: near 0 where there is a reference to be compared with."""
    offline = "rewards/margins" if margins is not None and abs(margins) < _FROM_ZERO else "rewards/accuracies"
    return _MOVED.get(family, offline)


def _moved(log: Log) -> dict[str, Any] | None:
    """The stage's own figure at the first evaluation and at `ckpt_best`; None before the first evaluation."""
    margins = log.held_out("rewards/margins")
    series = log.held_out(figure_of(log.family, margins.first.value if len(margins) else None))
    best = log.best_point()
    if not len(series) or best is None:
        return None
    at: Point = next((p for p in series if p.step == best.step), series.last)
    return {"what": series.name, "from": series.first.value, "to": at.value, "step": at.step}


# --- which run -------------------------------------------------------------------------------------------------------------------


def _chosen(given: Path | None) -> Path:
    if given is None:
        if (newest := _newest(RUNS)) is None:
            raise UserError("there are no runs yet", where=str(RUNS), fix="run `tinyllm pretrain --fast-dev-run` first")
        say(f"the newest run: {newest}")
        return newest
    if is_run(given):
        return given
    meant = _meant(given)
    fix = f"`tinyllm explain {meant}`" if meant else "run `tinyllm pretrain --fast-dev-run` first"
    what = f"{given} is not a run directory: it has no {FACTS}" if given.exists() else f"there is no {given}"
    raise UserError(what, where="RUN", fix=fix)


def _meant(given: Path) -> Path | None:
    """The run that something is part of, else the newest below it, else the newest of all. Only below runs/ is anything searched."""
    part_of = next((parent for parent in given.parents if is_run(parent)), None)
    below = _newest(given) if given.resolve().is_relative_to(RUNS.resolve()) else None
    return part_of or below or _newest(RUNS)


def _newest(folder: Path) -> Path | None:
    """The run below `folder` that was written to last; those that were moved aside (NAME~1) do not count."""
    return max(_runs(folder), key=_written, default=None)


def _runs(folder: Path) -> Iterator[Path]:
    for facts in sorted(folder.rglob(FACTS)):
        if is_run(facts.parent) and "~" not in facts.parent.name:
            yield facts.parent


def _written(run: Path) -> float:
    return max(p.stat().st_mtime for p in (run / FACTS, run / METRICS) if p.is_file())
