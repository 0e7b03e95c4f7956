"""The matrix products of a decoding step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tinyllm.model.heads import AdaptedHead, head_matrix

_FEW = 64  # rows


class Product:
    """x W^T + b of linear layers that share their input, side by side."""

    def __init__(self, layers: Sequence[nn.Module], dtype: torch.dtype, copied: bool):
        self.layers, self.matrix, self.bias = layers, None, None
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        self.device = linear[0].weight.device
        plain = all(not isinstance(layer, AdaptedHead) and layer.weight.dtype == dtype for layer in linear)
        self.weights: list[Tensor] = []  # (out, in) each, of layers that are used where they are
        if copied or any(layer.weight.dtype != dtype for layer in linear):
            self.matrix = torch.cat([head_matrix(layer).detach().to(dtype) for layer in linear]).T.contiguous()
        elif plain:
            self.weights = [layer.weight.detach() for layer in linear]
            self.matrix = self.weights[0].T if len(linear) == 1 else None
        biases = [layer.bias for layer in linear if layer.bias is not None]
        if biases:
            self.bias = torch.cat([bias.detach().to(dtype) for bias in biases])

    def __call__(self, x: Tensor) -> Tensor:
        """Return the products, (B, sum of widths)."""
        if self.weights and _are_few(x):
            found = _from_few(self.weights, x).T.contiguous()
            return found if self.bias is None else found.add_(self.bias)
        if self.matrix is None:
            parts = [layer(x) for layer in self.layers]
            return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return torch.mm(x, self.matrix) if self.bias is None else torch.addmm(self.bias, x, self.matrix)

    def into(self, out: Tensor, x: Tensor) -> None:
        """Write the products into `out` (B, sum of widths)."""
        if self.weights and _are_few(x):
            found = _from_few(self.weights, x).T
            torch.add(found, self.bias, out=out) if self.bias is not None else out.copy_(found)
        elif self.matrix is None:
            torch.cat([layer(x) for layer in self.layers], -1, out=out)
        elif self.bias is None:
            torch.mm(x, self.matrix, out=out)
        else:
            torch.addmm(self.bias, x, self.matrix, out=out)

    def added(self, to: Tensor, x: Tensor) -> Tensor:
        """Add the product to `to` (B, D), in place."""
        if self.weights and self.bias is None and _are_few(x):
            return to.add_(_from_few(self.weights, x).T)
        if self.matrix is None or self.bias is not None or to.dtype != x.dtype:
            return to.add_(self(x))
        return to.addmm_(x, self.matrix)


class Head:
    """The product with the output layer's weight (V, D); `copied`: in the layout that is read fastest."""

    bias: None = None

    def __init__(self, weight: Tensor, copied: bool):
        self.weight, self.weights = weight, [] if copied else [weight]
        self.matrix, self.device = weight.T.contiguous() if copied else weight.T, weight.device

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the logits (B, V) of states (B, D)."""
        return self.into(hidden.new_empty(len(hidden), len(self.weight)), hidden)

    def into(self, out: Tensor, hidden: Tensor) -> Tensor:
        """Write the logits into `out` (B, V), and return it."""
        if self.weights and _are_few(hidden):
            return out.copy_(_from_few(self.weights, hidden).T)
        return torch.mm(hidden, self.matrix, out=out)


def _are_few(x: Tensor) -> bool:
    """Return whether weights (out, in) are multiplied from the left, which MKL does up to twice as fast for 2 to 64 rows."""
    return 1 < len(x) <= _FEW and x.device.type == "cpu" and x.dtype == torch.float32


def _from_few(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """Return the products (sum of widths, B) of weights with rows (B, D)."""
    columns = x.T.contiguous()
    return torch.mm(weights[0], columns) if len(weights) == 1 else torch.cat([torch.mm(w, columns) for w in weights])
