"""Symptoms of online alignment."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import synthetic_runs
from tests.support.symptom_cases import Case, absent, found, unseen
from tests.support.synthetic_runs import alternating
from tinyllm.diagnostics.run_log import read_run_log

FROZEN = {"ratio": [1.0], "approx_kl": [0.0], "clip_fraction": [0.0]}
LOW_ENTROPY = {"entropy": [2.6, 0.5, 0.1, 0.1, 0.1]}


def per_rollout(*values: float) -> list[float]:
    """Repeat each value for the four steps of a PPO rollout."""
    return [value for value in values for _ in range(4)]


def spike(usual: float, once: float) -> list[float]:
    return [*alternating(usual, steps=11), once, *alternating(usual, steps=12)]


def jump(size: float, *, usual: float, back: bool = False) -> list[float]:
    """Return the KL of eight rollouts with one jump; it changes by `usual` between the others, up, or up and down."""
    steps = [usual * (-1 if back and number % 2 else 1) for number in range(7)]
    steps[3] = size
    return per_rollout(*(sum(steps[:number]) for number in range(8)))


ONE_STEP = {"rollout.minibatches": 1}
CONSTANT = {"train": {"constant_groups": [0.95]}}
ZERO = {"rewards/exact_answer": [0.0], "rewards/gold": []}
OTHER_TASK = "easier prompts or a reward that grades partly"

CASES = [
    found("zero_reward", "grpo", "broken", OTHER_TASK, train=ZERO, held_out=ZERO),
    found("zero_reward", "grpo", "broken", OTHER_TASK, train={**ZERO, "rewards/style": [1.0]}),
    found("zero_reward", "grpo", "warning", OTHER_TASK, train={**ZERO, "rewards/style": [0.1, 0.5]}),
    absent("zero_reward", "grpo", train={"rewards/gold": [], "rewards/exact_answer": [0.0, 0.1]}),
    absent("zero_reward", "grpo", train={"rewards/gold": [], "rewards/style": [1.0], "rewards/style/applied": [0.0]}),
    absent("zero_reward", "grpo", train=ZERO, held_out={"rewards/exact_answer": [0.0, 0.1]}),
    found("constant_groups", "grpo", "broken", OTHER_TASK, train={"constant_groups": [1.0], **ZERO}),
    found("on_policy", "grpo", "broken", OTHER_TASK, train={**FROZEN, **ZERO}),
    found("reward_stays", "grpo", "warning", OTHER_TASK, train={"reward": [-0.1], **ZERO}, held_out={"reward": [-0.1]}),
    found("constant_groups", "grpo", "warning", "sampling_rounds=4", train={"constant_groups": [0, 0.6]}),
    found(
        "constant_groups",
        "grpo",
        "warning",
        "sampling_rounds=4",
        train={"constant_groups": [0, 0.6]},
        held_out={"reward": [0.2, 0.8]},
    ),
    found("constant_groups", "grpo", "broken", "sampling_rounds=4", train={"constant_groups": [0, 0.5, 1, 1]}),
    found(
        "constant_groups",
        "grpo",
        "warning",
        "temperature=1.2",
        train={"constant_groups": [0, 0.8]},
        config={"rollout.sampling_rounds": 4},
    ),
    found(
        "constant_groups",
        "grpo",
        "broken",
        "learning_rate=0.00033",
        train={"constant_groups": [0, 1, 1], **LOW_ENTROPY},
    ),
    found(
        "constant_groups",
        "grpo",
        "note",
        "harder prompts",
        train={"constant_groups": [0, 1]},
        held_out={"reward": [0.2, 0.97]},
    ),
    absent("constant_groups", "grpo", train={"constant_groups": [0.9, 0.4, 0.4, 0.4]}, why="the fraction fell"),
    found("clipping", "grpo", "warning", "learning_rate=0.00033", train={"clip_fraction": alternating(0.35)}),
    found(
        "clipping",
        "grpo",
        "warning",
        "learning_rate=0.00033",
        train={"clip_fraction": alternating(0.85), "sequence_ratio": [1.0]},
    ),
    absent("clipping", "grpo", train={"clip_fraction": alternating(0.25)}),
    absent(
        "clipping",
        "grpo",
        train={"clip_fraction": alternating(0.6), "sequence_ratio": [1.0]},
        why="the usual fraction for ratios per answer",
    ),
    found("on_policy", "grpo", "broken", "learning_rate=0.01", train=FROZEN),
    found("on_policy", "grpo", "note", "nothing", train=FROZEN, config={"rollout.minibatches": 1}),
    absent("on_policy", "grpo", train={**FROZEN, "approx_kl": alternating(1e-6)}, why="the policy changes slowly"),
    absent("on_policy", "grpo", train={"ratio": alternating(0.99, first=1.0)}, config={"rollout.minibatches": 2}),
    found("kl_spike", "grpo", "warning", "learning_rate=0.00033", train={"approx_kl": alternating(0.6)}),
    found("kl_spike", "grpo", "warning", "learning_rate=0.00033", train={"approx_kl": spike(0.02, 0.25)}),
    absent("kl_spike", "grpo", train={"approx_kl": alternating(0.3)}, why="high at every step"),
    absent("kl_spike", "grpo", train={"approx_kl": spike(0.03, 0.25)}),
    absent("kl_spike", "grpo", train={"approx_kl": spike(0.002, 0.15)}, why="the spike is small"),
    found("far_from_parent", "ppo", "warning", "ppo.kl_coef=0.1", train={"objective/kl": [0, 10, 20]}),
    found("far_from_parent", "grpo", "warning", "grpo.kl_coef=0.05", train={"objective/kl": [0, 10, 20]}),
    found(
        "far_from_parent",
        "ppo",
        "warning",
        "ppo.kl_coef=0.1",
        train={"objective/kl": per_rollout(0, 1, 2, 3, 9, 10, 11, 12)},
    ),
    found("far_from_parent", "ppo", "warning", "ppo.kl_coef=0.1", train={"objective/kl": [0, 10, 20], "length": [120]}),
    absent(
        "far_from_parent",
        "ppo",
        train={"objective/kl": per_rollout(0, 0.1, 0.2, 0.3, 4, 4.1, 4.2, 4.3)},
        why="the jump is small",
    ),
    absent(
        "far_from_parent",
        "ppo",
        train={"objective/kl": per_rollout(0, 2, 0, 2, 9, 7, 9, 7)},
        why="KL varies as much all the time",
    ),
    absent("far_from_parent", "ppo", train={"objective/kl": [0, 7, 14]}),
    absent("far_from_parent", "ppo", train={"objective/kl": [0, 10, 20], "length": [400]}, why="the answers are long"),
    found("entropy_collapse", "grpo", "note", "nothing", train=LOW_ENTROPY, why="the reward rose"),
    found(
        "entropy_collapse",
        "grpo",
        "warning",
        "learning_rate=0.00033",
        train=LOW_ENTROPY,
        held_out={"reward": [0.1, 0.05]},
    ),
    absent("entropy_collapse", "grpo", train={"entropy": [2.6, 0.4]}),
    found("sampler_gap", "grpo", "warning", "precision=fp32", train={"sampler_gap": [0.01, 0.08]}),
    absent("sampler_gap", "grpo", train={"sampler_gap": [0.04]}),
    found("idle_critic", "ppo", "warning", "vf_coef=0.5", train={"value_loss": [0.8, 1.0, 0.9]}),
    found("idle_critic", "ppo", "warning", "vf_coef=0.5", train={"value_loss": [0.008]}),
    found(
        "idle_critic", "ppo", "warning", "vf_coef=0.1", train={"value_loss": [0.8]}, config={"ppo": {"vf_coef": 0.0}}
    ),
    absent("idle_critic", "ppo", train={"value_loss": [1.0, 0.7]}),
    absent("idle_critic", "ppo", train={"value_loss": [0.004]}, why="the value loss was low from the start"),
    unseen("idle_critic", "grpo", "grpo has no critic"),
    unseen("constant_groups", "ppo", "group_size is 1"),
    unseen("clipping", "grpo", "every step uses a new rollout", config=ONE_STEP),
    unseen("kl_spike", "grpo", "every step uses a new rollout", config=ONE_STEP),
    unseen("clipping", "grpo", "keeps every gradient", config={"algorithm": "cispo"}),
    unseen("far_from_parent", "grpo", "track_kl is false", config={"track_kl": False}, train={"objective/kl": []}),
    unseen("far_from_parent", "grpo", "not logged by grpo", train={"objective/kl": []}),
]

# just on either side of each bound
EDGES = [
    found("zero_reward", "grpo", "broken", OTHER_TASK, train=ZERO, config={"train.steps": 6}, why="three rollouts"),
    unseen("zero_reward", "grpo", "2 of at least 3 rollouts", train=ZERO, config={"train.steps": 4}),
    found("constant_groups", "grpo", "warning", "sampling_rounds=4", train={"constant_groups": [0.55]}),
    absent("constant_groups", "grpo", train={"constant_groups": [0.45]}),
    found("constant_groups", "grpo", "broken", "sampling_rounds=4", train={"constant_groups": [0.92]}),
    found("constant_groups", "grpo", "warning", "sampling_rounds=4", train={"constant_groups": [0.88]}),
    found("constant_groups", "grpo", "note", "harder prompts", **CONSTANT | {"held_out": {"reward": [0.2, 0.92]}}),
    found("constant_groups", "grpo", "broken", "rounds=4", **CONSTANT | {"held_out": {"reward": [0.2, 0.88]}}),
    found("clipping", "grpo", "warning", "=0.00033", train={"clip_fraction": alternating(0.33)}),
    absent("clipping", "grpo", train={"clip_fraction": alternating(0.27)}),
    found(
        "clipping",
        "grpo",
        "warning",
        "=0.00033",
        train={"clip_fraction": alternating(0.82), "sequence_ratio": [1.0]},
    ),
    absent("clipping", "grpo", train={"clip_fraction": alternating(0.75), "sequence_ratio": [1.0]}),
    found("on_policy", "grpo", "broken", "=0.01", train={**FROZEN, "ratio": alternating(1 + 9e-5, first=1.0)}),
    absent("on_policy", "grpo", train={**FROZEN, "ratio": alternating(1 + 1.2e-4, first=1.0)}),
    found("on_policy", "grpo", "broken", "=0.01", train={**FROZEN, "approx_kl": alternating(9e-9)}),
    absent("on_policy", "grpo", train={**FROZEN, "approx_kl": alternating(1.2e-8)}),
    found("kl_spike", "grpo", "warning", "=0.00033", train={"approx_kl": alternating(0.55)}),
    absent("kl_spike", "grpo", train={"approx_kl": alternating(0.45)}),
    found("kl_spike", "grpo", "warning", "=0.00033", train={"approx_kl": spike(0.03, 0.33)}),
    absent("kl_spike", "grpo", train={"approx_kl": spike(0.03, 0.27)}),
    found("kl_spike", "grpo", "warning", "=0.00033", train={"approx_kl": spike(0.002, 0.22)}),
    absent("kl_spike", "grpo", train={"approx_kl": spike(0.002, 0.18)}),
    found("far_from_parent", "ppo", "warning", "ppo.kl_coef=0.1", train={"objective/kl": [0, 8, 16]}),
    absent("far_from_parent", "ppo", train={"objective/kl": [0, 7, 14]}),
    found("far_from_parent", "ppo", "warning", "kl_coef=0.1", train={"objective/kl": [0, 10, 20], "length": [180]}),
    absent("far_from_parent", "ppo", train={"objective/kl": [0, 10, 20], "length": [225]}),
    found("far_from_parent", "ppo", "warning", "kl_coef=0.1", train={"objective/kl": jump(5.5, usual=0.1)}),
    absent("far_from_parent", "ppo", train={"objective/kl": jump(4.5, usual=0.1)}),
    found("far_from_parent", "ppo", "warning", "kl_coef=0.1", train={"objective/kl": jump(5.5, usual=1.3, back=True)}),
    absent("far_from_parent", "ppo", train={"objective/kl": jump(5.5, usual=1.45, back=True)}),
    found(
        "far_from_parent",
        "ppo",
        "warning",
        "kl_coef=0.1",
        train={"objective/kl": [0, 10, 20]},
        config={"train.steps": 20},
        why="five rollouts",
    ),
    unseen("far_from_parent", "ppo", "4 of at least 5", train={"objective/kl": [0, 20]}, config={"train.steps": 16}),
    found("entropy_collapse", "grpo", "note", "nothing", train={"entropy": [2.0] * 12 + [0.18] * 12}),
    absent("entropy_collapse", "grpo", train={"entropy": [2.0] * 12 + [0.22] * 12}),
    found("sampler_gap", "grpo", "warning", "precision=fp32", train={"sampler_gap": [0.055]}),
    absent("sampler_gap", "grpo", train={"sampler_gap": [0.045]}),
    found("idle_critic", "ppo", "warning", "vf_coef=0.5", train={"value_loss": [1.0] * 16 + [0.92] * 16}),
    absent("idle_critic", "ppo", train={"value_loss": [1.0] * 16 + [0.88] * 16}),
    found("idle_critic", "ppo", "warning", "vf_coef=0.5", train={"value_loss": [0.0055]}),
    absent("idle_critic", "ppo", train={"value_loss": [0.0045]}),
    found(
        "idle_critic", "ppo", "warning", "=0.5", train={"value_loss": [0.8]}, config={"train.steps": 12}, why="12 steps"
    ),
    unseen("idle_critic", "ppo", "8 of at least 10", train={"value_loss": [0.8]}, config={"train.steps": 8}),
]


@pytest.mark.parametrize("case", CASES + EDGES, ids=str)
def test_finding(case: Case, tmp_path: Path) -> None:
    case.check_in(tmp_path)


def test_rollout_metrics_have_one_point_per_rollout(tmp_path: Path) -> None:
    """PPO takes four steps per rollout, so eight rollouts in 32 steps are eight points."""
    log = read_run_log(synthetic_runs.write_run(tmp_path / "run", "ppo", train={"reward": [n // 4 for n in range(32)]}))
    assert log.rollouts("reward").values == [0, 1, 2, 3, 4, 5, 6, 7]
    assert [p.step for p in log.after_first_minibatch("ratio")][:6] == [2, 3, 4, 6, 7, 8]
