"""Gates: every criterion, on both sides of its bound, and for one's own data."""

from __future__ import annotations

from typing import Any

import pytest

from tinyllm.stages import gates
from tinyllm.stages.life import PARENTS, STEPS


def evidence(**changes: float) -> gates.Evidence:
    """A life in which every gate holds, and what differs in it: `stage__figure=value`."""
    figures: dict[str, dict[str, Any]] = {}
    for stage, step in STEPS.items():
        gold = {"pretrain": -0.9, "sft": 0.05, "sft-lora": 0.0}.get(stage, 0.3)
        if step.policy:
            figures[stage] = {
                k: {"value": v}
                for k, v in {"gold": gold, "stopped": 0.99, "win_rate": 0.7, "kl": 3.0, "bits_per_byte": 0.3}.items()
            }
    measured = {"pretrain": {"ngram_bits_per_byte": 0.43}, "rm": {"accuracy": 0.8, "ceiling": 0.88, "correlation": 0.6}}
    for name, value in changes.items():
        stage, _, key = name.replace("_lora", "-lora").partition("__")
        (measured.get(stage, {}) if key in measured.get(stage, {}) else figures[stage])[key] = (
            value if key in measured.get(stage, {}) else {"value": value}
        )
    return gates.Evidence(figures, {}, measured, PARENTS)


def red(found: gates.Evidence) -> set[str]:
    return {f"{stage}/{g['name']}" for stage in STEPS for g in gates.judged(found, stage) if not g["passed"]}


def test_a_good_life_passes_and_every_stage_has_a_gate() -> None:
    assert red(evidence()) == set()
    assert all(gates.judged(evidence(), stage) for stage in STEPS)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"pretrain__bits_per_byte": 0.44}, {"pretrain/beats counting"}),
        ({"sft__stopped": 0.9}, {"sft/stops"}),
        ({"sft__gold": -0.5}, {"sft/answers"}),
        ({"sft_lora__gold": -0.12}, {"sft-lora/comes near full fine-tuning"}),
        ({"rm__accuracy": 0.7}, {"rm/nears its ceiling"}),
        ({"rm__correlation": 0.2}, {"rm/agrees with gold"}),
        ({"rm__correlation": float("nan")}, {"rm/agrees with gold"}),
        ({"dpo__win_rate": 0.5}, {"dpo/wins against its parent"}),
        ({"orpo__gold": 0.09}, {"orpo/raises gold"}),
        ({"ppo__kl": 30.0}, {"ppo/stays near its parent"}),
        ({"grpo__gold": 0.09, "grpo__win_rate": 0.5}, {"grpo/raises gold", "grpo/wins against its parent"}),
    ],
)
def test_each_gate_fails_on_its_own_figure(change: dict[str, float], names: set[str]) -> None:
    assert red(evidence(**change)) == names


def test_one_s_own_data_are_judged_without_gold() -> None:
    found = evidence()
    found.own = True
    better = {"before": {"loss": 3.0, "reward": 0.1}, "best": {"loss": 2.0, "reward": 0.3, "rewards/accuracies": 0.7}}
    found.results = {stage: better for stage in STEPS}
    assert red(found) == set()
    assert all(gates.judged(found, stage) for stage in STEPS)
    assert not any("gold" in g["name"] for stage in STEPS for g in gates.judged(found, stage))
    found.results = {
        key: {"before": better["before"], "best": {"loss": 3.0, "reward": 0.1, "rewards/accuracies": 0.5}}
        for key in STEPS
    }
    assert red(found) >= {"sft/learns", "dpo/prefers what is preferred", "grpo/earns more"}
