from __future__ import annotations

import math

import torch

from tinyllm.mean import Mean, masked, over


def test_adding_pools_instead_of_averaging_means() -> None:
    few, many = Mean(10.0, 1), Mean(10.0, 9)
    assert (few + many).value == 2.0  # the mean of the means would be 5.56


def test_nothing_counted_is_nan_not_zero() -> None:
    assert math.isnan(Mean(0.0, 0).value)


def test_masked_ignores_what_is_masked_even_nan() -> None:
    values = torch.tensor([1.0, float("nan"), 3.0])
    mean = masked(values, torch.tensor([True, False, True]))
    assert mean.value == 2.0


def test_masked_nan_does_not_poison_gradients() -> None:
    x = torch.tensor([1.0, -1.0], requires_grad=True)
    masked(x.sqrt(), torch.tensor([True, False])).total.backward()
    assert x.grad[0] == 0.5


def test_over_counts_every_element() -> None:
    assert over(torch.ones(3, 4)).count == 12
