"""Muon: momentum with orthogonalized updates (arXiv 2502.16982)."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor, nn

from tinyllm.model.kernels import compute_dtype


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
                directions = orthogonalize(torch.stack(self._momenta(parameters, group["momentum"])))
                size = 0.2 * math.sqrt(max(shape))
                weights: list[Tensor] = [*parameters]
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                changes = list(directions.to(weights[0].dtype).unbind())
                torch._foreach_add_(weights, changes, alpha=-group["lr"] * size)

    def _momenta(self, parameters: list[nn.Parameter], momentum: float) -> list[Tensor]:
        """Update the momenta and return G + momentum M of each parameter."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_mul_(momenta, momentum)
        torch._foreach_add_(momenta, gradients)
        return list(torch._foreach_add(gradients, momenta, alpha=momentum))


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate U V^T of each matrix (N, rows, columns) by a quintic Newton-Schulz iteration; singular values end between 0.7 and 1.2.

    In autocast the products are those of its dtype: bfloat16 is exact enough for them, and on a GPU several times as fast.
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # steep at zero, so that small singular values rise in five steps
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(compute_dtype(x))
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
