"""PPO, GRPO and GSPO against closed forms, through the public functions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tinyllm.algorithms import common, dapo, dr_grpo, grpo, gspo, ppo
from tinyllm.data.datasets.batches import Samples
from tinyllm.model import hub
from tinyllm.model.config import ModelConfig
from tinyllm.model.transformer import ActorCritic, CausalLM

SHAPE = ModelConfig(
    vocab_size=31,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)


def rough(seed: int) -> CausalLM:
    model = CausalLM(SHAPE).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * (0.5 if p.ndim > 1 else 1))
    return model.eval()


@pytest.fixture
def policy() -> CausalLM:
    return rough(0)


def samples(policy: CausalLM, old: CausalLM | None = None, reference: CausalLM | None = None) -> Samples:
    """Four answers of lengths 5, 2, 4, 1 in two groups, with rewards."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 31, (4, 9), generator=generator)
    mask = torch.zeros(4, 9, dtype=torch.bool)
    for row, (start, length) in enumerate([(3, 5), (3, 2), (2, 4), (2, 1)]):
        mask[row, start : start + length] = True
    with torch.no_grad():
        before = (old or policy).log_probs(ids, mask)
        base = reference.log_probs(ids, mask) if reference else None
    return Samples(
        ids=ids,
        mask=mask,
        group=torch.tensor([0, 0, 1, 1]),
        finished=torch.ones(4, dtype=torch.bool),
        reward=torch.tensor([1.0, 0.0, 0.25, 0.75], dtype=torch.float64),
        sampler_log_probs=before,
        old_log_probs=before,
        ref_log_probs=base,
        values=torch.randn(4, 9, generator=generator, dtype=torch.float64),
    )


def value(result: tuple) -> torch.Tensor:
    return result[0].total / result[0].count


def gradient(loss: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    return torch.autograd.grad(loss, model.lm_head.weight)[0]


# --- the first minibatch ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [grpo, gspo])
def test_on_policy_gradient_is_reinforce(policy: CausalLM, algorithm) -> None:
    settings = algorithm.Settings(kl_coef=0.0)
    batch, _ = algorithm.compute_advantages(settings, samples(policy))
    loss, metrics = algorithm.loss(settings, policy, batch)
    assert abs(metrics["ratio"].value - 1) < 1e-12
    assert abs(metrics["approx_kl"].value) < 1e-12
    assert metrics["clip_fraction"].value == 0
    per_answer = (policy.log_probs(batch.ids, batch.mask) * batch.mask).sum(1) / batch.mask.sum(1)
    want = gradient(
        -(per_answer * batch.advantages.amax(1).where(batch.advantages.amax(1) > 0, batch.advantages.amin(1))).mean(),
        policy,
    )
    torch.testing.assert_close(gradient(loss.total / loss.count, policy), want, atol=1e-12, rtol=1e-9)


def test_ppo_on_policy_ratio_is_one(policy: CausalLM) -> None:
    model = ActorCritic(policy, hub.scorer_from(rough(0).float(), 0).double())
    batch, _ = ppo.compute_advantages(ppo.Settings(kl_coef=0), samples(policy))
    _, metrics = ppo.loss(ppo.Settings(kl_coef=0), model, batch)
    assert abs(metrics["ratio"].value - 1) < 1e-12
    assert abs(metrics["approx_kl"].value) < 1e-12
    want = -(batch.advantages * batch.mask).sum() / batch.mask.sum()
    assert abs(metrics["policy_loss"].value - float(want)) < 1e-9


# --- advantages ------------------------------------------------------------------------------------------------------------------


def test_group_advantages_are_centered_and_scaled_within_their_group() -> None:
    reward, group = torch.tensor([1.0, 3.0, 8.0, 10.0, 12.0]).double(), torch.tensor([0, 0, 1, 1, 1])
    got = common.group_advantages(reward, group, "group")
    std = 2**0.5
    torch.testing.assert_close(got[:2], torch.tensor([-1.0, 1.0]).double() / (std + 1e-4), atol=1e-12, rtol=0)
    torch.testing.assert_close(got[2:], torch.tensor([-2.0, 0.0, 2.0]).double() / (2 + 1e-4), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        common.group_advantages(reward, group, "none"), torch.tensor([-1.0, 1.0, -2.0, 0.0, 2.0]).double()
    )
    batch = common.group_advantages(reward, group, "batch")
    torch.testing.assert_close(batch, torch.tensor([-1.0, 1.0, -2.0, 0.0, 2.0]).double() / (reward.std() + 1e-4))


def test_group_advantages_ignore_shift_and_scale_of_rewards() -> None:
    reward, group = torch.tensor([0.1, 0.9, 0.4, 0.6]).double(), torch.tensor([0, 0, 1, 1])
    got = common.group_advantages(100 * reward + 7, group, "group")
    torch.testing.assert_close(got, common.group_advantages(reward, group, "group"), atol=2e-3, rtol=0)


def test_groups_of_equal_rewards_have_no_advantage_and_are_counted() -> None:
    """The fraction is of answers, not of groups, and not that of the answers that differ."""
    reward, group = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0]), torch.tensor([0, 0, 0, 1, 1])
    assert common.group_advantages(reward, group, "group")[:3].tolist() == [0.0, 0.0, 0.0]
    assert common.constant_group_fraction(reward, group).value == pytest.approx(3 / 5)
    assert common.constant_group_fraction(torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1])).value == 0.0
    assert common.constant_group_fraction(torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([0, 0, 1, 1])).value == 1.0


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_generalized_advantages_equal_the_recursion(policy: CausalLM, gamma: float, lam: float) -> None:
    batch = samples(policy)
    rewards = torch.randn(4, 9, dtype=torch.float64) * batch.mask
    got = ppo.generalized_advantages(rewards, batch.values, batch.mask, gamma, lam)
    want = torch.zeros(4, 9, dtype=torch.float64)
    for row in range(4):
        positions = batch.mask[row].nonzero().flatten().tolist()
        later = 0.0
        for t in reversed(positions):
            following = batch.values[row, t + 1] if t + 1 in positions else 0.0
            later = rewards[row, t] + gamma * following - batch.values[row, t] + gamma * lam * later
            want[row, t] = later
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_lambda_one_is_reward_to_go_minus_value(policy: CausalLM) -> None:
    batch = samples(policy)
    rewards = ppo.token_rewards(ppo.Settings(kl_coef=0), batch)
    got = ppo.generalized_advantages(rewards, batch.values, batch.mask, 1.0, 1.0)
    torch.testing.assert_close(got, (batch.reward[:, None] - batch.values) * batch.mask, atol=1e-12, rtol=0)


