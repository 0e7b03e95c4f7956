"""Group-relative policy optimisation (arXiv 2402.03300 Eq. 3): PPO's clipped ratio, with the group's mean in place of a critic.

A_i = (r_i - mean of its group) / (std of its group + 1e-4), the same for every token of answer i.
    L = mean_i 1/|y_i| sum_t [ -min(rho A, clip(rho, 1 - low, 1 + high) A) + kl_coef k3_t ],   rho_t = pi / pi_old
With `kl_weighted` k3 is weighted by rho, which makes its gradient that of KL(pi || ref) (arXiv 2512.02556); without, it is that of the
KL the other way round. On the first minibatch rho = 1 and the loss is about 0 whatever the rewards: look at `reward`, not at the loss.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tinyllm.algorithms.common import constant_groups, group_advantage, per_answer, token_surrogate
from tinyllm.config import Config
from tinyllm.mean import Mean, over

if TYPE_CHECKING:
    from tinyllm.data.batches import Samples
    from tinyllm.model.transformer import CausalLM

FAMILY = "online"
CRITIC = False


class Settings(Config):
    clip_low: float = Field(0.2, gt=0)
    clip_high: float = Field(0.28, gt=0)
    """larger than clip_low, so that unlikely tokens have room to rise (arXiv 2503.14476)"""
    kl_coef: float = Field(0.02, ge=0)
    kl_weighted: bool = True
    """the true gradient of KL(policy || reference); false: k3 as it stands"""
    scale: Literal["group", "batch", "none"] = "group"
    """what the advantage is divided by: the group's standard deviation, the batch's, or nothing"""


def uses_reference(settings: Settings) -> bool:
    return settings.kl_coef > 0


def credit(settings: Settings, samples: Samples) -> tuple[Samples, dict[str, Mean]]:
    advantage = group_advantage(samples.reward, samples.group, settings.scale)[:, None] * samples.mask
    return replace(samples, advantage=advantage), {"constant_groups": constant_groups(samples.reward, samples.group)}


def loss(settings: Settings, model: CausalLM, batch: Samples, temperature: float = 1.0) -> tuple[Mean, dict[str, Mean]]:
    per_token, metrics = token_surrogate(settings, model, batch, temperature)
    return over(per_answer(per_token, batch.mask)), metrics
