"""Losses and gradients: each symptom is seen where it is, with its evidence, and not where it is not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import histories

FLAT = {"train": {"loss": [5.46]}, "held_out": {"loss": [5.46, 5.459]}}
SPIKY = [1.0, 1.1, 0.9, 1.2, 1.0, 0.8, 30.0, 1.0, 1.1, 0.9, 1.0, 1.2, 0.9, 1.0, 25.0, 1.0, 1.1, 0.9, 1.0, 1.1, 1.0]

LONG = {"config": {"train.steps": 1000, "optim.warmup_steps": 0}}  # 201 lines

SICK: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("not_finite", "sft", {"train": {"loss": [5.6, 4.0, None]}}, "broken", "learning_rate=0.00033"),
    ("not_finite", "grpo", {"train": {"loss": [float("inf")]}}, "broken", "learning_rate=0.00033"),
    ("still_warming", "pretrain", {"config": {"optim.warmup_steps": 120}}, "warning", "warmup_steps=12"),
    ("never_moved", "sft", FLAT, "broken", "learning_rate=0.01"),
    ("never_moved", "rm", {"train": {"loss": [0.78]}, "held_out": {"loss": [0.85]}}, "broken", "learning_rate=0.01"),
    ("never_moved", "sft", {**FLAT, "config": {"optim.learning_rate": 1e-9}}, "broken", "learning_rate=0.0001"),
    ("never_moved", "sft", {**FLAT, "train": {"loss": [5.46], "grad_norm": [0.0]}}, "broken", "max_length=256"),
    ("never_moved", "sft", {"held_out": {"loss": [5.46]}}, "warning", "world:4000"),  # the training loss falls
    ("never_moved", "sft", {"held_out": {"loss": [5.46, 5.445]}, "train": {"loss": [5.5, 5.2]}}, "broken", "=0.01"),
    ("never_moved", "sft", {"held_out": {"loss": [5.46]}, "train": {"loss": [5.5, 4.4]}}, "warning", "world:4000"),
    ("eval_turned", "sft", {"held_out": {"loss": [5.4, 2.5, 2.6]}}, "warning", "world:4000"),
    ("eval_turned", "dpo", {"held_out": {"loss": [0.693, 0.5, 0.6]}}, "warning", "world:4000"),
    (
        "eval_turned",
        "pretrain",
        {"train": {"loss": [6.7, 4.0, 7.0]}, "held_out": {"loss": [6.6, 4.1, 6.9]}},
        "warning",
        "learning_rate=0.00033",
    ),
    ("gradient_spikes", "sft", {"train": {"grad_norm": SPIKY}}, "warning", "clip_norm=1"),
    ("gradient_spikes", "sft", {"train": {"grad_norm": [*SPIKY[:14], *[1.0] * 7]}}, "note", "clip_norm=1"),
    ("gradient_spikes", "rm", {"train": {"grad_norm": [0.06] * 6 + [3.0] + [0.06] * 6}}, "note", "clip_norm=0.06"),
    ("gradient_spikes", "sft", {**LONG, "train": {"grad_norm": ([1.0] * 24 + [30.0]) * 8}}, "warning", "clip_norm=1"),
    ("gradient_spikes", "sft", {**LONG, "train": {"grad_norm": ([1.0] * 66 + [30.0]) * 3}}, "note", "clip_norm=1"),
    ("never_improved", "grpo", {"held_out": {"reward": [0.3, 0.28, 0.265]}}, "warning", "learning_rate=0.00033"),
    ("never_improved", "dpo", {"held_out": {"loss": [0.693, 0.72, 0.75]}}, "warning", "world:4000"),
    (
        "never_improved",
        "sft",
        {"held_out": {"loss": [2.0, 2.4, 2.6]}, "train": {"loss": [2.0, 2.4, 2.6]}},
        "warning",
        "learning_rate=0.00033",
    ),
    ("never_improved", "grpo", {"held_out": {"reward": [0.3, 0.2, 0.1]}}, "warning", "learning_rate=0.00033"),
    (
        "never_improved",
        "grpo",
        {"config": {"best_by": "rewards/gold"}, "held_out": {"rewards/gold": [0.3, 0.1]}},
        "warning",
        "learning_rate=0.00033",
    ),
]

WELL: list[tuple[str, str, dict[str, Any]]] = [
    ("not_finite", "dpo", {"train": {"logps/chosen": [None]}}),  # no chosen answer in a batch is no harm
    ("still_warming", "pretrain", {"config": {"optim.warmup_steps": 119}}),
    ("never_moved", "sft", {"held_out": {"loss": [5.46, 5.40]}}),  # by more than a hundredth
    ("never_moved", "grpo", {"train": {"loss": [0.0]}}),  # an online loss says nothing
    ("eval_turned", "sft", {"held_out": {"loss": [5.4, 2.50, 2.55]}}),  # two percent are the usual wobble
    ("eval_turned", "sft", {"held_out": {"loss": [5.4, 5.5, 5.7]}}),  # never below the start: another symptom
    ("eval_turned", "rm", {"held_out": {"loss": [0.8, 0.010, 0.012]}}),  # a fifth of nothing
    ("gradient_spikes", "sft", {"train": {"grad_norm": [1.0, 9.0, 1.0, 9.0]}}),
    ("gradient_spikes", "sft", {"train": {"grad_norm": [0.06] * 10 + [0.9] + [0.06] * 10}}),  # too short to be clipped
    ("gradient_spikes", "sft", {"train": {"grad_norm": [1.0] * 10 + [6.0] + [1.0] * 10}}),
    ("gradient_spikes", "rm", {"train": {"grad_norm": [0.04] * 6 + [3.0] + [0.04] * 6}}),  # the loss is at its end
    ("gradient_spikes", "pretrain", {"train": {"grad_norm": [90, *[1] * 24]}, "config": {"optim.warmup_steps": 4}}),
    ("never_improved", "grpo", {"held_out": {"reward": [0.30, 0.29]}}),  # within the noise
    ("never_improved", "grpo", {"held_out": {"rewards/gold": [0.3, 0.1]}}),  # which is not what decides
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


def test_overfitting_names_the_step_of_the_best_checkpoint(tmp_path: Path) -> None:
    run = histories.write(tmp_path / "run", "sft", held_out={"loss": [5.4, 2.5, 3.1]})
    found = histories.findings(run)["eval_turned"]
    assert "step 50" in found.symptom
    assert [(f.value, f.step) for f in found.evidence[:2]] == [(2.5, 50), (3.1, 100)]
    before, after = found.evidence[2:]  # as many training steps before the best as after it
    assert "steps 5 to 50" in before.figure
    assert "steps 55 to 100" in after.figure
    assert before.value > after.value


def test_a_loss_that_is_no_number_is_dated_and_comes_with_the_gradient_before_it(tmp_path: Path) -> None:
    loss = [5.0] * 10 + [None] * 11
    run = histories.write(tmp_path / "run", "sft", train={"loss": loss, "grad_norm": [2.0] * 9 + [50.0] * 12})
    evidence = histories.findings(run)["not_finite"].evidence
    assert (evidence[0].value, evidence[0].step) == ("not a number", 50)
    assert (evidence[1].value, evidence[1].step) == (50.0, 50)
