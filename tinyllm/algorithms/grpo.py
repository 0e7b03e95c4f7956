"""Group-relative policy optimization (arXiv 2402.03300 Eq. 3): PPO's clipped ratio, with the mean of a group in place of a critic.

A_i = (r_i - mean of its group) / (std of its group + 1e-4), the same for every token of answer i.

    L = mean_i 1/|y_i| sum_t [ -min(rho A, clip(rho, 1 - low, 1 + high) A) + kl_coef k3_t ],   rho_t = pi / pi_old

With `kl_weighted`, k3 is weighted by rho, which makes its gradient that of KL(pi || ref) (arXiv 2512.02556); without, it is that of
KL(ref || pi). The metric `kl` is plain k3 in both cases. On the first minibatch rho = 1 (with dropout, about 1) and the loss is about 0
whatever the rewards: watch `reward`, not the loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tinyllm.algorithms.common import constant_group_fraction, group_advantages, sequence_mean, token_policy_loss
from tinyllm.config import Config
from tinyllm.mean import Mean, over

if TYPE_CHECKING:
    from typing import Protocol

    from tinyllm.data.datasets.batches import Samples, ScoredSamples
    from tinyllm.model.transformer import CausalLM

    class GroupSettings(Protocol):
        """Settings of an algorithm with advantages relative to a group."""

        @property
        def scale(self) -> Literal["group", "batch", "none"]: ...

    class KLSettings(Protocol):
        """Settings of an algorithm with a KL term in the loss."""

        @property
        def kl_coef(self) -> float: ...


FAMILY = "online"
NEEDS_GROUP = True
CONFIG = "rlhf/online/grpo/1.4M_grpo.yaml"
IN_LIFECYCLE = True


class Settings(Config):
    clip_low: float = Field(0.2, gt=0)
    clip_high: float = Field(0.28, gt=0)
    """larger than clip_low, so that unlikely tokens have room to rise (arXiv 2503.14476)"""
    kl_coef: float = Field(0.02, ge=0)
    kl_weighted: bool = True
    """weight k3 by the ratio, for the gradient of KL(policy || reference); false: plain k3"""
    scale: Literal["group", "batch", "none"] = "group"
    """divisor of the advantages: standard deviation of the group, of the batch, or none"""


def uses_reference(settings: KLSettings) -> bool:
    return settings.kl_coef > 0


def compute_advantages(settings: GroupSettings, samples: Samples) -> tuple[ScoredSamples, dict[str, Mean]]:
    advantages = group_advantages(samples.reward, samples.group, settings.scale)[:, None] * samples.mask
    return samples.with_advantages(advantages), {
        "constant_groups": constant_group_fraction(samples.reward, samples.group)
    }


def loss(
    settings: Settings, model: CausalLM, batch: ScoredSamples, temperature: float = 1.0
) -> tuple[Mean, dict[str, Mean]]:
    per_token, metrics = token_policy_loss(settings, model, batch, temperature)
    return over(sequence_mean(per_token, batch.mask)), metrics
