"""What each stage must have done for the lifecycle to call it done: a figure on held-out items, and a bound that only learning passes.

A gate is one row of `CRITERIA`. Its bound is a constant, or a figure of another model on the same items (an n-gram model, the stage before,
what no reward model can beat). The bounds lie well inside what the presets reach on several seeds and well outside what a broken stage
does: `benchmarks/planted_faults.py` shows each of them fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Value = Callable[["Evidence", str], float]


@dataclass
class Evidence:
    """What is known when a stage is judged: figures of the exam by stage, results of the stages, and other measurements by stage."""

    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    parents: Mapping[str, str | None] = field(default_factory=dict)
    own: bool = False  # the user's data, of which no gold reward is known

    def figure(self, stage: str, key: str) -> float:
        return float(self.figures[stage][key]["value"])


@dataclass(frozen=True)
class Criterion:
    """One gate of the stages in `stages`; it holds where the value is on the right side of the bound."""

    stages: tuple[str, ...]
    name: str
    what: str
    value: Value
    rule: Literal["<=", ">="]
    bound: Value | float
    look_at: str
    data: Literal["any", "world", "own"] = "any"

    def judge(self, evidence: Evidence, stage: str) -> dict[str, Any]:
        value = self.value(evidence, stage)
        bound = self.bound if isinstance(self.bound, float) else self.bound(evidence, stage)
        passed = value <= bound if self.rule == "<=" else value >= bound  # a nan passes neither
        told = {"name": self.name, "what": self.what, "value": value, "bound": bound, "rule": self.rule}
        return told | {"passed": bool(passed), "look_at": self.look_at}


def _figure(key: str) -> Value:
    return lambda evidence, stage: evidence.figure(stage, key)


def _measured(name: str) -> Value:
    return lambda evidence, stage: evidence.measured[stage][name]


def _result(name: str) -> Value:
    """A figure of the stage's own validation, at its best checkpoint."""
    return lambda evidence, stage: evidence.results[stage]["best"][name]


def _of_parent(key: str, more: float) -> Value:
    """The parent's figure, and so much more."""
    return lambda evidence, stage: evidence.figure(evidence.parents[stage], key) + more


def _of_sft(key: str, more: float) -> Value:
    return lambda evidence, stage: evidence.figure("sft", key) + more


OFFLINE, ONLINE = ("dpo", "orpo"), ("ppo", "gspo", "grpo")
ALIGNED = (*OFFLINE, *ONLINE)

CRITERIA: tuple[Criterion, ...] = (
    Criterion(
        ("pretrain",),
        "beats counting",
        "bits per byte on held-out documents, against a 5-gram model of the same text",
        _figure("bits_per_byte"),
        "<=",
        _measured("ngram_bits_per_byte"),
        "train.steps and optim.learning_rate of pretraining",
    ),
    Criterion(
        ("sft", "sft-lora"),
        "stops",
        "share of answers that end by themselves",
        _figure("stopped"),
        ">=",
        0.95,
        "whether the end token is in the loss mask: tinyllm explain",
    ),
    Criterion(
        ("sft", "sft-lora"),
        "answers",
        "gold reward, against the pretrained model's on the same questions",
        _figure("gold"),
        ">=",
        _of_parent("gold", 0.5),
        "train.steps and optim.learning_rate of fine-tuning",
        data="world",
    ),
    Criterion(
        ("sft-lora",),
        "comes near full fine-tuning",
        "gold reward, against that of the model with all weights trained, less 0.15",
        _figure("gold"),
        ">=",
        _of_sft("gold", -0.15),
        "lora.r, lora.targets and optim.learning_rate",
        data="world",
    ),
    Criterion(
        ("rm",),
        "nears its ceiling",
        "accuracy on held-out pairs, against 0.85 of what the noise in the labels allows",
        _measured("accuracy"),
        ">=",
        lambda evidence, stage: 0.85 * evidence.measured[stage].get("ceiling", 1.0),
        "the number of pairs, train.steps and optim.learning_rate of the reward model",
        data="world",
    ),
    Criterion(
        ("rm",),
        "agrees with gold",
        "correlation with gold over the answers of the fine-tuned model",
        _measured("correlation"),
        ">=",
        0.3,
        "whether pairs resemble what the policy writes; more pairs",
        data="world",
    ),
    Criterion(
        ALIGNED,
        "wins against its parent",
        "share of decided questions on which its gold reward is higher",
        _figure("win_rate"),
        ">=",
        0.58,
        "tinyllm explain RUN: loss at its starting value, labels swapped, rewards without variance",
        data="world",
    ),
    Criterion(
        ALIGNED,
        "raises gold",
        "gold reward, against its parent's on the same questions",
        _figure("gold"),
        ">=",
        _of_parent("gold", 0.05),
        "optim.learning_rate, train.steps; for online alignment the reward and its share of constant groups",
        data="world",
    ),
    Criterion(
        ONLINE,
        "stays near its parent",
        "KL to the parent, nats an answer",
        _figure("kl"),
        "<=",
        12.0,
        "kl_coef, and fewer steps",
    ),
    Criterion(
        ("sft", "sft-lora"),
        "learns",
        "loss on held-out answers, against 0.9 of the pretrained model's",
        _result("loss"),
        "<=",
        lambda evidence, stage: 0.9 * evidence.results[stage]["before"]["loss"],
        "train.steps and optim.learning_rate of fine-tuning",
        data="own",
    ),
    Criterion(
        ("rm",),
        "tells good from bad",
        "accuracy on held-out pairs",
        _measured("accuracy"),
        ">=",
        0.55,
        "the number of pairs; tinyllm explain RUN",
        data="own",
    ),
    Criterion(
        OFFLINE,
        "prefers what is preferred",
        "share of held-out pairs in which the chosen answer is ahead",
        _result("rewards/accuracies"),
        ">=",
        0.55,
        "the number of pairs; tinyllm explain RUN",
        data="own",
    ),
    Criterion(
        ONLINE,
        "earns more",
        "reward on held-out prompts, against its parent's",
        _result("reward"),
        ">=",
        lambda evidence, stage: evidence.results[stage]["before"]["reward"] + 0.02,
        "the reward, and the share of constant groups; tinyllm explain RUN",
        data="own",
    ),
)


def judged(evidence: Evidence, stage: str) -> list[dict[str, Any]]:
    """The gates of a stage, passed or not."""
    fitting = ("any", "own" if evidence.own else "world")
    return [c.judge(evidence, stage) for c in CRITERIA if stage in c.stages and c.data in fitting]
