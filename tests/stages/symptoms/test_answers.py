"""Answers and what they earn: each symptom is seen where it is, and not where it is not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import histories

ENDLESS = {"finished": [0.9, 0.3], "length": [10, 23.5]}
FLAT = {"reward": [0.20, 0.205]}
HACKED = {"rewards/reward_model": [-0.25, 0.4, 0.9, 0.98], "rewards/gold": [0.1, 0.3, 0.1, -0.2], "reward": [0, 1]}


def noisy(rise: float) -> list[float]:
    """Rewards of twelve rollouts of two minibatches: other prompts earn otherwise by 0.2, and in the last four by `rise` more."""
    return [value + (number >= 8) * rise for number, value in enumerate([0.1, 0.3] * 6) for _ in range(2)]


SICK: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("endless", "grpo", {"held_out": ENDLESS}, "warning", "max_new_tokens=48"),
    ("endless", "grpo", {"held_out": {**ENDLESS, "length": [10, 15]}}, "warning", "unfinished_penalty=1"),
    ("endless", "sft", {"held_out": ENDLESS}, "warning", "train.steps=200"),
    ("endless", "sft", {"held_out": {"finished": [0.9, 0.7]}}, "note", "train.steps=200"),
    ("repeats", "sft", {"held_out": {"repetition": [0.2, 0.6]}}, "warning", "train.steps=200"),
    ("repeats", "sft", {"held_out": {"repetition": [0.4, 0.55]}}, "warning", "train.steps=200"),
    ("repeats", "sft", {"held_out": {"repetition": [0.48, 0.56]}}, "note", "train.steps=200"),
    ("repeats", "grpo", {"held_out": {"repetition": [0.58, 0.6]}}, "note", "kl_coef=0.05"),  # as the parent did
    ("length_runs_away", "grpo", {"held_out": {"length": [8, 20]}}, "note", "overlong_buffer=6"),  # reward rose
    ("length_runs_away", "grpo", {"held_out": {"length": [8, 20], **FLAT}}, "warning", "overlong_buffer=6"),
    (
        "length_runs_away",
        "ppo",
        {"held_out": {"length": [8, 20], **FLAT}, "config": {"rollout.overlong_buffer": 6}},
        "warning",
        "ppo.kl_coef=0.1",
    ),
    ("reward_stays", "grpo", {"held_out": FLAT, "train": {"reward": [0.2]}}, "warning", "learning_rate=0.003"),
    (
        "reward_stays",
        "grpo",
        {"held_out": FLAT, "train": {"reward": noisy(0.14)}},
        "warning",
        "learning_rate=0.003",  # other prompts earn otherwise, which is no trend
    ),
    ("reward_stays", "grpo", {"held_out": {"reward": [0.95]}, "train": {"reward": [0.95]}}, "note", "harder prompts"),
    ("reward_fell", "grpo", {"held_out": {"reward": [0.1, 0.5, 0.3]}}, "warning", "learning_rate=0.00033"),
    ("over_optimised", "ppo", {"held_out": HACKED}, "warning", "ppo.kl_coef=0.1"),
    (
        "over_optimised",
        "ppo",
        {"held_out": {**HACKED, "rewards/reward_model": [0, 1.0, 0.93]}},  # near its highest
        "warning",
        "ppo.kl_coef=0.1",
    ),
    (
        "over_optimised",
        "ppo",
        {"held_out": {**HACKED, "rewards/gold": [], "rewards/exact_answer": [0.3, 0.5, 0.1]}},
        "warning",
        "ppo.kl_coef=0.1",
    ),
    ("worse_answers", "sft", {"held_out": {"rewards/gold": [0.3, 0.1]}}, "warning", "train.steps=200"),
    (
        "worse_answers",
        "dpo",
        {"held_out": {"rewards/gold": [0.3, 0.1], "loss": [0.693, 0.5, 0.52]}},
        "warning",
        "learning_rate=0.00033",
    ),
    ("worse_answers", "sft", {"held_out": {"rewards/gold": [-0.4, -0.1]}}, "note", "train.steps=200"),
]

WELL: list[tuple[str, str, dict[str, Any]]] = [
    ("endless", "grpo", {"held_out": {"finished": [0.5, 0.85]}}),
    ("repeats", "sft", {"held_out": {"repetition": [0.6, 0.4]}}),
    ("length_runs_away", "grpo", {"held_out": {"length": [2, 6]}}),  # three times next to nothing
    ("length_runs_away", "grpo", {"held_out": {"length": [12, 23]}}),
    ("reward_stays", "grpo", {"held_out": {"reward": [0.20, 0.24]}}),
    ("reward_stays", "grpo", {"held_out": FLAT, "train": {"reward": [0.1, 0.4]}}),  # it moves where it is sampled
    ("reward_stays", "grpo", {"held_out": FLAT, "train": {"reward": noisy(0.5)}}),
    ("reward_stays", "grpo", {"held_out": {"reward": [2.0, 2.1]}, "config": {"rewards": {"gold": 4.0}}, "train": {}}),
    ("reward_fell", "grpo", {"held_out": {"reward": [0.1, 0.5, 0.45]}}),
    ("reward_fell", "grpo", {"held_out": {"reward": [0.5, 0.4, 0.3]}}),  # it never rose
    ("over_optimised", "ppo", {"held_out": {**HACKED, "rewards/gold": [0.1, 0.3, 0.4, 0.5]}}),
    ("over_optimised", "ppo", {"held_out": {**HACKED, "rewards/reward_model": [0.9, 0.4, 0.1]}}),  # nobody is pleased
    (
        "over_optimised",
        "ppo",
        {"held_out": {**HACKED, "rewards/reward_model": [0, 1.0, 0.83]}},
    ),  # it falls as well
    ("over_optimised", "ppo", {"held_out": {**HACKED, "rewards/gold": []}}),  # not measured
    ("worse_answers", "sft", {"held_out": {"rewards/gold": [0.3, 0.25]}}),
    ("worse_answers", "sft", {"held_out": {"rewards/gold": [-0.4], "loss": [5.46]}}),  # never moved says it better
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


def test_over_optimisation_is_dated_and_shows_the_distance_at_the_peak(tmp_path: Path) -> None:
    """2210.10760's picture: the proxy rises throughout, the true reward turns, both over KL."""
    history = {**HACKED, "objective/kl": [0, 3, 9, 26]}
    found = histories.findings(histories.write(tmp_path / "run", "ppo", held_out=history))["over_optimised"]
    shown = {(fact.figure, fact.step): fact.value for fact in found.evidence}
    peak = next(step for (figure, step), value in shown.items() if figure == "eval rewards/gold" and value > 0)
    assert f"step {peak}" in found.symptom
    assert shown["eval objective/kl", peak] < shown["eval objective/kl", 32] == 26
