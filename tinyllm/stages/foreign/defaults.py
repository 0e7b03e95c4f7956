"""Settings that fit the model a stage starts from: learning rate, batch, steps and lengths by its size. By arithmetic, without torch.

The shipped configurations are those of the 1.4M models that `pretrain` makes. For a model of a hundred million parameters, or one that
others trained on trillions of tokens, their learning rates are ten to a thousand times too high. The rules, and where they come from:

- Full fine-tuning: 1e-4 at 135M, falling with the size to the power of 0.64, which is TRL's 2e-5 at 1.7B. The makers of SmolLM2 took
  3e-4 to 1e-3 for 135M, at batches of 128 and a million rows (alignment-handbook, recipes/smollm2); small sets need less.
- LoRA: ten times the rate of full fine-tuning ("LoRA Without Regret", Thinking Machines 2025), at most 5e-4. Small batches.
- DPO and its relatives: 5e-6 at 135M, 1e-6 at 1.7B (SmolLM2's recipe, TRL's default); ORPO, which has a supervised term, five times that,
  SimPO, which has no reference that holds it, half of it.
- Rewards for generated answers: 3e-6 at 135M, 1e-6 from 1B on (TRL's default).
- A reward model: half the rate of fine-tuning, one epoch. More epochs over preferences memorize them.
- Steps: three epochs of up to 2,000 records, two of up to 10,000, one of more; at most 1,000 steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, floor, log10
from typing import Any

from tinyllm.model.config import ModelConfig
from tinyllm.train.estimate import Training, wants_checkpointing

SMALL = 10_000_000  # parameters; our own models up to this size are what the shipped configurations are for
_REFERENCE, _POWER = 135e6, 0.64
_GROUP = 8  # answers to a prompt, in the shipped configurations
_MOST_STEPS, _MOST_ROWS_AT_ONCE = 1_000, 8


@dataclass(frozen=True)
class Model:
    """What is known of the model a stage starts from.

    name: for messages and for the name of the run.
    ours: trained by this program, and not from a model of others.
    """

    name: str
    shape: ModelConfig
    ours: bool

    @property
    def parameters(self) -> int:
        return self.shape.parameters()


@dataclass(frozen=True)
class Task:
    """What a stage is to do with it.

    stage: `sft`, `rm`, `align-offline`, `align-online` or `pretrain`.
    records: to train on; None if they were not counted.
    memory: bytes of the machine.
    """

    stage: str
    algorithm: str = ""
    lora: bool = False
    records: int | None = None
    memory: int = 16_000_000_000


@dataclass(frozen=True)
class _Rate:
    """A learning rate by the size of the model: that of 135M parameters, the lowest and the highest."""

    at_reference: float
    lowest: float
    highest: float

    def of(self, parameters: int) -> float:
        return min(self.highest, max(self.lowest, self.at_reference * (_REFERENCE / parameters) ** _POWER))


_SFT = _Rate(1e-4, 1e-5, 5e-4)
_RATES = {
    "sft": _SFT,
    "pretrain": _SFT,
    "rm": _Rate(5e-5, 5e-6, 2e-4),
    "align-offline": _Rate(5e-6, 5e-7, 2e-5),
    "align-online": _Rate(3e-6, 1e-6, 1e-5),
}
_FACTORS = {"orpo": 5.0, "simpo": 0.5}  # of the rate, by algorithm
_LORA_FACTOR, _LORA_HIGHEST = 10.0, 5e-4
_OF_ALGORITHMS: Mapping[
    str, Mapping[str, float]
] = {  # the shipped values are for a tiny model and short answers; these are the papers'
    "orpo": {"orpo.weight": 0.1},
    "gspo": {"gspo.clip_low": 3e-4, "gspo.clip_high": 4e-4},
}

Fitted = dict[str, tuple[Any, str]]
"""dotted key -> value and reason"""


def applies(model: Model) -> bool:
    """Return whether the shipped settings are not for this model."""
    return not model.ours or model.parameters > SMALL


def fit(model: Model, task: Task, chosen: Mapping[str, Any]) -> Fitted:
    """Return the settings that fit a model, without those that the user has chosen.

    Args:
        chosen: the user's own values by dotted key, which the others follow: the steps follow a batch that was chosen.
    """
    found: Fitted = {}

    def add(key: str, value: Any, reason: str) -> Any:
        """Return the value in force: the user's, or this one."""
        if key in chosen:
            return chosen[key]
        found[key] = (value, reason)
        return value

    add("optim.learning_rate", *_learning_rate(model, task))
    add("optim.weight_decay", 0.0, "fine-tuning moves weights little")
    if task.stage == "pretrain":
        add("optim.optimizer", "adamw", "Muon's rate is for new weights")
    length = add(
        "data.max_length", _length(model, task), f"of the model's {model.shape.max_position_embeddings:,} positions"
    )
    batch = add("train.batch_size", *_batch(task, chosen.get("rollout.group_size", _GROUP)))
    add("train.micro_batch_size", *_micro_batch(model, task, batch, length))
    if task.stage != "pretrain":
        steps = add("train.steps", *_steps(task, batch))
        add("optim.warmup_steps", min(100, max(1, steps // 10)), "a tenth of the steps")
        add("train.eval_every", max(1, ceil(steps / 6)), "six times in the run")
        add("train.save_every", max(1, ceil(steps / 2)), "twice in the run")
    add("train.eval_rows", 64, "evaluations stay short")
    if task.stage == "align-online":
        add(
            "rollout.max_new_tokens",
            max(1, min(256, model.shape.max_position_embeddings // 2)),
            "answers of a chat model",
        )
    for key, value in _OF_ALGORITHMS.get(task.algorithm, {}).items():
        add(key, value, "as published")
    return found


def _learning_rate(model: Model, task: Task) -> tuple[float, str]:
    rate = _RATES[task.stage].of(model.parameters) * _FACTORS.get(task.algorithm, 1.0)
    rate = min(rate * _LORA_FACTOR, _LORA_HIGHEST) if task.lora else rate
    return _rounded(rate), f"{'LoRA on' if task.lora else 'all weights of'} {size(model.parameters)}"


def _rounded(value: float) -> float:
    """Return a positive value with one significant digit."""
    return round(value, -floor(log10(value)))


def _length(model: Model, task: Task) -> int:
    return max(8, min(512 if task.stage == "align-online" else 1024, model.shape.max_position_embeddings))


def _batch(task: Task, group: int) -> tuple[int, str]:
    if task.stage == "align-online":
        return group * max(1, round(64 / group)), "answers of an update"
    if task.records is None or task.records >= 256:
        return 16, "an update"
    return (8 if task.records >= 64 else 4), f"an update, for {task.records} records"


def _micro_batch(model: Model, task: Task, batch: int, length: int) -> tuple[int, str]:
    """Return the largest divisor of a batch that leaves `activation_checkpointing: auto` off; 1 where it is on anyway."""
    paired = 2 if task.stage in ("rm", "align-offline") else 1  # rows of a record
    sizes = [n for n in range(1, min(batch, _MOST_ROWS_AT_ONCE) + 1) if batch % n == 0]
    count = model.parameters
    run = Training(
        model.shape, paired, length, weights=4 * count, trained=count // 50 if task.lora else count, bf16=False
    )
    fits = [n for n in sizes if not wants_checkpointing(replace(run, rows=n * paired), task.memory)]
    return max(fits, default=1), f"without recomputing activations in {task.memory / 1e9:,.0f} GB"


def _steps(task: Task, batch: int) -> tuple[int, str]:
    if task.stage == "align-online":
        return 100, "updates"
    if task.records is None:
        return _MOST_STEPS, "records were not counted"
    epochs = 1 if task.stage != "sft" or task.records > 10_000 else 2 if task.records > 2_000 else 3
    steps = max(1, ceil(epochs * task.records / batch))
    if steps > _MOST_STEPS:
        done = _MOST_STEPS * batch / task.records
        return _MOST_STEPS, f"at most; {done:.1f} epochs of {task.records:,} records"
    return steps, f"{epochs} {'epoch' if epochs == 1 else 'epochs'} of {task.records:,} records"


def size(parameters: int) -> str:
    """Return a number of parameters as models are named: 135M, 1.7B."""
    if parameters >= 999_500_000:
        return f"{parameters / 1e9:.2g}B" if parameters < 9.95e9 else f"{parameters / 1e9:,.0f}B"
    if parameters < 999_500:
        return f"{parameters / 1e3:,.0f}K"
    return f"{parameters / 1e6:,.0f}M" if parameters >= 9_950_000 else f"{parameters / 1e6:.2g}M"


_SAID = {  # key -> how it is said
    "optim.learning_rate": "learning rate {value} for {reason}",
    "train.batch_size": "batch {value}",
    "train.micro_batch_size": "micro-batch {value}",
    "train.steps": "{value} steps ({reason})",
    "data.max_length": "rows of at most {value} tokens",
}


def line(model: Model, found: Fitted) -> str:
    """Return one line about what was chosen, and why."""
    parts = []
    for key, text in _SAID.items():
        if key in found:
            value, reason = found[key]
            shown = f"{value:.0e}".replace("e-0", "e-") if isinstance(value, float) else f"{value:,}"
            parts.append(text.format(value=shown, reason=reason))
    origin = "pretrained here" if model.ours else "pretrained elsewhere"
    what = ", ".join(parts) or f"{len(found)} settings"
    return f"fitted to {model.name} ({size(model.parameters)}, {origin}): {what}; all settings: --dry-run"
