"""Estimates and their uncertainty against brute force and published values."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import NormalDist

import pytest

from tinyllm.evals.statistics import (
    UNIT,
    Z,
    mean,
    mean_over_files,
    normal_interval,
    pass_at_k,
    proportion,
    wilson_interval,
)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_all_draws_of_k_with_a_correct_answer(n: int) -> None:
    for c in range(n + 1):
        answers = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            draws = list(combinations(answers, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_pass_at_k_is_unbiased_and_the_naive_estimate_is_not() -> None:
    """Over all outcomes of n answers that are right with probability p, its mean is 1 - (1 - p)^k."""
    n, k, p = 6, 3, 0.3
    chance = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    true = 1 - (1 - p) ** k
    assert sum(w * pass_at_k(n, c, k) for c, w in enumerate(chance)) == pytest.approx(true, abs=1e-12)
    assert abs(sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(chance)) - true) > 0.03


def test_pass_at_k_of_many_samples_does_not_overflow() -> None:
    assert pass_at_k(2000, 1, 1000) == pytest.approx(0.5)


def test_wilson_interval() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    for right, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson_interval(right / n, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(1.0, 29)[1] == 1.0


def test_z_is_the_normal_quantile() -> None:
    assert NormalDist().inv_cdf(0.975) == pytest.approx(Z, abs=1e-12)


def test_the_standard_error_divides_by_n_minus_one_as_in_lm_eval() -> None:
    found = proportion([1.0, 1.0, 0.0, 1.0])
    assert found.value == 0.75
    assert found.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert proportion([1.0]).stderr is None


def test_an_interval_stays_within_the_bounds_of_its_metric() -> None:
    assert mean([1.0, 1.0, 0.9], (-1.0, 1.0)).interval[1] == 1.0
    assert mean([-1.0, 1.0], (-1.0, 1.0)).interval == (-1.0, 1.0)


@pytest.mark.parametrize(("values", "reason"), [([0.3], "1 sample"), ([0.3] * 20, "all 20 equal")])
def test_a_mean_without_spread_has_no_interval_and_says_why(values: list[float], reason: str) -> None:
    found = mean(values, (-1.0, 1.0))
    assert (found.interval, found.no_interval) == (None, reason)
    assert mean([0.3, 0.4], (-1.0, 1.0)).no_interval == ""
    files = mean_over_files([found, found])
    assert files.interval is None
    assert files.no_interval


@pytest.mark.parametrize("n", [1, 20, 400])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_proportion_without_spread_is_not_certain(n: int, value: float) -> None:
    low, high = proportion([value] * n).interval
    assert high - low > 3 / (n + 4)  # about the rule of three
    assert (low, high)[int(value)] == pytest.approx(value, abs=1e-12)


def test_files_have_equal_weight_whatever_their_size() -> None:
    small, large = proportion([1.0, 0.0]), proportion([1.0] * 75 + [0.0] * 25)
    both = mean_over_files([small, large])
    assert both.value == pytest.approx((0.5 + 0.75) / 2)
    assert both.stderr == pytest.approx(math.hypot(small.stderr, large.stderr) / 2)
    assert both.samples == pytest.approx(4 / (1 / 2 + 1 / 100))
    alike = mean_over_files([proportion([0.0] * 10), proportion([0.0] * 10)])  # zero variance is not certainty
    assert alike.interval == pytest.approx(wilson_interval(0.0, 20))


def test_a_standard_error_of_rounding_is_no_interval() -> None:
    """Relative to the value: of 1e9, an error of 1e-4 is what a sum of equal samples leaves."""
    assert normal_interval(1e9, 1e-4) is None
    assert normal_interval(1.0, 1e-4) == pytest.approx((1 - 1.96e-4, 1 + 1.96e-4), abs=1e-7)
    assert normal_interval(1.0, None) is None


def test_the_mean_over_files_has_no_error_if_one_file_has_none() -> None:
    found = mean_over_files([mean([0.5], UNIT), mean([0.0, 1.0], UNIT)])
    assert (found.value, found.stderr, found.interval) == (0.5, None, None)
