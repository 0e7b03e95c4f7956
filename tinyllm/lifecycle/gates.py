"""Acceptance gates: the metric on held-out data that each stage must reach for the lifecycle to pass.

A gate is one row of `GATES`. Its bound is a constant or a metric of another model on the same data: an n-gram model, the parent stage, the
best possible reward model. Bounds lie well inside what the presets reach with several seeds and well outside what a broken stage reaches;
`benchmarks/planted_faults.py` plants faults and shows gates fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tinyllm.lifecycle.stages import names_of

Value = Callable[["GateInputs", str], float]  # (inputs, stage) -> value


@dataclass
class GateInputs:
    """Everything gates compare, by stage."""

    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    """of `evaluation`: metric -> value and interval"""
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    """what the stages returned: held-out metrics before training and at the best checkpoint"""
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    """of `baselines`"""
    parents: Mapping[str, str | None] = field(default_factory=dict)
    user_data: bool = False
    """the data are the user's, without a known gold reward"""

    def metric(self, stage: str, key: str) -> float:
        return float(self.metrics[stage][key]["value"])

    def parent_metric(self, stage: str, key: str) -> float:
        parent = self.parents[stage]
        assert parent is not None, f"{stage} has no parent"
        return self.metric(parent, key)


@dataclass(frozen=True)
class Gate:
    """A comparison that the stages in `stages` must satisfy: value <= bound or value >= bound. NaN fails."""

    stages: tuple[str, ...]
    name: str
    description: str
    value: Value
    rule: Literal["<=", ">="]
    bound: Value | float
    look_at: str
    data: Literal["any", "world", "user"] = "any"

    def check(self, inputs: GateInputs, stage: str) -> dict[str, Any]:
        """Return the gate's row of the scorecard."""
        value = self.value(inputs, stage)
        bound = self.bound if isinstance(self.bound, float) else self.bound(inputs, stage)
        passed = value <= bound if self.rule == "<=" else value >= bound
        row = {"name": self.name, "what": self.description, "value": value, "bound": bound, "rule": self.rule}
        return row | {"passed": bool(passed), "look_at": self.look_at}


def _metric(key: str) -> Value:
    return lambda inputs, stage: inputs.metric(stage, key)


def _baseline(name: str) -> Value:
    return lambda inputs, stage: inputs.baselines[stage][name]


def _validation(name: str) -> Value:
    """A metric of the stage's own validation, at its best checkpoint."""
    return lambda inputs, stage: inputs.results[stage]["best"][name]


def _parent_plus(key: str, margin: float) -> Value:
    return lambda inputs, stage: inputs.parent_metric(stage, key) + margin


def _sft_plus(key: str, margin: float) -> Value:
    return lambda inputs, stage: inputs.metric("sft", key) + margin


SFT, REWARD = names_of("sft"), names_of("reward")
OFFLINE, ONLINE, ALIGNED = names_of("offline"), names_of("online"), names_of("offline", "online")

GATES: tuple[Gate, ...] = (
    Gate(
        ("pretrain",),
        "beats n-gram baseline",
        "bits per byte on held-out documents, at most those of a 5-gram model of the training text",
        _metric("bits_per_byte"),
        "<=",
        _baseline("ngram_bits_per_byte"),
        "train.steps and optim.learning_rate of pretraining",
    ),
    Gate(
        SFT,
        "emits EOS",
        "share of answers that end with a stop token",
        _metric("stopped"),
        ">=",
        0.95,
        "whether the stop token is in the loss mask: tinyllm explain RUN",
    ),
    Gate(
        SFT,
        "improves on pretrained",
        "gold reward, at least 0.5 above the pretrained model's on the same questions",
        _metric("gold"),
        ">=",
        _parent_plus("gold", 0.5),
        "train.steps and optim.learning_rate of fine-tuning",
        data="world",
    ),
    Gate(
        ("sft-lora",),
        "near full fine-tuning",
        "gold reward, at most 0.15 below that of full fine-tuning",
        _metric("gold"),
        ">=",
        _sft_plus("gold", -0.15),
        "lora.r, lora.targets and optim.learning_rate",
        data="world",
    ),
    Gate(
        REWARD,
        "near label-noise ceiling",
        "accuracy on held-out pairs, at least 0.85 of the best accuracy that the label noise allows",
        _baseline("accuracy"),
        ">=",
        lambda inputs, stage: 0.85 * inputs.baselines[stage].get("ceiling", 1.0),
        "the number of pairs, train.steps and optim.learning_rate of the reward model",
        data="world",
    ),
    Gate(
        REWARD,
        "correlates with gold",
        "correlation of its rewards with gold over the answers of the SFT model",
        _baseline("correlation"),
        ">=",
        0.3,
        "whether the pairs resemble the policy's answers; the number of pairs",
        data="world",
    ),
    Gate(
        ALIGNED,
        "wins against parent",
        "share of questions with unequal gold reward on which it is higher than the parent's",
        _metric("win_rate"),
        ">=",
        0.58,
        "tinyllm explain RUN: loss stuck at its initial value, swapped labels, rewards without variance",
        data="world",
    ),
    Gate(
        ALIGNED,
        "improves gold reward",
        "gold reward, at least 0.05 above the parent's on the same questions",
        _metric("gold"),
        ">=",
        _parent_plus("gold", 0.05),
        "optim.learning_rate, train.steps; online: the reward, and the share of groups with equal rewards",
        data="world",
    ),
    Gate(
        ONLINE,
        "KL within bound",
        "KL to the parent, in nats per answer",
        _metric("kl"),
        "<=",
        12.0,
        "kl_coef; fewer train.steps",
    ),
    Gate(
        SFT,
        "lowers held-out loss",
        "loss on held-out answers, at most 0.9 of the pretrained model's",
        _validation("loss"),
        "<=",
        lambda inputs, stage: 0.9 * inputs.results[stage]["before"]["loss"],
        "train.steps and optim.learning_rate of fine-tuning",
        data="user",
    ),
    Gate(
        REWARD,
        "accuracy above chance",
        "accuracy on held-out pairs",
        _baseline("accuracy"),
        ">=",
        0.55,
        "the number of pairs; tinyllm explain RUN",
        data="user",
    ),
    Gate(
        OFFLINE,
        "ranks chosen above rejected",
        "share of held-out pairs in which the chosen answer has the higher reward",
        _validation("rewards/accuracies"),
        ">=",
        0.55,
        "the number of pairs; tinyllm explain RUN",
        data="user",
    ),
    Gate(
        ONLINE,
        "improves reward",
        "reward on held-out prompts, at least 0.02 above the parent's",
        _validation("reward"),
        ">=",
        lambda inputs, stage: inputs.results[stage]["before"]["reward"] + 0.02,
        "the reward, and the share of groups with equal rewards; tinyllm explain RUN",
        data="user",
    ),
)


def check(inputs: GateInputs, stage: str) -> list[dict[str, Any]]:
    """Return the scorecard rows of a stage's gates."""
    data = ("any", "user" if inputs.user_data else "world")
    return [gate.check(inputs, stage) for gate in GATES if stage in gate.stages and gate.data in data]
