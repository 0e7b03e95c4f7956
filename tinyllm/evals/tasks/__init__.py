"""Registry of benchmark tasks. Each file of this folder is one; its name is the task's name, with `@` written as `_at_`.

A file defines READS ("texts", "choices" or "questions") and `measure(evaluator, benchmark, settings) -> TaskResult`.
Optional: `Settings` (a Config), a section of the configuration with the file's name, which `measure` receives; without it `settings` is the
whole configuration (`EvalSettings`). `rules(settings)`, the names of the reward rules that score answers.

Names come from the file names, so `--help` imports no task. No file imports torch, so settings are validated in milliseconds.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tinyllm.evals.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable


def names() -> list[str]:
    """Return the names of all tasks, sorted."""
    return [_name_of(file) for file in _files()]


def all_tasks() -> list[Task]:
    """Return all tasks, sorted by name."""
    return [load(name) for name in names()]


def load(name: str) -> Task:
    """Return a task by its name."""
    file = name.replace("@", "_at_")
    found = vars(import_module(f"{__name__}.{file}"))
    optional: dict[str, Callable[[Any], tuple[str, ...]]] = {"rules": found["rules"]} if "rules" in found else {}
    return Task(name, file, found["READS"], found["measure"], found.get("Settings"), **optional)


def title_of(name: str) -> str:
    """Return the first line of a task's docstring, without the period."""
    module = import_module(f"{__name__}.{name.replace('@', '_at_')}")
    return (module.__doc__ or "").partition("\n")[0].rstrip(".")


def _files() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def _name_of(file: str) -> str:
    return file.replace("_at_", "@")
