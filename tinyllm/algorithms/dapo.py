"""Decoupled clip and dynamic sampling policy optimisation (arXiv 2503.14476): GRPO with four changes.

1. Clip-higher: 1 + high is farther away than 1 - low, so that unlikely tokens have room to rise.
2. Every token counts alike, in long answers and short ones (Eq. 12), over all micro-batches and ranks of the step:
       L = sum_i sum_t -min(rho A, clip(rho, 1 - low, 1 + high) A) / sum_i |y_i|
3. Dynamic sampling (Eq. 11): groups whose rewards are all equal are replaced by new ones; `rollout.sampling_rounds`.
4. Overlong answers lose reward gradually before they hit the limit (Eq. 13); `rollout.overlong_buffer`.
The last two are how a rollout is written, so any online algorithm can have them; the shipped configuration of this one does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tinyllm.algorithms.common import token_surrogate
from tinyllm.algorithms.grpo import credit, uses_reference
from tinyllm.config import Config
from tinyllm.mean import Mean, masked

if TYPE_CHECKING:
    from tinyllm.data.batches import Samples
    from tinyllm.model.transformer import CausalLM

FAMILY = "online"
CRITIC = False

__all__ = ["Settings", "credit", "loss", "uses_reference"]


class Settings(Config):
    clip_low: float = Field(0.2, gt=0)
    clip_high: float = Field(0.28, gt=0)
    kl_coef: float = Field(0.0, ge=0)
    """the paper uses none"""
    kl_weighted: bool = True
    """the true gradient of KL(policy || reference); false: k3 as it stands"""
    scale: Literal["group", "batch", "none"] = "group"
    """what the advantage is divided by: the group's standard deviation, the batch's, or nothing"""


def loss(settings: Settings, model: CausalLM, batch: Samples, temperature: float = 1.0) -> tuple[Mean, dict[str, Mean]]:
    per_token, metrics = token_surrogate(settings, model, batch, temperature)
    return masked(per_token, batch.mask), metrics
