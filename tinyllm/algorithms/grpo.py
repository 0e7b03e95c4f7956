"""Group-relative policy optimisation (arXiv 2402.03300 Eq. 3): PPO's clipped ratio, with the group's mean in place of a critic.

A_i = (r_i - mean of its group) / (std of its group + 1e-4), the same for every token of answer i.
    L = mean_i 1/|y_i| sum_t [ -min(rho A, clip(rho, 1 - low, 1 + high) A) + kl_coef k3_t ],   rho_t = pi / pi_old
`normaliser: token` divides by the number of tokens instead (arXiv 2503.14476). With `kl_weighted` k3 is weighted by rho, which makes
its gradient that of KL(pi || ref) (arXiv 2512.02556); without, it is that of the KL the other way round.
On the first minibatch rho = 1 and the loss is about 0 whatever the rewards: look at `reward`, not at the loss.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tinyllm.algorithms.common import clipped, constant_groups, group_advantage, k3, outside, policy_metrics
from tinyllm.config import Config
from tinyllm.mean import Mean, masked, over

if TYPE_CHECKING:
    from torch import Tensor

    from tinyllm.data.batches import Samples
    from tinyllm.model.transformer import CausalLM

FAMILY = "online"
CRITIC = False


class Settings(Config):
    clip_low: float = Field(0.2, gt=0)
    clip_high: float = Field(0.28, gt=0)
    """larger than clip_low, so that unlikely tokens have room to rise"""
    kl_coef: float = Field(0.02, ge=0)
    kl_weighted: bool = True
    scale: Literal["group", "batch", "none"] = "group"
    """what the advantage is divided by: the group's standard deviation, the batch's, or nothing"""
    normaliser: Literal["sequence", "token"] = "sequence"


def uses_reference(settings: Settings) -> bool:
    return settings.kl_coef > 0


def credit(settings: Settings, samples: Samples) -> tuple[Samples, dict[str, Mean]]:
    advantage = group_advantage(samples.reward, samples.group, settings.scale)[:, None] * samples.mask
    return replace(samples, advantage=advantage), {"constant_groups": constant_groups(samples.reward, samples.group)}


def kl_penalty(log_probs: Tensor, old: Tensor, reference: Tensor, weighted: bool) -> Tensor:
    """k3 per token, weighted by the ratio or not; both (B, T)."""
    plain = k3(log_probs, reference)
    return plain * (log_probs - old).exp() if weighted else plain


def per_answer(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over each answer's tokens, (B,)."""
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


def loss(settings: Settings, model: CausalLM, batch: Samples, temperature: float = 1.0) -> tuple[Mean, dict[str, Mean]]:
    mask = batch.mask
    scores = model.log_probs(batch.ids, mask, temperature=temperature, entropy=True)
    ratio = (scores.log_probs - batch.old).exp()
    per_token = clipped(ratio, batch.advantage, settings.clip_low, settings.clip_high)
    metrics = policy_metrics(scores.log_probs, batch.old, scores.entropy, mask) | {
        "clip_fraction": masked(outside(ratio, batch.advantage, settings.clip_low, settings.clip_high), mask)
    }
    if batch.reference is not None:
        metrics["kl"] = masked(k3(scores.log_probs, batch.reference), mask)
        per_token = per_token + settings.kl_coef * kl_penalty(
            scores.log_probs, batch.old, batch.reference, settings.kl_weighted
        )
    total = masked(per_token, mask) if settings.normaliser == "token" else over(per_answer(per_token, mask))
    return total, metrics
