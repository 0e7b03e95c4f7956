"""From hidden states to log-probabilities: the only place in the project that shifts by one token and divides by a temperature.

Every algorithm scores tokens through `token_scores`. Its rows are aligned with the ids: entry t is log p(ids[t] | ids[:t]), entry 0
is 0, so masks, advantages and ratios need no shifting of their own. Logits are made a block of rows at a time, and again in the
backward pass, because a block that fits the cache is faster than a (B, T, V) tensor that does not, and
because the tensor would be the largest thing in memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyllm.model.kernels import compute_dtype

_ROW_STEP = 64  # few distinct row counts: a matrix product is prepared and cached once per shape
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

    d log p(y) / d logits = onehot(y) - p, so the backward pass makes a block of logits again and needs nothing else of them. The
    upstream gradient scales whole rows and is applied where rows are short (D numbers), not where they are long (V).
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, entropy: bool):
        dtype, asked = compute_dtype(hidden), len(hidden)
        spare = -asked % _ROW_STEP  # rows of zeros: their results are cut off, their gradients are zero
        rows = F.pad((hidden / temperature if temperature != 1.0 else hidden).to(dtype), (0, 0, 0, spare))
        head, targets = weight.to(dtype), F.pad(targets, (0, spare))
        wide = torch.promote_types(dtype, torch.float32)  # a sum over a vocabulary is never taken in bf16
        block = max(1, _BLOCK_NUMBERS[hidden.device.type] // weight.shape[0])
        values = torch.empty(len(rows), dtype=wide, device=hidden.device)
        entropies = torch.zeros_like(values)
        for start in range(0, len(rows), block):
            part = slice(start, start + block)
            logits = (rows[part] @ head.T).to(wide)
            highest = logits.amax(-1, keepdim=True)
            values[part] = (logits.gather(1, targets[part, None]) - highest).squeeze(1)
            if entropy:
                log_p = logits.log_softmax(-1)
                entropies[part] = -(log_p.exp() * log_p).sum(-1)
            values[part] -= logits.sub_(highest).exp_().sum(-1).log_()
        ctx.save_for_backward(rows, head, targets)
        ctx.temperature, ctx.block, ctx.dtypes = temperature, block, (hidden.dtype, weight.dtype)
        values, entropies = values[:asked], entropies[:asked]
        ctx.mark_non_differentiable(entropies)
        return values, entropies

    @staticmethod
    def backward(ctx, gradient: Tensor, _: Tensor):
        rows, head, targets = ctx.saved_tensors
        asked = len(gradient)
        gradient = F.pad(gradient, (0, len(rows) - asked))[:, None]
        # the part of onehot(y): one row of the head each
        to_rows = gradient * head[targets]
        to_head = torch.zeros(head.shape, dtype=gradient.dtype, device=head.device).index_add_(
            0, targets, gradient * rows
        )
        scaled = (-gradient * rows).to(rows.dtype)
        for start in range(0, len(rows), ctx.block):
            part = slice(start, start + ctx.block)
            p = (rows[part] @ head.T).softmax(-1)
            to_rows[part] -= gradient[part] * (p @ head)
            to_head += p.T @ scaled[part]
        to_rows = to_rows[:asked] / ctx.temperature if ctx.temperature != 1.0 else to_rows[:asked]
        return to_rows.to(ctx.dtypes[0]), to_head.to(ctx.dtypes[1]), None, None, None


def last_token(values: Tensor, mask: Tensor) -> Tensor:
    """values (B, T) at each row's last set position of mask (B, T): right for padding on either side. Returns (B,)."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, positions, -1).amax(1).clamp(min=0)
    return values.gather(1, last[:, None]).squeeze(1)
