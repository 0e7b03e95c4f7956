"""What a run left behind, in a form that questions can be asked of: figures by split and step, settings, facts.

Only `run.json`, `config.yaml` and `metrics.jsonl` are read, and nothing is imported that takes long. A line that a killed writer left
half written is counted and passed over. Left out: TensorBoard, checkpoints, comparing runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from tinyllm import foreign
from tinyllm.errors import UserError
from tinyllm.train.run import read_facts

METRICS, FACTS, CONFIG = "metrics.jsonl", "run.json", "config.yaml"
_LARGEST = 1e300  # of a figure that is still one
Split = Literal["train", "eval"]
Severity = Literal["broken", "warning", "note"]
Causes = tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """One piece of evidence: which figure, what it was, where it stands."""

    figure: str
    value: float | str
    step: int | None = None
    file: str = METRICS


@dataclass(frozen=True)
class Finding:
    """A symptom with its evidence, what may cause it (likeliest first), and one thing to try.

    broken: the result should not be used; warning: something went wrong on the way; note: expected, but worth knowing.
    """

    severity: Severity
    symptom: str
    evidence: tuple[Fact, ...]
    causes: Causes
    try_this: str
    check: str = ""  # the function that found it


@dataclass(frozen=True)
class Point:
    step: int
    value: float


@dataclass(frozen=True)
class Series:
    """A figure over the steps of one split, oldest first; only where it is a finite number."""

    split: str
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
        """The points whose step `keep` accepts."""
        return Series(self.split, self.name, tuple(p for p in self.points if keep(p.step)))

    def head(self, share: float) -> Series:
        """The first `share` of the points, at least one."""
        return Series(self.split, self.name, self.points[: max(1, round(len(self) * share))])

    def tail(self, share: float) -> Series:
        """The last `share` of the points, at least one."""
        return Series(self.split, self.name, self.points[-max(1, round(len(self) * share)) :])

    def fact(self, point: Point) -> Fact:
        return Fact(f"{self.split} {self.name}", point.value, point.step)

    def ends(self) -> tuple[Fact, Fact]:
        """Where it began and where it is now."""
        return self.fact(self.first), self.fact(self.last)

    def averaged(self) -> Fact:
        """Its mean, at its last step."""
        steps = f"steps {self.first.step} to {self.last.step}" if len(self) > 1 else f"step {self.last.step}"
        return Fact(f"{self.split} {self.name}, mean of {steps}", self.mean)


@dataclass(frozen=True)
class Log:
    """One run directory, read."""

    folder: Path
    facts: dict[str, Any]
    config: dict[str, Any]
    rows: list[dict[str, Any]] = field(repr=False)
    damaged: int  # lines of metrics.jsonl that are not JSON objects with a step
    silence: float  # seconds since anything was written

    def setting(self, key: str, default: Any = None) -> Any:
        """A value of the configuration by its dotted key; `default` also where it is of another kind than that."""
        found: Any = self.config
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if default is None:
            return found
        fits = is_number(found) if is_number(default) else isinstance(found, type(default))
        return found if fits else default

    @property
    def stage(self) -> str:
        """What the run's report calls itself: a stage, or the algorithm of one."""
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
        """How many the run is to make."""
        return int(self.setting("train.steps", 0))

    @property
    def step(self) -> int:
        """The last one that was logged."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        return float(self.setting("optim.learning_rate", 1e-3))

    @property
    def period(self) -> int:
        """Optimiser steps between two rollouts."""
        return max(1, int(self.setting("rollout.minibatches", 1)) * int(self.setting("rollout.epochs", 1)))

    @property
    def scale(self) -> float:
        """How much a perfect answer earns: built-in rewards end at 1, and are weighted and added."""
        weights = self.setting("rewards", {})
        return sum(abs(weight) for weight in weights.values() if is_number(weight)) or 1.0

    @property
    def best(self) -> tuple[str, Literal["min", "max"]]:
        """The held-out figure that decides `ckpt_best`."""
        return (str(self.setting("best_by", "reward")), "max") if self.family == "online" else ("loss", "min")

    def _series(self, split: Split, name: str) -> Series:
        found = [(row["step"], row.get(name)) for row in self.rows if row["split"] == split]
        return Series(split, name, tuple(Point(step, float(v)) for step, v in found if v is not None and is_number(v)))

    def train(self, name: str) -> Series:
        return self._series("train", name)

    def held_out(self, name: str) -> Series:
        return self._series("eval", name)

    def rollouts(self, name: str) -> Series:
        """A figure of the rollouts themselves: one point for each that was logged, not one for each of its minibatches."""
        points = {(p.step - 1) // self.period: p for p in self.train(name)}
        return Series("train", name, tuple(points.values()))

    def after_first_minibatch(self, name: str) -> Series:
        """The steps at which the policy has already moved since it wrote the rollout; on the others every ratio is 1."""
        return self.train(name).where(lambda step: (step - 1) % self.period != 0)

    def best_point(self) -> Point | None:
        """Where `ckpt_best` was taken; None before anything was evaluated."""
        name, direction = self.best
        series = self.held_out(name)
        if not len(series):
            return None
        return series.lowest if direction == "min" else series.highest

    def config_fact(self, key: str) -> Fact:
        value = self.setting(key)
        return Fact(key, value if is_number(value) else str(value), file=CONFIG)


def is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _LARGEST  # false for NaN and infinity, too


def is_run(folder: Path) -> bool:
    return (folder / FACTS).is_file() and (folder / CONFIG).is_file()


def read(folder: Path) -> Log:
    """The log of a run directory. UserError where its files are not those of a run."""
    facts = read_facts(folder)
    if not facts:
        raise UserError("run.json cannot be read", where=str(folder / FACTS), fix="name another run directory")
    config = foreign.read_yaml(folder / CONFIG)  # the strict reader would cost a tenth of a second
    if not isinstance(config.get("train"), dict):
        raise UserError("config.yaml cannot be read", where=str(folder / CONFIG), fix="name another run directory")
    metrics = folder / METRICS
    text = metrics.read_text(encoding="utf-8", errors="replace") if metrics.is_file() else ""
    lines = [_row(line) for line in text.splitlines() if line.strip()]
    rows = [row for row in lines if row is not None]
    written = max(p.stat().st_mtime for p in (metrics, folder / FACTS) if p.is_file())
    return Log(folder, facts, config, rows, len(lines) - len(rows), max(0.0, time.time() - written))


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or row.get("split") not in ("train", "eval"):
        return None
    return row if type(row.get("step")) is int and 0 <= row["step"] < _LARGEST else None


# --- things to try -----------------------------------------------------------------------------------------------------------------


USUAL_RATE = 1e-4  # the smallest that makes sense here: shipped configurations have 2e-4 to 5e-3


def put(key: str, value: Any) -> str:
    """The option that changes a setting."""
    text = f"{value:.2g}" if isinstance(value, float) else str(value)
    return f"--set {key}={text}"


def slower(log: Log, factor: float = 3) -> str:
    return f"a lower learning rate: {put('optim.learning_rate', log.rate / factor)}"


def faster(log: Log, factor: float = 3) -> str:
    return f"a higher learning rate: {put('optim.learning_rate', max(log.rate * factor, USUAL_RATE))}"


def more_data(log: Log) -> str:
    """Twice as many records of the world; of a user's own only the user has more."""
    kind, _, number = str((log.setting("data.train", []) or [""])[0]).partition(":")
    if kind == "world" and number.isdecimal():
        return f"more records: --set 'data.train=[world:{2 * int(number)}]'"
    return "more, and more varied, records in data.train"
