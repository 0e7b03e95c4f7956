"""Muon for the matrices inside the blocks, AdamW for the rest.

Muon's update is scaled to the size AdamW's would have (arXiv 2502.16982), so that one learning rate serves both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tinyllm.train.config import OptimConfig


def build(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    from tinyllm.train.muon import Muon
    from tinyllm.train.optimizers.adamw import adamw

    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if p.ndim == 2 and ".layers." in name]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in trained if id(p) not in chosen]
    found: list[torch.optim.Optimizer] = [adamw(rest, config)] if rest else []
    return [*found, Muon(matrices, config.learning_rate, config.momentum, config.weight_decay)]
