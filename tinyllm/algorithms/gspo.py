"""Group sequence policy optimisation (arXiv 2507.18071 Eq. 5-7): GRPO with one importance ratio an answer.

s_i = exp( 1/|y_i| sum_t log pi/pi_old ),   L = mean_i -min(s_i A_i, clip(s_i, 1 - low, 1 + high) A_i)
The ratio is a geometric mean over tokens: without 1/|y| it would explode with length. The paper's bounds, 3e-4 and 4e-4, are for
answers of a thousand tokens; a mean over five to fifty tokens varies more, so the defaults here are ten times as wide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tinyllm.algorithms.common import clipped, k3, kl_penalty, outside, per_answer, policy_metrics
from tinyllm.algorithms.grpo import credit, uses_reference
from tinyllm.config import Config
from tinyllm.mean import Mean, masked, over

if TYPE_CHECKING:
    from tinyllm.data.batches import Samples
    from tinyllm.model.transformer import CausalLM

FAMILY = "online"
CRITIC = False

__all__ = ["Settings", "credit", "loss", "uses_reference"]


class Settings(Config):
    clip_low: float = Field(3e-3, gt=0)
    clip_high: float = Field(4e-3, gt=0)
    kl_coef: float = Field(0.0, ge=0)
    """the paper uses none"""
    kl_weighted: bool = True
    scale: Literal["group", "batch", "none"] = "group"


def loss(settings: Settings, model: CausalLM, batch: Samples, temperature: float = 1.0) -> tuple[Mean, dict[str, Mean]]:
    mask = batch.mask
    scores = model.log_probs(batch.ids, mask, temperature=temperature, entropy=True)
    ratio = per_answer(scores.log_probs - batch.old, mask).exp()  # (B,)
    advantage = per_answer(batch.advantage, mask)  # the same at every token
    per_row = clipped(ratio, advantage, settings.clip_low, settings.clip_high)
    metrics = policy_metrics(scores.log_probs, batch.old, scores.entropy, mask) | {
        "clip_fraction": over(outside(ratio, advantage, settings.clip_low, settings.clip_high)),
        "sequence_ratio": over(ratio.detach()),
    }
    if batch.reference is not None:
        metrics["kl"] = masked(k3(scores.log_probs, batch.reference), mask)
        penalty = kl_penalty(scores.log_probs, batch.old, batch.reference, settings.kl_weighted)
        per_row = per_row + settings.kl_coef * per_answer(penalty, mask)
    return over(per_row), metrics
