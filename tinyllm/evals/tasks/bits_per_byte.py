"""Bits per byte and perplexity of texts, every token scored once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinyllm.evals.statistics import Estimate
from tinyllm.evals.task import TaskResult

if TYPE_CHECKING:
    from tinyllm.evals.benchmark import Benchmark
    from tinyllm.evals.evaluator import Evaluator
    from tinyllm.evals.settings import EvalSettings

READS = "texts"


def measure(evaluator: Evaluator, benchmark: Benchmark, settings: EvalSettings) -> TaskResult:
    found = evaluator.text_metrics(benchmark.items)
    metrics = {
        "bits_per_byte": found["bits_per_byte"],
        "byte_perplexity": 2 ** min(found["bits_per_byte"], 1000.0),
        "perplexity": found["perplexity"],
    }
    estimates = {name: Estimate(value, higher_is_better=False) for name, value in metrics.items()}
    counts = {"tokens": found["tokens"], "bytes": found["bytes"]}
    return TaskResult(estimates, evaluator.uniform_bits_per_byte(found), counts)
