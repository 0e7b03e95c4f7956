"""The logged figures of every loss against their definitions, and the temperature of sampling in the losses of online algorithms."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from tests.algorithms import cases
from tinyllm.algorithms import bradley_terry, common, dpo, kto, orpo, simpo
from tinyllm.mean import values


def mean(x: torch.Tensor) -> float:
    return float(x.double().mean())


def rows(case: cases.Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log-probability, that of the reference, and length of each answer: (2, P), chosen and rejected."""
    batch = case.batch
    log_probs = torch.stack([case.model.log_probs(batch.ids, batch.mask)[i][m].sum() for i, m in enumerate(batch.mask)])
    reference = torch.zeros_like(log_probs) if batch.ref_log_probs is None else batch.ref_log_probs
    return tuple(x.detach().reshape(2, -1) for x in (log_probs, reference, batch.mask.sum(1)))


def both_signs(margins: torch.Tensor) -> bool:
    return 0 < int((margins > 0).sum()) < len(margins)


def test_figures_of_dpo():
    case = cases.of("offline", "dpo")
    log_probs, reference, _ = rows(case)
    rewards = 0.3 * (log_probs - reference)
    assert both_signs(rewards[0] - rewards[1])
    _, found = dpo.loss(dpo.Settings(beta=0.3), case.model, case.batch)
    assert values(found) == pytest.approx(
        {
            "rewards/accuracies": mean(rewards[0] > rewards[1]),
            "rewards/margins": mean(rewards[0] - rewards[1]),
            "rewards/chosen": mean(rewards[0]),
            "rewards/rejected": mean(rewards[1]),
            "logps/chosen": mean(log_probs[0]),
            "logps/rejected": mean(log_probs[1]),
        }
    )


def test_figures_of_simpo_and_orpo():
    case = cases.of("offline", "simpo")
    log_probs, _, lengths = rows(case)
    chosen, rejected = log_probs / lengths
    assert both_signs(chosen - rejected)
    common_ones = {
        "rewards/accuracies": mean(chosen > rejected),
        "logps/chosen": mean(chosen),
        "logps/rejected": mean(rejected),
    }
    _, found = simpo.loss(simpo.Settings(beta=1.5), case.model, case.batch)
    scaled = {"margins": chosen - rejected, "chosen": chosen, "rejected": rejected}
    assert values(found) == pytest.approx(common_ones | {f"rewards/{k}": 1.5 * mean(x) for k, x in scaled.items()})

    batch = case.batch
    written = batch.real[:6].clone()
    written[:, 0] = False
    log_odds = [x - (1 - x.exp()).log() for x in (chosen, rejected)]
    ratio = log_odds[0] - log_odds[1]
    _, found = orpo.loss(orpo.Settings(weight=0.7), case.model, batch)
    assert values(found) == pytest.approx(
        common_ones
        | {
            "nll_loss": -mean(case.model.log_probs(batch.ids[:6], written)[written].detach()),
            "log_odds_ratio": mean(torch.sigmoid(ratio).log()),
            "log_odds_chosen": mean(ratio),
            "rewards/margins": 0.7 * mean(chosen - rejected),
        }
    )


def test_figures_of_kto():
    """Of good answers and bad ones; `rewards/margins` is the difference of their means where they are equally many."""
    case = cases.of("offline", "kto")
    batch = case.batch
    (log_probs, _), (reference, _), _ = rows(case)
    rewards, good = 0.3 * (log_probs - reference), batch.good
    right = (rewards > 0.3 * batch.kl) == good
    assert int(good.sum()) == 3
    assert 0 < int(right.sum()) < 6
    _, found = kto.loss(kto.Settings(beta=0.3), case.model, batch)
    assert values(found) == pytest.approx(
        {
            "kl": float(batch.kl),
            "rewards/chosen": mean(rewards[good]),
            "rewards/rejected": mean(rewards[~good]),
            "rewards/margins": mean(rewards[good]) - mean(rewards[~good]),
            "rewards/accuracies": mean(right),
            "logps/chosen": mean(log_probs[good]),
            "logps/rejected": mean(log_probs[~good]),
        }
    )


def test_kto_finds_z_by_itself_where_no_step_has():
    """On held-out data, which `prepare` does not see: z of this batch, from its mismatched answers."""
    case = cases.of("offline", "kto")
    batch = case.batch
    (_, log_probs), (_, reference), _ = rows(case)
    for shift, want in ((0.0, mean(log_probs - reference)), (9.0, mean(log_probs - reference) + 9), (-9.0, 0.0)):
        moved = replace(batch, kl=None, ref_log_probs=batch.ref_log_probs - shift)
        assert kto.loss(kto.Settings(), case.model, moved)[1]["kl"].value == pytest.approx(max(0.0, want))


