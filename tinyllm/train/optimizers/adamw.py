"""AdamW (arXiv 1711.05101) for all parameters. Weight decay acts on matrices only, never on norms and biases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tinyllm.train.config import OptimConfig


def build(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    return [adamw([p for p in model.parameters() if p.requires_grad], config)]


def adamw(parameters: Sequence[nn.Parameter], config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW over some parameters, fused where the device supports it."""
    import torch

    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=fused,
    )
