"""Results as one JSON object in the shape of lm-eval (`lm_eval/result_schema.py`, version 0.4.13).

`results` has an entry per task and, for a task with several files, one per file: `choice` is then the unweighted mean over the files, as in
lm-eval for BLiMP, and `choice/NAME` is one file. Values are under `METRIC,none`, standard errors under `METRIC_stderr,none` ("N/A" if
unknown). Not lm-eval's: `intervals` (95 %), `no_interval` (why a mean has none: one sample, or all are equal), and `baseline`, the
chance level of the first metric of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinyllm.evals.benchmark import Benchmark
from tinyllm.evals.statistics import Estimate, mean_over_files
from tinyllm.evals.task import TaskResult

VERSION = 1  # of every task; raise it when the meaning of a metric changes
_LM_EVAL_KEYS = ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
_OWN_KEYS = ("intervals", "no_interval", "baseline")


@dataclass(frozen=True)
class BenchmarkResult:
    """The result of one task on one benchmark."""

    task: str
    benchmark: Benchmark
    result: TaskResult
    chat_template: bool


def lm_eval_results(measured: Sequence[BenchmarkResult]) -> dict[str, Any]:
    """Return the object without what describes the run as a whole."""
    found: dict[str, Any] = {key: {} for key in (*_LM_EVAL_KEYS, *_OWN_KEYS)}
    for task in dict.fromkeys(m.task for m in measured):
        own = [m for m in measured if m.task == task]
        if len(own) == 1:
            _add_entry(found, task, task, own[0].result.metrics, own[0].result.baseline, own)
            found["configs"][task] = _data_of(own[0])
            found["group_subtasks"][task] = []
            found["results"][task] |= {f"{name},none": value for name, value in own[0].result.counts.items()}
            continue
        common = set.intersection(*(set(m.result.metrics) for m in own))
        names = [name for name in own[0].result.metrics if name in common]
        means = {name: mean_over_files([m.result.metrics[name] for m in own]) for name in names}
        _add_entry(found, task, task, means, sum(m.result.baseline for m in own) / len(own), own)
        for m in own:
            key = f"{task}/{m.benchmark.name}"
            _add_entry(found, key, m.benchmark.name, m.result.metrics, m.result.baseline, [m])
            found["configs"][key] = _data_of(m)
        found["group_subtasks"][task] = [f"{task}/{m.benchmark.name}" for m in own]
    return found


def _add_entry(
    found: dict[str, Any],
    key: str,
    alias: str,
    metrics: dict[str, Estimate],
    baseline: float,
    own: Sequence[BenchmarkResult],
) -> None:
    samples = sum(len(m.benchmark.items) for m in own)
    entry: dict[str, Any] = {"name": key, "alias": alias, "sample_len": samples}
    for name, estimate in metrics.items():
        entry[f"{name},none"] = estimate.value
        entry[f"{name}_stderr,none"] = "N/A" if estimate.stderr is None else estimate.stderr
    found["results"][key] = entry
    found["versions"][key], found["n-shot"][key] = VERSION, 0
    found["higher_is_better"][key] = {name: estimate.higher_is_better for name, estimate in metrics.items()}
    found["n-samples"][key] = {"original": sum(m.benchmark.total for m in own), "effective": samples}
    found["intervals"][key] = {name: list(e.interval) for name, e in metrics.items() if e.interval is not None}
    found["no_interval"][key] = {name: e.no_interval for name, e in metrics.items() if e.no_interval}
    found["baseline"][key] = baseline


def _data_of(m: BenchmarkResult) -> dict[str, Any]:
    benchmark = m.benchmark
    return {
        "task": m.task,
        "data": benchmark.source,
        "format": benchmark.format,
        "sha256": benchmark.sha256 or None,
        "chat_template": m.chat_template,
        "dropped": benchmark.dropped,
    }
