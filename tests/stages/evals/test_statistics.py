"""Figures and their uncertainty against brute force and published values."""

from __future__ import annotations

import math
from itertools import combinations

import pytest

from tinyllm.stages.evals.statistics import SHARE, mean, over_files, pass_at_k, share, wilson


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_all_draws_of_k_that_hold_a_right_answer(n: int) -> None:
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


def test_wilson_s_interval() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    for right, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson(right / n, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(1.0, 29)[1] == 1.0


def test_the_standard_error_divides_by_n_minus_one_as_lm_eval_s_does() -> None:
    found = share([1.0, 1.0, 0.0, 1.0])
    assert found.value == 0.75
    assert found.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert share([1.0]).stderr is None


def test_an_interval_stays_within_what_the_figure_can_be() -> None:
    assert mean([1.0, 1.0, 0.9], (-1.0, 1.0)).interval[1] == 1.0
    assert mean([-1.0, 1.0], (-1.0, 1.0)).interval == (-1.0, 1.0)


def test_files_count_alike_whatever_their_size() -> None:
    small, large = share([1.0, 0.0]), share([1.0] * 75 + [0.0] * 25)
    both = over_files([small, large])
    assert both.value == pytest.approx((0.5 + 0.75) / 2)
    assert both.stderr == pytest.approx(math.hypot(small.stderr, large.stderr) / 2)
    assert both.samples == pytest.approx(4 / (1 / 2 + 1 / 100))
    alike = over_files([share([0.0] * 10), share([0.0] * 10)])  # no variance seen is no certainty
    assert alike.interval == pytest.approx(wilson(0.0, 20))


def test_the_mean_of_means_has_no_error_where_a_part_has_none() -> None:
    found = over_files([mean([0.5], SHARE), mean([0.0, 1.0], SHARE)])
    assert (found.value, found.stderr, found.interval) == (0.5, None, None)
