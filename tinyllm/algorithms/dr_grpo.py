"""GRPO done right (arXiv 2503.20783 section 3.2): without the two divisions that bias it.

Dividing by |y_i| makes long wrong answers cheap, and dividing by the group's std favours questions that are nearly solved or nearly
hopeless. Here A_i = r_i - mean of its group, and every answer's sum is divided by the same constant, the most tokens it may have:
    L = 1/(B budget) sum_i sum_t [ -min(rho A, clip(rho, 1 - low, 1 + high) A) + kl_coef k3_t ],   budget = rollout.max_new_tokens
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tinyllm.algorithms.common import token_surrogate
from tinyllm.algorithms.grpo import credit, uses_reference
from tinyllm.config import Config
from tinyllm.mean import Mean

if TYPE_CHECKING:
    from tinyllm.data.batches import Samples
    from tinyllm.model.transformer import CausalLM

FAMILY = "online"
CRITIC = False

__all__ = ["Settings", "credit", "loss", "uses_reference"]


class Settings(Config):
    clip_low: float = Field(0.2, gt=0)
    clip_high: float = Field(0.2, gt=0)
    kl_coef: float = Field(0.0, ge=0)
    """the paper uses none"""
    kl_weighted: bool = True
    """the true gradient of KL(policy || reference); false: k3 as it stands"""
    scale: Literal["group", "batch", "none"] = "none"
    """anything but `none` puts the bias back"""


def loss(settings: Settings, model: CausalLM, batch: Samples, temperature: float = 1.0) -> tuple[Mean, dict[str, Mean]]:
    per_token, metrics = token_surrogate(settings, model, batch, temperature)
    return Mean((per_token * batch.mask).sum(), len(batch.ids) * batch.budget), metrics
