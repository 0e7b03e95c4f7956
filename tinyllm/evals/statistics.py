"""Estimates with 95 % confidence intervals: means, proportions, means over files, pass@k. No tensors.

Left out: the bootstrap. Every metric here is a mean, and resampling would need a seed of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

Z = 1.959963984540054  # the 0.975 quantile of the standard normal distribution
_ROUNDING = 1e-12  # relative; of a sum of equal samples
UNIT = (0.0, 1.0)
UNBOUNDED = (-math.inf, math.inf)


@dataclass(frozen=True)
class Estimate:
    """The value of one metric and its uncertainty."""

    value: float
    stderr: float | None = None
    """standard error; None if unknown, as for a single sample"""
    interval: tuple[float, float] | None = None
    """95 % confidence interval; None where the samples say nothing about it, see `no_interval`"""
    bounds: tuple[float, float] = UNBOUNDED
    """the range of possible values"""
    samples: float = 0
    """of a proportion: the number of samples; 0 for other metrics"""
    higher_is_better: bool = True
    no_interval: str = ""
    """why a mean of samples has no interval: there is one sample, or all are equal"""


def mean(values: Sequence[float], bounds: tuple[float, float]) -> Estimate:
    """Return the mean of samples within `bounds`, with standard error s / sqrt(n), where s divides by n - 1 (as in lm-eval).

    Equal samples have a standard error of 0, which is not certainty: they have no interval.
    """
    value, stderr = sum(values) / len(values), None
    if len(values) > 1:
        variance = sum((v - value) ** 2 for v in values) / (len(values) - 1)
        stderr = math.sqrt(variance / len(values))
    reason = "1 sample" if stderr is None else f"all {len(values)} equal"
    return _with_interval(Estimate(value, stderr, bounds=bounds), reason)


def _with_interval(estimate: Estimate, reason: str) -> Estimate:
    """Return the estimate with its normal interval, or without one and with the reason why not."""
    interval = normal_interval(estimate.value, estimate.stderr, estimate.bounds)
    return replace(estimate, interval=interval, no_interval="" if interval else reason)


def proportion(values: Sequence[float]) -> Estimate:
    """Return the mean of samples that are 0 or 1, with Wilson's interval.

    For samples between 0 and 1 (estimates of pass@k) it is wider than necessary: no distribution in [0, 1] varies more than 0 or 1.
    """
    plain = mean(values, UNIT)
    return Estimate(plain.value, plain.stderr, wilson_interval(plain.value, len(values)), UNIT, len(values))


def wilson_interval(p: float, n: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion `p` of `n` samples (JASA 22, 1927). Unlike the normal one it holds near 0 and 1."""
    center = p + Z * Z / (2 * n)
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)


def normal_interval(
    value: float, stderr: float | None, bounds: tuple[float, float] = UNBOUNDED
) -> tuple[float, float] | None:
    """Return the normal 95 % interval of a value within `bounds`; None for a standard error that is unknown, or 0 up to rounding."""
    if stderr is None or not stderr > _ROUNDING * abs(value):
        return None
    return max(bounds[0], value - Z * stderr), min(bounds[1], value + Z * stderr)


def mean_over_files(estimates: Sequence[Estimate]) -> Estimate:
    """Return the unweighted mean of independent estimates of k files, with standard error sqrt(sum of squares) / k.

    For proportions the interval is Wilson's with k^2 / sum(1/n) samples, which is the total number if all files have equally many. It is a
    little wider than the standard error implies, because files differ, and remains an interval if every file has 0 or 1.
    """
    k, bounds, higher = len(estimates), estimates[0].bounds, estimates[0].higher_is_better
    value = sum(e.value for e in estimates) / k
    errors = [e.stderr for e in estimates if e.stderr is not None]
    stderr = math.sqrt(sum(e * e for e in errors)) / k if len(errors) == k else None
    if all(e.samples for e in estimates):
        samples = k * k / sum(1 / e.samples for e in estimates)
        return Estimate(value, stderr, wilson_interval(value, samples), bounds, samples, higher)
    reason = "a file has 1 sample" if stderr is None else "all equal in every file"
    return _with_interval(Estimate(value, stderr, bounds=bounds, higher_is_better=higher), reason)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the unbiased estimate of pass@k from n samples of which c are correct: 1 - C(n-c, k) / C(n, k).

    Source: arXiv 2107.03374, equation 1. 1 - (1 - c/n)^k would be biased. Integer arithmetic, so nothing overflows.
    """
    assert 0 <= c <= n
    assert 1 <= k <= n
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)
