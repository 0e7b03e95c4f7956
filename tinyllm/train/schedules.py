"""Learning rate schedules: linear warm-up, then one row of `SCHEDULES`. No torch.

A schedule maps progress in [0, 1] to a height in [0, 1] between `min_lr_ratio` and the peak. With settings of its own it names a Config,
which becomes the section `optim.NAME`, and takes them as a third argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tinyllm.config import Config
from tinyllm.train.changes import Segments


class RateConfig(Protocol):
    """The fields of `OptimConfig` that decide the learning rate."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def schedule(self) -> str: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def decay_fraction(self) -> float: ...
    @property
    def min_lr_ratio(self) -> float: ...


@dataclass(frozen=True)
class Schedule:
    """One schedule.

    Args:
        height: (progress, `OptimConfig`) -> height; with settings, (progress, `OptimConfig`, settings) -> height.
        settings: of its own, if any.
        decays: a height of 0 is `min_lr_ratio`; False: it is a rate of 0.
        plateau: it stays at its peak before it decays; a run can be extended from there.
    """

    height: Callable[..., float]
    settings: type[Config] | None = None
    decays: bool = True
    plateau: bool = False


def _cosine(progress: float, config: RateConfig) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _wsd(progress: float, config: RateConfig) -> float:
    """Warm-up, stable, decay (arXiv 2404.06395): flat, then linear over the last `decay_fraction`."""
    return min(1.0, (1 - progress) / config.decay_fraction)


def _constant(progress: float, config: RateConfig) -> float:
    return 1.0


SCHEDULES = {
    "cosine": Schedule(_cosine),
    "wsd": Schedule(_wsd, plateau=True),
    "constant": Schedule(_constant, decays=False),
}


def names() -> list[str]:
    """Return the names of all schedules."""
    return list(SCHEDULES)


def settings() -> dict[str, type[Config]]:
    """Return the settings class of every schedule that has one, by name."""
    return {name: schedule.settings for name, schedule in SCHEDULES.items() if schedule.settings is not None}


def learning_rate(step: int, total: int, config: RateConfig) -> float:
    """Return the rate of update number `step` (from 0) of `total`, for an `OptimConfig`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    schedule = SCHEDULES[config.schedule]
    own = [vars(config)[config.schedule]] if schedule.settings is not None else []
    height = schedule.height(min(1.0, progress), config, *own)
    if not schedule.decays:
        return config.learning_rate * height
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * height)


def rate(step: int, segments: Segments, config: RateConfig) -> float:
    """Return the rate of update number `step` (from 0): that of the last segment that has begun."""
    start, end = next((pair for pair in reversed(segments) if pair[0] <= step), segments[0])
    return learning_rate(step - start, end - start, config)
