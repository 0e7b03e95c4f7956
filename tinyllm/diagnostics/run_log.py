"""The log of a run: metrics by split and step, its configuration, and run.json.

Only `run.json`, `config.yaml` and `metrics.jsonl` are read, without importing torch. Lines that cannot be parsed, such as the last line
of a killed run, are counted and skipped. Not read: TensorBoard files and checkpoints.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from tinyllm.errors import UserError
from tinyllm.io import untrusted_files
from tinyllm.train.run import CHANGE, read_facts

METRICS, FACTS, CONFIG = "metrics.jsonl", "run.json", "config.yaml"
_MAX_VALUE = 1e300  # larger values are treated like infinity
Split = Literal["train", "eval", "test"]


@dataclass(frozen=True)
class Evidence:
    """A value from a file of the run: its name, the value, the step, and the file."""

    figure: str
    value: float | str
    step: int | None = None
    file: str = METRICS


@dataclass(frozen=True)
class Point:
    step: int
    value: float


@dataclass(frozen=True)
class Series:
    """The finite values of one metric on one split, in the order of steps."""

    split: Split
    name: str
    points: tuple[Point, ...]

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)

    @property
    def values(self) -> list[float]:
        return [p.value for p in self.points]

    @property
    def first(self) -> Point:
        return self.points[0]

    @property
    def last(self) -> Point:
        return self.points[-1]

    @property
    def lowest(self) -> Point:
        return min(self.points, key=lambda p: p.value)

    @property
    def highest(self) -> Point:
        return max(self.points, key=lambda p: p.value)

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def median(self) -> float:
        return median(self.values)

    def where(self, keep: Callable[[int], bool]) -> Series:
        """Return the points for whose step `keep` is true."""
        return Series(self.split, self.name, tuple(p for p in self.points if keep(p.step)))

    def head(self, fraction: float) -> Series:
        """Return the first fraction of the points, at least one."""
        return Series(self.split, self.name, self.points[: max(1, round(len(self) * fraction))])

    def tail(self, fraction: float) -> Series:
        """Return the last fraction of the points, at least one."""
        return Series(self.split, self.name, self.points[-max(1, round(len(self) * fraction)) :])

    def evidence(self, point: Point) -> Evidence:
        return Evidence(f"{self.split} {self.name}", point.value, point.step)

    def first_and_last(self) -> tuple[Evidence, Evidence]:
        return self.evidence(self.first), self.evidence(self.last)

    def average(self) -> Evidence:
        """Return the mean over all points."""
        steps = f"steps {self.first.step} to {self.last.step}" if len(self) > 1 else f"step {self.last.step}"
        return Evidence(f"{self.split} {self.name}, mean of {steps}", self.mean)


@dataclass(frozen=True)
class RunLog:
    """The log of one run.

    facts: the contents of run.json.
    config: the resolved configuration, nested by section.
    rows: the lines of metrics.jsonl.
    damaged_lines: how many lines of metrics.jsonl are not JSON objects with a step and a split.
    seconds_since_write: since metrics.jsonl or run.json was last written.
    """

    folder: Path
    facts: dict[str, Any]
    config: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list, repr=False)
    damaged_lines: int = 0
    seconds_since_write: float = 0.0

    def setting(self, key: str, default: Any = None) -> Any:
        """Return a setting by its dotted key, or `default` if it is missing or of another type than the default."""
        found: Any = self.config
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if default is None:
            return found
        fits = is_number(found) if is_number(default) else isinstance(found, type(default))
        return found if fits else default

    @property
    def stage(self) -> str:
        """The stage, or for alignment the algorithm."""
        if "algorithm" in self.config:
            return str(self.config["algorithm"])
        if "bradley_terry" in self.config:
            return "rm"
        if "model" in self.config:
            return "pretrain"
        return "sft-lora" if self.config.get("lora") else "sft"

    @property
    def family(self) -> str:
        """pretrain, sft, rm, offline or online."""
        if "algorithm" in self.config:
            return "online" if "rollout" in self.config else "offline"
        return self.stage.removesuffix("-lora")

    @property
    def steps(self) -> int:
        """The number of steps in the configuration."""
        return int(self.setting("train.steps", 0))

    @property
    def step(self) -> int:
        """The last step in metrics.jsonl."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def learning_rate(self) -> float:
        """The peak learning rate."""
        return float(self.setting("optim.learning_rate", 1e-3))

    @property
    def steps_per_rollout(self) -> int:
        return max(1, int(self.setting("rollout.minibatches", 1)) * int(self.setting("rollout.epochs", 1)))

    @property
    def max_reward(self) -> float:
        """The reward of a perfect answer: built-in rewards are at most 1, and are summed with their weights."""
        weights = self.setting("rewards", {})
        return sum(abs(weight) for weight in weights.values() if is_number(weight)) or 1.0

    @property
    def best_by(self) -> tuple[str, Literal["min", "max"]]:
        """The held-out metric that selects `ckpt_best`, and whether lower or higher is better."""
        return (str(self.setting("best_by", "reward")), "max") if self.family == "online" else ("loss", "min")

    def _series(self, split: Split, name: str) -> Series:
        found = [(row["step"], row.get(name)) for row in self.rows if row["split"] == split]
        return Series(split, name, tuple(Point(step, float(v)) for step, v in found if v is not None and is_number(v)))

    def train(self, name: str) -> Series:
        return self._series("train", name)

    def held_out(self, name: str) -> Series:
        return self._series("eval", name)

    def lines(self, split: Split) -> Series:
        """Return the steps that were logged, as a series."""
        return Series(split, "lines", tuple(Point(r["step"], r["step"]) for r in self.rows if r["split"] == split))

    def test(self, name: str) -> Series:
        """Return a figure of the test records: before the first step, and after training of the best and of the last checkpoint."""
        return self._series("test", name)

    def rollouts(self, name: str) -> Series:
        """Return a metric of the rollouts, with one point per rollout instead of one per minibatch."""
        points = {(p.step - 1) // self.steps_per_rollout: p for p in self.train(name)}
        return Series("train", name, tuple(points.values()))

    def reward_parts(self) -> list[Series]:
        """Return the metric `rewards/NAME` of the rollouts for every reward."""
        names = dict.fromkeys(name for row in self.rows if row["split"] == "train" for name in row)
        return [self.rollouts(name) for name in names if name.startswith("rewards/") and not name.endswith("/applied")]

    def after_first_minibatch(self, name: str) -> Series:
        """Return the steps after the first of each rollout. At the first, the policy is still the one that sampled: every ratio is 1."""
        return self.train(name).where(lambda step: (step - 1) % self.steps_per_rollout != 0)

    def best_point(self) -> Point | None:
        """Return the evaluation at which `ckpt_best` was saved; None before the first evaluation."""
        name, direction = self.best_by
        series = self.held_out(name)
        if not len(series):
            return None
        return series.lowest if direction == "min" else series.highest

    def setting_evidence(self, key: str) -> Evidence:
        value = self.setting(key)
        return Evidence(key, value if is_number(value) else str(value), file=CONFIG)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number. Booleans are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _MAX_VALUE  # False for NaN


def has_log(folder: Path) -> bool:
    """Return whether a folder contains run.json and config.yaml. metrics.jsonl appears with the first evaluation."""
    return (folder / FACTS).is_file() and (folder / CONFIG).is_file()


def read_run_log(folder: Path) -> RunLog:
    """Read the log of a run directory.

    Raises: UserError where run.json or config.yaml is not that of a run.
    """
    facts = read_facts(folder)
    if not facts:
        raise UserError("run.json cannot be read", where=str(folder / FACTS), fix="name another run directory")
    config = untrusted_files.read_yaml(folder / CONFIG)  # the strict reader of settings would cost a tenth of a second
    if not isinstance(config.get("train"), dict):
        raise UserError("config.yaml cannot be read", where=str(folder / CONFIG), fix="name another run directory")
    metrics = folder / METRICS
    text = metrics.read_text(encoding="utf-8", errors="replace") if metrics.is_file() else ""
    lines = [parse_row(line) for line in text.splitlines() if line.strip()]
    lines = [row for row in lines if row is None or row.get("split") != CHANGE]
    rows = [row for row in lines if row is not None and row.get("split") in ("train", "eval", "test")]
    written = max(p.stat().st_mtime for p in (metrics, folder / FACTS) if p.is_file())
    return RunLog(folder, facts, config, rows, len(lines) - len(rows), max(0.0, time.time() - written))


def parse_row(line: str | bytes) -> dict[str, Any] | None:
    """Return a line of metrics.jsonl as a dict with an integer `step`; None if it is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if type(step) is int and 0 <= step < _MAX_VALUE else None
