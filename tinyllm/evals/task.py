"""Benchmark tasks and their results. Light to import: no torch, no pydantic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tinyllm.evals.statistics import Estimate

if TYPE_CHECKING:
    from tinyllm.config import Config
    from tinyllm.evals.benchmark import Benchmark
    from tinyllm.evals.evaluator import Evaluator


@dataclass(frozen=True)
class TaskResult:
    """The metrics of one task on one benchmark."""

    metrics: dict[str, Estimate]
    """the main one first"""
    baseline: float
    """chance level of the main metric: its value for a model that knows nothing"""
    counts: dict[str, float] = field(default_factory=dict)
    """reported with the metrics, without uncertainty"""


@dataclass(frozen=True)
class Task:
    """One file of `evals/tasks`."""

    name: str
    """on the command line and in results"""
    section: str
    """of the configuration, if the task has settings of its own; the name of its file"""
    reads: str
    """the kind of benchmark: texts, choices or questions"""
    measure: Callable[[Evaluator, Benchmark, Any], TaskResult]
    settings: type[Config] | None = None
    rules: Callable[[Any], tuple[str, ...]] = lambda settings: ()
    """names of reward rules; every question must have the columns they read"""

    def settings_in(self, config: Config) -> Config:
        """Return the task's section of a configuration, or the whole configuration if it has none."""
        if self.settings is None:
            return config
        section = vars(config)[self.section]
        assert isinstance(section, self.settings)
        return section
