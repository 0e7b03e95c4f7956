"""What was measured as one JSON object of lm-eval's shape (`lm_eval/result_schema.py`, version 0.4.13).

`results` holds an entry for every task and, where a task had several files, one for every file: `choice` is then the mean over the
files, each counting alike, as lm-eval has it for BLiMP, and `choice/NAME` is a file's own. Values stand under `METRIC,none`, standard
errors under `METRIC_stderr,none` ("N/A" where there is none). Two keys are ours: `intervals` (95 %), and `baseline`, what the first
figure of a task is for a model that knows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinyllm.stages.evals.sheets import Sheet
from tinyllm.stages.evals.statistics import Estimate, over_files
from tinyllm.stages.evals.tasks import Score

VERSION = 1  # of every task; raise it when a task's figures change their meaning
_PARTS = ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
_OWN = ("intervals", "baseline")


@dataclass(frozen=True)
class Measured:
    """One task on one sheet."""

    task: str
    sheet: Sheet
    score: Score
    chat: bool


def in_lm_eval_s_shape(measured: Sequence[Measured]) -> dict[str, Any]:
    """All of the object but what concerns the run as a whole."""
    found: dict[str, Any] = {part: {} for part in (*_PARTS, *_OWN)}
    for task in dict.fromkeys(m.task for m in measured):
        own = [m for m in measured if m.task == task]
        if len(own) == 1:
            _put(found, task, task, own[0].score.figures, own[0].score.baseline, own)
            found["configs"][task] = _source(own[0])
            found["group_subtasks"][task] = []
            found["results"][task] |= {f"{name},none": value for name, value in own[0].score.counts.items()}
            continue
        names = set.intersection(*(set(m.score.figures) for m in own))
        over = {n: over_files([m.score.figures[n] for m in own]) for n in own[0].score.figures if n in names}
        _put(found, task, task, over, sum(m.score.baseline for m in own) / len(own), own)
        for m in own:
            key = f"{task}/{m.sheet.name}"
            _put(found, key, m.sheet.name, m.score.figures, m.score.baseline, [m])
            found["configs"][key] = _source(m)
        found["group_subtasks"][task] = [f"{task}/{m.sheet.name}" for m in own]
    return found


def _put(
    found: dict[str, Any], key: str, alias: str, figures: dict[str, Estimate], baseline: float, own: Sequence[Measured]
) -> None:
    samples = sum(len(m.sheet.items) for m in own)
    entry: dict[str, Any] = {"name": key, "alias": alias, "sample_len": samples}
    for name, estimate in figures.items():
        entry[f"{name},none"] = estimate.value
        entry[f"{name}_stderr,none"] = "N/A" if estimate.stderr is None else estimate.stderr
    found["results"][key] = entry
    found["versions"][key], found["n-shot"][key] = VERSION, 0
    found["higher_is_better"][key] = {name: estimate.higher_is_better for name, estimate in figures.items()}
    found["n-samples"][key] = {"original": sum(m.sheet.original for m in own), "effective": samples}
    found["intervals"][key] = {name: list(e.interval) for name, e in figures.items() if e.interval is not None}
    found["baseline"][key] = baseline


def _source(m: Measured) -> dict[str, Any]:
    sheet = m.sheet
    return {
        "task": m.task,
        "data": sheet.source,
        "format": sheet.format,
        "sha256": sheet.sha256 or None,
        "chat_template": m.chat,
        "dropped": sheet.dropped,
    }
