"""Kernels of a training step on a CPU in float32 and bfloat16: autograd functions around `kernels.c`.

`model/kernels.py` and `model/heads.py` decide when they are used. Attention in float32 is torch's own, whose kernel leaves little to gain.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tinyllm.model.native import compilation
from tinyllm.model.native.wide_products import TYPES

_DTYPES = (torch.float32, torch.bfloat16)
_CHUNKS = 64  # parts in which gradients of gains are summed
_LARGEST_HEAD, _LONGEST = 512, 1024  # of kernels.c
_SIGNATURES = {  # integers (i), floats (f) and pointers (p)
    "norm": "iifipppp",
    "norm_backward": "iiiipppppp",
    "heads": "p",
    "heads_backward": "p",
    "gate": "iippp",
    "gate_backward": "iippppp",
    "causal_softmax": "iifip",
    "causal_softmax_backward": "iifipp",
    "log_probabilities": "iiippppp",
}
_KINDS = {"i": ctypes.c_int64, "f": ctypes.c_float, "p": ctypes.c_void_p}


class _Heads(ctypes.Structure):
    _fields_ = [
        *(
            (n, ctypes.c_int64)
            for n in ["rows", "length", "heads", "width", "rotated", "narrow", "rotation_stride", "stride", "chunks"]
        ),
        ("eps", ctypes.c_float),
        *((n, ctypes.c_void_p) for n in ["gain", "cos", "sin", "tokens", "heads_of", "scales", "to_tokens", "to_gain"]),
    ]


@cache
def library() -> ctypes.CDLL | None:
    """Return the functions of kernels.c; None where they cannot be compiled."""
    found = compilation.load(Path(__file__).with_name("kernels.c"))
    for name, signature in _SIGNATURES.items() if found is not None else ():
        function = getattr(found, name)
        function.argtypes, function.restype = [_KINDS[kind] for kind in signature], None
    return found


def covers(*tensors: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Return whether these functions can be used: plain tensors of float32 or bfloat16 on a CPU, outside a compilation by torch.

    Args:
        dtype: of the result.
    """
    return (
        all(type(x) in TYPES and x.device.type == "cpu" and x.dtype in _DTYPES for x in tensors)
        and dtype in _DTYPES
        and not torch.compiler.is_compiling()
        and library() is not None
    )


def covers_heads(tokens: Tensor, width: int, gain: Tensor | None, cos: Tensor | None, sin: Tensor | None) -> bool:
    """Return whether `Heads` can be used: every array is as large as the function expects."""
    _, length, together = tokens.shape
    angles = [x for x in (cos, sin) if x is not None]
    return (
        width <= _LARGEST_HEAD
        and together % width == 0
        and covers(tokens, *([] if gain is None else [gain]), *angles)
        and (gain is None or gain.shape == (width,))
        and all(x.ndim == 4 and x.shape[0] in (1, len(tokens)) and x.shape[1:3] == (1, length) for x in angles)
        and len({x.shape for x in angles}) <= 1
        and all(2 * x.shape[-1] <= width for x in angles)
    )


