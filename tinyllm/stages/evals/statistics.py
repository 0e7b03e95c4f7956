"""Figures with their uncertainty: means, shares, means of means, and pass@k. Plain numbers, no tensors.

Left out: the bootstrap (its random numbers would be one more thing to fix, and every figure here is a mean).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations
SHARE = (0.0, 1.0)


@dataclass(frozen=True)
class Estimate:
    """One figure: what was measured, how far it may be off, and what it can be at all."""

    value: float
    stderr: float | None = None
    """standard error; none where it is not known, as of one sample"""
    interval: tuple[float, float] | None = None
    """95 % confidence interval"""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    samples: float = 0
    """of a share: in how many it was seen; 0 for any other figure"""
    higher_is_better: bool = True


def mean(values: Sequence[float], bounds: tuple[float, float]) -> Estimate:
    """A mean of samples within `bounds`, its standard error s / sqrt(n) with s over n - 1 (as lm-eval has it), and value ± Z errors."""
    value, stderr = sum(values) / len(values), None
    if len(values) > 1:
        variance = sum((v - value) ** 2 for v in values) / (len(values) - 1)
        stderr = math.sqrt(variance / len(values))
    return Estimate(value, stderr, _normal(value, stderr, bounds), bounds)


def share(values: Sequence[float]) -> Estimate:
    """A mean of samples that are right (1) or wrong (0), with Wilson's interval (JASA 22, 1927), which holds near 0 and 1, too."""
    plain = mean(values, SHARE)
    return Estimate(plain.value, plain.stderr, wilson(plain.value, len(values)), SHARE, len(values))


def wilson(p: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share `p` seen in `n` samples."""
    middle = p + Z * Z / (2 * n)
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def over_files(found: Sequence[Estimate]) -> Estimate:
    """The mean of independent figures, each counting alike whatever its size: error sqrt(sum of squares) / how many.

    Of shares the interval is Wilson's with k^2 / sum(1/n) samples, which is their number where all files have equally many. It is a
    little wider than the error says, because files differ, and still an interval where every file has 0 or 1.
    """
    k, bounds, higher = len(found), found[0].bounds, found[0].higher_is_better
    value = sum(e.value for e in found) / k
    errors = [e.stderr for e in found if e.stderr is not None]
    stderr = math.sqrt(sum(e * e for e in errors)) / k if len(errors) == k else None
    if all(e.samples for e in found):
        samples = k * k / sum(1 / e.samples for e in found)
        return Estimate(value, stderr, wilson(value, samples), bounds, samples, higher)
    return Estimate(value, stderr, _normal(value, stderr, bounds), bounds, 0, higher)


def _normal(value: float, stderr: float | None, bounds: tuple[float, float]) -> tuple[float, float] | None:
    if stderr is None:
        return None
    return max(bounds[0], value - Z * stderr), min(bounds[1], value + Z * stderr)


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of k answers is right, if c of n samples were: 1 - C(n-c, k) / C(n, k).

    Unbiased, unlike 1 - (1 - c/n)^k (arXiv 2107.03374, equation 1). In whole numbers, so nothing overflows.
    """
    assert 0 <= c <= n
    assert 1 <= k <= n
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)
