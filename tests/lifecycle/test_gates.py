"""Gates: each one on both sides of its bound, what each was measured on, and what fails because nothing can be compared."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import pytest

from tinyllm.lifecycle import gates
from tinyllm.lifecycle.stages import PARENTS, STAGES

NAN = math.nan
FIGURES = {"stopped": 0.99, "win_rate": 0.7, "kl": 3.0, "bits_per_byte": 0.3}
GOLD = {"pretrain": -0.9, "sft": 0.05, "sft-lora": 0.0}
BEFORE = {"loss": 3.0, "reward": 0.1}
BEST = {"loss": 2.0, "reward": 0.3, "rewards/accuracies": 0.7, "accuracy": 0.8}


def measured(figures: dict[str, float], count: float = 60.0) -> dict[str, Any]:
    """Return test figures as a stage reports them."""
    return {"step": 4, "figures": dict(figures), "counts": dict.fromkeys(figures, count)}


TEST = {"records": 60, "before": measured(BEFORE), "best": measured(BEST), "last": None}


def inputs(user: bool = False, **changes: float) -> gates.GateInputs:
    """Return the inputs of a lifecycle that passes every gate, with some changed: `stage__metric=value`, or `test__metric`."""
    metrics: dict[str, dict[str, Any]] = {}
    for stage in STAGES.values():
        if stage.is_policy:
            values = FIGURES | {"gold": GOLD.get(stage.name, 0.3)}
            metrics[stage.name] = {key: {"value": value, "n": 512} for key, value in values.items()}
    baselines: dict[str, dict[str, float]] = {
        "pretrain": {"ngram_bits_per_byte": 0.43},
        "rm": {"accuracy": 0.8, "ceiling": 0.88, "correlation": 0.6, "pairs": 1000, "answers": 512},
    }
    test = {**TEST, "best": measured(BEST), "before": measured(BEFORE)}
    for name, value in changes.items():
        stage_name, _, key = name.replace("_lora", "-lora").partition("__")
        if stage_name == "test":
            part, _, key = key.partition("__") if "__" in key else ("best", "", key)
            test[part]["figures"][key.replace("accuracies", "rewards/accuracies")] = value
        elif key in baselines.get(stage_name, {}):
            baselines[stage_name][key] = value
        else:
            metrics[stage_name][key] = {"value": value, "n": 512}
    return gates.GateInputs(
        metrics, {stage: {"test": test} for stage in STAGES}, baselines, {}, PARENTS, user_data=user
    )


def rows(found: gates.GateInputs) -> dict[str, dict[str, Any]]:
    return {f"{stage}/{gate['name']}": gate for stage in STAGES for gate in gates.check(found, stage)}


def failed(found: gates.GateInputs) -> set[str]:
    return {name for name, gate in rows(found).items() if not gate["passed"]}


@pytest.mark.parametrize("user", [False, True], ids=["world", "user"])
def test_a_good_lifecycle_passes_and_every_stage_has_a_gate(user: bool) -> None:
    found = inputs(user)
    assert failed(found) == set()
    assert all(gates.check(found, stage) for stage in STAGES)
    assert not any("gold" in name for name in rows(inputs(user=True)))


SIDES = [  # change, the value on the passing side and on the failing side, the gate
    ("pretrain__bits_per_byte", 0.4299, 0.4301, "pretrain/beats n-gram baseline"),
    ("sft__stopped", 0.951, 0.949, "sft/emits EOS"),
    ("sft_lora__stopped", 0.951, 0.949, "sft-lora/emits EOS"),
    ("sft__gold", -0.399, -0.401, "sft/improves on pretrained"),
    ("sft_lora__gold", -0.099, -0.101, "sft-lora/near full fine-tuning"),
    ("rm__accuracy", 0.749, 0.747, "rm/near label-noise ceiling"),
    ("rm__correlation", 0.301, 0.299, "rm/correlates with gold"),
    *((f"{stage}__win_rate", 0.581, 0.579, f"{stage}/wins against parent") for stage in gates.ALIGNED),
    *((f"{stage}__gold", 0.101, 0.099, f"{stage}/improves gold reward") for stage in gates.ALIGNED),
    *((f"{stage}__kl", 11.99, 12.01, f"{stage}/KL within bound") for stage in gates.ONLINE),
]
USER_SIDES = [
    ("test__loss", 2.699, 2.701, {"sft/lowers held-out loss", "sft-lora/lowers held-out loss"}),
    ("test__accuracy", 0.551, 0.549, {"rm/accuracy above chance"}),
    ("test__accuracies", 0.551, 0.549, {f"{stage}/ranks chosen above rejected" for stage in gates.OFFLINE}),
    ("test__reward", 0.121, 0.119, {f"{stage}/improves reward" for stage in gates.ONLINE}),
]


@pytest.mark.parametrize(("change", "passing", "failing", "name"), SIDES, ids=lambda x: str(x))
def test_each_gate_on_both_sides_of_its_bound(change: str, passing: float, failing: float, name: str) -> None:
    assert failed(inputs(**{change: passing})) == set()
    assert failed(inputs(**{change: failing})) == {name}


@pytest.mark.parametrize(("change", "passing", "failing", "names"), USER_SIDES, ids=[side[0] for side in USER_SIDES])
def test_each_gate_of_own_data_on_both_sides(change: str, passing: float, failing: float, names: set[str]) -> None:
    assert failed(inputs(True, **{change: passing})) == set()
    assert failed(inputs(True, **{change: failing})) == names


@pytest.mark.parametrize("user", [False, True], ids=["world", "user"])
def test_the_number_of_things_that_were_measured_is_whole(user: bool) -> None:
    """A stage reports the count of a mean as a float, and it is shown as "60 pairs"."""
    assert {type(gate["n"]) for gate in rows(inputs(user)).values()} == {int}


@pytest.mark.parametrize("rule", ["<=", ">="])
def test_a_value_equal_to_its_bound_passes(rule: Literal["<=", ">="]) -> None:
    gate = gates.Gate(("sft",), "g", "", lambda inputs, stage: (0.5, 10), rule, 0.5, "")
    assert gate.check(inputs(), "sft")["passed"]
    other = replace(gate, bound=0.4 if rule == "<=" else 0.6)
    assert not other.check(inputs(), "sft")["passed"]


def test_both_sides_are_tested_for_every_gate() -> None:
    tested = {case[3].partition("/")[2] for case in SIDES} | {n.partition("/")[2] for c in USER_SIDES for n in c[3]}
    assert tested == {gate.name for gate in gates.GATES}
    assert len(tested) == len(gates.GATES)


@pytest.mark.parametrize(
    ("change", "name", "bound"),
    [
        ({"pretrain__ngram_bits_per_byte": 0.5}, "pretrain/beats n-gram baseline", 0.5),
        ({"pretrain__gold": -0.8}, "sft/improves on pretrained", -0.3),
        ({"sft__gold": 0.1}, "sft-lora/near full fine-tuning", -0.05),
        ({"rm__ceiling": 0.8}, "rm/near label-noise ceiling", 0.68),
        ({"sft__gold": 0.2}, "grpo/improves gold reward", 0.25),
    ],
)
def test_bounds_follow_their_reference(change: dict[str, float], name: str, bound: float) -> None:
    assert rows(inputs(**change))[name]["bound"] == pytest.approx(bound)
    before = rows(inputs(True, test__before__loss=2.0, test__before__reward=0.2))
    assert before["sft/lowers held-out loss"]["bound"] == pytest.approx(1.8)
    assert before["grpo/improves reward"]["bound"] == pytest.approx(0.22)


@pytest.mark.parametrize(
    ("change", "name", "why"),
    [
        ({"pretrain__ngram_bits_per_byte": 0.0}, "pretrain/beats n-gram baseline", "the bound 0 is not between 0 and 8"),
        ({"pretrain__ngram_bits_per_byte": NAN}, "pretrain/beats n-gram baseline", "nothing to compare it with"),
        ({"pretrain__ngram_bits_per_byte": math.inf}, "pretrain/beats n-gram baseline", "nothing to compare it with"),
        ({"pretrain__gold": NAN}, "sft/improves on pretrained", "nothing to compare it with"),
        ({"pretrain__gold": -1.6}, "sft/improves on pretrained", "the bound -1.1 is not between -1 and 1"),
        ({"sft__gold": NAN}, "sft-lora/near full fine-tuning", "nothing to compare it with"),
        ({"rm__ceiling": NAN}, "rm/near label-noise ceiling", "nothing to compare it with"),
        ({"rm__ceiling": 0.0}, "rm/near label-noise ceiling", "the bound 0 is not between 0.5 and 1"),
        ({"rm__ceiling": 0.58}, "rm/near label-noise ceiling", "the bound 0.493 is not between 0.5 and 1"),
        ({"rm__correlation": NAN}, "rm/correlates with gold", "the value is undefined"),
        ({"sft__stopped": NAN}, "sft/emits EOS", "the value is undefined"),
        ({"ppo__kl": -math.inf}, "ppo/KL within bound", "the value is undefined"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_fails_and_says_so(change: dict[str, float], name: str, why: str) -> None:
    row = rows(inputs(**change))[name]
    assert not row["passed"]
    assert why in row["why"]


def test_a_missing_reference_fails() -> None:
    found = inputs()
    del found.baselines["rm"]["ceiling"], found.baselines["pretrain"]["ngram_bits_per_byte"]
    assert failed(found) == {"rm/near label-noise ceiling", "pretrain/beats n-gram baseline"}
    own = inputs(user=True)
    own.results = {stage: {"test": {**TEST, "before": None}} for stage in STAGES}
    names = {"lowers held-out loss", "improves reward"}
    assert {name.partition("/")[2] for name in failed(own)} == names


def test_every_gate_fails_where_it_was_measured_on_nothing() -> None:
    for user in (False, True):
        found = inputs(user)
        for metrics in found.metrics.values():
            for metric in metrics.values():
                metric["n"] = 0
        found.baselines["rm"] |= {"pairs": 0, "answers": 0}
        found.results = {stage: {"test": {**TEST, "best": measured(BEST, count=0)}} for stage in STAGES}
        assert failed(found) == set(rows(found))
        assert all(row["why"] for row in rows(found).values())
    assert rows(found)["grpo/improves reward"]["why"] == "measured on no prompts"
    for user in (False, True):
        empty = gates.GateInputs(results={stage: {"test": None} for stage in STAGES}, parents=PARENTS, user_data=user)
        assert failed(empty) == set(rows(empty))


def test_a_policy_that_answers_as_its_parent_has_won_nothing() -> None:
    found = inputs()
    found.metrics["grpo"]["win_rate"] = {"value": NAN, "n": 0}
    row = rows(found)["grpo/wins against parent"]
    assert (row["passed"], row["n"], row["why"]) == (False, 0, "no question with a different answer")


def test_what_a_gate_was_measured_on_is_in_its_row() -> None:
    counted = {name: (row["n"], row["counted"]) for name, row in rows(inputs()).items()}
    assert counted["rm/near label-noise ceiling"] == (1000, "pairs")
    assert counted["grpo/wins against parent"] == (512, "unequal questions")
    assert counted["pretrain/beats n-gram baseline"] == (512, "documents")
    assert rows(inputs(user=True))["grpo/improves reward"]["n"] == 60


def test_the_last_checkpoint_is_judged_beside_the_best_one() -> None:
    found = inputs()
    worse = {**found.metrics["grpo"], "kl": {"value": 30.0, "n": 512}, "gold": {"value": 0.01, "n": 512}}
    found.last = {
        "grpo": {"figures": worse, "measured": {}},
        "rm": {"figures": {}, "measured": {"accuracy": 0.6, "pairs": 1000}},
    }
    named = rows(found)
    assert failed(found) == set()  # the best checkpoint decides
    last = {name: row["last"] for name, row in named.items() if "last" in row}
    assert {name for name, row in last.items() if not row["passed"]} == {
        "grpo/KL within bound",
        "grpo/improves gold reward",
        "rm/near label-noise ceiling",
    }
    assert last["grpo/KL within bound"]["value"] == 30.0
    assert last["rm/correlates with gold"]["passed"]  # measured once, with the best checkpoint
    assert named["grpo/KL within bound"]["value"] == 3.0


def test_the_last_checkpoint_of_own_data_is_judged_by_its_own_test_figures() -> None:
    found = inputs(user=True)
    last = {"loss": 2.9, "reward": 0.0, "rewards/accuracies": 0.5, "accuracy": 0.5}
    found.results = {stage: {"test": {**TEST, "last": measured(last)}} for stage in STAGES}
    found.last = {stage: {"figures": found.metrics.get(stage, {}), "measured": {}} for stage in STAGES}
    assert failed(found) == set()
    names = {name.partition("/")[2] for name, row in rows(found).items() if not row["last"]["passed"]}
    assert names == {gate.name for gate in gates.GATES if gate.data == "user"}
