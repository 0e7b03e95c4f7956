"""Planted faults: one for every gate, caught by the gates it names and for no other reason. The figures are those of a tiny model."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tinyllm.errors import UserError
from tinyllm.lifecycle.gates import GATES
from tinyllm.lifecycle.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]
import planted_faults  # noqa: E402
from faults import FAULTS, Fault  # noqa: E402
from mutants import gates as mutants  # noqa: E402

BY_NAME = {gate.name: gate for gate in GATES}


def test_every_gate_has_a_fault_and_a_mutant() -> None:
    assert {name for fault in FAULTS for name in fault.gates} == set(BY_NAME)
    assert {mutant.keeps for mutant in mutants.MUTANTS if mutant.keeps} == {f"gate: {name}" for name in BY_NAME}


def test_every_stage_has_a_fault() -> None:
    assert {fault.stage for fault in FAULTS if fault.data == "world"} == set(STAGES)
    assert len({fault.key for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.key)
def test_a_fault_names_a_refusal_or_gates_of_its_stage_and_data(fault: Fault) -> None:
    assert bool(fault.refusal) != bool(fault.gates)
    for name in (*fault.gates, *fault.empty):
        assert fault.stage in BY_NAME[name].stages
        assert BY_NAME[name].data in ("any", fault.data)


def test_faults_of_alignment_are_judged_at_the_last_checkpoint() -> None:
    """The best one of a policy that got worse is its parent, and a parent compared with itself shows nothing."""
    aligned = [fault for fault in FAULTS if STAGES[fault.stage].family in ("offline", "online")]
    assert len(aligned) > 8
    assert {fault.checkpoint for fault in aligned} == {"last"}


def row(name: str, best: bool, last: dict[str, Any]) -> dict[str, Any]:
    own = {"name": name, "value": 0.5, "n": 40, "passed": best, "why": ""}
    return own | {"last": own | last}


FAULT = Fault("f", "grpo", "w", dict, ("improves gold reward",), ("wins against parent",), checkpoint="last")


@pytest.mark.parametrize(
    ("gold", "wins", "caught"),
    [
        ({"passed": False, "value": 0.0}, {"passed": False, "n": 0, "why": "no question"}, True),
        ({"passed": True}, {"passed": False, "n": 0, "why": "no question"}, False),  # the best one failed, the last did not
        ({"passed": False, "n": 0}, {"passed": False, "n": 0, "why": "no question"}, False),  # red on nothing
        ({"passed": False, "why": "the value is undefined"}, {"passed": False, "n": 0}, False),
        ({"passed": False, "value": 0.0}, {"passed": False, "n": 3}, False),  # nothing was expected, and was not
        ({"passed": False, "value": 0.0}, {"passed": True}, False),
    ],
)  # fmt: skip
def test_a_fault_is_caught_by_its_gates_at_its_checkpoint_on_something(
    gold: dict[str, Any], wins: dict[str, Any], caught: bool
) -> None:
    gates = [row("improves gold reward", False, gold), row("wins against parent", True, wins)]
    assert planted_faults.verdict(FAULT, gates)[1] == caught


def settings(seed: int, **given: Any) -> planted_faults.Setting:
    defaults = {"lifecycle": None, "preset": "laptop", "seed": seed, "set": [], "small": True, "only": [], "json": None}
    return planted_faults.settings_of(argparse.Namespace(**{**defaults, **given}))["world"]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Run the script on two stages. Return its folder and its result."""
    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        only = ["world/pretrain/frozen model", "world/sft/no end token"]
        given = {
            "lifecycle": None,
            "preset": "laptop",
            "seed": 0,
            "set": [],
            "small": True,
            "only": only,
            "control": True,
        }
        return folder, planted_faults.run(argparse.Namespace(**given))


