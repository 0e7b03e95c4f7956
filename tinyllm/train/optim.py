"""Optimizers and schedules: each a function and one line in a table.

AdamW (arXiv 1711.05101) for everything, or Muon for the matrices inside the blocks and AdamW for the rest. Muon's update is scaled to
the size AdamW's would have (arXiv 2502.16982), so one learning rate serves both. Left out: per-layer rates, parameter EMA.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tinyllm.train.config import OptimConfig


def _cosine(progress: float, config: OptimConfig) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _wsd(progress: float, config: OptimConfig) -> float:
    return min(1.0, (1 - progress) / config.decay_fraction)


def _constant(progress: float, config: OptimConfig) -> float:
    return 1.0


SCHEDULES: dict[str, Callable[[float, OptimConfig], float]] = {"cosine": _cosine, "wsd": _wsd, "constant": _constant}


def learning_rate(step: int, total: int, config: OptimConfig) -> float:
    """The rate of update number `step` (from 0) of `total`: linear warm-up, then the schedule between the peak and its minimum."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    if config.schedule == "constant":
        return config.learning_rate
    height = SCHEDULES[config.schedule](min(1.0, progress), config)
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * height)


def _adamw(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    return [_adamw_over([p for p in model.parameters() if p.requires_grad], config)]


def _adamw_over(parameters: list[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
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


def _muon(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if p.ndim == 2 and ".layers." in name]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in trained if id(p) not in chosen]
    found: list[torch.optim.Optimizer] = [_adamw_over(rest, config)] if rest else []
    return [*found, Muon(matrices, config.learning_rate, config.momentum, config.weight_decay)]


OPTIMIZERS: dict[str, Callable[[nn.Module, OptimConfig], list[torch.optim.Optimizer]]] = {
    "adamw": _adamw,
    "muon": _muon,
}


def build(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """The optimizers that together update every trainable parameter once."""
    return OPTIMIZERS[config.optimizer](model, config)


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is orthogonalised: every singular value of a matrix's update becomes about one.

    M <- momentum M + G;  U = msign(G + momentum M);  W <- W - lr (0.2 sqrt(max(out, in)) U + weight_decay W).
    Matrices of one shape are stacked, so an iteration is one batched product however many layers there are.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                directions = orthogonalised(torch.stack([self._momentum(p, group["momentum"]) for p in parameters]))
                size = 0.2 * math.sqrt(max(shape))
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(direction.to(parameter.dtype), alpha=-group["lr"] * size)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].mul_(momentum).add_(parameter.grad)
        return parameter.grad.add(state["momentum"], alpha=momentum)


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """U V^T of each matrix (N, rows, columns) by a quintic Newton-Schulz iteration, up to singular values between about 0.7 and 1.2."""
    a, b, c = 3.4445, -4.7750, 2.0315  # steep at zero, so that small singular values rise in five steps
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
