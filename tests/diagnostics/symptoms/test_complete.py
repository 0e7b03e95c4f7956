"""Every symptom is seen and seen absent, every bound has mutants, and a check without its figures says so."""

from __future__ import annotations

import ast
import importlib
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.diagnostics.symptoms import test_answers, test_learning, test_policy, test_preferences, test_process
from tests.support.synthetic_runs import HEALTHY, write_run
from tinyllm.diagnostics import symptoms
from tinyllm.diagnostics.run_log import RunLog, Series, read_run_log
from tinyllm.diagnostics.symptoms.check import Check, NotExamined

FILES = (test_answers, test_learning, test_policy, test_preferences, test_process)
CASES = [case for file in FILES for case in file.CASES + file.EDGES]
CHECKS = {check.name: check for checks in symptoms.CHECKS.values() for check in checks}


@pytest.fixture
def mutants(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    return importlib.import_module("mutants.symptoms")


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_is_seen_red_and_green(name: str) -> None:
    cases = [case for case in CASES if case.check == name]
    assert any(case.severity for case in cases), "no run that has the symptom"
    assert any(not case.severity and not case.missing for case in cases), "no run that the check examines and passes"


def test_every_check_and_every_bound_has_planted_faults(mutants: ModuleType) -> None:
    keeps = {mutant.keeps for mutant in mutants.MUTANTS}
    assert {f"symptom: {name}" for name in CHECKS} <= keeps
    assert {check for checks in mutants.OWNERS.values() for check in checks} == set(CHECKS)
    planted = defaultdict(set)
    for file, constants in mutants.BOUNDS.items():
        planted[file] |= set(constants)
    for path in sorted(Path(symptoms.__file__).parent.glob("*.py")):
        assert _bounds(path) == planted[path.stem], path.name


def _bounds(path: Path) -> set[str]:
    """Return the names of a module's numeric constants."""
    assigned = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign)]
    numbers = [n for n in assigned if isinstance(n.value, ast.Constant) and isinstance(n.value.value, int | float)]
    return {target.id for node in numbers for target in node.targets if isinstance(target, ast.Name)}


def _log(stage: str, folder: Path) -> RunLog:
    return read_run_log(write_run(folder / stage, stage))


def _applicable(log: RunLog) -> list[Check]:
    return [check for check in symptoms.CHECKS[log.family] if not check.excluded(log)]


@pytest.mark.parametrize("stage", HEALTHY)
def test_a_check_without_one_of_its_figures_names_it(stage: str, tmp_path: Path) -> None:
    log, removed = _log(stage, tmp_path), 0
    for check in _applicable(log):
        for series in (need.series(log) for need in check.needs):
            found = check.examine(replace(log, rows=_without(log, check, series)))
            assert isinstance(found, NotExamined), f"{check.name} without {series.name}"
            assert found.figure
            assert check.name in ANY_OF_SEVERAL or found.figure.endswith(series.name)
            removed += 1
    assert removed >= 8


ANY_OF_SEVERAL = ("zero_reward", "worse_answers", "over_optimised")  # rewards; any of them will do


def _without(log: RunLog, check: Check, series: Series) -> list[dict[str, Any]]:
    """Return the lines of the log without a figure, or without all rewards where any will do."""
    if series.name == "lines":
        return []
    rewards = check.name in ANY_OF_SEVERAL and series.name.startswith("rewards/")
    return [
        {
            name: value
            for name, value in row.items()
            if row["split"] != series.split or not (name == series.name or (rewards and name.startswith("rewards/")))
        }
        for row in log.rows
    ]


@pytest.mark.parametrize("stage", HEALTHY)
def test_a_check_reads_no_figure_that_it_does_not_declare(stage: str, tmp_path: Path) -> None:
    """With its own figures alone, at their fewest points, a check has a result."""
    log, examined = _log(stage, tmp_path), 0
    for check in _applicable(log):
        series = [need.series(log) for need in check.needs]
        if any(len(s) < need.points for s, need in zip(series, check.needs, strict=True)):
            continue  # the log is too short, which `Check.examine` reports
        kept = {(s.split, s.name) for s in series}
        rows = [
            {k: v for k, v in row.items() if k in ("step", "split") or (row["split"], k) in kept} for row in log.rows
        ]
        assert not isinstance(check.examine(replace(log, rows=rows)), NotExamined), check.name
        examined += 1
    assert examined >= 12


def test_no_check_is_listed_where_its_figures_are_never_logged() -> None:
    """Alignment from preferences generates no answers, and the loss of online alignment is no measure of learning."""
    names = {family: {check.name for check in checks} for family, checks in symptoms.CHECKS.items()}
    assert not names["offline"] & {"endless", "repeats", "worse_answers", "never_moved"}
    assert not names["online"] & {"eval_turned", "never_moved"}
    assert set(names) == {"pretrain", "sft", "rm", "offline", "online"}
