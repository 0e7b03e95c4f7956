"""From hidden states to log-probabilities: the only place in the project that shifts by one token and divides by a temperature.

Every algorithm scores tokens through `token_scores`. Its rows are aligned with the ids: entry t is log p(ids[t] | ids[:t]), entry 0
is 0, so masks, advantages and ratios need no shifting of their own. Logits are made a block of rows at a time, twice (once for the
normaliser, once in the backward pass), because a block that fits the cache is faster than a (B, T, V) tensor that does not, and
because the tensor would be the largest thing in memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK_NUMBERS = {"cpu": 1 << 20, "cuda": 1 << 27, "mps": 1 << 24}  # logits held at once: 4 MiB stays in a CPU's cache


class TokenScores(NamedTuple):
    """Per-token scores aligned with the ids, zero where the mask was not set."""

    log_probs: Tensor  # (B, T) float
    entropy: Tensor | None  # (B, T) float, detached


def token_scores(
    hidden: Tensor, head: Tensor, ids: Tensor, mask: Tensor, *, temperature: float = 1.0, entropy: bool = False
) -> TokenScores:
    """Score the tokens of `ids` (B, T) where `mask` (B, T) is set, given final hidden states (B, T, D) and the head's weight (V, D).

    mask[:, 0] must be unset: nothing comes before the first token.
    """
    chosen = mask[:, 1:]
    rows = hidden[:, :-1][chosen]  # (N, D): the state *before* each scored token predicts it
    values, entropies = _RowLogProbs.apply(rows, head, ids[:, 1:][chosen], temperature, entropy)
    blank = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
    return TokenScores(blank.masked_scatter(mask, values), blank.masked_scatter(mask, entropies) if entropy else None)


class _RowLogProbs(torch.autograd.Function):
    """log softmax(h W^T / temperature)[target] for each row, without keeping the logits.

    d log p(y) / d logits = onehot(y) - p, so the backward pass needs the normaliser alone and makes the block of logits again.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, entropy: bool):
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        rows, head = hidden.to(dtype), weight.to(dtype)
        wide = torch.promote_types(dtype, torch.float32)  # softmax over a vocabulary is never done in bf16
        block = max(1, _BLOCK_NUMBERS[device] // weight.shape[0])
        normaliser = torch.empty(len(rows), dtype=wide, device=hidden.device)
        values, entropies = torch.empty_like(normaliser), torch.zeros_like(normaliser)
        for start in range(0, len(rows), block):
            part = slice(start, start + block)
            logits = (rows[part] @ head.T).to(wide)
            if temperature != 1.0:
                logits /= temperature
            normaliser[part] = logits.logsumexp(-1)
            values[part] = logits.gather(1, targets[part, None]).squeeze(1) - normaliser[part]
            if entropy:
                log_p = logits.sub_(normaliser[part, None])
                entropies[part] = -(log_p.exp() * log_p).sum(-1)
        ctx.save_for_backward(rows, head, targets, normaliser)
        ctx.temperature, ctx.block, ctx.dtypes = temperature, block, (hidden.dtype, weight.dtype)
        ctx.mark_non_differentiable(entropies)
        return values, entropies

    @staticmethod
    def backward(ctx, gradient: Tensor, _: Tensor):
        rows, head, targets, normaliser = ctx.saved_tensors
        wide = normaliser.dtype
        to_rows, to_head = torch.empty_like(rows), torch.zeros(head.shape, dtype=wide, device=head.device)
        for start in range(0, len(rows), ctx.block):
            part = slice(start, start + ctx.block)
            logits = (rows[part] @ head.T).to(wide)
            if ctx.temperature != 1.0:
                logits /= ctx.temperature
            slope = logits.sub_(normaliser[part, None]).exp_()
            slope.mul_(-gradient[part, None])
            slope.scatter_add_(1, targets[part, None], gradient[part, None])
            if ctx.temperature != 1.0:
                slope /= ctx.temperature
            slope = slope.to(rows.dtype)
            to_rows[part] = slope @ head
            to_head += slope.T @ rows[part]
        return to_rows.to(ctx.dtypes[0]), to_head.to(ctx.dtypes[1]), None, None, None


def last_token(values: Tensor, mask: Tensor) -> Tensor:
    """values (B, T) at each row's last set position of mask (B, T): right for padding on either side. Returns (B,)."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, positions, -1).amax(1).clamp(min=0)
    return values.gather(1, last[:, None]).squeeze(1)
