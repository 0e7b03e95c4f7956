"""Dr. GRPO (arXiv 2503.20783 section 3.2): GRPO without the two divisions that bias it.

Dividing by |y_i| makes long wrong answers cheap, and dividing by the group's std favors questions that are nearly solved or nearly
hopeless. Here A_i = r_i - mean of its group, and every answer's sum is divided by the same constant, the longest allowed answer:

    L = 1/(B N) sum_i sum_t [ -min(rho A, clip(rho, 1 - low, 1 + high) A) + kl_coef k3_t ],   N = rollout.max_new_tokens
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tinyllm.algorithms.common import token_policy_loss
from tinyllm.algorithms.grpo import compute_advantages, uses_reference
from tinyllm.config import Config
from tinyllm.mean import Mean

if TYPE_CHECKING:
    from tinyllm.data.datasets.batches import ScoredSamples
    from tinyllm.model.transformer import CausalLM

FAMILY = "online"
NEEDS_GROUP = True

__all__ = ["Settings", "compute_advantages", "loss", "uses_reference"]


class Settings(Config):
    clip_low: float = Field(0.2, gt=0)
    clip_high: float = Field(0.2, gt=0)
    kl_coef: float = Field(0.0, ge=0)
    """the paper uses none"""
    kl_weighted: bool = True
    """weight k3 by the ratio, for the gradient of KL(policy || reference); false: plain k3"""
    scale: Literal["group", "batch", "none"] = "none"
    """divisor of the advantages; anything but `none` brings the bias back"""


def loss(
    settings: Settings, model: CausalLM, batch: ScoredSamples, temperature: float = 1.0
) -> tuple[Mean, dict[str, Mean]]:
    per_token, metrics = token_policy_loss(settings, model, batch, temperature)
    return Mean((per_token * batch.mask).sum(), len(batch.ids) * batch.max_new_tokens), metrics
