"""Multiple choice by log-likelihood, with the metrics of lm-eval.

`acc`: the correct choice has the highest log-likelihood; `acc_norm` and `acc_bytes`: the highest per character and per UTF-8 byte;
`bpb`: bits per byte of the correct choice, which changes long before the accuracies do.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from tinyllm.console import say
from tinyllm.evals.statistics import mean, proportion
from tinyllm.evals.task import TaskResult

if TYPE_CHECKING:
    from tinyllm.evals.benchmark import Benchmark
    from tinyllm.evals.evaluator import Evaluator
    from tinyllm.evals.settings import EvalSettings

READS = "choices"


def measure(evaluator: Evaluator, benchmark: Benchmark, settings: EvalSettings) -> TaskResult:
    correct: dict[str, list[float]] = {"acc": [], "acc_norm": [], "acc_bytes": []}
    bits: list[float] = []
    ties = 0
    for item, scores in zip(benchmark.items, evaluator.score_choices(benchmark), strict=True):
        by_length = [(s, s / len(c), s / len(c.encode())) for s, c in zip(scores, item.choices, strict=True)]
        for name, column in zip(correct, zip(*by_length, strict=True), strict=True):
            correct[name].append(float(column.index(max(column)) == item.correct))
        bits.append(-by_length[item.correct][2] / math.log(2))
        ties += scores.count(max(scores)) > 1
    if ties:  # a model with equal log-likelihoods would look perfect if the correct choice is always the first
        total = len(benchmark.items)
        say(f"{benchmark.name}: {ties:,} of {total:,} items are ties; the first choice counts, as in lm-eval")
    baseline = sum(1 / len(item.choices) for item in benchmark.items) / len(benchmark.items)
    metrics = {name: proportion(values) for name, values in correct.items()}
    return TaskResult(metrics | {"bpb": replace(mean(bits, (0.0, math.inf)), higher_is_better=False)}, baseline)
