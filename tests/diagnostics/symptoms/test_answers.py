"""Symptoms of generated answers and their rewards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import synthetic_runs
from tests.support.symptom_cases import Case, absent, found, unseen

ENDLESS = {"finished": [0.9, 0.3], "length": [10, 23.5]}
FLAT = {"reward": [0.20, 0.205]}
OVEROPTIMIZED = {
    "rewards/reward_model": [-0.25, 0.4, 0.9, 0.98],
    "rewards/gold": [0.1, 0.3, 0.1, -0.2],
    "reward": [0, 1],
}


def noisy(rise: float) -> list[float]:
    """Return rewards of twelve rollouts with two minibatches each. They vary by 0.2, and the last four are higher by `rise`."""
    return [value + (number >= 8) * rise for number, value in enumerate([0.1, 0.3] * 6) for _ in range(2)]


CASES = [
    found("endless", "grpo", "warning", "max_new_tokens=48", held_out=ENDLESS),
    found("endless", "grpo", "warning", "unfinished_penalty=1", held_out={**ENDLESS, "length": [10, 15]}),
    found("endless", "sft", "warning", "train.steps=200", held_out=ENDLESS),
    found("endless", "sft", "note", "train.steps=200", held_out={"finished": [0.9, 0.7]}),
    absent("endless", "grpo", held_out={"finished": [0.5, 0.85]}),
    found("repeats", "sft", "warning", "train.steps=200", held_out={"repetition": [0.2, 0.6]}),
    found("repeats", "sft", "warning", "train.steps=200", held_out={"repetition": [0.4, 0.55]}),
    found("repeats", "sft", "note", "train.steps=200", held_out={"repetition": [0.48, 0.56]}),
    found(
        "repeats",
        "grpo",
        "note",
        "kl_coef=0.05",
        held_out={"repetition": [0.58, 0.6]},
        why="the parent repeated as much",
    ),
    absent("repeats", "sft", held_out={"repetition": [0.6, 0.4]}),
    found("length_runs_away", "grpo", "note", "overlong_buffer=6", held_out={"length": [8, 20]}, why="the reward rose"),
    found("length_runs_away", "grpo", "warning", "overlong_buffer=6", held_out={"length": [8, 20], **FLAT}),
    found(
        "length_runs_away",
        "ppo",
        "warning",
        "ppo.kl_coef=0.1",
        held_out={"length": [8, 20], **FLAT},
        config={"rollout.overlong_buffer": 6},
    ),
    absent("length_runs_away", "grpo", held_out={"length": [2, 6]}, why="three times a very short answer"),
    absent("length_runs_away", "grpo", held_out={"length": [12, 23]}),
    found("reward_stays", "grpo", "warning", "learning_rate=0.003", held_out=FLAT, train={"reward": [0.2]}),
    found(
        "reward_stays",
        "grpo",
        "warning",
        "learning_rate=0.003",
        held_out=FLAT,
        train={"reward": noisy(0.14)},
        why="rewards vary between prompts, without a trend",
    ),
    found("reward_stays", "grpo", "note", "harder prompts", held_out={"reward": [0.95]}, train={"reward": [0.95]}),
    absent("reward_stays", "grpo", held_out={"reward": [0.20, 0.24]}),
    absent(
        "reward_stays", "grpo", held_out=FLAT, train={"reward": [0.1, 0.4]}, why="the reward of the rollouts changes"
    ),
    absent("reward_stays", "grpo", held_out=FLAT, train={"reward": noisy(0.5)}),
    absent("reward_stays", "grpo", held_out={"reward": [2.0, 2.1]}, config={"rewards": {"gold": 4.0}}),
    found("reward_fell", "grpo", "warning", "learning_rate=0.00033", held_out={"reward": [0.1, 0.5, 0.3]}),
    absent("reward_fell", "grpo", held_out={"reward": [0.1, 0.5, 0.45]}),
    absent("reward_fell", "grpo", held_out={"reward": [0.5, 0.4, 0.3]}, why="the reward never rose"),
    found("over_optimised", "ppo", "warning", "ppo.kl_coef=0.1", held_out=OVEROPTIMIZED),
    found(
        "over_optimised",
        "ppo",
        "warning",
        "ppo.kl_coef=0.1",
        held_out={**OVEROPTIMIZED, "rewards/reward_model": [0, 1.0, 0.93]},
        why="the score is near its maximum",
    ),
    found(
        "over_optimised",
        "ppo",
        "warning",
        "ppo.kl_coef=0.1",
        held_out={**OVEROPTIMIZED, "rewards/gold": [], "rewards/exact_answer": [0.3, 0.5, 0.1]},
    ),
    absent("over_optimised", "ppo", held_out={**OVEROPTIMIZED, "rewards/gold": [0.1, 0.3, 0.4, 0.5]}),
    absent(
        "over_optimised",
        "ppo",
        held_out={**OVEROPTIMIZED, "rewards/reward_model": [0.9, 0.4, 0.1]},
        why="the score falls",
    ),
    absent(
        "over_optimised",
        "ppo",
        held_out={**OVEROPTIMIZED, "rewards/reward_model": [0, 1.0, 0.83]},
        why="the score falls from its maximum",
    ),
    unseen("over_optimised", "ppo", "eval rewards/gold", held_out={**OVEROPTIMIZED, "rewards/gold": []}),
    unseen("over_optimised", "grpo", "no reward model"),
    found("worse_answers", "sft", "warning", "train.steps=200", held_out={"rewards/gold": [0.3, 0.1]}),
    found("worse_answers", "sft", "note", "train.steps=200", held_out={"rewards/gold": [-0.4, -0.1]}),
    absent("worse_answers", "sft", held_out={"rewards/gold": [0.3, 0.25]}),
    absent(
        "worse_answers",
        "sft",
        held_out={"rewards/gold": [0.3, 0.1], "loss": [5.46]},
        why="an unchanged loss is reported by never_moved",
    ),
]

# just on either side of each bound
EDGES = [
    found("endless", "sft", "warning", "train.steps=200", held_out={"finished": [0.9, 0.45]}),
    found("endless", "sft", "note", "train.steps=200", held_out={"finished": [0.9, 0.55]}),
    found("endless", "sft", "note", "train.steps=200", held_out={"finished": [0.9, 0.78]}),
    absent("endless", "sft", held_out={"finished": [0.9, 0.82]}),
    found("endless", "grpo", "warning", "max_new_tokens=48", held_out={**ENDLESS, "length": [10, 22.0]}),
    found("endless", "grpo", "warning", "unfinished_penalty=1", held_out={**ENDLESS, "length": [10, 21.0]}),
    found("repeats", "sft", "warning", "train.steps=200", held_out={"repetition": [0.42, 0.54]}),
    found("repeats", "sft", "note", "train.steps=200", held_out={"repetition": [0.46, 0.54]}),
    absent("repeats", "sft", held_out={"repetition": [0.2, 0.46]}),
    found("length_runs_away", "grpo", "note", "overlong_buffer=6", held_out={"length": [4, 13]}),
    absent("length_runs_away", "grpo", held_out={"length": [4, 11]}),
    found("length_runs_away", "grpo", "note", "overlong_buffer=6", held_out={"length": [10, 21]}),
    absent("length_runs_away", "grpo", held_out={"length": [10, 19]}),
    found("reward_stays", "grpo", "warning", "=0.003", held_out=FLAT, train={"reward": noisy(0.294)}),
    absent("reward_stays", "grpo", held_out=FLAT, train={"reward": noisy(0.300)}),
    found("reward_fell", "grpo", "warning", "=0.00033", held_out={"reward": [0.1, 0.5, 0.45, 0.385]}),
    absent("reward_fell", "grpo", held_out={"reward": [0.1, 0.5, 0.45, 0.415]}),
    found(
        "reward_fell",
        "grpo",
        "warning",
        "=0.00033",
        held_out={"reward": [0.1, 0.5, 0.3]},
        config={"train.eval_every": 6},
        why="three evaluations",
    ),
    unseen(
        "reward_fell",
        "grpo",
        "2 of at least 3 evaluations",
        held_out={"reward": [0.5, 0.1]},
        config={"train.eval_every": 12},
    ),
    found(
        "over_optimised",
        "ppo",
        "warning",
        "ppo.kl_coef=0.1",
        held_out={**OVEROPTIMIZED, "rewards/reward_model": [0, 1.0, 0.92]},
    ),
    absent("over_optimised", "ppo", held_out={**OVEROPTIMIZED, "rewards/reward_model": [0, 1.0, 0.88]}),
]


@pytest.mark.parametrize("case", CASES + EDGES, ids=str)
def test_finding(case: Case, tmp_path: Path) -> None:
    case.check_in(tmp_path)


def test_overoptimization_reports_the_peak_of_true_reward_and_its_kl(tmp_path: Path) -> None:
    """As in arXiv 2210.10760: the score rises throughout, the true reward peaks, both over KL."""
    held_out = {**OVEROPTIMIZED, "objective/kl": [0, 3, 9, 26]}
    run = synthetic_runs.write_run(tmp_path / "run", "ppo", held_out=held_out)
    finding = synthetic_runs.findings(run)["over_optimised"]
    shown = {(e.figure, e.step): e.value for e in finding.evidence}
    peak = next(step for (figure, step), value in shown.items() if figure == "eval rewards/gold" and value > 0)
    assert f"step {peak}" in finding.symptom
    assert shown["eval objective/kl", peak] < shown["eval objective/kl", 32] == 26
