"""The registry of benchmark tasks: a new file in the folder is all that a new task needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from tinyllm.evals import tasks
from tinyllm.evals.benchmark import KINDS
from tinyllm.evals.config import EvalConfig, with_tasks
from tinyllm.evals.settings import EvalSettings
from tinyllm.evals.task import TaskResult

BUILT_IN = ["bits_per_byte", "choice", "exact_match", "gold", "pass@k"]

NEW = '''"""Share of the first n items."""
from tinyllm.config import Config
from tinyllm.evals.statistics import Estimate
from tinyllm.evals.task import TaskResult

READS = "questions"


class Settings(Config):
    n: int = 3


def rules(settings):
    return ("gold",) if settings.n > 3 else ()


def measure(evaluator, benchmark, settings):
    return TaskResult({"share": Estimate(settings.n / len(benchmark))}, 0.0)
'''


def test_the_configuration_accepts_every_task_and_nothing_else() -> None:
    assert set(tasks.names()) >= set(BUILT_IN)
    assert EvalConfig(task=tuple(tasks.names())).task == tuple(tasks.names())
    with pytest.raises(ValidationError):
        EvalConfig(task=("chioce",))


def test_every_task_reads_a_known_kind_and_has_a_title() -> None:
    for task in tasks.all_tasks():
        assert task.reads in KINDS
        assert tasks.title_of(task.name)
        assert task.settings_in(EvalConfig()) is not None


def test_one_new_file_is_a_task_with_settings_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first_at_n.py").write_text(NEW)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    assert "first@n" in tasks.names()
    assert tasks.title_of("first@n") == "Share of the first n items"
    config = with_tasks(EvalSettings).model_validate({"task": ["first@n"], "first_at_n": {"n": 5}}, strict=False)
    task = tasks.load("first@n")
    settings = task.settings_in(config)
    assert task.rules(settings) == ("gold",)
    result = task.measure(None, range(10), settings)
    assert isinstance(result, TaskResult)
    assert result.metrics["share"].value == 0.5


def test_the_registry_loads_without_torch_and_pydantic_and_the_tasks_without_torch() -> None:
    code = "import sys\nfrom tinyllm.evals import tasks\ntasks.names()\n"
    code += "assert not {'torch', 'pydantic'} & set(sys.modules)\n"
    code += "import tinyllm.evals.config\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
