"""The operations of `tinyllm.model.kernels` and `heads` against the library's own, forward and backward, in turns in the same run.

    python benchmarks/operations.py

Prints milliseconds (median) at the shapes of the 1.4M model, 16 rows of 256 tokens, and ours as a multiple of theirs in speed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyllm import distributed as dist
from tinyllm.model.heads import log_prob_total, token_log_probs
from tinyllm.model.kernels import attention, gated, heads, rms_norm

ROWS, LENGTH, WIDTH, HEADS, VOCABULARY = 16, 256, 128, 2, 4096


def turns(ours: Callable[[], None], theirs: Callable[[], None], rounds: int = 15) -> tuple[float, float]:
    """Median milliseconds of each."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 2):
        for found, run in zip(times, (ours, theirs), strict=True):
            start = time.perf_counter()
            run()
            found.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[0][2:]), statistics.median(times[1][2:])


def plain_heads(x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Normalize, rotate and transpose heads by the library's operations."""
    apart = F.rms_norm(x.unflatten(-1, (HEADS, -1)), gain.shape, gain, 1e-6).transpose(1, 2)
    first, second = apart.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def cases(dtype: torch.dtype) -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
    shape = (ROWS, LENGTH, HEADS, WIDTH // HEADS)
    q, k, v = (torch.randn(shape).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3))
    x, gain = torch.randn(ROWS, LENGTH, WIDTH).to(dtype).requires_grad_(), torch.ones(WIDTH, requires_grad=True)
    head = (torch.randn(VOCABULARY, WIDTH) / 8).to(dtype).requires_grad_()
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False

    of_head = torch.ones(WIDTH // HEADS, requires_grad=True)
    angles = torch.arange(LENGTH)[:, None] * 10000 ** -torch.linspace(0, 1, WIDTH // HEADS // 2)
    cos, sin = angles.cos()[None, None], angles.sin()[None, None]
    gate, up = (torch.randn(ROWS, LENGTH, 3 * WIDTH).to(dtype).requires_grad_() for _ in range(2))

    def cross_entropy() -> None:
        logits = (x[:, :-1].reshape(-1, WIDTH) @ head.T).float()
        F.cross_entropy(logits, ids[:, 1:].reshape(-1), reduction="sum").backward()

    return {
        "causal attention": (
            lambda: attention(q, k, v, None).sum().backward(),
            lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward(),
        ),
        "RMSNorm": (
            lambda: rms_norm(x, gain, 1e-6).sum().backward(),
            lambda: F.rms_norm(x, (WIDTH,), gain.to(dtype), 1e-6).sum().backward(),
        ),
        "heads": (
            lambda: heads(x, WIDTH // HEADS, of_head, 1e-6, cos, sin).sum().backward(),
            lambda: plain_heads(x, of_head.to(dtype), cos.to(dtype), sin.to(dtype)).sum().backward(),
        ),
        "gate": (
            lambda: gated(gate, up, F.silu).sum().backward(),
            lambda: (F.silu(gate) * up).sum().backward(),
        ),
        "log-probabilities": (lambda: (-token_log_probs(x, head, ids, mask).sum()).backward(), cross_entropy),
        "their total": (lambda: (-log_prob_total(x, head, ids, mask)).backward(), cross_entropy),
    }


def main() -> None:
    torch.set_num_threads(dist.threads_per_rank())
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for dtype in (torch.float32, torch.bfloat16):
        for name, (ours, theirs) in cases(dtype).items():
            mine, other = turns(ours, theirs)
            print(
                f"{name:20} {str(dtype).removeprefix('torch.'):9} ours {mine:7.2f} ms   library {other:7.2f} ms   {other / mine:.2f} x"
            )


if __name__ == "__main__":
    main()
