"""Proximal policy optimization with a critic (arXiv 1707.06347), as used for language (arXiv 1909.08593, 2009.01325).

Reward of token t: -kl_coef KL_t with KL_t = (log pi_old - log ref)_t, k1 (or its k3); the answer's score is added at its last token, the
one that ended it.

    delta_t = r_t + gamma V_{t+1} - V_t,   A_t = sum_l (gamma lam)^l delta_{t+l}  (arXiv 1506.02438 Eq. 16),   R_t = A_t + V_t
    L = max(-A rho, -A clip(rho, 1-e, 1+e)) + vf_coef 1/2 max((V - R)^2, (V_old + clip(V - V_old, -+e_v) - R)^2)

A is whitened over the whole rollout before it is used; both terms are means over the answers' tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tinyllm.algorithms.common import clip_mask, clipped_surrogate, k3, masked_whiten, policy_metrics, required
from tinyllm.config import Config
from tinyllm.mean import Mean, masked

if TYPE_CHECKING:
    from torch import Tensor

    from tinyllm.data.datasets.batches import Samples, ScoredSamples
    from tinyllm.model.transformer import ActorCritic

FAMILY = "online"
CRITIC = True
CONFIG = "rlhf/online/ppo/1.4M_ppo.yaml"
IN_LIFECYCLE = True


class Settings(Config):
    gamma: float = Field(1.0, gt=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    """lambda of generalized advantage estimation: 1 uses the sampled return, 0 the critic"""
    clip: float = Field(0.2, gt=0)
    value_clip: float = Field(0.2, gt=0)
    vf_coef: float = Field(0.1, ge=0)
    kl_coef: float = Field(0.05, ge=0)
    """weight of the KL to the reference, per token, in the reward"""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """k1 = log(pi/ref) is unbiased and may be negative; k3 = e^-k1 - 1 + k1 is never negative"""
    whiten: bool = True


def uses_reference(settings: Settings) -> bool:
    return settings.kl_coef > 0


def token_rewards(settings: Settings, samples: Samples) -> Tensor:
    """Return rewards (B, T): the KL penalty at every token of the answer, plus the score at its last one."""
    rewards = samples.old_log_probs.new_zeros(samples.mask.shape)
    if samples.ref_log_probs is not None:
        k1 = samples.old_log_probs - samples.ref_log_probs
        kl = k1 if settings.kl_estimator == "k1" else k3(samples.old_log_probs, samples.ref_log_probs)
        rewards = -settings.kl_coef * kl
    last = samples.mask.flip(1).cumsum(1).flip(1) == 1  # tokens left, this one included
    return (rewards + samples.reward[:, None] * (last & samples.mask)) * samples.mask


def generalized_advantages(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Return generalized advantages (B, T), arXiv 1506.02438 Eq. 16. All inputs (B, T).

    An answer's tokens are contiguous, so the discounted sum is one product with a triangular matrix.
    """
    values = values * mask
    following = values.roll(-1, 1)
    following[:, -1] = 0  # nothing follows the last column; masked values are 0 already
    delta = (rewards + gamma * following - values) * mask
    positions = delta.new_ones(delta.shape[1]).cumsum(0)
    distance = positions[:, None] - positions[None, :]  # [s, t] = s - t
    weights = (gamma * lam) ** distance.clamp(min=0) * (distance >= 0)
    return (delta @ weights) * mask


def compute_advantages(settings: Settings, samples: Samples) -> tuple[ScoredSamples, dict[str, Mean]]:
    values, rewards = required(samples.values, "values"), token_rewards(settings, samples)
    advantages = generalized_advantages(rewards, values, samples.mask, settings.gamma, settings.lam)
    returns = advantages + values * samples.mask
    if settings.whiten:
        advantages = masked_whiten(advantages, samples.mask)
    return samples.with_advantages(advantages, returns), {"returns": masked(returns, samples.mask)}


def loss(
    settings: Settings, model: ActorCritic, batch: ScoredSamples, temperature: float = 1.0
) -> tuple[Mean, dict[str, Mean]]:
    mask = batch.mask
    scores, values = model.token_scores_and_values(batch.ids, mask, temperature=temperature)
    ratio = (scores.log_probs - batch.old_log_probs).exp()
    policy_loss = masked(clipped_surrogate(ratio, batch.advantages, settings.clip, settings.clip), mask)
    old_values, returns = required(batch.values, "values"), required(batch.returns, "returns")
    clipped_values = old_values + (values - old_values).clamp(-settings.value_clip, settings.value_clip)
    value_errors = (values - returns).square().maximum((clipped_values - returns).square())
    value_loss = masked(0.5 * value_errors, mask)
    metrics = policy_metrics(scores.log_probs, batch.old_log_probs, scores.entropy, mask) | {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "clip_fraction": masked(clip_mask(ratio, batch.advantages, settings.clip, settings.clip), mask),
    }
    return Mean(policy_loss.total + settings.vf_coef * value_loss.total, policy_loss.count), metrics
