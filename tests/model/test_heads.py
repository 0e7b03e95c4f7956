"""Log-probabilities against the plain formula: values, gradients, shift, temperature, masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tinyllm.model import heads
from tinyllm.model.heads import last_token, token_log_probs, token_scores


def plain(
    hidden: torch.Tensor, head: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, temperature: float
) -> torch.Tensor:
    """The definition: full logits, log-softmax, the state before each token predicts it."""
    log_p = torch.log_softmax(hidden @ head.T / temperature, -1)
    scored = log_p[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    return torch.nn.functional.pad(scored, (1, 0)) * mask


@pytest.fixture
def case() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 11, (3, 7), generator=generator)
    mask = torch.rand(3, 7, generator=generator) > 0.4
    mask[:, 0] = False
    return hidden, head, ids, mask


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("block", [1, 44, 10_000])
def test_values_and_gradients_are_the_definitions(
    case: tuple, temperature: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(heads._BLOCK_ELEMENTS, "cpu", block)  # 1, 4 or all rows at a time
    monkeypatch.setattr(heads, "_LEAST_ROWS", 1)
    hidden, head, ids, mask = case
    weights = torch.randn(3, 7, dtype=torch.float64)
    ours = token_log_probs(hidden, head, ids, mask, temperature=temperature)
    theirs = plain(hidden, head, ids, mask, temperature)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    got = torch.autograd.grad((ours * weights).sum(), (hidden, head))
    want = torch.autograd.grad((theirs * weights).sum(), (hidden, head))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_gradient_in_float64(case: tuple) -> None:
    hidden, head, ids, mask = case
    assert torch.autograd.gradcheck(lambda h, w: token_log_probs(h, w, ids, mask, temperature=1.3), (hidden, head))


def test_entropy_is_that_of_the_distribution(case: tuple) -> None:
    hidden, head, ids, mask = case
    log_p = torch.log_softmax(hidden @ head.T, -1)
    want = torch.nn.functional.pad(-(log_p.exp() * log_p).sum(-1)[:, :-1], (1, 0)) * mask
    got = token_scores(hidden, head, ids, mask).entropy
    torch.testing.assert_close(got, want.detach(), atol=1e-12, rtol=0)


def test_uniform_logits_cost_ln_v() -> None:
    scores = token_log_probs(
        torch.zeros(1, 3, 4), torch.randn(50, 4), torch.tensor([[1, 2, 3]]), torch.tensor([[False, True, True]])
    )
    torch.testing.assert_close(scores, torch.tensor([[0.0, -3.912023, -3.912023]]))


def test_an_empty_mask_gives_zero_and_zero_gradients(case: tuple) -> None:
    hidden, head, ids, mask = case
    scores = token_log_probs(hidden, head, ids, torch.zeros_like(mask))
    assert scores.abs().sum() == 0
    gradients = torch.autograd.grad(scores.sum(), (hidden, head))
    assert all(g.abs().sum() == 0 for g in gradients)


def test_last_token_with_padding_on_either_side() -> None:
    values = torch.arange(8.0).view(2, 4)
    mask = torch.tensor([[True, True, False, False], [False, False, True, True]])
    assert last_token(values, mask).tolist() == [1.0, 7.0]


def test_bf16_keeps_the_softmax_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(2, 5, 64, generator=generator), torch.randn(999, 64, generator=generator) / 8
    ids = torch.randint(0, 999, (2, 5), generator=generator)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[:, 0] = False
    exact = token_log_probs(hidden, head, ids, mask)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = token_log_probs(hidden, head, ids, mask)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.05


@pytest.mark.parametrize("softcap", [None, 40.0])
def test_logits_of_bf16_are_not_rounded_to_bf16(softcap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.randn(2, 9, 64, generator=generator) * 3).bfloat16()
    head = nn.Linear(64, 20_000, bias=False)  # more rows than are widened at once
    head.weight = nn.Parameter(torch.randn(20_000, 64, generator=generator).bfloat16())
    ids, mask = torch.randint(0, 20_000, (2, 9), generator=generator), torch.ones(2, 9, dtype=torch.bool)
    mask[:, 0] = False
    exact = hidden.double() @ head.weight.detach().double().T
    assert exact.abs().max() > 64, "where the steps of bf16 are 0.5"
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = heads.logits(hidden, head)
        scored = token_log_probs(hidden, head.weight, ids, mask, softcap=softcap)
    assert (found.double() - exact).abs().max() < 1e-4
    capped = exact if softcap is None else softcap * torch.tanh(exact / softcap)
    log_p = capped[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    assert (scored[:, 1:].double() - log_p).abs().max() < 1e-4
    rounded = exact.bfloat16().double()[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    if softcap is None:
        assert (rounded - log_p).abs().max() > 0.1, "rounded logits would not be noticed"
