"""Gold reward of greedy answers to questions of the bundled world, between -1 and 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinyllm.evals.judging import answered, judged
from tinyllm.evals.statistics import mean, proportion
from tinyllm.evals.task import TaskResult
from tinyllm.rollout import rewards

if TYPE_CHECKING:
    from tinyllm.evals.benchmark import Benchmark
    from tinyllm.evals.evaluator import Evaluator
    from tinyllm.evals.settings import EvalSettings

READS = "questions"


def rules(settings: EvalSettings) -> tuple[str, ...]:
    return ("gold",)


def measure(evaluator: Evaluator, benchmark: Benchmark, settings: EvalSettings) -> TaskResult:
    rule = rewards.load_reward("gold")
    (gold, exact), ended = evaluator.answer(benchmark, [rule, rewards.load_reward("exact_answer")], temperature=0)
    silence = judged(rule, [answered(question, "", True) for question in benchmark.items])
    metrics = {"gold": mean(gold, (-1.0, 1.0)), "exact_match": proportion(exact), "finished": proportion(ended)}
    return TaskResult(metrics, sum(silence) / len(silence))
