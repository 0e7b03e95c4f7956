"""The configuration of `tinyllm eval`: its settings, and a section for every task that has settings of its own."""

from __future__ import annotations

from typing import Annotated

from tinyllm.config import OneOf, with_sections
from tinyllm.evals import tasks
from tinyllm.evals.settings import EvalSettings


def with_tasks(base: type[EvalSettings]) -> type[EvalSettings]:
    """Add a section for every task that has settings of its own."""
    sections = {task.section: task.settings for task in tasks.all_tasks() if task.settings is not None}
    assert not sections.keys() & base.model_fields, "a task has the name of a setting of eval: rename its file"
    return with_sections(base, sections)


@with_tasks
class EvalConfig(EvalSettings):
    task: tuple[Annotated[str, OneOf(tasks.names)], ...] = ()
    """benchmarks, see tinyllm eval --help; empty: perplexity and bits per byte of the documents"""
