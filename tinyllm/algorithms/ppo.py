"""Proximal policy optimisation with a critic (arXiv 1707.06347), as used for language (arXiv 1909.08593, 2009.01325).

Reward of token t: -kl_coef KL_t with KL_t = (log pi_old - log ref)_t, k1 (or its k3); and the answer's score at its last token, the one
that ended it.
    delta_t = r_t + gamma V_{t+1} - V_t,   A_t = sum_l (gamma lam)^l delta_{t+l}  (arXiv 1506.02438 Eq. 16),   R_t = A_t + V_t
    L = max(-A rho, -A clip(rho, 1-e, 1+e)) + vf_coef 1/2 max((V - R)^2, (V_old + clip(V - V_old, -+e_v) - R)^2)
A is whitened over the whole rollout before it is used; both terms are means over the answers' tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tinyllm.algorithms.common import clipped, k3, outside, policy_metrics, whitened
from tinyllm.config import Config
from tinyllm.mean import Mean, masked

if TYPE_CHECKING:
    from torch import Tensor

    from tinyllm.data.batches import Samples
    from tinyllm.model.transformer import ActorCritic

FAMILY = "online"
CRITIC = True


class Settings(Config):
    gamma: float = Field(1.0, gt=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    """lambda of the generalised advantage: 1 trusts the sampled return, 0 the critic"""
    clip: float = Field(0.2, gt=0)
    value_clip: float = Field(0.2, gt=0)
    vf_coef: float = Field(0.1, ge=0)
    kl_coef: float = Field(0.05, ge=0)
    """of the KL to the reference, per token, in the reward"""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """k1 = log(pi/ref) is unbiased and may be negative; k3 = e^-k1 - 1 + k1 never is"""
    whiten: bool = True


def uses_reference(settings: Settings) -> bool:
    return settings.kl_coef > 0


def token_rewards(settings: Settings, samples: Samples) -> Tensor:
    """(B, T): the KL penalty at every token of the answer and the score at its last one."""
    rewards = samples.old.new_zeros(samples.mask.shape)
    if samples.reference is not None:
        k1 = samples.old - samples.reference
        kl = k1 if settings.kl_estimator == "k1" else k3(samples.old, samples.reference)
        rewards = -settings.kl_coef * kl
    last = samples.mask.flip(1).cumsum(1).flip(1) == 1  # one token of the answer is left: this one
    return (rewards + samples.reward[:, None] * (last & samples.mask)) * samples.mask


def advantages(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantages (B, T). Answers stand without a gap, so the discounted sum is one product with a triangular matrix."""
    values = values * mask
    following = values.roll(-1, 1)
    following[:, -1] = 0  # nothing follows the last column; masked values are 0 already
    delta = (rewards + gamma * following - values) * mask
    positions = delta.new_ones(delta.shape[1]).cumsum(0)
    distance = positions[:, None] - positions[None, :]  # [s, t] = s - t
    weights = (gamma * lam) ** distance.clamp(min=0) * (distance >= 0)
    return (delta @ weights) * mask


def credit(settings: Settings, samples: Samples) -> tuple[Samples, dict[str, Mean]]:
    advantage = advantages(token_rewards(settings, samples), samples.values, samples.mask, settings.gamma, settings.lam)
    returns = advantage + samples.values * samples.mask
    if settings.whiten:
        advantage = whitened(advantage, samples.mask)
    return replace(samples, advantage=advantage, returns=returns), {"returns": masked(returns, samples.mask)}


def loss(
    settings: Settings, model: ActorCritic, batch: Samples, temperature: float = 1.0
) -> tuple[Mean, dict[str, Mean]]:
    mask = batch.mask
    scores, values = model.log_probs_and_values(batch.ids, mask, temperature=temperature, entropy=True)
    ratio = (scores.log_probs - batch.old).exp()
    policy = masked(clipped(ratio, batch.advantage, settings.clip, settings.clip), mask)
    near = batch.values + (values - batch.values).clamp(-settings.value_clip, settings.value_clip)
    worse = (values - batch.returns).square().maximum((near - batch.returns).square())
    value = masked(0.5 * worse, mask)
    metrics = policy_metrics(scores.log_probs, batch.old, scores.entropy, mask) | {
        "policy_loss": policy,
        "value_loss": value,
        "clip_fraction": masked(outside(ratio, batch.advantage, settings.clip, settings.clip), mask),
    }
    return Mean(policy.total + settings.vf_coef * value.total, policy.count), metrics
