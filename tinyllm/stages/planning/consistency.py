"""Checks of settings against options before processes are started: errors and warnings. Imports no torch.

Contradictions within one configuration are refused by the Config class that holds both values.
"""

from __future__ import annotations

from typing import Any

from tinyllm.errors import UserError


def check_ranks(config: Any, ranks: int) -> None:
    """Raise UserError (USAGE) if `ranks` processes cannot share an optimizer step."""
    batch = config.train.batch_size if "train" in type(config).model_fields else ranks
    if batch % ranks:
        micro = config.train.micro_batch_size
        sizes = (n for n in range(ranks, batch + ranks * micro + 1, ranks) if n % min(n, micro) == 0)
        fits = min(sizes, key=lambda n: (abs(n - batch), n < batch))  # the nearest; of two, the larger
        raise UserError(
            f"train.batch_size {batch} is not divisible by {ranks} ranks",
            where="--nproc",
            fix=f"add --set train.batch_size={fits}, or use --nproc {max(n for n in range(1, ranks) if batch % n == 0)}",
        )


def check_groups(config: Any, ranks: int) -> None:
    """Raise UserError (USAGE) if a rank's share of a rollout is no whole number of groups."""
    if "rollout" in type(config).model_fields:
        train = config.train
        config.rollout.check_batch(train.batch_size, ranks, micro_batch_size=train.micro_batch_size)


def warnings(config: Any) -> list[str]:
    """Return warnings about valid settings that are usually a mistake."""
    if "optim" not in type(config).model_fields:
        return _unread_data(config)
    warmup, steps = config.optim.warmup_steps, config.train.steps
    if warmup <= steps:
        return []
    return [
        f"optim.warmup_steps {warmup} is more than train.steps {steps}: the learning rate never reaches its peak; set it to {steps} or less"
    ]


def _unread_data(config: Any) -> list[str]:
    """Warn of data.train in an evaluation, which reads it only where data.val is empty."""
    if "data" in type(config).model_fields and config.data.train and config.data.val:
        val = ", ".join(config.data.val)
        return [f"data.train is not read: data.val is [{val}]; for the held-out part of data.train, set data.val to []"]
    return []
