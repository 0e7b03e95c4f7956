"""Acceptance gates: the metric on test data that each stage must reach for the lifecycle to pass.

A gate is one row of `GATES`. Its bound is a constant or a metric of another model on the same data: an n-gram model, the parent stage, the
best possible reward model. Bounds lie well inside what the presets reach with several seeds and well outside what a broken stage reaches;
`benchmarks/planted_faults.py` plants a fault for every gate and shows it fail. A gate that has measured nothing, or has nothing to compare
with, fails and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tinyllm.lifecycle.stages import names_of

Figure = tuple[float, float]  # value, and the number of things it was measured on
Value = Callable[["GateInputs", str], Figure]  # (inputs, stage) -> figure
Bound = Callable[["GateInputs", str], float]
Checkpoint = Literal["best", "last"]

UNKNOWN: Figure = (math.nan, 0)
FEW = 30  # below this, a share has a 95 % interval of about +-0.18 or more
_REWARD, _BITS, _SHARE = (-1.0, 1.0), (0.0, 8.0), (0.5, 1.0)  # between which a bound can tell good from bad


@dataclass
class GateInputs:
    """Everything gates compare, by stage."""

    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    """of `evaluation`: metric -> value, number of things measured, and interval; of the best checkpoint"""
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    """what the stages returned: figures of the test split before training, at the best checkpoint and at the last"""
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    """of `baselines`, at the best checkpoint"""
    last: dict[str, dict[str, Any]] = field(default_factory=dict)
    """`figures` and `measured` of the last checkpoint"""
    parents: Mapping[str, str | None] = field(default_factory=dict)
    user_data: bool = False
    """the data are the user's, without a known gold reward"""
    checkpoint: Checkpoint = "best"
    """the checkpoint that is judged"""

    def metric(self, stage: str, key: str) -> Figure:
        found = self.metrics.get(stage, {}).get(key)
        return (float(found["value"]), found.get("n", 0)) if found else UNKNOWN

    def baseline(self, stage: str, key: str, count: str = "") -> Figure:
        found = self.baselines.get(stage, {})
        return found.get(key, math.nan), found.get(count, 0)

    def test(self, stage: str, when: Literal["before", "best", "last"], key: str) -> Figure:
        """Return a figure of the test split, as the stage reported it."""
        found = (self.results.get(stage, {}).get("test") or {}).get(when) or {}
        return found.get("figures", {}).get(key, math.nan), int(found.get("counts", {}).get(key, 0))

    def parent_metric(self, stage: str, key: str) -> float:
        parent = self.parents[stage]
        assert parent is not None, f"{stage} has no parent"
        return self.metric(parent, key)[0]

    def at_last(self, stage: str) -> GateInputs:
        """Return the inputs with the last checkpoint of a stage in the place of its best one."""
        last = self.last[stage]
        return replace(
            self,
            metrics=self.metrics | {stage: last["figures"]},
            baselines=self.baselines | {stage: self.baselines.get(stage, {}) | last["measured"]},
            checkpoint="last",
        )


@dataclass(frozen=True)
class Gate:
    """A comparison that the stages in `stages` must satisfy: value <= bound or value >= bound."""

    stages: tuple[str, ...]
    name: str
    description: str
    value: Value
    rule: Literal["<=", ">="]
    bound: Bound | float
    look_at: str
    data: Literal["any", "world", "user"] = "any"
    counted: str = "answers"
    """the things that the value was measured on"""
    sensible: tuple[float, float] = (-math.inf, math.inf)
    """the bound lies strictly between these, or it cannot tell a good model from a bad one"""
    nothing: str = ""
    """what is said if the value was measured on nothing"""

    def check(self, inputs: GateInputs, stage: str) -> dict[str, Any]:
        """Return the gate's row of the scorecard; if it fails for another reason than the comparison, `why` names it."""
        value, n = self.value(inputs, stage)
        bound = self.bound if isinstance(self.bound, float) else self.bound(inputs, stage)
        why = self._undecided(value, n, bound)
        passed = not why and (value <= bound if self.rule == "<=" else value >= bound)
        row = {"name": self.name, "what": self.description, "value": value, "n": n, "counted": self.counted}
        return row | {"bound": bound, "rule": self.rule, "passed": passed, "why": why, "look_at": self.look_at}

    def _undecided(self, value: float, n: float, bound: float) -> str:
        """Return why the value and the bound cannot be compared; empty if they can."""
        low, high = self.sensible
        if not n > 0:
            return self.nothing or f"measured on no {self.counted}"
        if not math.isfinite(value):
            return "the value is undefined"
        if not math.isfinite(bound):
            return "there is nothing to compare it with: the bound is undefined"
        if not low < bound < high:
            return f"the bound {bound:.4g} is not between {low:g} and {high:g}"
        return ""


