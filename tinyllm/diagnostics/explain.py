"""`tinyllm explain RUN`: diagnose a run from its log. Each finding has a symptom, evidence, likely causes, and one thing to try.

Reads three files of one run directory and does not import torch. The checks are in `symptoms`. Findings do not change the exit code.
A check without its figures has examined nothing, and is listed as such with the figure that is missing.
Not done: comparing runs, looking at data or weights.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tinyllm.console import say
from tinyllm.diagnostics.run_log import FACTS, METRICS, RunLog, has_log, read_run_log
from tinyllm.diagnostics.symptoms import CHECKS
from tinyllm.diagnostics.symptoms.check import NotExamined
from tinyllm.diagnostics.symptoms.finding import Finding
from tinyllm.errors import UserError
from tinyllm.train.fast_dev_runs import is_fast_dev_run
from tinyllm.train.names import RUNS, find, runs_below, unknown

_BY_SEVERITY = ("broken", "warning", "note")
_MAIN_METRIC = {
    "pretrain": "bits_per_byte",
    "sft": "loss",
    "rm": "accuracy",
    "online": "reward",
}  # as in the stages' results
_NEAR_ZERO = 0.01  # margins start at 0, up to rounding, where there is a reference model


def run(folder: Path | None) -> dict[str, Any]:
    """Diagnose the run in `folder`, or the newest one under runs/.

    Raises: UserError (USAGE) where there is no run.
    """
    log = read_run_log(_find_run(folder))
    findings, left_out = examine(log)
    lacking = [entry for entry in left_out if entry.figure]
    not_applicable = [entry for entry in left_out if not entry.figure]
    names = {entry.check for entry in left_out}
    measured = any(check.needs and check.name not in names for check in CHECKS[log.family])
    return {
        "schema_version": 1,
        "stage": "explain",
        "run": log.folder.as_posix(),
        "of": log.stage,
        "status": log.facts.get("status"),
        "step": log.step,
        "steps": log.steps,
        "moved": _main_metric_change(log),
        "healthy": measured and all(f.severity == "note" for f in findings),
        "measured": measured,
        "checks": len(CHECKS[log.family]) - len(not_applicable),
        "examined": len(CHECKS[log.family]) - len(left_out),
        "not_examined": [asdict(entry) for entry in lacking],
        "not_applicable": [{"check": entry.check, "why": entry.why} for entry in not_applicable],
        "damaged_lines": log.damaged_lines,
        "other_name": not is_fast_dev_run(log.folder, log.facts) and any(_changes_settings(f) for f in findings),
        "findings": [asdict(f) for f in findings],
    }


def examine(log: RunLog) -> tuple[list[Finding], list[NotExamined]]:
    """Run the checks of the run's stage. Returns the findings, worst first, and the checks that could examine nothing."""
    found = [(check.name, check.examine(log)) for check in CHECKS[log.family]]
    findings = [replace(result, check=name) for name, result in found if isinstance(result, Finding)]
    left_out = [result for _, result in found if isinstance(result, NotExamined)]
    return sorted(findings, key=lambda finding: _BY_SEVERITY.index(finding.severity)), left_out


def _changes_settings(finding: Finding) -> bool:
    """Return whether the advice is a changed setting, and not a command to repeat."""
    return "--set" in finding.try_this and "tinyllm" not in finding.try_this


def main_metric(family: str, first_margin: float | None) -> str:
    """Return the metric by which a stage is judged.

    first_margin: rewards/margins before the first step. Near 0 there is a reference model, and margins are meaningful.
    """
    has_reference = first_margin is not None and abs(first_margin) < _NEAR_ZERO
    return _MAIN_METRIC.get(family, "rewards/margins" if has_reference else "rewards/accuracies")


def _main_metric_change(log: RunLog) -> dict[str, Any] | None:
    """Return the main metric before the first step and at `ckpt_best`, of test; without test figures at the last evaluation.

    None before the first evaluation.
    """
    margins = log.held_out("rewards/margins")
    name = main_metric(log.family, margins.first.value if len(margins) else None)
    series, test, best = log.held_out(name), log.test(name), log.best_point()
    if not len(series) or best is None:
        return None
    examined = next((p for p in test if p.step == best.step), None)
    if examined is None or not _has_ended(log):
        return {
            "what": name,
            "from": series.first.value,
            "to": series.last.value,
            "step": series.last.step,
            "split": "val",
        }
    start = test.first.value if test.first.step == 0 else None
    return {"what": name, "from": start, "to": examined.value, "step": examined.step, "split": "test"}


def _has_ended(log: RunLog) -> bool:
    """Return whether the best checkpoint was examined: step 0 may be the best so far."""
    return isinstance(log.facts.get("test"), dict)


# --- which run -------------------------------------------------------------------------------------------------------------------


def _find_run(given: Path | None) -> Path:
    if given is None:
        if (newest := _newest_run(RUNS)) is None:
            raise UserError("there are no runs yet", where=str(RUNS), fix="run `tinyllm pretrain --fast-dev-run` first")
        say(f"newest run: {newest}")
        return newest
    run = find(given, accepts=has_log).run
    if run is not None and has_log(run):
        return run
    what = f"{given} is not in a run directory" if run is None else f"{run} is not a complete run directory"
    raise unknown(str(given), accepts=has_log, what=what)


def _newest_run(folder: Path) -> Path | None:
    """Return the run below `folder` that was last written to. Runs that were moved aside (NAME~1) do not count."""
    runs = (run for run in runs_below(folder) if has_log(run) and "~" not in run.name)
    return max(runs, key=_last_written, default=None)


def _last_written(run: Path) -> float:
    return max(p.stat().st_mtime for p in (run / FACTS, run / METRICS) if p.is_file())
