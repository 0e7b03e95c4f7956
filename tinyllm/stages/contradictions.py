"""What settings and options say against each other, found before processes are started: refused, or only doubted aloud.

What one configuration can say against itself is refused where it is made, by the Config that holds both values. Light to import: no torch.
"""

from __future__ import annotations

from typing import Any

from tinyllm.errors import UserError


def refuse(config: Any, ranks: int) -> None:
    """UserError where `ranks` processes cannot share a step."""
    batch = config.train.batch_size if "train" in type(config).model_fields else ranks
    if batch % ranks:
        fits = -(-batch // ranks) * ranks
        raise UserError(
            f"train.batch_size {batch} cannot be shared by {ranks} ranks",
            where="--nproc",
            fix=f"add --set train.batch_size={fits}, or use --nproc {max(n for n in range(1, ranks) if batch % n == 0)}",
        )


def doubts(config: Any) -> list[str]:
    """What may be meant, and more often is not."""
    if "optim" not in type(config).model_fields:
        return []
    warmup, steps = config.optim.warmup_steps, config.train.steps
    if warmup <= steps:
        return []
    return [
        f"optim.warmup_steps {warmup} is more than train.steps {steps}: the learning rate never reaches its peak; set it to {steps} or less"
    ]