def test_figures_of_a_reward_model():
    case = cases.of("reward", "bradley_terry")
    batch = case.batch
    chosen, rejected = case.model.rewards(batch.ids, batch.real).detach().chunk(2)
    assert both_signs(chosen - rejected)
    _, found = bradley_terry.loss(bradley_terry.Settings(), case.model, batch)
    assert values(found) == pytest.approx(
        {
            "accuracy": mean(chosen > rejected),
            "margin": mean(chosen - rejected),
            "rewards/chosen": mean(chosen),
            "rewards/rejected": mean(rejected),
        }
    )


@pytest.mark.parametrize("name", cases.NAMES["online"])
def test_figures_of_online_algorithms(name: str):
    """Means over the tokens of answers; one ratio per answer in GSPO (geometric mean of its tokens') and RLOO (product)."""
    case = cases.of("online", name)
    batch, mask = case.batch, case.batch.mask
    policy = case.model.policy if case.algorithm.needs_critic else case.model
    log_probs = policy.log_probs(batch.ids, mask).detach()
    log_ratio = (log_probs - batch.old_log_probs)[mask]
    logits = torch.log_softmax(policy.logits(policy(batch.ids)).detach(), -1)
    entropy = -(logits.exp() * logits).sum(-1).roll(1, 1)
    want = {
        "ratio": mean(log_ratio.exp()),
        "approx_kl": mean(log_ratio.exp() - 1 - log_ratio),
        "entropy": mean(entropy[mask]),
    }
    if batch.ref_log_probs is not None and name not in ("ppo", "rloo"):  # theirs is in the reward
        d = (batch.ref_log_probs - log_probs)[mask]
        want["kl"] = mean(d.exp() - 1 - d)
    per_row = ((log_probs - batch.old_log_probs) * mask).sum(1)
    if name in ("gspo", "rloo"):
        want["sequence_ratio"] = mean((per_row / (mask.sum(1) if name == "gspo" else 1)).exp())
    _, found = case.algorithm.loss(case.settings, case.model, batch)
    assert {key: found[key].value for key in want} == pytest.approx(want)
    assert found.keys() - want.keys() <= {"clip_fraction", "policy_loss", "value_loss"}


@pytest.mark.parametrize("name", cases.NAMES["online"])
def test_temperature_divides_the_logits(name: str):
    """The loss at temperature 0.7 is that of a model whose last norm, and with it every logit, is 1/0.7 as large."""
    case = cases.of("online", name)
    sharper = copy.deepcopy(case.model)
    policy = sharper.policy if case.algorithm.needs_critic else sharper
    with torch.no_grad():
        policy.model.norm.weight /= 0.7
    plain, warm = (case.algorithm.loss(case.settings, m, case.batch, t) for m, t in ((sharper, 1.0), (case.model, 0.7)))
    assert values(warm[1] | {"loss": warm[0]}) == pytest.approx(values(plain[1] | {"loss": plain[0]}), rel=1e-9)
    cold = case.algorithm.loss(case.settings, case.model, case.batch)
    assert abs(cold[1]["entropy"].value - warm[1]["entropy"].value) > 0.01


@pytest.mark.parametrize("name", cases.NAMES["online"])
def test_figures_of_advantages(name: str):
    """The fraction of answers in groups of equal rewards; the critic's mean return."""
    case = cases.of("online", name)
    samples = replace(case.batch, reward=torch.tensor([0.5, 0.5, 1.0, 0.0, 1.0, 0.0], dtype=torch.float64))
    scored, found = case.algorithm.compute_advantages(case.settings, samples)
    if case.algorithm.needs_critic:
        assert values(found) == pytest.approx({"returns": mean(scored.returns[samples.mask])})
    else:
        assert values(found) == pytest.approx({"constant_groups": 2 / 6})


def test_constant_groups_are_the_answers_whose_rewards_are_all_equal():
    reward, group = torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0, 3.0]), torch.tensor([0, 0, 1, 2, 2, 2])
    assert common.constant_group_fraction(reward, group).value == pytest.approx(
        3 / 6
    )  # a group of one is constant, too
    assert common.constant_group_fraction(reward + 1e-6 * torch.arange(6), group).value == pytest.approx(1 / 6)


def test_small_numbers_keep_divisors_from_zero():
    """Values with the variance of the constant that is added to it shrink by the square root of two; a std as large as its, by half."""
    mask = torch.tensor([[True, True, False], [True, True, False]])
    spread = torch.tensor([[1.0, -1.0, 9.0], [1.0, -1.0, 9.0]]).double() * (0.75e-8**0.5)  # unbiased variance 1e-8
    want = torch.tensor([[1.0, -1.0, 0.0], [1.0, -1.0, 0.0]]).double() * (0.75 / 2) ** 0.5
    torch.testing.assert_close(common.masked_whiten(spread, mask), want, atol=1e-6, rtol=0)
    reward, group = torch.tensor([1.0, -1.0]).double() * 0.5**0.5 * 1e-4, torch.tensor([0, 0])
    for scale in ("group", "batch"):
        want = torch.tensor([1.0, -1.0]).double() * 0.5**0.5 / 2
        torch.testing.assert_close(common.group_advantages(reward, group, scale), want, atol=1e-6, rtol=0)
