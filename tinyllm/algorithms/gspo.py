"""Group sequence policy optimization (arXiv 2507.18071 Eq. 5-7): GRPO with one importance ratio per answer.

    s_i = exp( 1/|y_i| sum_t log pi/pi_old ),   L = mean_i -min(s_i A_i, clip(s_i, 1 - low, 1 + high) A_i)

The ratio is a geometric mean over tokens; without 1/|y| it would grow exponentially with length. The paper's bounds, 3e-4 and 4e-4, are
for answers of a thousand tokens. A mean over five to fifty tokens varies more, so the defaults here are ten times as wide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tinyllm.algorithms.common import clip_mask, clipped_surrogate, k3, kl_penalty, score_policy, sequence_mean
from tinyllm.algorithms.grpo import compute_advantages, uses_reference
from tinyllm.config import Config
from tinyllm.mean import Mean, masked, over

if TYPE_CHECKING:
    from tinyllm.data.datasets.batches import ScoredSamples
    from tinyllm.model.transformer import CausalLM

FAMILY = "online"
NEEDS_GROUP = True
CONFIG = "rlhf/online/gspo/1.4M_gspo.yaml"
IN_LIFECYCLE = True

__all__ = ["Settings", "compute_advantages", "loss", "uses_reference"]


class Settings(Config):
    clip_low: float = Field(3e-3, gt=0)
    clip_high: float = Field(4e-3, gt=0)
    kl_coef: float = Field(0.0, ge=0)
    """the paper uses none"""
    kl_weighted: bool = True
    """weight k3 by the ratio, for the gradient of KL(policy || reference); false: plain k3"""
    scale: Literal["group", "batch", "none"] = "group"
    """divisor of the advantages: standard deviation of the group, of the batch, or none"""


def loss(
    settings: Settings, model: CausalLM, batch: ScoredSamples, temperature: float = 1.0
) -> tuple[Mean, dict[str, Mean]]:
    mask = batch.mask
    scores, old, metrics = score_policy(model, batch, temperature)
    ratio = sequence_mean(scores.log_probs - old, mask).exp()  # (B,)
    advantages = sequence_mean(batch.advantages, mask)  # (B,); equal at every token of an answer
    per_row = clipped_surrogate(ratio, advantages, settings.clip_low, settings.clip_high)
    metrics |= {
        "clip_fraction": over(clip_mask(ratio, advantages, settings.clip_low, settings.clip_high)),
        "sequence_ratio": over(ratio),
    }
    if batch.ref_log_probs is not None:
        metrics["kl"] = masked(k3(scores.log_probs, batch.ref_log_probs), mask)
        penalty = kl_penalty(scores.log_probs, old, batch.ref_log_probs, settings.kl_weighted)
        per_row = per_row + settings.kl_coef * sequence_mean(penalty, mask)
    return over(per_row), metrics
