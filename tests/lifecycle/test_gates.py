"""Gates: each one on both sides of its bound, and the gates for the user's own data."""

from __future__ import annotations

from typing import Any

import pytest

from tinyllm.lifecycle import gates
from tinyllm.lifecycle.stages import PARENTS, STAGES


def inputs(**changes: float) -> gates.GateInputs:
    """Return the inputs of a lifecycle that passes every gate, with some changed: `stage__metric=value`."""
    metrics: dict[str, dict[str, Any]] = {}
    for stage in STAGES.values():
        gold = {"pretrain": -0.9, "sft": 0.05, "sft-lora": 0.0}.get(stage.name, 0.3)
        if stage.is_policy:
            values = {"gold": gold, "stopped": 0.99, "win_rate": 0.7, "kl": 3.0, "bits_per_byte": 0.3}
            metrics[stage.name] = {key: {"value": value} for key, value in values.items()}
    baselines = {
        "pretrain": {"ngram_bits_per_byte": 0.43},
        "rm": {"accuracy": 0.8, "ceiling": 0.88, "correlation": 0.6},
    }
    for name, value in changes.items():
        stage_name, _, key = name.replace("_lora", "-lora").partition("__")
        if key in baselines.get(stage_name, {}):
            baselines[stage_name][key] = value
        else:
            metrics[stage_name][key] = {"value": value}
    return gates.GateInputs(metrics, {}, baselines, PARENTS)


def failed(found: gates.GateInputs) -> set[str]:
    return {f"{stage}/{g['name']}" for stage in STAGES for g in gates.check(found, stage) if not g["passed"]}


def test_a_good_lifecycle_passes_and_every_stage_has_a_gate() -> None:
    assert failed(inputs()) == set()
    assert all(gates.check(inputs(), stage) for stage in STAGES)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"pretrain__bits_per_byte": 0.44}, {"pretrain/beats n-gram baseline"}),
        ({"sft__stopped": 0.9}, {"sft/emits EOS"}),
        ({"sft__gold": -0.5}, {"sft/improves on pretrained"}),
        ({"sft_lora__gold": -0.12}, {"sft-lora/near full fine-tuning"}),
        ({"rm__accuracy": 0.7}, {"rm/near label-noise ceiling"}),
        ({"rm__correlation": 0.2}, {"rm/correlates with gold"}),
        ({"rm__correlation": float("nan")}, {"rm/correlates with gold"}),
        ({"dpo__win_rate": 0.5}, {"dpo/wins against parent"}),
        ({"orpo__gold": 0.09}, {"orpo/improves gold reward"}),
        ({"ppo__kl": 30.0}, {"ppo/KL within bound"}),
        ({"grpo__gold": 0.09, "grpo__win_rate": 0.5}, {"grpo/improves gold reward", "grpo/wins against parent"}),
    ],
)
def test_each_gate_fails_on_its_own_metric(change: dict[str, float], names: set[str]) -> None:
    assert failed(inputs(**change)) == names


def test_user_data_are_gated_without_gold() -> None:
    found = inputs()
    found.user_data = True
    before = {"loss": 3.0, "reward": 0.1}
    better = {"before": before, "best": {"loss": 2.0, "reward": 0.3, "rewards/accuracies": 0.7}}
    found.results = {stage: better for stage in STAGES}
    assert failed(found) == set()
    assert all(gates.check(found, stage) for stage in STAGES)
    assert not any("gold" in g["name"] for stage in STAGES for g in gates.check(found, stage))
    unchanged = {"before": before, "best": {"loss": 3.0, "reward": 0.1, "rewards/accuracies": 0.5}}
    found.results = {stage: unchanged for stage in STAGES}
    assert failed(found) >= {"sft/lowers held-out loss", "dpo/ranks chosen above rejected", "grpo/improves reward"}
