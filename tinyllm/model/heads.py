"""Per-token log-probabilities from hidden states: the only code that shifts by one token and divides by a temperature.

Results are aligned with the ids: entry t is log p(ids[t] | ids[:t]) and entry 0 is 0, so masks, advantages and ratios need no shift of
their own. Logits are computed a block of rows at a time: a block that fits the cache is faster than a (B, T, V) tensor that does not, and
that tensor would be the largest in memory. The backward pass computes again what is not kept, see `_KEPT_BYTES`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinyllm.model.kernels import compute_dtype, soft_capped, wide_product
from tinyllm.model.native import kernels as native_kernels
from tinyllm.model.native import wide_products

_ROW_MULTIPLE = 64  # few distinct row counts: a matrix product is prepared and cached once per shape
_BLOCK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 27, "mps": 1 << 24}  # logits held at once; 4 MiB stay in a CPU's cache
_KEPT_BYTES = {
    "cpu": 1 << 26,
    "cuda": 1 << 30,
    "mps": 1 << 27,
}  # of d log p / d logits, from the forward pass to the backward pass
_HEAD_ROWS = 8192  # of the head's gradient computed at once
_LEAST_ROWS = 256  # in a block: with fewer, most of the time goes into reading a large head and writing its gradient


class TokenScores(NamedTuple):
    """Log-probability of each token and entropy of the distribution it was drawn from, both 0 where the mask is not set."""

    log_probs: Tensor  # (B, T) float
    entropy: Tensor  # (B, T) float, nats, detached


class AdaptedHead(nn.Linear):
    """A linear layer whose matrix is computed from several tensors: that of an adapter."""

    def matrix(self) -> Tensor:
        """Return the weight that the layer applies, (out, in)."""
        raise NotImplementedError


def head_matrix(head: nn.Linear) -> Tensor:
    """Return the weight (V, D) that an output layer applies, which `token_log_probs` takes."""
    return head.matrix() if isinstance(head, AdaptedHead) else head.weight


def logits(hidden: Tensor, head: nn.Linear) -> Tensor:
    """Return the logits (..., V) of hidden states (..., D), in float32 at least and not capped."""
    dtype = compute_dtype(hidden)
    if isinstance(head, AdaptedHead) and dtype not in (torch.bfloat16, torch.float16):
        return head(hidden)  # cheaper than its matrix, which `token_log_probs` takes
    matrix = head_matrix(head).to(dtype)
    return wide_product(hidden.reshape(-1, hidden.shape[-1]).to(dtype), matrix).view(*hidden.shape[:-1], len(matrix))


def token_log_probs(
    hidden: Tensor, head: Tensor, ids: Tensor, mask: Tensor, *, temperature: float = 1.0, softcap: float | None = None
) -> Tensor:
    """Return log p(ids[t] | ids[:t]) where `mask` is set and 0 elsewhere, (B, T) float.

    Args:
        hidden: (B, T, D) final hidden states.
        head: (V, D) weight of the output layer.
        ids: (B, T) int64.
        mask: (B, T) bool; column 0 must be unset, as nothing precedes the first token.
        temperature: divisor of the logits.
        softcap: limit of the logits before the temperature, see `kernels.soft_capped`.
    """
    log_probs, _ = _score_masked(hidden, head, ids, mask, temperature, softcap, False)
    return _scatter(log_probs, mask)


def log_prob_total(
    hidden: Tensor,
    head: Tensor,
    ids: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    compiled: bool = False,
) -> Tensor:
    """Return the sum of `token_log_probs`. As all tokens weigh the same, its gradient is known in the forward pass.

    Args:
        hidden: (B, T, D), or (B, T - 1, D) without the last tokens, which predict nothing.
        compiled: compile what lies between the products, where no kernel of our own computes it.
    """
    rows, targets = _predictions(hidden, ids, mask, short=hidden.shape[1] == ids.shape[1] - 1)
    if softcap is not None or not torch.is_grad_enabled():
        return _scored(rows, head, targets, temperature, softcap, False)[0].sum()
    return _TotalLogProb.apply(rows, head, targets, temperature, compiled)


def token_scores(
    hidden: Tensor, head: Tensor, ids: Tensor, mask: Tensor, *, temperature: float = 1.0, softcap: float | None = None
) -> TokenScores:
    """Return log-probabilities and entropies; see `token_log_probs`."""
    log_probs, entropies = _score_masked(hidden, head, ids, mask, temperature, softcap, True)
    return TokenScores(_scatter(log_probs, mask), _scatter(entropies, mask))


def _score_masked(
    hidden: Tensor, head: Tensor, ids: Tensor, mask: Tensor, temperature: float, softcap: float | None, entropy: bool
) -> tuple[Tensor, Tensor]:
    rows, targets = _predictions(hidden, ids, mask)
    return _scored(rows, head, targets, temperature, softcap, entropy)


def _scored(
    rows: Tensor, head: Tensor, targets: Tensor, temperature: float, softcap: float | None, entropy: bool
) -> tuple[Tensor, Tensor]:
    keeps = torch.is_grad_enabled() and (rows.requires_grad or head.requires_grad)
    return _RowLogProbs.apply(rows, head, targets, temperature, softcap, entropy, keeps)


def _predictions(hidden: Tensor, ids: Tensor, mask: Tensor, *, short: bool = False) -> tuple[Tensor, Tensor]:
    """Return the states that predict the scored tokens, those *before* them, (N, D), and the tokens (N,).

    Args:
        short: the states of the last tokens are left out.
    """
    rows, length = ids.shape
    if ids.shape != mask.shape or hidden.shape[:-1] != (rows, length - short):
        raise ValueError(
            f"states {(*hidden.shape,)}, ids {(*ids.shape,)} and mask {(*mask.shape,)} are not of one batch"
        )
    places = mask.flatten().nonzero()[:, 0]  # column 0 is not set, so each has a state before it
    before = places - 1 - places // length if short else places - 1
    return hidden.flatten(0, 1)[before], ids.flatten()[places]


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Return `values` (N,) at the set positions of `mask` (B, T) and 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


def _prepared(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return states divided by the temperature and the head, both in the compute dtype, targets, and the number of rows of a block.

    Rows of zeros follow the states: their results are cut off, and their gradients are zero.
    """
    dtype, padding = compute_dtype(hidden), -len(hidden) % _ROW_MULTIPLE
    rows = F.pad((hidden / temperature if temperature != 1.0 else hidden).to(dtype), (0, 0, 0, padding))
    block = max(_LEAST_ROWS, _BLOCK_ELEMENTS[hidden.device.type] // weight.shape[0])
    return rows, weight.to(dtype), F.pad(targets, (0, padding)), block


class _TotalLogProb(torch.autograd.Function):
    """Sum of log softmax(h W^T / temperature)[target] over rows, with its gradient, which only has to be scaled in the backward pass.

    d log p(y) / d logits = onehot(y) - p. Logits are computed a block at a time, and once.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, compiled: bool) -> Tensor:
        count = len(hidden)
        rows, head, targets, block = _prepared(hidden, weight, targets, temperature)
        wide = torch.promote_types(rows.dtype, torch.float32)
        values, to_rows = rows.new_empty(len(rows), dtype=wide), torch.empty_like(rows)
        has_gradient = ctx.needs_input_grad[1]  # a head may be frozen
        to_head = torch.zeros(head.shape, dtype=wide, device=head.device) if has_gradient else None
        for start in range(0, len(rows), block):
            part = slice(start, start + block)
            gap = _gap(wide_product(rows[part], head), targets[part], rows.dtype, values[part], compiled=compiled)
            torch.mm(gap, head, out=to_rows[part])
            if to_head is not None:
                _add_product(to_head, gap, rows[part])
        ctx.to_rows = to_rows[:count] if temperature == 1.0 else to_rows[:count] / temperature
        ctx.to_head, ctx.dtypes = to_head, (hidden.dtype, weight.dtype)
        return values[:count].sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        if ctx.to_rows is None:
            raise RuntimeError("a total of log-probabilities has one backward pass; `token_log_probs` has several")
        to_rows, to_head = ctx.to_rows, ctx.to_head
        ctx.to_rows = ctx.to_head = None  # a second copy of the head's gradient would be the largest tensor in memory
        to_head = None if to_head is None else (to_head.mul_(gradient)).to(ctx.dtypes[1])
        return (to_rows * gradient).to(ctx.dtypes[0]), to_head, None, None, None


class _RowLogProbs(torch.autograd.Function):
    """log softmax(h W^T / temperature)[target] of each row.

    With a soft cap, logits are cap tanh(h W^T / cap) / temperature, whose derivative is 1 - tanh^2 times as large.
    d log p(y) / d logits = onehot(y) - p, so the backward pass needs no more than this. It is kept for the first blocks and computed
    again for the others. The upstream gradient scales whole rows; it is applied to the short side of a row (D), not to the long one (V).
    """

    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        softcap: float | None,
        entropy: bool,
        keeps: bool,
    ):
        count = len(hidden)
        rows, head, targets, block = _prepared(hidden, weight, targets, temperature)
        cap = None if softcap is None else softcap / temperature  # of logits that are divided already
        values = rows.new_empty(len(rows), dtype=torch.promote_types(rows.dtype, torch.float32))
        entropies = torch.zeros_like(values)
        room = _KEPT_BYTES[rows.device.type] if keeps and cap is None else 0
        kept: list[Tensor] = []
        for start in range(0, len(rows), block):
            part = slice(start, start + block)
            logits = soft_capped(wide_product(rows[part], head), cap)
            own = entropies[part] if entropy else None
            room -= logits.numel() * rows.element_size()
            if room >= 0:
                kept.append(_gap(logits, targets[part], rows.dtype, values[part], own))
            else:
                _score(logits, targets[part], values[part], own)
        ctx.save_for_backward(rows, head, targets)
        ctx.temperature, ctx.block, ctx.dtypes = temperature, block, (hidden.dtype, weight.dtype)
        ctx.cap, ctx.kept = cap, kept
        values, entropies = values[:count], entropies[:count]
        ctx.mark_non_differentiable(entropies)
        return values, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _: Tensor):
        rows, head, targets = ctx.saved_tensors
        count = len(gradient)
        gradient = F.pad(gradient, (0, len(rows) - count))[:, None]
        wanted = ctx.needs_input_grad[1]  # a head that is frozen has no gradient
        if ctx.cap is None:
            kept, ctx.kept = ctx.kept, []  # another backward pass computes them again
            to_rows, to_head = _gradients(rows, head, targets, gradient, ctx.block, wanted, kept)
        else:
            to_rows, to_head = _capped_gradients(rows, head, targets, gradient, ctx.cap, ctx.block, wanted)
        to_rows = to_rows[:count] / ctx.temperature if ctx.temperature != 1.0 else to_rows[:count]
        to_head = None if to_head is None else to_head.to(ctx.dtypes[1])
        return to_rows.to(ctx.dtypes[0]), to_head, None, None, None, None, None


def _score(logits: Tensor, targets: Tensor, values: Tensor, entropies: Tensor | None) -> None:
    """Write log-probabilities of the targets (N,) and, if they are wanted, entropies (N,). The logits (N, V) are overwritten."""
    if native_kernels.covers(logits):
        native_kernels.log_probabilities(logits, targets, values, entropies)
        return
    logits -= logits.amax(-1, keepdim=True)
    values.copy_(logits.gather(1, targets[:, None]).squeeze(1))
    weights = logits.exp() if entropies is not None else logits.exp_()  # e^logits; divided by their sum p
    total = weights.sum(-1)
    values -= total.log()
    if entropies is not None:  # -sum p log p = log(total) - sum(p logits)
        entropies.copy_(total.log() - weights.mul_(logits).sum(-1).div_(total))


def _gap(
    logits: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
    values: Tensor | None = None,
    entropies: Tensor | None = None,
    *,
    compiled: bool = False,
) -> Tensor:
    """Return d log p(target) / d logits = onehot(target) - p, (N, V) in `dtype`. The logits are overwritten.

    Args:
        values, entropies: (N,), where log p(target) and the entropy are written if they are wanted.
    """
    if native_kernels.covers(logits, dtype=dtype):
        gap = logits if logits.dtype == dtype else torch.empty_like(logits, dtype=dtype)
        native_kernels.log_probabilities(logits, targets, values, entropies, gap)
        return gap
    if compiled and values is not None and entropies is None:
        found, gap = _compiled_gap()(logits, targets, dtype)
        values.copy_(found)
        return gap
    log_p = logits.log_softmax(-1)
    if values is not None:
        values.copy_(log_p.gather(1, targets[:, None]).squeeze(1))
    if entropies is not None:  # -sum p log p, where 0 log 0 is 0
        entropies.copy_(torch.special.entr(log_p.exp()).sum(-1))
    gap = log_p.exp_().neg_()
    return gap.scatter_add_(1, targets[:, None], torch.ones_like(gap[:, :1])).to(dtype)


@cache
def _compiled_gap() -> Callable[[Tensor, Tensor, torch.dtype], tuple[Tensor, Tensor]]:
    return torch.compile(_pointwise_gap)


def _pointwise_gap(logits: Tensor, targets: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return log p(target) (N,) and onehot(target) - p, in the form that compiles to two passes over the logits."""
    total = logits.logsumexp(-1, keepdim=True)
    is_target = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    gap = is_target.to(logits.dtype) - (logits - total).exp()
    return (logits.gather(1, targets[:, None]) - total).squeeze(1), gap.to(dtype)


def _gradients(
    rows: Tensor, head: Tensor, targets: Tensor, gradient: Tensor, block: int, wanted: bool, kept: list[Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of rows (N, D) and, if that is wanted, of the head (V, D).

    Args:
        kept: `_gap` of the first blocks. Emptied.
    """
    to_rows = torch.empty(rows.shape, dtype=gradient.dtype, device=rows.device)
    to_head = torch.zeros(head.shape, dtype=gradient.dtype, device=head.device) if wanted else None
    scaled = (gradient * rows).to(rows.dtype)
    for start in range(0, len(rows), block):
        part = slice(start, start + block)
        gap = kept.pop(0) if kept else _gap(wide_product(rows[part], head), targets[part], rows.dtype)
        torch.mul(gradient[part], gap @ head, out=to_rows[part])
        if to_head is not None:
            _add_product(to_head, gap, scaled[part])
    return to_rows, to_head


def _capped_gradients(
    rows: Tensor, head: Tensor, targets: Tensor, gradient: Tensor, cap: float, block: int, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the same with a soft cap, which weighs every logit differently."""
    to_rows = torch.empty(rows.shape, dtype=gradient.dtype, device=rows.device)
    to_head = torch.zeros(head.shape, dtype=gradient.dtype, device=head.device) if wanted else None
    for start in range(0, len(rows), block):
        part = slice(start, start + block)
        logits = soft_capped(wide_product(rows[part], head), cap)
        to_logits = -logits.softmax(-1)
        to_logits.scatter_add_(1, targets[part, None], torch.ones_like(gradient[part]))
        to_logits = (to_logits.mul_(1 - (logits / cap).square_()).mul_(gradient[part])).to(rows.dtype)
        to_rows[part] = to_logits @ head
        if to_head is not None:
            _add_product(to_head, to_logits, rows[part])
    return to_rows, to_head


def _add_product(to_head: Tensor, to_logits: Tensor, rows: Tensor) -> None:
    """Add (N, V)^T (N, D) to the gradient of the head.

    A product in bf16 would be half as large as it, so it is made some of its rows at a time where it cannot be added at once.
    """
    if to_head.dtype == torch.float32 and wide_products.covers(to_logits, rows):
        wide_products.multiply(to_logits.T, rows, to_head, accumulate=True)
        return
    for total, part in zip(to_head.split(_HEAD_ROWS), to_logits.split(_HEAD_ROWS, dim=1), strict=True):
        if total.dtype == rows.dtype:
            total.addmm_(part.T, rows)
        else:
            total += part.T @ rows


def last_token(values: Tensor, mask: Tensor) -> Tensor:
    """Return `values` (B, T) at the last set position of each row of `mask` (B, T), for padding on either side: (B,)."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, positions, -1).amax(1).clamp(min=0)
    return values.gather(1, last[:, None]).squeeze(1)
