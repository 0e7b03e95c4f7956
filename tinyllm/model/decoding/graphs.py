"""A decoding step as a CUDA graph: its hundreds of kernels are started by one call.

At few rows, starting the kernels of a step takes longer than running them. A graph has fixed addresses and shapes, so a step of it reads
all columns of the ring, behind a mask, and has the column and the positions in tensors. It is recorded after some steps with the same
rows. Not yet run on a GPU, so it is off unless TINYLLM_CUDA_GRAPHS is 1. On a CPU the tests run what would be recorded.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from tinyllm.model.decoding.one_token import Columns, OneToken
from tinyllm.model.decoding.ring import Ring

AFTER = 16  # steps; recording takes as long as some dozens
_BYTES = 1 << 31  # of the ring's keys and values; reading more takes longer than starting kernels


def wanted(weights: OneToken, ring: Ring) -> bool:
    """Return whether steps of a ring are to be recorded."""
    small = 2 * ring.keys.numel() * ring.keys.element_size() <= _BYTES
    # the longest text is read from the device
    synchronizes = any(rotary.by_length for rotary in weights.rotary.values())
    return ring.device.type == "cuda" and os.environ.get("TINYLLM_CUDA_GRAPHS") == "1" and small and not synchronizes


def recorded(function: Callable[[], None]) -> Callable[[], None]:
    """Record the kernels that a function starts, and return what starts them again. The function may be called twice."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        function()  # what a kernel prepares when it is first started cannot be recorded
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


class GraphStep:
    """`OneToken` for the rows of one ring."""

    def __init__(self, weights: OneToken, ring: Ring):
        ring.differ()
        self.weights, self.ring = weights, ring
        rows, device = len(ring.ids), ring.device
        self.ids, self.positions = (torch.zeros(rows, dtype=torch.long, device=device) for _ in range(2))
        self.place = torch.zeros(1, dtype=torch.long, device=device)
        self.logits = torch.empty(0)
        self.columns = Columns(
            ring.keys.flatten(1, 2).unbind(0),
            ring.values.flatten(1, 2).unbind(0),
            ring.keys.unbind(0),
            ring.values.unbind(0),
            {window: ring.masks[limit] for window, limit in ring.windows.items()},
            self.place,
        )
        self._replay: Callable[[], None] | None = None

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the logits (B, V) of the tokens that follow `ids` (B,); see `OneToken.__call__`. Overwritten by the next call."""
        self.ring.advance_masks()
        self.ids.copy_(ids)
        self.positions.copy_(torch.as_tensor(self.ring.positions))
        self.place.fill_(self.ring.place)
        if self._replay is None:
            self._replay = recorded(self._compute)
        self._replay()
        return self.logits

    def _compute(self) -> None:
        self.logits = self.weights(self.ids, self.positions, self.columns)
