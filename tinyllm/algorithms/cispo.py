"""Clipped importance-sampling policy optimization (arXiv 2506.13585 Eq. 4-5): the gradient's weight is clipped, the gradient is kept.

    L = sum_i sum_t -sg[min(rho_t, 1 + high)] A_i log pi_t / sum_i |y_i|,   rho_t = pi / pi_old,   sg: stop gradient

PPO's clipping removes the gradient of a token that has moved too far; here it keeps a bounded weight. There is no lower bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tinyllm.algorithms.common import score_policy
from tinyllm.algorithms.grpo import compute_advantages
from tinyllm.config import Config
from tinyllm.mean import Mean, masked

if TYPE_CHECKING:
    from tinyllm.data.datasets.batches import ScoredSamples
    from tinyllm.model.transformer import CausalLM

FAMILY = "online"
NEEDS_GROUP = True

__all__ = ["Settings", "compute_advantages", "loss"]


class Settings(Config):
    clip_high: float = Field(4.0, gt=0)
    """the largest weight is 1 + this; TRL's `epsilon_high` 5 is 4 here"""
    scale: Literal["group", "batch", "none"] = "group"
    """divisor of the advantages: standard deviation of the group, of the batch, or none"""


def loss(
    settings: Settings, model: CausalLM, batch: ScoredSamples, temperature: float = 1.0
) -> tuple[Mean, dict[str, Mean]]:
    mask = batch.mask
    scores, old, metrics = score_policy(model, batch, temperature)
    weight = (scores.log_probs - old).exp().detach().clamp(max=1 + settings.clip_high)
    bounded = (weight >= 1 + settings.clip_high).to(weight.dtype)
    return masked(-weight * batch.advantages * scores.log_probs, mask), metrics | {
        "clip_fraction": masked(bounded, mask)
    }
