"""Symptoms of real runs: each is found where its cause is planted, and not without it. Runs of some steps, shared by the tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.support import real_runs
from tests.support.symptom_causes import CAUSES, Cause
from tinyllm import algorithms
from tinyllm.diagnostics.explain import examine
from tinyllm.diagnostics.run_log import RunLog, read_run_log
from tinyllm.diagnostics.symptoms import CHECKS

Run = Callable[..., RunLog]
SYNTHETIC_ONLY = {"worse_answers", "over_optimised"}  # need a model that answers questions rightly, and forgets it

# checks that do not apply, by stage or algorithm, with its default settings and a reward of one's own
NOT_APPLICABLE = {
    "pretrain": set(),
    "sft": {"endless", "repeats", "worse_answers"},  # of one's own data
    "rm": set(),
    **{name: set() for name in algorithms.names("offline")},
    **{name: {"idle_critic", "over_optimised"} for name in algorithms.names("online")},
    "ppo": {"constant_groups", "over_optimised"},
    "rloo": {"idle_critic", "over_optimised", "clipping", "kl_spike"},
    "cispo": {"idle_critic", "over_optimised", "clipping"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a function that trains a stage once for the same settings and cause, and returns its log."""
    shared = tmp_path_factory.mktemp("shared")
    done: dict[str, RunLog] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shared)
        real_runs.prepare(shared)

    def once(stage: str, settings: Mapping[str, Any], cause: Cause | None = None) -> RunLog:
        planted = (cause.plant, cause.records, cause.held_out) if cause else ()
        key = repr((stage, sorted(settings.items(), key=str), planted))
        if key not in done:
            folder = tmp_path_factory.mktemp("run")
            shutil.copytree(shared, folder, dirs_exist_ok=True)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                if cause and cause.plant:
                    cause.plant(patch.setattr)
                rows = (cause.records, cause.held_out) if cause else ()
                done[key] = read_run_log(folder / real_runs.run(stage, settings, *rows))
        return done[key]

    return once


def severities(log: RunLog) -> dict[str, str]:
    return {finding.check: finding.severity for finding in examine(log)[0]}


def _first_of_its_stage(cause: Cause) -> bool:
    return cause is next(other for other in CAUSES if other.stage == cause.stage)


# one cause of every stage in the gate; all of them take minutes
@pytest.mark.parametrize(
    "cause", [pytest.param(c, marks=() if _first_of_its_stage(c) else pytest.mark.slow, id=str(c)) for c in CAUSES]
)
def test_a_planted_cause_is_found_and_a_healthy_run_is_not_blamed(run: Run, cause: Cause) -> None:
    found = severities(run(cause.stage, {**cause.base, **cause.settings}, cause))
    assert cause.check in found
    assert found[cause.check] == (cause.severity or found[cause.check])
    healthy = run(cause.stage, cause.base)
    findings, left_out = examine(healthy)
    assert cause.check not in {f.check for f in findings if f.severity == (cause.severity or f.severity)}
    lacking = {entry.check for entry in left_out}
    assert cause.check not in lacking


def test_every_symptom_has_a_real_cause() -> None:
    names = {check.name for checks in CHECKS.values() for check in checks}
    assert names - SYNTHETIC_ONLY == {cause.check for cause in CAUSES}


IN_THE_GATE = ("pretrain", "sft", "rm", "kto", "ppo", "gspo", "rloo")


@pytest.mark.parametrize(
    "stage", [pytest.param(s, marks=() if s in IN_THE_GATE else pytest.mark.slow) for s in NOT_APPLICABLE]
)
def test_every_check_has_its_figures_or_does_not_apply(run: Run, stage: str) -> None:
    """The table of checks and stages: what a real trainer logs is what the checks read."""
    family = next((f for f in ("offline", "online") if stage in algorithms.names(f)), stage)
    _, left_out = examine(run(stage, {}))
    assert {entry.check for entry in left_out if not entry.figure} == NOT_APPLICABLE[stage]
    too_short = [] if family != "online" or stage == "rloo" else ["slowed"]  # 16 steps, of which half sample a rollout
    assert [entry.check for entry in left_out if entry.figure] == too_short


def test_the_table_has_every_stage_and_algorithm() -> None:
    stages = {"pretrain", "sft", "rm", *algorithms.names("offline"), *algorithms.names("online")}
    assert set(NOT_APPLICABLE) == stages
