"""Reward models and alignment with preferences: each symptom is seen where it is, and not where it is not."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import histories

LN_2 = math.log(2)
STUCK = {"loss": [LN_2], "rewards/margins": [0.0]}
BY_HEART = {
    "train": {"rewards/accuracies": [0.0, 0.9, 1.0, 1.0, 1.0, 1.0]},
    "held_out": {"rewards/accuracies": [0, 0.7, 0.7]},
}

SICK: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("stuck", "dpo", {"held_out": STUCK, "train": STUCK}, "broken", "learning_rate=0.01"),
    ("stuck", "dpo", {"held_out": STUCK, "train": {**STUCK, "grad_norm": [0.0]}}, "broken", "max_length=256"),
    ("stuck", "orpo", {"held_out": {"loss": [3.67], "rewards/margins": [1.05]}}, "broken", "learning_rate=0.01"),
    ("stuck", "dpo", {"held_out": {"loss": [LN_2, 0.691], "rewards/margins": [0, 0.008]}}, "broken", "=0.01"),
    ("chosen_falls", "dpo", {"held_out": {"logps/chosen": [-20, -23]}}, "note", "nothing"),
    (
        "chosen_falls",
        "dpo",
        {
            "held_out": {"logps/chosen": [-9.4, -15.1], "logps/rejected": [-15.2, -34.7]}
        },  # a sure parent; the margin pays
        "note",
        "nothing",
    ),
    (
        "chosen_falls",
        "dpo",
        {"held_out": {"logps/chosen": [-9.4, -25], "logps/rejected": [-15.2, -45]}},
        "warning",
        "dpo.beta=0.3",
    ),
    ("chosen_falls", "dpo", {"held_out": {"logps/chosen": [-20, -25, -29]}}, "note", "nothing"),
    ("chosen_falls", "dpo", {"held_out": {"logps/chosen": [-20, -25, -31]}}, "warning", "dpo.beta=0.3"),
    (
        "chosen_falls",
        "orpo",
        {"held_out": {"logps/chosen": [-2, -3.2], "rewards/margins": [1, 2]}},
        "warning",
        "learning_rate=0.00033",  # nothing ties it to a reference
    ),
    ("below_chance", "dpo", {"held_out": {"rewards/accuracies": [0, 0.4]}}, "warning", "chosen: rejected"),
    (
        "below_chance",
        "dpo",
        {"held_out": {"rewards/accuracies": [0, 0.4]}, "train": {"rewards/accuracies": [0, 0.45]}},
        "warning",
        "learning_rate=0.003",
    ),
    ("margin_explodes", "dpo", {"train": {"rewards/margins": [0, 6, 12, 12]}}, "warning", "dpo.beta=0.3"),
    ("memorised", "dpo", BY_HEART, "warning", "world:4000"),
    ("memorised", "dpo", {**BY_HEART, "held_out": {"rewards/accuracies": [0, 0.85, 0.86]}}, "warning", "world:4000"),
    (
        "memorised",
        "rm",
        {
            "train": {"accuracy": [0.5, 0.9, 1.0, 1.0, 1.0], "loss": [0.7, 0.1, 0.01]},
            "held_out": {"accuracy": [0.47, 0.7, 0.7]},
        },
        "warning",
        "world:4000",
    ),
    (
        "at_chance",
        "rm",
        {"held_out": {"accuracy": [0.47, 0.52]}, "train": {"accuracy": [0.5]}},
        "warning",
        "learning_rate=0.003",
    ),
    ("at_chance", "rm", {"held_out": {"accuracy": [0.47, 0.52]}}, "warning", "world:4000"),  # 0.8 in training
    (
        "rewards_drift",
        "rm",
        {"held_out": {"rewards/chosen": [0.9, 9.0], "rewards/rejected": [1.0, 8.0]}},
        "warning",
        "centering=0.1",
    ),
    (
        "rewards_drift",
        "rm",
        {
            "held_out": {"rewards/chosen": [0.9, -8.0], "rewards/rejected": [1.0, -9.0]},
            "config": {"bradley_terry.centering": 0.0},
        },
        "warning",
        "centering=0.01",
    ),
]

WELL: list[tuple[str, str, dict[str, Any]]] = [
    ("stuck", "dpo", {"held_out": {"loss": [LN_2, 0.68], "rewards/margins": [0, 0.03]}}),
    ("stuck", "dpo", {"held_out": {"loss": [LN_2, 0.692], "rewards/margins": [0, 1.5]}}),  # margins move, sums cancel
    ("chosen_falls", "dpo", {"held_out": {"logps/chosen": [-20, -21.9]}}),
    (
        "chosen_falls",
        "dpo",
        {"held_out": {"logps/chosen": [-20, -35], "rewards/margins": [0, -1]}},
    ),  # it is not the price
    ("below_chance", "dpo", {"held_out": {"rewards/accuracies": [0, 0.47]}}),  # three pairs of a hundred
    ("below_chance", "dpo", {"held_out": {**STUCK, "rewards/accuracies": [0, 0.3]}}),  # nothing has moved
    ("margin_explodes", "dpo", {"train": {"rewards/margins": [0, 4, 7.9, 7.9]}}),
    ("memorised", "dpo", {**BY_HEART, "held_out": {"rewards/accuracies": [0, 0.92, 0.92]}}),  # it carries over
    ("memorised", "dpo", {**BY_HEART, "held_out": {"rewards/accuracies": [0, 0.7, 0.74]}}),  # still getting better
    ("memorised", "dpo", {**BY_HEART, "train": {"rewards/accuracies": [0, 0.97]}}),
    ("at_chance", "rm", {"held_out": {"accuracy": [0.47, 0.58]}}),
    ("at_chance", "rm", {"held_out": {"accuracy": [0.47], "loss": [0.85]}}),  # never moved says it better
    ("stuck", "dpo", {"held_out": {"loss": [LN_2, 0.691], "rewards/margins": [0, 0.015]}}),
    ("rewards_drift", "rm", {"held_out": {"rewards/chosen": [0.1, 3.5], "rewards/rejected": [0.1, 2.5]}}),  # not far
    ("rewards_drift", "rm", {"held_out": {"rewards/chosen": [0.9, 9.0], "rewards/rejected": [1.0, -7.0]}}),  # apart
    (
        "rewards_drift",
        "rm",
        {"held_out": {"rewards/chosen": [8.0, 9.0], "rewards/rejected": [8.0, 8.0]}},
    ),  # from the start
]


@pytest.mark.parametrize(("check", "stage", "history", "severity", "advice"), SICK)
def test_it_is_seen(tmp_path: Path, check: str, stage: str, history: dict, severity: str, advice: str) -> None:
    found = histories.findings(histories.write(tmp_path / "run", stage, **history))
    assert check in found, list(found)
    assert found[check].severity == severity
    assert advice in found[check].try_this
    assert found[check].evidence
    assert found[check].causes


@pytest.mark.parametrize(("check", "stage", "history"), WELL)
def test_it_is_not_imagined(tmp_path: Path, check: str, stage: str, history: dict) -> None:
    found = histories.findings(histories.write(tmp_path / "run", stage, **history))
    assert check not in found, found[check]


def test_a_loss_at_ln_2_is_called_by_its_name_and_its_cause_is_told_by_the_gradient(tmp_path: Path) -> None:
    slow = histories.write(tmp_path / "slow", "dpo", held_out=STUCK, train={**STUCK, "grad_norm": [2.5]})
    masked = histories.write(tmp_path / "masked", "dpo", held_out=STUCK, train={**STUCK, "grad_norm": [0.0]})
    orpo = histories.write(tmp_path / "orpo", "orpo", held_out={"loss": [3.67], "rewards/margins": [1.05]})
    by_rate, by_mask, other = (histories.findings(run)["stuck"] for run in (slow, masked, orpo))
    assert "0.6931" in by_rate.symptom
    assert "0.6931" not in other.symptom
    assert "learning rate" in by_rate.causes[0]
    assert "masks are empty" in by_mask.causes[0]
