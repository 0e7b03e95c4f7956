"""From logits to tokens: inverse transform sampling with one uniform number a token.

The numbers of a row are a function of (seed, stream of the row, position in its completion) and of nothing else, so a row's text does
not depend on the rows beside it, their order, the number of ranks or on when it was sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tinyllm.model.decoding.completion import Sampling

_BITS = 23  # of a uniform number: u * total is below total in float32, whatever the total
_BLOCK = 64  # probabilities summed at once where a running sum over all of them would be slow
_LARGE = 1 << 17  # probabilities in all rows, from which on blocks are faster


def uniforms(seed: int, streams: Sequence[int], count: int) -> Tensor:
    """Return `count` numbers in [0, 1) for each stream, (rows, count) float32: the first outputs of Philox keyed by (seed, stream)."""
    found = np.empty((len(streams), count), dtype=np.uint64)
    for row, stream in zip(found, streams, strict=True):
        row[:] = np.random.Philox(key=np.array([seed % (1 << 64), stream], dtype=np.uint64)).random_raw(count)
    return torch.from_numpy((found >> np.uint64(64 - _BITS)).astype(np.float32) * np.float32(2.0**-_BITS))


def choose(logits: Tensor, sampling: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Return token ids and their log-probabilities, (B,) each: the best tokens, or samples of those that top-k and top-p keep.

    Args:
        logits: (B, V) float32.
        uniform: (B,) in [0, 1).
    """
    if sampling.temperature == 0:
        ids = logits.argmax(-1, keepdim=True)
        return ids.squeeze(1), (logits.gather(1, ids) - logits.logsumexp(-1, keepdim=True)).squeeze(1)
    p = _scaled(logits, sampling.temperature).softmax(-1)
    ids = invert(_kept(p, sampling), uniform[:, None])
    return ids.squeeze(1), p.gather(1, ids).log_().squeeze(1)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits / temperature


def _kept(p: Tensor, sampling: Sampling) -> Tensor:
    """Return probabilities (B, V), not normalized, that are 0 for tokens which top-k and top-p leave out."""
    if sampling.top_k and sampling.top_k < p.shape[1]:
        p = p.masked_fill(p < p.topk(sampling.top_k).values[:, -1:], 0.0)
    if sampling.top_p < 1:
        ordered, order = p.sort(descending=True)
        ordered = ordered / ordered.sum(-1, keepdim=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        outside[:, 0] = False  # the most probable token is always kept, also where top_p is 0 in float32
        p = p.masked_fill(outside.scatter(1, order, outside), 0.0)
    return p


def invert(p: Tensor, uniform: Tensor) -> Tensor:
    """Return the least token whose cumulated probability exceeds `uniform` (B, 1) of the total, (B, 1). p: (B, V), in any unit."""
    last = p.shape[1] - 1
    if p.numel() < _LARGE:
        cumulated = p.cumsum(-1)
        # without the limit, probabilities that are not numbers would name a token behind the last one
        return torch.searchsorted(cumulated, cumulated[:, -1:] * uniform, right=True).clamp_(max=last)
    blocks = F.pad(p, (0, -p.shape[1] % _BLOCK)).view(len(p), -1, _BLOCK)
    sums = blocks.sum(-1)
    cumulated = sums.cumsum(-1)
    target = cumulated[:, -1:] * uniform
    block = torch.searchsorted(cumulated, target, right=True).clamp_(max=blocks.shape[1] - 1)
    inside = blocks.gather(1, block[:, :, None].expand(-1, 1, _BLOCK)).squeeze(1).cumsum(-1)
    rest = target - F.pad(cumulated, (1, -1)).gather(1, block)  # 0 or more, since earlier blocks end at most there
    # by rounding errors the rest can reach the sum of its block: that is the last token which adds to it
    most = torch.searchsorted(inside, inside[:, -1:].contiguous())
    return (block * _BLOCK + torch.minimum(torch.searchsorted(inside, rest, right=True), most)).clamp_(max=last)


def penalized(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Return logits with those of `seen` tokens (B, V) moved down (arXiv 1909.05858, section 4.1)."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
