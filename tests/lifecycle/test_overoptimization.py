"""Overoptimization is detected where gold falls while the proxy does not, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyllm.lifecycle import overoptimization


def points(proxy: list[float], gold: list[float]) -> list[dict[str, float]]:
    return [{"step": 10 * i, "proxy": p, "gold": g} for i, (p, g) in enumerate(zip(proxy, gold, strict=True))]


@pytest.mark.parametrize(
    ("proxy", "gold", "best", "onset"),
    [
        ([0.0, 0.5, 0.9, 1.2], [0.1, 0.4, 0.35, 0.2], 10, 30),  # 0.35 is not yet far enough below 0.4
        ([0.0, 0.5, 0.9, 1.2], [0.1, 0.4, 0.35, 0.29], 10, 30),  # just far enough
        ([0.0, 0.5, 0.9, 1.2], [0.1, 0.4, 0.35, 0.31], 10, None),  # just not
        ([0.0, 0.5, 0.9, 1.2], [0.1, 0.4, 0.5, 0.6], 30, None),  # both rise
        ([1.0, 1.0, 1.0, 1.0], [0.1, 0.4, 0.5, 0.6], 30, None),  # gold rises alone: nothing before the best is a fall
        ([0.0, 0.5, 0.2, 0.1], [0.1, 0.4, 0.2, 0.1], 10, None),  # both fall: a collapse, not overoptimization
        ([0.0, 0.5, 0.6, 0.9], [0.1, 0.4, 0.31, 0.5], 30, None),  # a dip within the noise
    ],
)
def test_best_step_and_onset(proxy: list[float], gold: list[float], best: int, onset: int | None) -> None:
    assert overoptimization.overoptimization(points(proxy, gold)) == {"best": best, "onset": onset}


def test_without_gold_there_is_neither() -> None:
    assert overoptimization.overoptimization([{"step": 0, "proxy": 1.0}]) == {"best": None, "onset": None}
    assert overoptimization.overoptimization([]) == {"best": None, "onset": None}


def test_a_run_is_read_from_its_eval_lines(tmp_path: Path) -> None:
    rows = [
        {
            "step": 0,
            "split": "eval",
            "reward": 0.2,
            "rewards/gold": 0.1,
            "rewards/reward_model": 0.7,
            "objective/kl": 0.0,
        },
        {"step": 1, "split": "train", "reward": 9.0, "rewards/gold": 9.0},
        {
            "step": 8,
            "split": "eval",
            "reward": 0.3,
            "rewards/gold": -0.1,
            "rewards/reward_model": 0.9,
            "objective/kl": 2.0,
        },
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = overoptimization.of_run(tmp_path)
    assert [p["proxy"] for p in found["points"]] == [0.7, 0.9]  # the reward model's score, not the weighted sum
    assert [p["kl"] for p in found["points"]] == [0.0, 2.0]
    assert (found["best"], found["onset"]) == (0, 8)