def test_ppo_adds_the_score_at_the_last_token_and_the_kl_at_every_token(policy: CausalLM) -> None:
    batch = samples(policy, old=rough(1), reference=rough(2))
    rewards = ppo.token_rewards(ppo.Settings(kl_coef=0.3), batch)
    penalty = 0.3 * ((batch.old_log_probs - batch.ref_log_probs) * batch.mask).sum(1)
    torch.testing.assert_close(rewards.sum(1), batch.reward - penalty, atol=1e-12, rtol=0)
    without = ppo.token_rewards(ppo.Settings(kl_coef=0), batch)
    assert without.nonzero().tolist() == [[0, 7], [2, 5], [3, 2]]  # row 1 has reward 0
    assert not rewards[~batch.mask].any()


def test_whitening_uses_answer_tokens_only(policy: CausalLM) -> None:
    batch = samples(policy)
    values = torch.randn(4, 9, dtype=torch.float64)
    white = common.masked_whiten(values, batch.mask)
    assert abs(white[batch.mask].mean()) < 1e-12
    assert abs(white[batch.mask].var() - 1) < 1e-6
    values[~batch.mask] = 1e6
    assert torch.equal(common.masked_whiten(values, batch.mask), white)


# --- away from the behaviour policy ----------------------------------------------------------------------------------------------


def test_grpo_dapo_and_dr_grpo_equal_their_formulas(policy: CausalLM) -> None:
    settings = grpo.Settings(clip_low=0.2, clip_high=0.3, kl_coef=0.07, kl_weighted=False)
    batch, _ = grpo.compute_advantages(settings, samples(policy, old=rough(1), reference=rough(2)))
    log_p = policy.log_probs(batch.ids, batch.mask)
    rows, tokens = [], []
    for row in range(4):
        terms = []
        for t in batch.mask[row].nonzero().flatten():
            rho, a = (log_p[row, t] - batch.old_log_probs[row, t]).exp(), batch.advantages[row, t]
            d = batch.ref_log_probs[row, t] - log_p[row, t]
            terms.append(-torch.minimum(rho * a, rho.clamp(0.8, 1.3) * a) + 0.07 * (d.exp() - d - 1))
        rows.append(torch.stack(terms).mean())
        tokens += terms
    torch.testing.assert_close(value(grpo.loss(settings, policy, batch)), torch.stack(rows).mean(), atol=1e-12, rtol=0)
    common_settings = {"clip_low": 0.2, "clip_high": 0.3, "kl_coef": 0.07, "kl_weighted": False}
    by_token = dapo.loss(dapo.Settings(**common_settings), policy, batch)
    torch.testing.assert_close(value(by_token), torch.stack(tokens).mean(), atol=1e-12, rtol=0)
    by_max_new_tokens = dr_grpo.loss(dr_grpo.Settings(**common_settings), policy, replace(batch, max_new_tokens=11))
    torch.testing.assert_close(value(by_max_new_tokens), torch.stack(tokens).sum() / (4 * 11), atol=1e-12, rtol=0)


