"""Products of bfloat16 matrices with float32 sums and results on a CPU: torch rounds such results to bfloat16.

MKL has the function, and torch comes with MKL on x86. It is used where the processor multiplies bfloat16; elsewhere float32 is as fast.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from tinyllm.model.native import compilation

_ROW_MAJOR, _PLAIN, _TRANSPOSED = 101, 111, 112  # of CBLAS
_LARGEST = 2**31 - 1  # of its integers
TYPES = (Tensor, torch.nn.Parameter)  # others, as those of tracing, may have no memory


def covers(*matrices: Tensor) -> bool:
    """Return whether `multiply` takes these: bfloat16 matrices on a CPU that multiplies them, without a gradient to record."""
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in matrices)
    return (
        not recorded
        and all(_is_plain(x) and x.dtype == torch.bfloat16 and x.ndim == 2 and _layout(x) for x in matrices)
        and not torch.compiler.is_compiling()
        and pays()
    )


def covers_training(x: Tensor, weight: Tensor) -> bool:
    """Return whether a product of these and its gradients can be computed in bfloat16: plain tensors on a CPU that multiplies it."""
    return _is_plain(x) and _is_plain(weight) and not torch.compiler.is_compiling() and pays()


def multiply(a: Tensor, b: Tensor, out: Tensor, *, accumulate: bool = False) -> Tensor:
    """Write a (M, K) times b (K, N) to out (M, N), or add it. Returns `out`.

    Args:
        a, b: bfloat16, with their rows or their columns in one piece.
        out: float32, with its rows in one piece.

    Raises:
        ValueError: they do not fit.
    """
    (rows, inner), columns = a.shape, b.shape[1]
    of_a, of_b, of_out = _layout(a), _layout(b), _layout(out)
    if b.shape[0] != inner or out.shape != (rows, columns) or out.dtype != torch.float32:
        raise ValueError(f"{(*a.shape,)} times {(*b.shape,)} is not written to {(*out.shape,)} of {out.dtype}")
    if of_a is None or of_b is None or of_out is None or of_out[0] != _PLAIN or not all(map(_is_plain, (a, b, out))):
        raise ValueError(f"matrices whose strides are {a.stride()}, {b.stride()} and {out.stride()} are not multiplied")
    function = _function()
    assert function is not None
    operands = rows, columns, inner, 1.0, a.data_ptr(), of_a[1], b.data_ptr(), of_b[1]
    function(_ROW_MAJOR, of_a[0], of_b[0], *operands, float(accumulate), out.data_ptr(), of_out[1])
    return out


def _is_plain(x: Tensor) -> bool:
    """Return whether a tensor has numbers in the memory of this process; those of tracing have none."""
    return type(x) in TYPES and x.device.type == "cpu" and x.numel() > 0


def _layout(x: Tensor) -> tuple[int, int] | None:
    """Return whether rows or columns lie in one piece, and their distance; None if neither does, or the numbers are too large."""
    for kind, inner, outer in ((_PLAIN, 1, 0), (_TRANSPOSED, 0, 1)):
        if x.stride(inner) == 1 and x.shape[inner] <= x.stride(outer) <= _LARGEST and x.shape[outer] <= _LARGEST:
            return kind, x.stride(outer)
    return None


@cache
def pays() -> bool:
    """Return whether the function is there, and the processor multiplies bfloat16: on others, products in float32 are as fast."""
    return compilation.is_enabled() and torch.cpu._is_avx512_bf16_supported() and available()


@cache
def available() -> bool:
    """Return whether torch's libraries have the function, and it computes 2 times 3 plus 1."""
    function = _function()
    if function is None:
        return False
    # no tensors: they could be those of tracing
    a, b, out = ctypes.c_uint16(0x4000), ctypes.c_uint16(0x4040), ctypes.c_float(1)
    operands = (ctypes.addressof(a), 1, ctypes.addressof(b), 1, 1.0, ctypes.addressof(out), 1)
    function(_ROW_MAJOR, _PLAIN, _PLAIN, 1, 1, 1, 1.0, *operands)
    return out.value == 7


@cache
def _function() -> Callable[..., None] | None:
    """Return MKL's cblas_gemm_bf16bf16f32; None where torch was built without MKL or hides it."""
    try:
        found = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so")).cblas_gemm_bf16bf16f32
    except (OSError, AttributeError):
        return None
    integer, number, pointer = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    matrix = (pointer, integer)
    found.argtypes = [*[integer] * 6, number, *matrix, *matrix, number, *matrix]
    found.restype = None
    return found
