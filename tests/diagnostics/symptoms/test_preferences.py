"""Symptoms of learning from preferences."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.support import synthetic_runs
from tests.support.symptom_cases import Case, absent, found, unseen

LN_2 = math.log(2)
STUCK = {"loss": [LN_2], "rewards/margins": [0.0]}
LOST = {"logps/rejected": [-58.9, -73.2]}
MEMORIZED = {
    "train": {"rewards/accuracies": [0.0, 0.9, 1.0, 1.0, 1.0, 1.0]},
    "held_out": {"rewards/accuracies": [0, 0.7, 0.7]},
}

CASES = [
    found("stuck", "dpo", "broken", "learning_rate=0.01", held_out=STUCK, train=STUCK),
    found("stuck", "dpo", "broken", "max_length=256", held_out=STUCK, train={**STUCK, "grad_norm": [0.0]}),
    found("stuck", "orpo", "broken", "learning_rate=0.01", held_out={"loss": [3.67], "rewards/margins": [1.05]}),
    found("stuck", "dpo", "broken", "=0.01", held_out={"loss": [LN_2, 0.691], "rewards/margins": [0, 0.008]}),
    absent("stuck", "dpo", held_out={"loss": [LN_2, 0.68], "rewards/margins": [0, 0.03]}),
    absent(
        "stuck",
        "dpo",
        held_out={"loss": [LN_2, 0.692], "rewards/margins": [0, 1.5]},
        why="margins change although the loss does not",
    ),
    absent("stuck", "dpo", held_out={"loss": [LN_2, 0.691], "rewards/margins": [0, 0.015]}),
    found("chosen_falls", "dpo", "note", "nothing", held_out={"logps/chosen": [-20, -23]}),
    found(
        "chosen_falls",
        "dpo",
        "note",
        "nothing",
        held_out={"logps/chosen": [-9.4, -15.1], "logps/rejected": [-15.2, -34.7]},
        why="a confident parent, and the margin gained more",
    ),
    found(
        "chosen_falls",
        "dpo",
        "warning",
        "dpo.beta=0.3",
        held_out={"logps/chosen": [-9.4, -25], "logps/rejected": [-15.2, -45]},
    ),
    found("chosen_falls", "dpo", "note", "nothing", held_out={"logps/chosen": [-20, -25, -29]}),
    found("chosen_falls", "dpo", "warning", "dpo.beta=0.3", held_out={"logps/chosen": [-20, -25, -31]}),
    found(
        "chosen_falls",
        "orpo",
        "warning",
        "learning_rate=0.00033",
        held_out={"logps/chosen": [-2, -3.2], "rewards/margins": [1, 2]},
        why="no reference model",
    ),
    absent("chosen_falls", "dpo", held_out={"logps/chosen": [-20, -21.9]}),
    absent(
        "chosen_falls", "dpo", held_out={"logps/chosen": [-20, -35], "rewards/margins": [0, -1]}, why="the margin fell"
    ),
    found("below_chance", "dpo", "warning", "chosen: rejected", held_out={"rewards/accuracies": [0, 0.4]}),
    found(
        "below_chance",
        "dpo",
        "warning",
        "learning_rate=0.003",
        held_out={"rewards/accuracies": [0, 0.4]},
        train={"rewards/accuracies": [0, 0.45]},
    ),
    absent("below_chance", "dpo", held_out={"rewards/accuracies": [0, 0.47]}, why="within the noise"),
    absent("below_chance", "dpo", held_out={**STUCK, "rewards/accuracies": [0, 0.3]}, why="the policy is unchanged"),
    found("margin_explodes", "dpo", "warning", "dpo.beta=0.3", train={"rewards/margins": [0, 6, 12, 12]}),
    absent("margin_explodes", "dpo", train={"rewards/margins": [0, 4, 7.9, 7.9]}),
    found("memorised", "dpo", "warning", "world:4000", **MEMORIZED),
    found(
        "memorised", "dpo", "warning", "world:4000", **MEMORIZED | {"held_out": {"rewards/accuracies": [0, 0.85, 0.86]}}
    ),
    found(
        "memorised",
        "rm",
        "warning",
        "world:4000",
        train={"accuracy": [0.5, 0.9, 1.0, 1.0, 1.0], "loss": [0.7, 0.1, 0.01]},
        held_out={"accuracy": [0.47, 0.7, 0.7]},
    ),
    absent(
        "memorised",
        "dpo",
        **MEMORIZED | {"held_out": {"rewards/accuracies": [0, 0.92, 0.92]}},
        why="held-out accuracy is high",
    ),
    absent(
        "memorised",
        "dpo",
        **MEMORIZED | {"held_out": {"rewards/accuracies": [0, 0.7, 0.74]}},
        why="held-out accuracy still rises",
    ),
    absent("memorised", "dpo", **MEMORIZED | {"train": {"rewards/accuracies": [0, 0.97]}}),
    found(
        "at_chance",
        "rm",
        "warning",
        "learning_rate=0.003",
        held_out={"accuracy": [0.47, 0.52]},
        train={"accuracy": [0.5]},
    ),
    found(
        "at_chance", "rm", "warning", "world:4000", held_out={"accuracy": [0.47, 0.52]}, why="training accuracy is 0.8"
    ),
    absent("at_chance", "rm", held_out={"accuracy": [0.47, 0.58]}),
    absent(
        "at_chance",
        "rm",
        held_out={"accuracy": [0.47], "loss": [0.85]},
        why="an unchanged loss is reported by never_moved",
    ),
    found(
        "rewards_drift",
        "rm",
        "warning",
        "centering=0.1",
        held_out={"rewards/chosen": [0.9, 9.0], "rewards/rejected": [1.0, 8.0]},
    ),
    found(
        "rewards_drift",
        "rm",
        "warning",
        "centering=0.01",
        held_out={"rewards/chosen": [0.9, -8.0], "rewards/rejected": [1.0, -9.0]},
        config={"bradley_terry.centering": 0.0},
    ),
    absent(
        "rewards_drift",
        "rm",
        held_out={"rewards/chosen": [0.1, 3.5], "rewards/rejected": [0.1, 2.5]},
        why="the mean is near 0",
    ),
    absent(
        "rewards_drift",
        "rm",
        held_out={"rewards/chosen": [0.9, 9.0], "rewards/rejected": [1.0, -7.0]},
        why="the margin is large",
    ),
    absent(
        "rewards_drift",
        "rm",
        held_out={"rewards/chosen": [8.0, 9.0], "rewards/rejected": [8.0, 8.0]},
        why="the mean was high from the start",
    ),
]

# just on either side of each bound
EDGES = [
    found("stuck", "dpo", "broken", "=0.01", held_out={"loss": [LN_2, 0.691], "rewards/margins": [0, 0.009]}),
    absent("stuck", "dpo", held_out={"loss": [LN_2, 0.691], "rewards/margins": [0, 0.012]}),
    found("chosen_falls", "dpo", "note", "nothing", held_out={"logps/chosen": [-20, -22.4]}),
    absent("chosen_falls", "dpo", held_out={"logps/chosen": [-20, -21.7]}),
    found("chosen_falls", "dpo", "note", "nothing", held_out={**LOST, "logps/chosen": [-20, -29]}),
    found("chosen_falls", "dpo", "warning", "dpo.beta=0.3", held_out={**LOST, "logps/chosen": [-20, -31]}),
    found("below_chance", "dpo", "warning", "chosen: rejected", held_out={"rewards/accuracies": [0, 0.44]}),
    absent("below_chance", "dpo", held_out={"rewards/accuracies": [0, 0.46]}),
    found("margin_explodes", "dpo", "warning", "dpo.beta=0.3", train={"rewards/margins": [8.5]}),
    absent("margin_explodes", "dpo", train={"rewards/margins": [7.5]}),
    found(
        "margin_explodes",
        "orpo",
        "warning",
        "=0.00033",
        train={"log_odds_chosen": [8.5], "rewards/margins": [0.8]},
        why="the odds of ORPO, whose margin has a small weight",
    ),
    found(
        "margin_explodes",
        "dpo",
        "warning",
        "dpo.beta=0.3",
        train={"rewards/margins": [9.0]},
        config={"train.steps": 20},
        why="five lines",
    ),
    unseen("margin_explodes", "dpo", "4 of at least 5", train={"rewards/margins": [9.0]}, config={"train.steps": 15}),
    found("memorised", "dpo", "warning", "world:4000", **MEMORIZED | {"train": {"rewards/accuracies": [0.992]}}),
    absent("memorised", "dpo", **MEMORIZED | {"train": {"rewards/accuracies": [0.987]}}),
    found("memorised", "dpo", "warning", "4000", **MEMORIZED | {"held_out": {"rewards/accuracies": [0, 0.89, 0.89]}}),
    absent("memorised", "dpo", **MEMORIZED | {"held_out": {"rewards/accuracies": [0, 0.91, 0.91]}}),
    found("memorised", "dpo", "warning", "4000", **MEMORIZED | {"held_out": {"rewards/accuracies": [0, 0.7, 0.717]}}),
    absent("memorised", "dpo", **MEMORIZED | {"held_out": {"rewards/accuracies": [0, 0.7, 0.725]}}),
    found("at_chance", "rm", "warning", "=0.003", held_out={"accuracy": [0.47, 0.54]}, train={"accuracy": [0.5]}),
    absent("at_chance", "rm", held_out={"accuracy": [0.47, 0.56]}, train={"accuracy": [0.5]}),
    found(
        "rewards_drift",
        "rm",
        "warning",
        "centering=0.1",
        held_out={"rewards/chosen": [0.9, 6.2], "rewards/rejected": [1.0, 5.2]},
    ),
    absent("rewards_drift", "rm", held_out={"rewards/chosen": [0.9, 5.0], "rewards/rejected": [1.0, 4.0]}),
    absent("rewards_drift", "rm", held_out={"rewards/chosen": [0.9, 8.0], "rewards/rejected": [1.0, 4.5]}),
    absent("rewards_drift", "rm", held_out={"rewards/chosen": [3.4, 6.2], "rewards/rejected": [3.0, 5.6]}),
]


@pytest.mark.parametrize("case", CASES + EDGES, ids=str)
def test_finding(case: Case, tmp_path: Path) -> None:
    case.check_in(tmp_path)


@pytest.mark.parametrize(("loss", "named"), [(0.045, True), (0.055, False)])
def test_a_small_training_loss_is_evidence_of_overfitting(tmp_path: Path, loss: float, named: bool) -> None:
    train = {**MEMORIZED["train"], "loss": [loss]}
    run = synthetic_runs.write_run(tmp_path / "run", "dpo", train=train, held_out=MEMORIZED["held_out"])
    finding = synthetic_runs.findings(run)["memorised"]
    assert any(e.figure.startswith("train loss") for e in finding.evidence) == named


def test_stuck_loss_names_ln_2_and_tells_low_rate_from_missing_gradient(tmp_path: Path) -> None:
    slow = synthetic_runs.write_run(tmp_path / "slow", "dpo", held_out=STUCK, train={**STUCK, "grad_norm": [2.5]})
    masked = synthetic_runs.write_run(tmp_path / "masked", "dpo", held_out=STUCK, train={**STUCK, "grad_norm": [0.0]})
    orpo = synthetic_runs.write_run(tmp_path / "orpo", "orpo", held_out={"loss": [3.67], "rewards/margins": [1.05]})
    by_rate, by_mask, other = (synthetic_runs.findings(run)["stuck"] for run in (slow, masked, orpo))
    assert "0.6931" in by_rate.symptom
    assert "0.6931" not in other.symptom
    assert "learning rate" in by_rate.causes[0]
    assert "masked completely" in by_mask.causes[0]
