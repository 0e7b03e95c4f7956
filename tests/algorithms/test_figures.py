"""The figures that losses report, by their definitions, and statements of `docs/algorithms.md` on KL estimates and advantages."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.algorithms import cases
from tests.algorithms.test_unfinished import FINISHED, LENGTHS, REWARDS, SETTINGS, Given, rollout
from tinyllm import algorithms
from tinyllm.algorithms import common, kto
from tinyllm.model.heads import TokenScores


def figures(case: cases.Case, batch: Any = None, **settings: Any) -> dict[str, float]:
    changed = case.settings.model_copy(update=settings)
    _, found = case.algorithm.loss(changed, case.model, case.batch if batch is None else batch)
    return {name: mean.value for name, mean in found.items()}


# --- offline ---------------------------------------------------------------------------------------------------------------------


def summed(case: cases.Case) -> tuple[Tensor, Tensor]:
    """Log-probability of every answer and its number of tokens, both (rows,)."""
    batch = case.batch
    return case.model.log_probs(batch.ids, batch.mask).sum(1).detach(), batch.mask.sum(1)


def halves(values: Tensor) -> tuple[Tensor, Tensor]:
    return values[: len(values) // 2], values[len(values) // 2 :]


@pytest.mark.parametrize("name", ["dpo", "simpo", "orpo"])
def test_figures_of_preference_losses(name: str) -> None:
    """`rewards` are what the loss compares, margins their difference, accuracies the share of pairs in the right order."""
    case = cases.of("offline", name)
    total, length = summed(case)
    if name == "dpo":
        worth, shown, scale = total - case.batch.ref_log_probs, total, 0.4
        found = figures(case, beta=scale)
    else:
        worth, shown, scale = total / length, total / length, {"simpo": 1.7, "orpo": 0.4}[name]
        found = figures(case, **{"beta" if name == "simpo" else "weight": scale})
    chosen, rejected = halves(worth)
    right = float((chosen > rejected).double().mean())
    assert 0 < right < 1
    want = {
        "rewards/accuracies": right,
        "rewards/margins": scale * float((chosen - rejected).mean()),
        "logps/chosen": float(halves(shown)[0].mean()),
        "logps/rejected": float(halves(shown)[1].mean()),
    }
    if name == "orpo":
        odds = worth - torch.log1p(-worth.exp())
        difference = halves(odds)[0] - halves(odds)[1]
        scored = case.batch.real.clone()
        scored[:, 0] = False
        whole = case.model.log_probs(case.batch.ids, scored)[:6].sum() / scored[:6].sum()
        want |= {
            "nll_loss": -float(whole.detach()),
            "log_odds_chosen": float(difference.mean()),
            "log_odds_ratio": float(torch.sigmoid(difference).log().mean()),
        }
    else:
        want |= {"rewards/chosen": scale * float(chosen.mean()), "rewards/rejected": scale * float(rejected.mean())}
    assert found == pytest.approx(want, abs=1e-9)


def test_figures_of_kto() -> None:
    case, beta = cases.of("offline", "kto"), 0.4
    total, _ = summed(case)
    ratios = (total - case.batch.ref_log_probs)[:6]
    z = float(ratios.sort().values[3:5].mean())  # four ratios are below it, of which some are above 0
    good = (ratios > z) ^ (torch.arange(6) == int(ratios.argmax()))  # right for all but one
    assert ((ratios > 0) & (ratios < z)).any()
    batch = replace(case.batch, good=good, kl=torch.tensor(z, dtype=torch.float64))
    sides = {"chosen": good, "rejected": ~good}
    want = {f"rewards/{side}": beta * float(ratios[rows].mean()) for side, rows in sides.items()}
    want |= {f"logps/{side}": float(total[:6][rows].mean()) for side, rows in sides.items()}
    want |= {
        "kl": z,
        "rewards/margins": beta * float(ratios.where(good, -ratios).mean()) * 2,
        "rewards/accuracies": float(((ratios > z) == good).double().mean()),
    }
    assert figures(case, batch, beta=beta) == pytest.approx(want, abs=1e-9)


def test_kto_without_preparation_takes_z_from_its_batch() -> None:
    case = cases.of("offline", "kto")
    batch = replace(case.batch, kl=None)
    total, _ = summed(case)
    z = max(0.0, float((total - batch.ref_log_probs)[6:].mean()))
    assert figures(case, batch)["kl"] == pytest.approx(z, abs=1e-9)
    low = replace(batch, ref_log_probs=batch.ref_log_probs + 9.0)
    assert figures(case, low)["kl"] == 0.0
    assert kto.prepare(kto.Settings(), case.model, []) == []  # a rank without batches takes part in the sum


def test_figures_of_a_reward_model() -> None:
    case = cases.of("reward", "bradley_terry")
    chosen, rejected = halves(case.model.rewards(case.batch.ids, case.batch.real).detach())
    want = {
        "accuracy": float((chosen > rejected).double().mean()),
        "margin": float((chosen - rejected).mean()),
        "rewards/chosen": float(chosen.mean()),
        "rewards/rejected": float(rejected.mean()),
    }
    assert 0 < want["accuracy"] < 1
    assert figures(case) == pytest.approx(want, abs=1e-6)


# --- online ----------------------------------------------------------------------------------------------------------------------


class WithEntropy(Given):
    """Entropies are 1 at answers and a million elsewhere."""

    def token_scores(self, ids: Tensor, mask: Tensor, **options: Any) -> TokenScores:
        found = super().token_scores(ids, mask, **options)
        return TokenScores(found.log_probs, torch.where(mask, 1.0, 1e6).to(found.log_probs))


@pytest.mark.parametrize("name", SETTINGS)
def test_figures_of_online_losses(name: str) -> None:
    """Means over the tokens of the minibatch; the KL is plain k3 whether the loss weights it or not."""
    algorithm = algorithms.load(name, "online")
    samples, given = rollout()
    model = WithEntropy(given.log_probs.detach(), given.values.detach())
    settings = algorithm.settings(**SETTINGS[name])
    scored, first = algorithm.compute_advantages(settings, samples)
    loss, found = algorithm.loss(settings, model, scored)
    mask = samples.mask
    log_ratio = (model.log_probs - samples.old_log_probs)[mask].detach()
    d = (model.log_probs - samples.ref_log_probs)[mask].detach()
    want = {
        "ratio": float(log_ratio.exp().mean()),
        "approx_kl": float((log_ratio.exp() - 1 - log_ratio).mean()),
        "entropy": 1.0,
        "clip_fraction": found["clip_fraction"].value,  # tests/algorithms/test_unfinished.py
    }
    rows = [(model.log_probs - samples.old_log_probs)[i][mask[i]].detach() for i in range(6)]
    if name in ("gspo", "rloo"):
        logs = [row.mean() if name == "gspo" else row.sum() for row in rows]
        want["sequence_ratio"] = float(torch.stack(logs).exp().mean())
    if name in ("grpo", "dapo", "dr_grpo", "gspo"):
        want["kl"] = float(((-d).exp() - 1 + d).mean())
    if name == "ppo":
        value = found["value_loss"].value
        want |= {"value_loss": value, "policy_loss": loss.value - settings.vf_coef * value}
        assert first["returns"].value == pytest.approx(float(scored.returns[mask].mean()))
        assert first["returns"].value != pytest.approx(float(scored.advantages[mask].mean()), abs=1e-3)
    else:
        assert {key: mean.value for key, mean in first.items()} in ({"constant_groups": 0.0}, {})
    assert {key: mean.value for key, mean in found.items()} == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("name", [n for n in SETTINGS if n != "ppo"])
def test_constant_groups_are_the_share_of_answers_in_groups_of_equal_rewards(name: str) -> None:
    """Nearly equal rewards differ, and a KL in the reward does not make equal ones differ."""
    algorithm = algorithms.load(name, "online")
    samples, _ = rollout()
    for rewards, share in (
        ([0.5, 0.5, 0.5, 1, 2, 3], 0.5),
        ([0.5] * 6, 1.0),
        ([0, 0, 0, 1, 1, 1], 1.0),
        ([0.5, 0.5, 0.5001, 1, 1, 1], 0.5),
        ([0.5, 0.5, 0.6, 1, 1, 2], 0.0),
    ):
        given = replace(samples, reward=torch.tensor(rewards, dtype=torch.float64))
        scored, found = algorithm.compute_advantages(algorithm.settings(), given)
        assert found["constant_groups"].value == share
        if name != "rloo":
            constant = [len(set(rewards[:3])) == 1] * 3 + [len(set(rewards[3:])) == 1] * 3
            assert [not row.any() for row in scored.advantages[torch.tensor(constant)]] == [True] * sum(constant)


# --- KL, advantages and the parts that losses share --------------------------------------------------------------------------------


def test_estimates_of_kl_by_enumeration() -> None:
    """E k1 = E k3 = KL(pi||ref), k3 >= 0; E grad k3 = grad KL(ref||pi), and weighted by the ratio grad KL(pi||ref)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.randn(6, generator=generator, dtype=torch.float64), 0)
    log_p = torch.log_softmax(logits, 0)
    p = log_p.detach().exp()
    k3 = common.k3(log_p, reference)
    assert (k3 >= 0).all()
    forward, backward = (reference.exp() * (reference - log_p)).sum(), (log_p.exp() * (log_p - reference)).sum()
    assert float((p * k3.detach()).sum()) == pytest.approx(backward.item(), abs=1e-12)
    for weighted, distance in ((False, forward), (True, backward)):
        penalty = (p * common.kl_penalty(log_p, log_p.detach(), reference, weighted)).sum()
        got, want = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (penalty, distance))
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_log_sigmoid_is_finite_with_gradient_one_half_at_zero() -> None:
    x = torch.tensor([-800.0, -1.0, 0.0, 1.0, 800.0], dtype=torch.float64, requires_grad=True)
    found = common.log_sigmoid(x)
    assert found.tolist() == pytest.approx([-800.0, -math.log1p(math.e), -math.log(2), -math.log1p(1 / math.e), 0.0])
    gradient = torch.autograd.grad(found.sum(), x)[0]
    assert gradient.tolist() == pytest.approx([1.0, math.e / (1 + math.e), 0.5, 1 / (1 + math.e), 0.0])


def test_whitening_by_the_unbiased_variance_leaves_zeros_outside() -> None:
    values, mask = (
        torch.tensor([[3.0, 1.0, 9.0], [4.0, 7.0, 2.0]]).double(),
        torch.tensor([[1, 1, 0], [0, 1, 1]]).bool(),
    )
    inside = [3.0, 1.0, 7.0, 2.0]
    spread = math.sqrt(statistics.variance(inside) + 1e-8)
    want = [(v - statistics.fmean(inside)) / spread for v in inside]
    found = common.masked_whiten(values, mask)
    assert found[mask].tolist() == pytest.approx(want, abs=1e-12)
    assert not found[~mask].any()


def test_the_rollout_has_no_convenient_coincidences() -> None:
    assert len(set(LENGTHS)) > 4
    assert 0 < sum(FINISHED) < 6
    assert len(set(REWARDS)) == 6
