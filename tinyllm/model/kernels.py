"""Operations that are slow in eager mode when left to autograd: normalization, rotation, causal attention, linear layers in bfloat16.

Each is the textbook formula with its gradient written out, so that an eager step makes fewer passes over memory. On a CPU with a C compiler
most make one pass (`native.kernels`). Inside a compiled block the plain form is used, which the compiler fuses better.
`benchmarks/operations.py` compares them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinyllm.model.native import kernels as native_kernels
from tinyllm.model.native import wide_products

_EXPLICIT_LENGTH = 512  # tokens; above it, attention must not hold all scores at once
_COLUMNS = 8192  # of a matrix widened at once
_WIDEST_HEAD = 256  # of flash attention


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of matrix products with `x`: autocast's where it is enabled, else that of `x`."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def computing_with(model: nn.Module) -> AbstractContextManager[None]:
    """Return the context in which a model can compute: autocast to the dtype of its weights where some have less than float32.

    Others may be float32: vectors, and those that an adapter trains whole.
    """
    narrow = next((p for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)), None)
    if narrow is None or torch.is_autocast_enabled(narrow.device.type):
        return nullcontext()
    return torch.autocast(narrow.device.type, narrow.dtype)


def wide_product(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return rows (N, D) times matrix (V, D)^T, (N, V), in float32 at least: the products of narrow numbers, summed and not rounded again.

    For logits. Those of large models are 30 and more, where the steps of bfloat16 are 0.25 wide, so rounded ones would make sampler and
    training disagree by 0.1 nats in a token that neither is sure of (seen with SmolLM2; arXiv 2506.13585, section 3.2, has the same).
    """
    wide = torch.promote_types(rows.dtype, torch.float32)
    if rows.dtype == wide:
        return rows @ matrix.T
    kind = rows.device.type
    if kind != "cpu":
        into_wide = _multiplies_into_float32(kind, rows.dtype)
        return torch.mm(rows, matrix.T, out_dtype=wide) if into_wide else (rows @ matrix.T).to(wide)
    found = rows.new_empty(len(rows), len(matrix), dtype=wide)
    if wide_products.covers(rows, matrix):
        return wide_products.multiply(rows, matrix.T, found)
    rows = rows.to(wide)
    with torch.autocast(kind, enabled=False):
        for start in range(0, len(matrix), _COLUMNS):  # a whole matrix in float32 would be twice as large as it is
            part = slice(start, start + _COLUMNS)
            found[:, part] = rows @ matrix[part].to(wide).T
    return found