def test_gspo_equals_its_formula(policy: CausalLM) -> None:
    settings = gspo.Settings(clip_low=0.1, clip_high=0.2)
    batch, _ = gspo.compute_advantages(settings, samples(policy, old=rough(1)))
    log_p = policy.log_probs(batch.ids, batch.mask)
    rows = []
    for row in range(4):
        m = batch.mask[row]
        s = ((log_p[row] - batch.old_log_probs[row])[m].mean()).exp()
        a = batch.advantages[row][m][0]
        rows.append(-torch.minimum(s * a, s.clamp(0.9, 1.2) * a))
    torch.testing.assert_close(value(gspo.loss(settings, policy, batch)), torch.stack(rows).mean(), atol=1e-12, rtol=0)


def test_gspo_sequence_ratio_does_not_depend_on_length(policy: CausalLM) -> None:
    batch, _ = gspo.compute_advantages(gspo.Settings(), samples(policy))
    shifted = replace(batch, old_log_probs=batch.old_log_probs - 0.3)
    _, metrics = gspo.loss(gspo.Settings(), policy, shifted)
    assert abs(metrics["sequence_ratio"].value - 2.718281828**0.3) < 1e-6


def test_clipping_removes_the_gradient_on_the_clipped_side_only() -> None:
    ratio = torch.tensor([0.5, 0.5, 1.5, 1.5], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    common.clipped_surrogate(ratio, advantage, 0.2, 0.2).sum().backward()
    assert ratio.grad.tolist() == [-1.0, 0.0, 0.0, 1.0]
    assert common.clip_mask(ratio, advantage, 0.2, 0.2).tolist() == [0.0, 1.0, 1.0, 0.0]


def test_weighted_k3_has_the_gradient_of_the_true_kl() -> None:
    """By enumeration over a vocabulary of 6: E[grad(rho k3)] = grad KL(pi || ref), and plain k3's is not."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.randn(6, generator=generator, dtype=torch.float64), 0)
    log_p = torch.log_softmax(logits, 0)
    old = log_p.detach()
    true = torch.autograd.grad((log_p.exp() * (log_p - reference)).sum(), logits, retain_graph=True)[0]
    weighted = (old.exp() * common.kl_penalty(log_p, old, reference, weighted=True)).sum()
    plain = (old.exp() * common.kl_penalty(log_p, old, reference, weighted=False)).sum()
    torch.testing.assert_close(torch.autograd.grad(weighted, logits, retain_graph=True)[0], true, atol=1e-12, rtol=0)
    assert not torch.allclose(torch.autograd.grad(plain, logits)[0], true, atol=1e-3)
    assert abs(float(plain) - float((old.exp() * (old - reference)).sum())) < 1e-12


def test_value_clip_equals_its_formula(policy: CausalLM) -> None:
    model = ActorCritic(policy, hub.scorer_from(rough(0).float(), 0).double())
    batch, _ = ppo.compute_advantages(ppo.Settings(kl_coef=0), samples(policy))
    _, values = model.token_scores_and_values(batch.ids, batch.mask)
    settings = ppo.Settings(kl_coef=0, value_clip=0.05)
    near = batch.values + (values - batch.values).clamp(-0.05, 0.05)
    worse = torch.maximum((values - batch.returns) ** 2, (near - batch.returns) ** 2)
    _, metrics = ppo.loss(settings, model, batch)
    assert abs(metrics["value_loss"].value - float(0.5 * worse[batch.mask].mean())) < 1e-9


def test_values_do_not_depend_on_their_token(policy: CausalLM) -> None:
    model = ActorCritic(policy, hub.scorer_from(rough(0).float(), 0).double())
    ids = samples(policy).ids
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 31
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    before, after = (model.token_scores_and_values(x, mask)[1] for x in (ids, changed))
    assert torch.equal(before[:, :6], after[:, :6])  # V_5 is known before token 5 is
    assert not torch.equal(before[:, 6], after[:, 6])


@pytest.mark.parametrize("algorithm", [grpo, gspo])
def test_grpo_and_gspo_ignore_padding_and_order(policy: CausalLM, algorithm) -> None:
    settings = algorithm.Settings(kl_coef=0.05)
    batch, _ = algorithm.compute_advantages(settings, samples(policy, old=rough(1), reference=rough(2)))
    want = value(algorithm.loss(settings, policy, batch))
    wider = {
        name: torch.nn.functional.pad(getattr(batch, name), (0, 3))
        for name in ("ids", "mask", "old_log_probs", "sampler_log_probs", "ref_log_probs", "advantages", "values")
    }
    torch.testing.assert_close(
        value(algorithm.loss(settings, policy, replace(batch, **wider))), want, atol=1e-12, rtol=0
    )
    torch.testing.assert_close(
        value(algorithm.loss(settings, policy, batch.rows([2, 0, 3, 1]))), want, atol=1e-12, rtol=0
    )
