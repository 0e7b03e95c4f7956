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
        fits = -(-batch // ranks) * ranks
        raise UserError(
            f"train.batch_size {batch} is not divisible by {ranks} ranks",
            where="--nproc",
            fix=f"add --set train.batch_size={fits}, or use --nproc {max(n for n in range(1, ranks) if batch % n == 0)}",
        )


def warnings(config: Any) -> list[str]:
    """Return warnings about valid settings that are usually a mistake."""
    if "optim" not in type(config).model_fields:
        return []
    warmup, steps = config.optim.warmup_steps, config.train.steps
    if warmup <= steps:
        return []
    return [
        f"optim.warmup_steps {warmup} is more than train.steps {steps}: the learning rate never reaches its peak; set it to {steps} or less"
    ]
