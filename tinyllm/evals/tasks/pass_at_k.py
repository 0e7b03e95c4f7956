"""Probability that one of k sampled answers is correct, estimated from `samples` answers per question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinyllm.evals.statistics import pass_at_k, proportion
from tinyllm.evals.task import TaskResult
from tinyllm.evals.tasks.exact_match import CORRECT, accuracy_of_silence
from tinyllm.rollout import rewards

if TYPE_CHECKING:
    from tinyllm.evals.benchmark import Benchmark
    from tinyllm.evals.evaluator import Evaluator
    from tinyllm.evals.settings import EvalSettings

READS = "questions"


def rules(settings: EvalSettings) -> tuple[str, ...]:
    return (settings.rule,)


def measure(evaluator: Evaluator, benchmark: Benchmark, settings: EvalSettings) -> TaskResult:
    rule, n = rewards.load_reward(settings.rule), settings.samples
    (values,), ended = evaluator.answer(benchmark, [rule], temperature=settings.temperature, samples=n)
    correct = [sum(v >= CORRECT for v in values[i : i + n]) for i in range(0, len(values), n)]
    metrics = {f"pass@{k}": proportion([pass_at_k(n, c, k) for c in correct]) for k in settings.k}
    # the samples of one question are not independent, so the questions are counted
    finished = proportion([sum(ended[i : i + n]) / n for i in range(0, len(ended), n)])
    return TaskResult(metrics | {"finished": finished}, accuracy_of_silence(rule, benchmark), {"samples": n})
