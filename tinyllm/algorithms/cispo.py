"""Clipped importance-sampling weights (arXiv 2506.13585 Eq. 4-5): the weight of a token's gradient is bounded, the gradient stays.

    L = sum_i sum_t -sg[min(rho_t, 1 + high)] A_i log pi_t / sum_i |y_i|,   rho_t = pi / pi_old, sg: no gradient
PPO's clipping silences a token that has moved too far; here it keeps pulling, with a bounded weight. There is no lower bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tinyllm.algorithms.common import policy_metrics
from tinyllm.algorithms.grpo import credit
from tinyllm.config import Config
from tinyllm.mean import Mean, masked

if TYPE_CHECKING:
    from tinyllm.data.batches import Samples
    from tinyllm.model.transformer import CausalLM

FAMILY = "online"
CRITIC = False

__all__ = ["Settings", "credit", "loss", "uses_reference"]


class Settings(Config):
    clip_high: float = Field(4.0, gt=0)
    """the largest weight is 1 + this; TRL's `epsilon_high` 5 is 4 here"""
    scale: Literal["group", "batch", "none"] = "group"
    """what the advantage is divided by: the group's standard deviation, the batch's, or nothing"""


def uses_reference(settings: Settings) -> bool:
    return False


def loss(settings: Settings, model: CausalLM, batch: Samples, temperature: float = 1.0) -> tuple[Mean, dict[str, Mean]]:
    mask = batch.mask
    scores = model.log_probs(batch.ids, mask, temperature=temperature, entropy=True)
    weight = (scores.log_probs - batch.old).exp().detach().clamp(max=1 + settings.clip_high)
    bounded = (weight >= 1 + settings.clip_high).to(weight.dtype)
    metrics = policy_metrics(scores.log_probs, batch.old, scores.entropy, mask)
    return masked(-weight * batch.advantage * scores.log_probs, mask), metrics | {
        "clip_fraction": masked(bounded, mask)
    }
