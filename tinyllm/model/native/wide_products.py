"""Products of bfloat16 matrices with float32 sums and results on a CPU: torch rounds such results to bfloat16.

MKL has the function, and torch comes with MKL on x86. It is used where the processor multiplies bfloat16; elsewhere float32 is as fast.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_ROW_MAJOR, _PLAIN, _TRANSPOSED = 101, 111, 112  # of CBLAS
_LARGEST = 2**31 - 1  # of its integers


def covers(*matrices: Tensor) -> bool:
    """Return whether `multiply` takes these: bfloat16 matrices on a CPU that multiplies them, without a gradient to record."""
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in matrices)
    return (
        not recorded
        and all(_is_plain(x) and x.dtype == torch.bfloat16 for x in matrices)
        and not torch.compiler.is_compiling()
        and pays()
    )


def multiply(a: Tensor, b: Tensor, out: Tensor, *, accumulate: bool = False) -> Tensor:
    """Write a (M, K) times b (K, N) to out (M, N), or add it. Returns `out`.

    Args:
        a, b: bfloat16, each with a stride of 1.
        out: float32, contiguous rows.
    """
    (rows, inner), columns = a.shape, b.shape[1]
    if b.shape[0] != inner or out.shape != (rows, columns) or out.dtype != torch.float32:
        raise ValueError(f"{(*a.shape,)} times {(*b.shape,)} is not written to {(*out.shape,)} of {out.dtype}")
    function, of_a, of_b = _function(), _layout(a), _layout(b)
    assert function is not None
    assert of_a is not None
    assert of_b is not None
    operands = rows, columns, inner, 1.0, a.data_ptr(), of_a[1], b.data_ptr(), of_b[1]
    function(_ROW_MAJOR, of_a[0], of_b[0], *operands, float(accumulate), out.data_ptr(), max(out.stride(0), columns))
    return out


def _is_plain(x: Tensor) -> bool:
    return x.ndim == 2 and x.device.type == "cpu" and min(x.shape) > 0 and _layout(x) is not None


def _layout(x: Tensor) -> tuple[int, int] | None:
    """Return whether rows or columns lie in one piece, and their distance; None if neither does, or the numbers are too large."""
    for kind, inner, outer in ((_PLAIN, 1, 0), (_TRANSPOSED, 0, 1)):
        if x.stride(inner) == 1 and x.shape[inner] <= x.stride(outer) <= _LARGEST and x.shape[outer] <= _LARGEST:
            return kind, x.stride(outer)
    return None


@cache
def pays() -> bool:
    """Return whether the function is there, right, and faster than a product in float32."""
    if os.environ.get("TINYLLM_NATIVE", "1") == "0" or not torch.cpu._is_avx512_bf16_supported():
        return False
    return available()


@cache
def available() -> bool:
    """Return whether torch's libraries have the function, and it multiplies."""
    if _function() is None:
        return False
    a, b = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(3, 4)  # small integers: exact in any order
    found = multiply(a.bfloat16(), b.bfloat16(), torch.ones(2, 4), accumulate=True)
    return torch.equal(found, a @ b + 1)


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