def _metric(key: str) -> Value:
    return lambda inputs, stage: inputs.metric(stage, key)


def _baseline(name: str, count: str) -> Value:
    return lambda inputs, stage: inputs.baseline(stage, name, count)


def _test(name: str) -> Value:
    """A figure of the stage's own test split, at the checkpoint that is judged."""
    return lambda inputs, stage: inputs.test(stage, inputs.checkpoint, name)


def _before(name: str, factor: float = 1.0, margin: float = 0.0) -> Bound:
    """The same figure before the first step."""
    return lambda inputs, stage: factor * inputs.test(stage, "before", name)[0] + margin


def _parent_plus(key: str, margin: float) -> Bound:
    return lambda inputs, stage: inputs.parent_metric(stage, key) + margin


def _sft_plus(key: str, margin: float) -> Bound:
    return lambda inputs, stage: inputs.metric("sft", key)[0] + margin


SFT, REWARD = names_of("sft"), names_of("reward")
OFFLINE, ONLINE, ALIGNED = names_of("offline"), names_of("online"), names_of("offline", "online")

GATES: tuple[Gate, ...] = (
    Gate(
        ("pretrain",),
        "beats n-gram baseline",
        "bits per byte on test documents, at most those of a 5-gram model of the training text",
        _metric("bits_per_byte"),
        "<=",
        lambda inputs, stage: inputs.baseline(stage, "ngram_bits_per_byte")[0],
        "train.steps and optim.learning_rate of pretraining",
        counted="documents",
        sensible=_BITS,
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
        sensible=_REWARD,
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
        sensible=_REWARD,
    ),
    Gate(
        REWARD,
        "near label-noise ceiling",
        "accuracy on test pairs, at least 0.85 of the best accuracy that the label noise allows",
        _baseline("accuracy", "pairs"),
        ">=",
        lambda inputs, stage: 0.85 * inputs.baseline(stage, "ceiling")[0],
        "the number of pairs, train.steps and optim.learning_rate of the reward model",
        data="world",
        counted="pairs",
        sensible=_SHARE,
    ),
    Gate(
        REWARD,
        "correlates with gold",
        "correlation of its rewards with gold over the answers of the SFT model",
        _baseline("correlation", "answers"),
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
        counted="unequal questions",
        nothing="no question with a different answer",
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
        sensible=_REWARD,
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
        "loss on answers of the test split, at most 0.9 of the pretrained model's",
        _test("loss"),
        "<=",
        _before("loss", factor=0.9),
        "train.steps and optim.learning_rate of fine-tuning",
        data="user",
        counted="tokens",
        sensible=(0.0, math.inf),
    ),
    Gate(
        REWARD,
        "accuracy above chance",
        "accuracy on test pairs",
        _test("accuracy"),
        ">=",
        0.55,
        "the number of pairs; tinyllm explain RUN",
        data="user",
        counted="pairs",
    ),
    Gate(
        OFFLINE,
        "ranks chosen above rejected",
        "share of test pairs in which the chosen answer has the higher reward",
        _test("rewards/accuracies"),
        ">=",
        0.55,
        "the number of pairs; tinyllm explain RUN",
        data="user",
        counted="pairs",
    ),
    Gate(
        ONLINE,
        "improves reward",
        "reward on test prompts, at least 0.02 above the parent's",
        _test("reward"),
        ">=",
        _before("reward", margin=0.02),
        "the reward, and the share of groups with equal rewards; tinyllm explain RUN",
        data="user",
        counted="prompts",
    ),
)


def check(inputs: GateInputs, stage: str) -> list[dict[str, Any]]:
    """Return the scorecard rows of a stage's gates: of its best checkpoint, with the outcome of the last one under `last`."""
    data = ("any", "user" if inputs.user_data else "world")
    found = [gate for gate in GATES if stage in gate.stages and gate.data in data]
    rows = [gate.check(inputs, stage) for gate in found]
    if stage in inputs.last:
        at_last = inputs.at_last(stage)
        for gate, row in zip(found, rows, strict=True):
            row["last"] = {key: gate.check(at_last, stage)[key] for key in ("value", "n", "passed", "why")}
    return rows
