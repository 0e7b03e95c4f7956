"""Policies that learn from their own answers: each symptom is seen where it is, and not where it is not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import histories
from histories import alternating

FROZEN = {"ratio": [1.0], "approx_kl": [0.0], "clip_fraction": [0.0]}
SURE = {"entropy": [2.6, 0.5, 0.1, 0.1, 0.1]}


def four(*values: float) -> list[float]:
    """PPO's four steps for every rollout."""
    return [value for value in values for _ in range(4)]


def spike(usual: float, once: float) -> list[float]:
    return [*alternating(usual, steps=11), once, *alternating(usual, steps=12)]


SICK: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("constant_groups", "grpo", {"train": {"constant_groups": [0, 0.6]}}, "warning", "sampling_rounds=4"),
    (
        "constant_groups",
        "grpo",
        {"train": {"constant_groups": [0, 0.6]}, "held_out": {"reward": [0.2, 0.8]}},
        "warning",
        "sampling_rounds=4",
    ),
    ("constant_groups", "grpo", {"train": {"constant_groups": [0, 0.5, 1, 1]}}, "broken", "sampling_rounds=4"),
    (
        "constant_groups",
        "grpo",
        {"train": {"constant_groups": [0, 0.8]}, "config": {"rollout.sampling_rounds": 4}},
        "warning",
        "temperature=1.2",
    ),
    ("constant_groups", "grpo", {"train": {"constant_groups": [0, 1, 1], **SURE}}, "broken", "learning_rate=0.00033"),
    (
        "constant_groups",
        "grpo",
        {"train": {"constant_groups": [1]}, "config": {"rollout.group_size": 1}},
        "broken",
        "group_size=8",
    ),
    (
        "constant_groups",
        "grpo",
        {"train": {"constant_groups": [0, 1]}, "held_out": {"reward": [0.2, 0.97]}},
        "note",
        "harder prompts",
    ),
    ("clipping", "grpo", {"train": {"clip_fraction": alternating(0.35)}}, "warning", "learning_rate=0.00033"),
    (
        "clipping",
        "grpo",
        {"train": {"clip_fraction": alternating(0.85), "sequence_ratio": [1.0]}},
        "warning",
        "learning_rate=0.00033",
    ),
    ("on_policy", "grpo", {"train": FROZEN}, "broken", "learning_rate=0.01"),
    ("on_policy", "grpo", {"train": FROZEN, "config": {"rollout.minibatches": 1}}, "note", "nothing"),
    ("kl_spike", "grpo", {"train": {"approx_kl": alternating(0.6)}}, "warning", "learning_rate=0.00033"),
    (
        "kl_spike",
        "grpo",
        {"train": {"approx_kl": spike(0.02, 0.25)}},
        "warning",
        "learning_rate=0.00033",
    ),
    ("far_from_parent", "ppo", {"train": {"objective/kl": [0, 10, 20]}}, "warning", "ppo.kl_coef=0.1"),
    ("far_from_parent", "grpo", {"train": {"objective/kl": [0, 10, 20]}}, "warning", "grpo.kl_coef=0.05"),
    (
        "far_from_parent",
        "ppo",
        {"train": {"objective/kl": four(0, 1, 2, 3, 9, 10, 11, 12)}},
        "warning",
        "ppo.kl_coef=0.1",
    ),
    ("far_from_parent", "ppo", {"train": {"objective/kl": [0, 10, 20], "length": [120]}}, "warning", "ppo.kl_coef=0.1"),
    ("entropy_collapse", "grpo", {"train": SURE}, "note", "nothing"),  # reward rose
    (
        "entropy_collapse",
        "grpo",
        {"train": SURE, "held_out": {"reward": [0.1, 0.05]}},
        "warning",
        "learning_rate=0.00033",
    ),
    ("sampler_gap", "grpo", {"train": {"sampler_gap": [0.01, 0.08]}}, "warning", "precision=fp32"),
    ("idle_critic", "ppo", {"train": {"value_loss": [0.8, 1.0, 0.9]}}, "warning", "vf_coef=0.5"),
    ("idle_critic", "ppo", {"train": {"value_loss": [0.008]}}, "warning", "vf_coef=0.5"),
    (
        "idle_critic",
        "ppo",
        {"train": {"value_loss": [0.8]}, "config": {"ppo": {"vf_coef": 0.0}}},
        "warning",
        "vf_coef=0.1",
    ),
]

WELL: list[tuple[str, str, dict[str, Any]]] = [
    ("constant_groups", "grpo", {"train": {"constant_groups": [0.9, 0.4, 0.4, 0.4]}}),  # it got over it
    ("clipping", "grpo", {"train": {"clip_fraction": alternating(0.25)}}),
    ("clipping", "grpo", {"train": {"clip_fraction": alternating(0.6), "sequence_ratio": [1.0]}}),  # GSPO's usual share
    ("on_policy", "grpo", {"train": {**FROZEN, "approx_kl": alternating(1e-6)}}),  # slow is not frozen
    ("on_policy", "grpo", {"train": {"ratio": alternating(0.99, good=1.0)}, "config": {"rollout.minibatches": 2}}),
    ("kl_spike", "grpo", {"train": {"approx_kl": alternating(0.3)}}),  # much, but always so
    ("kl_spike", "grpo", {"train": {"approx_kl": spike(0.03, 0.25)}}),
    ("kl_spike", "grpo", {"train": {"approx_kl": spike(0.002, 0.15)}}),  # a spike of next to nothing
    ("far_from_parent", "ppo", {"train": {"objective/kl": four(0, 0.1, 0.2, 0.3, 4, 4.1, 4.2, 4.3)}}),  # a small jump
    ("far_from_parent", "ppo", {"train": {"objective/kl": four(0, 2, 0, 2, 9, 7, 9, 7)}}),  # it always jumps
    ("far_from_parent", "ppo", {"train": {"objective/kl": [0, 7, 14]}}),
    ("far_from_parent", "ppo", {"train": {"objective/kl": [0, 10, 20], "length": [400]}}),  # little, a token
    ("entropy_collapse", "grpo", {"train": {"entropy": [2.6, 0.4]}}),
    ("sampler_gap", "grpo", {"train": {"sampler_gap": [0.04]}}),
    ("idle_critic", "ppo", {"train": {"value_loss": [1.0, 0.7]}}),
    ("idle_critic", "ppo", {"train": {"value_loss": [0.004]}}),  # it began good
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


def test_steps_that_only_repeat_a_rollout_are_not_counted_twice(tmp_path: Path) -> None:
    """PPO learns four times from a rollout; its eight rollouts are eight points."""
    from tinyllm.stages.symptoms.log import read

    log = read(histories.write(tmp_path / "run", "ppo", train={"reward": [n // 4 for n in range(32)]}))
    assert log.rollouts("reward").values == [0, 1, 2, 3, 4, 5, 6, 7]
    assert [p.step for p in log.after_first_minibatch("ratio")][:6] == [2, 3, 4, 6, 7, 8]