def covers_attention(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Return whether `CausalAttention` can be used: queries, keys and values (..., T, D) of one dtype and as many heads."""
    alike = q.shape == k.shape == v.shape and q.dtype == k.dtype == v.dtype
    return alike and q.shape[-2] <= _LONGEST and covers(q, k, v, dtype=q.dtype)


def _functions() -> ctypes.CDLL:
    found = library()
    assert found is not None
    return found


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _is_narrow(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16


class RMSNorm(torch.autograd.Function):
    """`kernels.rms_norm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x, wide = x.contiguous(), gain.float().contiguous()
        width = x.shape[-1]
        rows = x.numel() // width
        out, scales = torch.empty_like(x, dtype=dtype), x.new_empty(rows, dtype=torch.float32)
        narrow = _is_narrow(x) + 2 * _is_narrow(out)
        pointers = x.data_ptr(), wide.data_ptr(), out.data_ptr(), scales.data_ptr()
        _functions().norm(rows, width, eps, narrow, *pointers)
        ctx.save_for_backward(x, wide, scales)
        ctx.dtypes = gain.dtype, dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, gain, scales = ctx.saved_tensors
        of_gain, dtype = ctx.dtypes
        gradient = gradient.to(dtype).contiguous()
        width, rows = x.shape[-1], len(scales)
        chunks = min(_CHUNKS, rows)
        to_x, to_gain = torch.empty_like(x), gain.new_empty(chunks, width)
        narrow = _is_narrow(x) + 2 * _is_narrow(gradient)
        pointers = (a.data_ptr() for a in (gradient, x, gain, scales, to_x, to_gain))
        _functions().norm_backward(rows, width, chunks, narrow, *pointers)
        return to_x, to_gain.sum(0).to(of_gain), None, None


def _described(
    tokens: Tensor, stride: int, width: int, gain: Tensor | None, eps: float, cos: Tensor | None, sin: Tensor | None
) -> _Heads:
    """Return the description of tokens (B, T, heads * width), of which each begins `stride` numbers behind the one before."""
    rows, length, together = tokens.shape
    found = _Heads(rows, length, together // width, width, 0, _is_narrow(tokens))
    if cos is not None and sin is not None:
        found.rotated = 2 * cos.shape[-1]
        found.rotation_stride = 0 if len(cos) == 1 else cos.stride(0)
        found.cos, found.sin = cos.data_ptr(), sin.data_ptr()
    found.stride, found.chunks, found.eps = stride, min(_CHUNKS, rows * length), eps
    found.gain, found.tokens = _address(gain), tokens.data_ptr()
    return found


def _apart(tokens: Tensor) -> tuple[Tensor, int]:
    """Return tokens (B, T, W) at equal distances in memory, and the distance. Strides of dimensions of one element mean nothing."""
    rows, length, together = tokens.shape
    if tokens.stride(2) == 1 and length > 1 and (rows == 1 or tokens.stride(0) == length * tokens.stride(1)):
        return tokens, tokens.stride(1)
    return tokens.contiguous(), together


class Heads(torch.autograd.Function):
    """(B, T, heads * width) to (B, heads, T, width), normalized where there is a gain, and rotated where there are angles."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        width: int,
        gain: Tensor | None,
        eps: float,
        cos: Tensor | None,
        sin: Tensor | None,
    ) -> Tensor:
        wide = None if gain is None else gain.float().contiguous()
        tokens, stride = _apart(tokens)
        cos, sin = (None if x is None else x.float().contiguous() for x in (cos, sin))
        rows, length, together = tokens.shape
        described = _described(tokens, stride, width, wide, eps, cos, sin)
        out = tokens.new_empty(rows, together // width, length, width)
        scales = None if wide is None else wide.new_empty(rows, length, together // width)
        described.heads_of, described.scales = out.data_ptr(), _address(scales)
        _functions().heads(ctypes.byref(described))
        ctx.save_for_backward(tokens if wide is not None else None, wide, cos, sin, scales)
        ctx.shape, ctx.stride, ctx.eps = (rows, length, together, width), stride, eps
        ctx.of_gain = None if gain is None else gain.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        tokens, gain, cos, sin, scales = ctx.saved_tensors
        rows, length, together, width = ctx.shape
        gradient = gradient.contiguous()
        to_tokens = gradient.new_empty(rows, length, together)
        described = _described(to_tokens if tokens is None else tokens, ctx.stride, width, gain, ctx.eps, cos, sin)
        to_gain = None if gain is None else gain.new_empty(described.chunks, width)
        described.heads_of, described.scales = gradient.data_ptr(), _address(scales)
        described.to_tokens, described.to_gain = to_tokens.data_ptr(), _address(to_gain)
        _functions().heads_backward(ctypes.byref(described))
        return to_tokens, None, None if to_gain is None else to_gain.sum(0).to(ctx.of_gain), None, None, None


class SiluGate(torch.autograd.Function):
    """silu(gate) * up, of two tensors of one shape."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        pointers = gate.data_ptr(), up.data_ptr(), out.data_ptr()
        _functions().gate(gate.numel(), _is_narrow(gate), *pointers)
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_gate, to_up = torch.empty_like(gate), torch.empty_like(up)
        pointers = (x.data_ptr() for x in (gradient, gate, up, to_gate, to_up))
        _functions().gate_backward(gate.numel(), _is_narrow(gate), *pointers)
        return to_gate, to_up


class CausalAttention(torch.autograd.Function):
    """softmax(q k^T * scale) v over the keys up to each query, with all probabilities in memory: q, k, v (N, T, D), T <= 1024."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        scores = torch.bmm(q, k.transpose(1, 2))
        heads, length, _ = scores.shape
        _functions().causal_softmax(heads, length, scale, _is_narrow(scores), scores.data_ptr())
        ctx.save_for_backward(q, k, v, scores)
        ctx.scale = scale
        return torch.bmm(scores, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, probabilities = ctx.saved_tensors
        heads, length, _ = probabilities.shape
        to_v = torch.bmm(probabilities.transpose(1, 2), gradient)
        to_scores = torch.bmm(gradient, v.transpose(1, 2))
        pointers = probabilities.data_ptr(), to_scores.data_ptr()
        _functions().causal_softmax_backward(heads, length, ctx.scale, _is_narrow(to_scores), *pointers)
        return torch.bmm(to_scores, k), torch.bmm(to_scores.transpose(1, 2), q), to_v, None


def log_probabilities(
    logits: Tensor,
    targets: Tensor,
    log_probs: Tensor | None,
    entropies: Tensor | None = None,
    gaps: Tensor | None = None,
) -> None:
    """Write log p(target) and the entropy of each row of logits (N, V), and onehot(target) - p, where they are wanted.

    With `gaps` (N, V), which may be the logits themselves, the logits are overwritten.

    Raises:
        IndexError: a target is not in the vocabulary.
    """
    rows, width = logits.shape
    targets = targets.long().contiguous()
    if rows and not 0 <= int(targets.min()) <= int(targets.max()) < width:
        raise IndexError(f"targets from {int(targets.min())} to {int(targets.max())} in a vocabulary of {width}")
    narrow = gaps is not None and _is_narrow(gaps)
    pointers = (_address(x) for x in (logits, targets, log_probs, entropies, gaps))
    _functions().log_probabilities(rows, width, narrow, *pointers)
