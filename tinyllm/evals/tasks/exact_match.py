"""Greedy answers, correct if a reward rule (`rule`) gives 0.5 or more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinyllm.evals.judging import answered, judged
from tinyllm.evals.statistics import proportion
from tinyllm.evals.task import TaskResult
from tinyllm.rollout import rewards

if TYPE_CHECKING:
    from tinyllm.evals.benchmark import Benchmark
    from tinyllm.evals.evaluator import Evaluator
    from tinyllm.evals.settings import EvalSettings

READS = "questions"
CORRECT = 0.5  # the least value of a rule for a correct answer


def rules(settings: EvalSettings) -> tuple[str, ...]:
    return (settings.rule,)


def measure(evaluator: Evaluator, benchmark: Benchmark, settings: EvalSettings) -> TaskResult:
    rule = rewards.load_reward(settings.rule)
    (values,), ended = evaluator.answer(benchmark, [rule], temperature=0)
    metric = "exact_match" if settings.rule == "exact_answer" else settings.rule.rpartition(":")[2]
    metrics = {metric: proportion([float(v >= CORRECT) for v in values]), "finished": proportion(ended)}
    return TaskResult(metrics, accuracy_of_silence(rule, benchmark))


def accuracy_of_silence(rule: rewards.Reward, benchmark: Benchmark) -> float:
    """Return the share of questions to which the empty answer is correct."""
    values = judged(rule, [answered(question, "", True) for question in benchmark.items])
    return sum(float(v >= CORRECT) for v in values) / len(values)
