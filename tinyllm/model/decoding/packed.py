"""Products on a CPU with weights that MKL has packed: for several rows of a large model, twice as fast.

A product of few rows spends most of its time in bringing the weights into the order in which they are multiplied. Here that is done once
for many tokens. Results differ from those of a product with the weights as they are by rounding. The operations are those that
torch.compile uses for weights that do not change; they are not public, so torch's ordinary products are used where they are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tinyllm.model import sampling_memory
from tinyllm.model.decoding.one_token import OneToken
from tinyllm.model.decoding.products import Head, Product

_TOKENS = 16  # new ones, at least; packing takes as long as two or three


class Packed:
    """The interface of `products.Product` for `NativeStep`, for up to `rows` rows, which are as fast as `rows`."""

    def __init__(self, product: Product | Head, rows: int):
        pack, self._linear = _operations()
        self.weights, self.bias, self.rows = product.weights, product.bias, rows
        self.packed = [pack(weight, rows) for weight in self.weights]
        self.padded = torch.zeros(rows, self.weights[0].shape[1])

    def into(self, out: Tensor, x: Tensor) -> Tensor:
        """Write the products with x (B, in) into `out` (B, out), and return it; both float32."""
        start = 0
        for part in self._parts(x):
            out[:, start : start + part.shape[1]] = part
            start += part.shape[1]
        return out if self.bias is None else out.add_(self.bias)

    def added(self, to: Tensor, x: Tensor) -> Tensor:
        """Add the products to `to` (B, out), in place."""
        start = 0
        for part in self._parts(x):
            to[:, start : start + part.shape[1]] += part
            start += part.shape[1]
        return to if self.bias is None else to.add_(self.bias)

    def _parts(self, x: Tensor) -> list[Tensor]:
        count = len(x)
        if count < self.rows:
            self.padded[:count] = x
            x = self.padded
        pairs = zip(self.packed, self.weights, strict=True)
        return [self._linear(x, packed, weight, None, self.rows)[:count] for packed, weight in pairs]


def pays(weights: OneToken, rows: int, tokens: int) -> bool:
    """Return whether to pack weights for so many rows, and new tokens of the longest."""
    return rows > 1 and tokens >= _TOKENS and weights.size <= sampling_memory.PACKED_BYTES and bool(_operations())


def packed_products(weights: OneToken, rows: int) -> Mapping[Product | Head, Packed]:
    """Return the products of a model, by what they replace, whose weights are used where they are."""
    return {product: Packed(product, rows) for product in weights.products if product.weights}


@cache
def _operations() -> tuple[Callable[..., Any], ...]:
    """Return MKL's operations that pack a weight (out, in), and that multiply with it; none where they are missing."""
    try:
        pack, linear = torch.ops.mkl._mkl_reorder_linear_weight, torch.ops.mkl._mkl_linear
        weight, x = torch.ones(4, 8), torch.ones(2, 8)
        worked = torch.equal(linear(x, pack(weight, 2), weight, None, 2), x @ weight.T)
    except (AttributeError, RuntimeError, NotImplementedError):
        return ()
    return (pack, linear) if worked else ()