@pytest.mark.slow
def test_a_stage_is_trained_without_and_with_its_faults(few: tuple[Path, dict[str, Any]]) -> None:
    folder, found = few
    assert [(r["stage"], r["fault"]) for r in found["rows"]] == [
        ("pretrain", None),
        ("pretrain", "frozen model"),
        ("sft", None),
        ("sft", "no end token"),
    ]
    good, frozen, _, refused = found["rows"]
    assert frozen["red"] == ["beats n-gram baseline"]
    assert frozen["gates"][0]["n"] == 200
    assert good["gates"][0]["value"] < frozen["gates"][0]["value"]  # four steps, and none
    assert (good["last_step"], frozen["last_step"]) == (4, 4)
    assert "trains an end token" in refused["refusal"]
    assert found["faults"] == {"planted": 2, "caught": 2}
    assert found["green"] == {"stages": 2, "passed": 0}  # of so small a model
    assert found["gates"]["seen_red"] == ["beats n-gram baseline"]
    assert not list(folder.glob("runs/**/laptop-fault*"))  # what faults have trained is deleted


def test_without_a_finished_lifecycle_nothing_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sets = [*planted_faults.SMALL, "data.train=['world:300']"]
    given = {"lifecycle": None, "preset": "laptop", "seed": 7, "set": sets, "small": False, "questions": 16}
    given |= {"only": ["world/pretrain/frozen model"], "control": False}
    with pytest.raises(UserError, match="pretrain of this lifecycle is not finished") as caught:
        planted_faults.run(argparse.Namespace(**given))
    assert "tinyllm lifecycle --seed 7" in caught.value.fix
    assert not list(tmp_path.glob("runs/pretrain/**/step-*"))


def fault(key: str) -> Fault:
    return next(fault for fault in FAULTS if fault.key == key)


def test_faults_are_selected_by_stage_name_and_data() -> None:
    def keys(*only: str) -> list[str]:
        return [fault.key for fault in planted_faults.chosen_faults(only)]

    assert keys() == [fault.key for fault in FAULTS]
    assert keys("rm/swapped reward model") == ["world/rm/swapped reward model", "user/rm/swapped reward model"]
    assert keys("user/sft", "orpo") == ["world/orpo/swapped pairs", "user/sft/frozen model"]
    with pytest.raises(UserError, match="no fault is called 'orpo/wrong sign'"):
        keys("orpo/wrong sign")


@pytest.mark.slow
def test_a_refusal_for_another_reason_ends_the_script(
    few: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(few[0])
    other = replace(fault("world/sft/no end token"), refusal="the disk is full")
    with pytest.raises(UserError, match="trains an end token"):
        planted_faults.outcome(settings(0), "sft", other)
    with pytest.raises(UserError, match="trains an end token"):  # gates are expected, and nothing is to be refused
        planted_faults.outcome(settings(0), "sft", replace(other, refusal="", gates=("emits EOS",)))


@pytest.mark.slow
def test_parents_of_another_seed_end_the_script_before_a_fault_is_planted(
    few: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(few[0])
    with pytest.raises(UserError, match="pretrain of the lifecycle laptop is not finished with these settings"):
        planted_faults.outcome(settings(1), "sft", fault("world/sft/no end token"))


@pytest.mark.slow
def test_the_script_from_beginning_to_end(tmp_path: Path) -> None:
    """Every fault, own data included: a minute of computing. A model of this size passes no gate, so the exit code is 1."""
    command = [sys.executable, str(ROOT / "benchmarks" / "planted_faults.py"), "--small", "--json", "found.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 1, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    planted = [r for r in found["rows"] if r["fault"]]
    assert [f"{r['data']}/{r['stage']}/{r['fault']}" for r in planted] == [f.key for f in FAULTS]
    for one, result in zip(FAULTS, planted, strict=True):
        assert ("refusal" in result) == bool(one.refusal)
        rows = {gate["name"]: gate for gate in result["gates"]}
        assert {name for name, gate in rows.items() if gate["expected"]} == {*one.gates, *one.empty}
        assert all("value" in gate["last"] and "n" in gate for gate in rows.values())
    assert {gate["name"] for r in found["rows"] for gate in r["gates"]} == set(BY_NAME)
    assert found["gates"]["all"] == list(BY_NAME)
    assert f"of {len(BY_NAME)} gates were seen red" in done.stdout