@cache
def _multiplies_into_float32(kind: str, dtype: torch.dtype) -> bool:
    """Return whether a kind of device has a product of narrow matrices with a float32 result, as CUDA has."""
    ones = torch.ones(16, 16, dtype=dtype, device=kind)
    try:
        return torch.mm(ones, ones, out_dtype=torch.float32).dtype == torch.float32
    except (RuntimeError, TypeError):
        return False


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467 Eq. 4), in the compute dtype.

    Args:
        x: (..., D).
        weight: (D,).
    """
    if torch.compiler.is_compiling():
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps).to(compute_dtype(x))
    if weight.shape == x.shape[-1:] and native_kernels.covers(x, weight, dtype=compute_dtype(x)):
        return native_kernels.RMSNorm.apply(x, weight, eps, compute_dtype(x))
    return _RMSNorm.apply(x, weight, eps, compute_dtype(x))


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        square = x.to(wide).square().mean(-1, keepdim=True)
        scale = square.add_(eps).rsqrt_().to(x.dtype)
        ctx.save_for_backward(x, scale, weight)
        return (x * scale).mul_(weight.to(x.dtype)).to(dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, scale, weight = ctx.saved_tensors
        gradient = gradient.to(x.dtype)
        unit = x * scale
        to_weight = (gradient * unit).flatten(0, -2).sum(0)
        inner = gradient * weight.to(x.dtype)
        along = (inner * unit).mean(-1, keepdim=True)  # the part that only changes the length of x
        return torch.addcmul(inner, unit, along, value=-1).mul_(scale), to_weight.to(weight.dtype), None, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W^T + b, in the compute dtype; x: (..., D), weight: (N, D), bias: (N,)."""
    narrow = (
        compute_dtype(weight) == torch.bfloat16 != weight.dtype and weight.requires_grad and torch.is_grad_enabled()
    )
    if narrow and bias is None and x.ndim > 1 and x.numel() and wide_products.covers_training(x, weight):
        return _Linear.apply(x, weight)
    return F.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    """x W^T in bfloat16, with a gradient of W that is summed in float32 and not rounded."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        rows, matrix = x.to(torch.bfloat16).flatten(0, -2).contiguous(), weight.to(torch.bfloat16).contiguous()
        ctx.save_for_backward(rows, matrix)
        ctx.shape = x.shape
        return torch.mm(rows, matrix.T).view(*x.shape[:-1], len(matrix))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, matrix = ctx.saved_tensors
        gradient = gradient.flatten(0, -2).contiguous()
        to_x = torch.mm(gradient, matrix).view(ctx.shape) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return to_x, None
        return to_x, wide_products.multiply(gradient.T, rows, torch.empty(matrix.shape, dtype=torch.float32))


def heads(
    tokens: Tensor, width: int, gain: Tensor | None, eps: float, cos: Tensor | None, sin: Tensor | None
) -> Tensor:
    """Return queries, keys or values (B, heads, T, width) of the tokens' products (B, T, heads * width).

    Args:
        gain: (width,), of `rms_norm` over each head; None: not normalized.
        cos, sin: of each position's angles, (B or 1, 1, T, rotated / 2); None: not rotated. See `rotate`.
    """
    plain = gain is None or tokens.dtype == compute_dtype(tokens)  # otherwise the dtype changes
    if plain and native_kernels.covers_heads(tokens, width, gain, cos, sin):
        return native_kernels.Heads.apply(tokens, width, gain, eps, cos, sin)
    apart = tokens.unflatten(-1, (-1, width))
    apart = (apart if gain is None else rms_norm(apart, gain, eps)).transpose(1, 2)
    return apart if cos is None or sin is None else rotate(apart, cos, sin)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary position embedding (arXiv 2104.09864) in the half-split layout to the first dimensions of a head.

    Args:
        x: queries or keys (B, H, T, D).
        cos, sin: of each position's angles, (B or 1, 1, T, rotated / 2).
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    rotated = 2 * cos.shape[-1]
    if rotated < x.shape[-1]:
        return torch.cat((rotate(x[..., :rotated], cos, sin), x[..., rotated:]), dim=-1)
    return _rotated(x, cos, sin) if torch.compiler.is_compiling() else _Rotate.apply(x, cos, sin)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class _Rotate(torch.autograd.Function):
    """Rotation whose gradient is the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, -sin), None, None


def soft_capped(x: Tensor, cap: float | None) -> Tensor:
    """Return cap * tanh(x / cap), which stays between -cap and cap; x where there is no cap."""
    return x if cap is None else cap * torch.tanh(x / cap)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float | None = None, softcap: float | None = None
) -> Tensor:
    """Return softmax(q k^T * scale + mask) v, (B, T, H * D).

    In bf16 on a CPU the products are written out: for rows of a few hundred tokens that trains twice as fast as the library's blockwise
    kernel, whose backward pass is made for longer ones. The choice does not depend on gradients: a reference model that is scored by
    another kernel than the policy would differ by rounding, and DPO would not start at ln 2.

    Args:
        q: (B, H, T, D).
        k, v: (B, K, S, D), K dividing H.
        mask: (B or 1, 1, T, S) bool, True where a query sees a key. Without one, attention is causal if T > 1.
        scale: 1 / sqrt(D) if not given.
        softcap: limits the scores before the mask, see `soft_capped`.
    """
    length = q.shape[2]
    if mask is not None and q.device.type == "cuda":  # of CUDA's kernels, none has both a mask and shared heads
        k, v = _for_all_heads(q, k, v)
    grouped = q.shape[1] != k.shape[1]
    plain = mask is None and scale is None
    if softcap is not None:
        found = _capped_attention(q, k, v, mask, q.shape[-1] ** -0.5 if scale is None else scale, softcap)
    elif plain and q.device.type == "cpu" and q.dtype == torch.bfloat16 and 1 < length <= _EXPLICIT_LENGTH:
        found = explicit_attention(q, k, v)
    else:
        causal = mask is None and length > 1
        found = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped, scale=scale
        )
    return found.transpose(1, 2).flatten(2)


