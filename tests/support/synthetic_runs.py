"""Synthetic run directories with given metrics.

A curve is a few values that are interpolated linearly over the logged steps. `HEALTHY` has, rounded, the metrics of every stage of
`tinyllm lifecycle --smoke`. A test replaces single curves or settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tinyllm.diagnostics.explain import examine
from tinyllm.diagnostics.run_log import read_run_log
from tinyllm.diagnostics.symptoms.check import NotExamined
from tinyllm.diagnostics.symptoms.finding import Finding

Curves = Mapping[str, Sequence[float | None]]

_OPTIM = {"learning_rate": 1e-3, "warmup_steps": 4, "clip_norm": 1.0}
_DATA = {"train": ["world:2000"], "max_length": 128}
_PAIRS = {
    "logps/chosen": [-28.6, -32.9, -33.6],
    "logps/rejected": [-58.9, -70.8, -73.2],
    "rewards/margins": [0, 0.76, 0.93],
    "rewards/accuracies": [0, 0.76, 0.77],
    "loss": [0.6931, 0.565, 0.534],
}
_POLICY_TRAIN = {
    "reward": [-0.29, -0.03, 0.01, 0.02],
    "length": [12.9, 5, 3.4],
    "sampler_gap": [0.009, 0.011],
    "loss": [0.07, 0.2, -0.1, 0.01],
    "entropy": [2.6, 2.7, 2.2],
    "grad_norm": [1.7, 2.2, 5.4, 1.7, 2.4, 1.2, 2.5],
}
_POLICY_EVAL = {
    "reward": [-0.163, -0.02, 0.008, 0.0135],
    "rewards/gold": [-0.136, -0.02, 0.008, 0.0135],
    "length": [9.9, 3.6, 3.2, 3.4],
    "finished": [0.945, 1.0, 1.0, 1.0],
    "repetition": [0.08, 0.01],
}
# at the first minibatch of a rollout the policy is still the one that sampled: ratio 1, nothing clipped
_ALTERNATING = {"approx_kl": 0.05, "clip_fraction": 0.15}

# stage -> (settings, steps, log_every, eval_every, training curves, held-out curves)
HEALTHY: dict[str, tuple[dict[str, Any], int, int, int, Curves, Curves]] = {
    "pretrain": (
        {"model": {}},
        120, 5, 60,
        {"loss": [6.67, 5.4, 4.4, 3.6, 3.1], "grad_norm": [0.7, 0.96, 0.6, 0.5, 0.6, 0.85, 0.8]},
        {"loss": [6.66, 4.35, 3.1], "bits_per_byte": [3.27, 2.14, 1.53]},
    ),
    "sft": (
        {"lora": None, "wrong": 0.0},
        100, 5, 50,
        {"loss": [5.66, 3.5, 2.5, 2.04], "grad_norm": [5.2, 2.0, 1.7, 1.5]},
        {"loss": [5.46, 2.83, 2.45], "rewards/gold": [-0.41, -0.2, 0.08], "length": [12.5, 22.9, 6.5],
         "finished": [0.84, 0.63, 1.0], "repetition": [0.59, 0.2, 0.05]},
    ),
    "rm": (
        {"bradley_terry": {"centering": 0.01}},
        60, 5, 30,
        {"loss": [0.78, 0.55, 0.46], "accuracy": [0.44, 0.75, 0.81], "grad_norm": [4.6, 2.4, 3.0, 1.6]},
        {"loss": [0.85, 0.54, 0.50], "accuracy": [0.47, 0.74, 0.77], "rewards/chosen": [0.94, 0.57, 0.32],
         "rewards/rejected": [1.03, -0.17, -0.53]},
    ),
    "dpo": (
        {"algorithm": "dpo", "dpo": {"beta": 0.1}},
        40, 5, 20,
        {"loss": [0.693, 0.58, 0.55, 0.42], "rewards/accuracies": [0, 0.69, 0.78, 0.81],
         "rewards/margins": [0, 0.5, 1.1], "grad_norm": [2.3, 2.8, 1.9, 2.6, 1.3]},
        _PAIRS,
    ),
    "grpo": (
        {"algorithm": "grpo", "grpo": {"kl_coef": 0.0}, "rewards": {"gold": 1.0},
         "rollout": {"group_size": 8, "minibatches": 2, "epochs": 1, "max_new_tokens": 24, "temperature": 1.0,
                     "unfinished_penalty": 0.5, "overlong_buffer": 0, "sampling_rounds": 1, "tolerance": 0.1}},
        24, 1, 4,
        {**_POLICY_TRAIN, "ratio": [1.0], "rewards/gold": [-0.29, -0.03, 0.01, 0.02],
         "constant_groups": [0, 0, 0.1, 0.06], "objective/kl": [0, 2.4, 3.0, 3.5]},
        _POLICY_EVAL,
    ),
    "ppo": (
        {"algorithm": "ppo", "ppo": {"kl_coef": 0.05, "vf_coef": 0.1}, "rewards": {"reward_model": 1.0, "gold": 0.0},
         "rollout": {"group_size": 1, "minibatches": 2, "epochs": 2, "max_new_tokens": 24, "temperature": 1.0,
                     "unfinished_penalty": 0.5, "overlong_buffer": 0, "sampling_rounds": 1, "tolerance": 0.1}},
        32, 1, 4,
        {**_POLICY_TRAIN, "ratio": [1.0], "objective/kl": [0, 2.4, 1.3, 1.3], "value_loss": [2.8, 0.4, 0.1, 0.02],
         "rewards/reward_model": [-0.25, 0.1, 0.2, 0.25], "rewards/gold": [-0.29, -0.03, 0.01, 0.02]},
        {**_POLICY_EVAL, "rewards/reward_model": [-0.25, 0.1, 0.2, 0.25]},
    ),
}  # fmt: skip
HEALTHY["orpo"] = (
    {"algorithm": "orpo", "orpo": {"weight": 1.0}},
    40, 5, 20,
    {"loss": [3.7, 3.2, 3.0], "rewards/accuracies": [0.8, 0.75, 0.81], "rewards/margins": [1.1, 0.7, 0.75],
     "grad_norm": [3.2, 4.4, 2.6]},
    {"loss": [3.67, 3.55, 3.48], "rewards/accuracies": [0.71, 0.73, 0.77], "rewards/margins": [1.05, 0.81, 0.8],
     "logps/chosen": [-2.9, -2.88, -2.8], "logps/rejected": [-3.96, -3.69, -3.59]},
)  # fmt: skip


def write_run(
    folder: Path,
    stage: str,
    *,
    train: Curves | None = None,
    held_out: Curves | None = None,
    config: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    lines: int | None = None,
    damaged: int = 0,
) -> Path:
    """Write a run directory.

    Args:
        train, held_out: curves that replace the healthy ones; an empty one removes a metric.
        config: settings by dotted key.
        facts: keys of run.json.
        lines: how many lines of the log are kept; 0: there is no log.
        damaged: how many lines that cannot be read follow them.
    """
    own, steps, log_every, eval_every, healthy_train, healthy_eval = HEALTHY[stage]
    settings = {"name": "by-hand", "data": dict(_DATA), "optim": dict(_OPTIM)} | json.loads(json.dumps(own))
    settings["train"] = {"steps": steps, "log_every": log_every, "eval_every": eval_every, "precision": "auto"}
    for key, value in (config or {}).items():
        section, _, name = key.rpartition(".")
        (settings[section] if section else settings)[name] = value
    steps, log_every = settings["train"]["steps"], settings["train"]["log_every"]
    rollout = settings.get("rollout", {})
    period = rollout.get("minibatches", 1) * rollout.get("epochs", 1)
    at = sorted({1, *range(log_every, steps + 1, log_every), steps})
    curves = {"lr": [1e-4, 1e-3, 1e-3], "tokens_per_second": [50000], **healthy_train}
    rows = _rows("train", at, {**(_alternating(at, period) if rollout else {}), **curves, **(train or {})})
    every = settings["train"]["eval_every"] * period
    rows += _rows("eval", sorted({0, *range(every, steps + 1, every), steps}), {**healthy_eval, **(held_out or {})})
    rows.sort(key=lambda row: row["step"])
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    known = {"status": "completed", "command": ["tinyllm", "by-hand"], "world_size": 1, **(facts or {})}
    (folder / "run.json").write_text(json.dumps(known), encoding="utf-8")
    text = [json.dumps(row) for row in rows[:lines]] + ['{"step": '] * damaged
    if text:
        (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return folder


def alternating(value: float, first: float = 0.0, *, period: int = 2, steps: int = 24) -> list[float]:
    """Return one value per step: `first` at the first minibatch of each rollout, `value` at the later ones."""
    return [first if step % period == 0 else value for step in range(steps)]


def _alternating(at: Sequence[int], period: int) -> Curves:
    return {name: [v if (s - 1) % period else 0.0 for s in at] for name, v in _ALTERNATING.items()}


def _rows(split: str, at: Sequence[int], curves: Curves) -> list[dict[str, Any]]:
    spread = {name: [_between(curve, i, len(at)) for i in range(len(at))] for name, curve in curves.items() if curve}
    return [{"step": s, "split": split, **{name: v[i] for name, v in spread.items()}} for i, s in enumerate(at)]


def _between(curve: Sequence[float | None], i: int, count: int) -> float | None:
    """Return the curve at position i of count; exactly its values if it has one per position."""
    place = i / max(1, count - 1) * (len(curve) - 1)
    low = min(int(place), len(curve) - 1)
    first, second = curve[low], curve[min(low + 1, len(curve) - 1)]
    if first is None or second is None or first == second or place == low:
        return first
    return first + (second - first) * (place - low)


def findings(folder: Path) -> dict[str, Finding]:
    """Return the findings of all checks for the run's stage, by name of the check."""
    found, _ = examine(read_run_log(folder))
    return {finding.check: finding for finding in found}


def left_out(folder: Path) -> dict[str, NotExamined]:
    """Return the checks for the run's stage that could examine nothing, by name."""
    return {entry.check: entry for entry in examine(read_run_log(folder))[1]}
