"""Muon: momentum with orthogonalized updates (arXiv 2502.16982)."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is orthogonalize: every singular value of a matrix's update becomes about one.

    M <- momentum M + G;  U = msign(G + momentum M);  W <- W - lr (0.2 sqrt(max(out, in)) U + weight_decay W).
    Matrices of one shape are stacked, so that an iteration is one batched product for all layers.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # the engine never passes a closure
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                directions = orthogonalize(torch.stack([self._momentum(p, group["momentum"]) for p in parameters]))
                size = 0.2 * math.sqrt(max(shape))
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(direction.to(parameter.dtype), alpha=-group["lr"] * size)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        state["momentum"].mul_(momentum).add_(parameter.grad)
        return parameter.grad.add(state["momentum"], alpha=momentum)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate U V^T of each matrix (N, rows, columns) by a quintic Newton-Schulz iteration; singular values end between 0.7 and 1.2."""
    a, b, c = 3.4445, -4.7750, 2.0315  # steep at zero, so that small singular values rise in five steps
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