def attention_in_documents(
    kernel: DocumentsKernel,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor,
    window: int | None,
    *,
    scale: float | None = None,
) -> Tensor:
    """Return causal attention inside the documents of packed rows, (B, T, H * D).

    Args:
        kernel: see `documents_kernel`.
        q: (B, H, T, D).
        k, v: (B, K, T, D), K dividing H.
        bounds: see `positions.document_bounds`.
        window: keys that a query sees, itself included; None: all.
        scale: 1 / sqrt(D) if not given.
    """
    rows, _, length, _ = q.shape
    dtype = compute_dtype(q)  # an adapter's products can be float32, and autocast does not know the kernel
    more: dict[str, Any] = {} if scale is None else {"scale": scale}
    if kernel.shares_heads:
        more["enable_gqa"] = True
    else:
        k, v = _for_all_heads(q, k, v)
    q, k, v = (x.transpose(1, 2).flatten(0, 1).to(dtype) for x in (q, k, v))
    seen = (-1 if window is None else window - 1, 0)  # keys before and behind a query
    found = kernel.function(q, k, v, bounds, bounds, length, length, window_size=seen, **more)
    return found.view(rows, length, -1)


class DocumentsKernel(NamedTuple):
    """Attention of sequences of unequal length, one behind the other: `torch.nn.attention.varlen.varlen_attn`."""

    function: Callable[..., Any]
    shares_heads: bool
    """has grouped heads, as from torch 2.12 on"""


def documents_kernel(device: torch.device, dtype: torch.dtype, width: int) -> DocumentsKernel | None:
    """Return the kernel for packed rows; None where a mask is needed: devices without flash attention, float32, old versions.

    Args:
        width: of a head.
    """
    narrow = dtype in (torch.bfloat16, torch.float16) and width % 8 == 0 and width <= _WIDEST_HEAD
    if (
        not narrow
        or device.type != "cuda"
        or torch.version.hip
        or not torch.backends.cuda.is_flash_attention_available()
    ):
        return None
    if torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    return DocumentsKernel(varlen_attn, "enable_gqa" in known) if {"scale", "window_size"} <= set(known) else None


def _for_all_heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values (B, H, S, D) of all heads of q, which share those of (B, K, S, D)."""
    shared = q.shape[1] // k.shape[1]
    return (k, v) if shared == 1 else (k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1))


def gated(gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """Return activation(gate) * up; all of one shape."""
    alike = gate.dtype == up.dtype and gate.shape == up.shape
    if activation is F.silu and alike and native_kernels.covers(gate, up):
        return native_kernels.SiluGate.apply(gate, up)
    return activation(gate) * up


def _capped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float) -> Tensor:
    """Return attention with limited scores, which no kernel of the library has: all scores of a head are in memory."""
    k, v = _for_all_heads(q, k, v)
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
    scores = soft_capped(q @ k.transpose(2, 3) * scale, softcap).masked_fill(~mask, -torch.inf)
    wide = torch.promote_types(q.dtype, torch.float32)
    return scores.softmax(-1, dtype=wide).to(v.dtype) @ v


def explicit_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return causal attention by its formula, with all (T, T) scores of a head in memory. Shapes as in `attention`, with S = T."""
    rows, heads, length, width = q.shape
    k, v = _for_all_heads(q, k, v)
    q, k, v = (x.to(compute_dtype(x)) for x in (q, k, v))  # an adapter's products can be float32 in autocast
    if native_kernels.covers_attention(q, k, v):
        together = (x.reshape(rows * heads, length, width) for x in (q, k, v))
        return native_kernels.CausalAttention.apply(*together, width**-0.5).view(rows, heads, length, width)
    future = torch.full((length, length), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    q, k, v = (x.reshape(rows * heads, length, width) for x in (q, k, v))
    scores = torch.baddbmm(future, q, k.transpose(1, 2), alpha=width**-0.5)
    return (scores.softmax(-1) @ v).view(rows, heads, length, width)
