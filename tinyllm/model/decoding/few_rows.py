"""Products of a few rows on a CPU, with weights that are read as bfloat16.

A row of a large model takes as long as its weights take to come from memory. Most models are published in bfloat16, so their weights in
float32 end in zeros: half of what is read. A copy without them is made when it is first needed, in the time of two or three tokens, and
kept as long as the engine. Products and sums stay float32. Models that were trained in float32 have no such copy.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor

from tinyllm.model import sampling_memory
from tinyllm.model.decoding.one_token import OneToken
from tinyllm.model.decoding.products import Head, Product
from tinyllm.model.native import compilation
from tinyllm.model.native.compilation import structure

_ROWS = 4  # at most; more are multiplied faster by torch's products
_TOKENS = 16  # new ones, at least; the copy takes as long as two or three

_Arguments = structure("Product", "rows inputs outputs added", "", "weight x out")


class FewRows:
    """The interface of `products.Product` for `NativeStep`.

    Args:
        weight: (out, in) bfloat16.
        bias: (out,) float32.
        functions: of native.c.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, functions: ctypes.CDLL):
        self.weight, self.bias, self._product = weight, bias, functions.product

    def into(self, out: Tensor, x: Tensor) -> Tensor:
        """Write the products with x (B, in) into `out` (B, out), and return it; both float32 and contiguous."""
        return self._computed(out, x, 0)

    def added(self, to: Tensor, x: Tensor) -> Tensor:
        """Add the products to `to` (B, out), in place."""
        return self._computed(to, x, 1)

    def _computed(self, out: Tensor, x: Tensor, added: int) -> Tensor:
        arguments = _Arguments(len(x), self.weight.shape[1], len(self.weight), added)
        arguments.weight, arguments.x, arguments.out = self.weight.data_ptr(), x.data_ptr(), out.data_ptr()
        self._product(ctypes.addressof(arguments))
        return out if self.bias is None else out.add_(self.bias)


def pays(weights: OneToken, rows: int, tokens: int) -> bool:
    """Return whether to make copies for so many rows that are decoded together, and new tokens of the longest."""
    threads = 1 if compilation.openmp_of_torch() else torch.get_num_threads()
    fits = weights.size <= sampling_memory.NARROWED_BYTES
    return rows <= _ROWS and tokens >= _TOKENS and threads == 1 and fits


def narrow_products(weights: OneToken, functions: ctypes.CDLL) -> Mapping[Product | Head, FewRows]:
    """Return the products of a model, by what they replace, whose weights are used where they are and are bfloat16 without loss."""
    found: dict[Product | Head, FewRows] = {}
    for product in weights.products:
        narrow = _narrowed(product, functions)
        if narrow is not None:
            found[product] = FewRows(narrow, product.bias, functions)
    return found


def _narrowed(product: Product | Head, functions: ctypes.CDLL) -> Tensor | None:
    """Return the weights of a product, one below the other, in bfloat16; None where that loses something or they are copied anyway."""
    parts = product.weights
    if not parts or not all(part.is_contiguous() and part.dtype == torch.float32 for part in parts):
        return None
    found, start = torch.empty(sum(map(len, parts)), parts[0].shape[1], dtype=torch.bfloat16), 0
    for part in parts:
        place = ctypes.c_void_p(found[start:].data_ptr())
        if not functions.narrowed(ctypes.c_void_p(part.data_ptr()), place, ctypes.c_int64(part.numel())):
            return None
        start += len(part)
    return found
