"""DPO, ORPO and Bradley-Terry against closed forms, through the public loss functions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tinyllm.algorithms import bradley_terry, dpo, orpo
from tinyllm.data.datasets.batches import PreferenceBatch
from tinyllm.data.datasets.datasets import PreferenceDataset, TokenPair
from tinyllm.model.config import ModelConfig
from tinyllm.model.transformer import CausalLM, SequenceScorer

SHAPE = ModelConfig(
    vocab_size=31,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)
PAIRS = [
    TokenPair([1, 2, 3], [4, 5, 6, 7], [8, 9]),
    TokenPair([10], [11], [12, 13, 14]),
    TokenPair([1, 15, 16, 17], [18, 19], [20, 21, 22, 23, 24]),
]


def rough(kind: type, seed: int) -> torch.nn.Module:
    model = kind(SHAPE).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * (0.5 if p.ndim > 1 else 1))
    return model.eval()


@pytest.fixture
def model() -> CausalLM:
    return rough(CausalLM, 0)


def batch(pairs: list[TokenPair] = PAIRS, reference: torch.Tensor | None = None) -> PreferenceBatch:
    found = PreferenceDataset(pairs, pad=0).collate(range(len(pairs)), 0, range(len(pairs)))
    return replace(found, ref_log_probs=reference)


def answer_log_probs(model: CausalLM, pairs: list[TokenPair]) -> torch.Tensor:
    """(2P,) by brute force: one row at a time, full softmax."""
    found = []
    for answer in ("chosen", "rejected"):
        for pair in pairs:
            ids = torch.tensor([[*pair.prompt, *getattr(pair, answer)]])
            log_p = torch.log_softmax(model.logits(model(ids)), -1)[0, :-1].gather(1, ids[0, 1:, None])
            found.append(log_p[len(pair.prompt) - 1 :].sum())
    return torch.stack(found)


def value(result: tuple) -> torch.Tensor:
    return result[0].total / result[0].count


def test_dpo_loss_is_ln_2_if_policy_is_reference(model: CausalLM) -> None:
    reference = answer_log_probs(model, PAIRS).detach()
    loss, metrics = dpo.loss(dpo.Settings(), model, batch(reference=reference))
    assert abs(float(loss.total / loss.count) - math.log(2)) < 1e-12
    assert loss.count == 3
    assert abs(metrics["rewards/margins"].value) < 1e-12


@pytest.mark.parametrize("variant", dpo.VARIANTS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_equals_the_formula_of_the_paper(model: CausalLM, variant: str, smoothing: float) -> None:
    reference = answer_log_probs(rough(CausalLM, 9), PAIRS).detach()
    settings = dpo.Settings(beta=0.3, variant=variant, label_smoothing=smoothing)
    u = answer_log_probs(model, PAIRS) - reference
    d = u[:3] - u[3:]
    lengths = torch.tensor([4, 1, 2, 2, 3, 5])
    averaged = u / lengths
    z = settings.beta * d
    want = {
        "sigmoid": -(1 - smoothing) * torch.sigmoid(z).log() - smoothing * torch.sigmoid(-z).log(),
        "hinge": torch.relu(1 - z),
        "ipo": (averaged[:3] - averaged[3:] - 1 / 0.6) ** 2,
        "robust": (-(1 - smoothing) * torch.sigmoid(z).log() + smoothing * torch.sigmoid(-z).log())
        / (1 - 2 * smoothing),
    }[variant].mean()
    got = value(dpo.loss(settings, model, batch(reference=reference)))
    torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)


def test_dpo_gradient_raises_chosen_and_lowers_rejected(model: CausalLM) -> None:
    """At d = 0 the gradient is -beta/2 (grad chosen - grad rejected) / P exactly."""
    reference = answer_log_probs(model, PAIRS).detach()
    head = model.lm_head.weight
    got = torch.autograd.grad(value(dpo.loss(dpo.Settings(beta=0.1), model, batch(reference=reference))), head)[0]
    log_probs = answer_log_probs(model, PAIRS)
    want = torch.autograd.grad(-0.05 * (log_probs[:3] - log_probs[3:]).sum() / 3, head)[0]
    torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-9)


def test_orpo_equals_the_formula_of_the_paper(model: CausalLM) -> None:
    lengths = torch.tensor([4, 1, 2, 2, 3, 5])
    mean = answer_log_probs(model, PAIRS) / lengths
    odds = mean.exp() / (1 - mean.exp())
    preference = -torch.sigmoid((odds[:3] / odds[3:]).log()).log().mean()
    whole = []
    for pair in PAIRS:
        ids = torch.tensor([[*pair.prompt, *pair.chosen]])
        whole.append(torch.log_softmax(model.logits(model(ids)), -1)[0, :-1].gather(1, ids[0, 1:, None]).squeeze(1))
    nll = -torch.cat(whole).mean()
    got = value(orpo.loss(orpo.Settings(weight=0.7), model, batch()))
    torch.testing.assert_close(got, nll + 0.7 * preference, atol=1e-10, rtol=1e-10)
    answers_only = -(answer_log_probs(model, PAIRS)[:3].sum() / 7)
    got = value(orpo.loss(orpo.Settings(weight=0.7, prompt_loss=False), model, batch()))
    torch.testing.assert_close(got, answers_only + 0.7 * preference, atol=1e-10, rtol=1e-10)


def test_orpo_normalizes_over_the_whole_step(model: CausalLM) -> None:
    """Three micro-batches of one pair add up to the batch of three: totals over counts, tokens and pairs alike."""
    data = PreferenceDataset(PAIRS, pad=0)
    whole, metrics = orpo.loss(orpo.Settings(), model, data.collate([0, 1, 2], 0, [0, 1, 2]))
    parts = [orpo.loss(orpo.Settings(), model, data.collate([i], 0, [0, 1, 2])) for i in range(3)]
    summed = sum(p[0].total for p in parts) / sum(p[0].count for p in parts)
    torch.testing.assert_close(whole.total / whole.count, summed, atol=1e-12, rtol=0)
    pooled = parts[0][1]["nll_loss"] + parts[1][1]["nll_loss"] + parts[2][1]["nll_loss"]
    assert abs(pooled.value - metrics["nll_loss"].value) < 1e-12


def test_log1mexp_is_accurate_and_finite() -> None:
    x = torch.tensor([-1e-4, -0.5, -math.log(2), -1.0, -50.0], dtype=torch.float64, requires_grad=True)
    got = orpo.log1mexp(x)
    want = [math.log(-math.expm1(v)) for v in x.tolist()]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), atol=1e-12, rtol=0)
    got.sum().backward()
    torch.testing.assert_close(x.grad, -x.exp() / (1 - x.exp()), atol=1e-6, rtol=1e-9)
    near = torch.tensor([-1e-6, -3e-5, -0.01])  # in float32 1 - e^x has lost its digits there
    want = [math.log(-math.expm1(v)) for v in near.tolist()]
    torch.testing.assert_close(orpo.log1mexp(near), torch.tensor(want), atol=0, rtol=1e-6)
    certain = torch.zeros(1, requires_grad=True)
    orpo.log1mexp(certain).sum().backward()
    assert torch.isfinite(certain.grad).all()


def test_bradley_terry_equals_its_formula() -> None:
    scorer = rough(SequenceScorer, 2)
    pairs = [replace(p, margin=m) for p, m in zip(PAIRS, (0.0, 0.5, 1.0), strict=True)]
    rewards = torch.stack(
        [scorer(torch.tensor([[*p.prompt, *getattr(p, a)]]))[0, -1] for a in ("chosen", "rejected") for p in pairs]
    )
    c, r = rewards[:3].double(), rewards[3:].double()
    want = -torch.sigmoid(c - r - torch.tensor([0.0, 0.5, 1.0])).log().mean() + 0.02 * ((c + r) ** 2).mean()
    loss, metrics = bradley_terry.loss(bradley_terry.Settings(centering=0.02), scorer, batch(pairs))
    torch.testing.assert_close(float(loss.total / loss.count), float(want), atol=1e-6, rtol=0)
    assert metrics["accuracy"].value == float((c > r).double().mean())


def test_dpo_loss_of_a_pair_does_not_depend_on_its_batch(model: CausalLM) -> None:
    reference = torch.zeros(6, dtype=torch.float64)
    together, _ = dpo.loss(dpo.Settings(), model, batch(reference=reference))
    alone = [dpo.loss(dpo.Settings(), model, batch([p], reference=reference[:2]))[0].total for p in PAIRS]
    torch.testing.assert_close(together.total, sum(alone), atol=1e-12, rtol=0)
