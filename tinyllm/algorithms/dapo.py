"""Decoupled clip and dynamic sampling policy optimization (arXiv 2503.14476): GRPO with four changes.

1. Clip-higher: the upper bound is wider than the lower one, so that unlikely tokens have room to rise.
2. Token-level mean (Eq. 12): every token counts alike, in long answers and short ones, over all micro-batches and ranks of the step:
       L = sum_i sum_t -min(rho A, clip(rho, 1 - low, 1 + high) A) / sum_i |y_i|
3. Dynamic sampling (Eq. 11): groups whose rewards are all equal are replaced by new ones; `rollout.sampling_rounds`.
4. Overlong reward shaping (Eq. 13): reward falls gradually before the length limit; `rollout.overlong_buffer`.

The last two belong to the rollout, so any online algorithm can use them; the shipped configuration of DAPO does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tinyllm.algorithms.common import token_policy_loss
from tinyllm.algorithms.grpo import compute_advantages, uses_reference
from tinyllm.config import Config
from tinyllm.mean import Mean, masked

if TYPE_CHECKING:
    from tinyllm.data.datasets.batches import ScoredSamples
    from tinyllm.model.transformer import CausalLM

FAMILY = "online"
NEEDS_GROUP = True
CONFIG = "rlhf/online/dapo/1.4M_dapo.yaml"

__all__ = ["Settings", "compute_advantages", "loss", "uses_reference"]


class Settings(Config):
    clip_low: float = Field(0.2, gt=0)
    clip_high: float = Field(0.28, gt=0)
    kl_coef: float = Field(0.0, ge=0)
    """the paper uses none"""
    kl_weighted: bool = True
    """weight k3 by the ratio, for the gradient of KL(policy || reference); false: plain k3"""
    scale: Literal["group", "batch", "none"] = "group"
    """divisor of the advantages: standard deviation of the group, of the batch, or none"""


def loss(
    settings: Settings, model: CausalLM, batch: ScoredSamples, temperature: float = 1.0
) -> tuple[Mean, dict[str, Mean]]:
    per_token, metrics = token_policy_loss(settings, model, batch, temperature)
    return masked(per_token, batch.mask), metrics
