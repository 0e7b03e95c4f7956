"""REINFORCE leave-one-out (arXiv 2402.14740): the baseline of an answer is the mean reward of the other answers to its prompt.

    R_i = r_i - kl_coef sum_t log(pi_old / ref)_t,   A_i = R_i - mean of the other R of its group
    L = mean_i -min(s A, clip(s, 1 - clip, 1 + clip) A),   s = pi(y_i|x) / pi_old(y_i|x)

The whole answer is one action: its ratio is the product over tokens and its log-probability is summed, not averaged. On the first
minibatch s = 1 and the gradient is REINFORCE's, -A_i grad log pi(y_i|x). With several minibatches, long answers soon leave the clip
range; `rollout.minibatches: 1` is the paper's setting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tinyllm.algorithms.common import (
    clip_mask,
    clipped_surrogate,
    constant_group_fraction,
    leave_one_out_advantages,
    score_policy,
)
from tinyllm.config import Config
from tinyllm.mean import Mean, over

if TYPE_CHECKING:
    from tinyllm.data.datasets.batches import Samples, ScoredSamples
    from tinyllm.model.transformer import CausalLM

FAMILY = "online"
NEEDS_GROUP = True
CONFIG = "rlhf/online/rloo/1.4M_rloo.yaml"


class Settings(Config):
    clip: float = Field(0.2, gt=0)
    kl_coef: float = Field(0.05, ge=0)
    """weight of the KL to the reference, summed over the answer, in its reward"""


def uses_reference(settings: Settings) -> bool:
    return settings.kl_coef > 0


def compute_advantages(settings: Settings, samples: Samples) -> tuple[ScoredSamples, dict[str, Mean]]:
    reward = samples.reward
    if samples.ref_log_probs is not None:
        reward = reward - settings.kl_coef * ((samples.old_log_probs - samples.ref_log_probs) * samples.mask).sum(1)
    advantages = leave_one_out_advantages(reward, samples.group)[:, None] * samples.mask
    return samples.with_advantages(advantages), {
        "constant_groups": constant_group_fraction(samples.reward, samples.group)
    }


def loss(
    settings: Settings, model: CausalLM, batch: ScoredSamples, temperature: float = 1.0
) -> tuple[Mean, dict[str, Mean]]:
    mask = batch.mask
    scores, old, metrics = score_policy(model, batch, temperature)
    ratio = ((scores.log_probs - old) * mask).sum(1).exp()  # (B,)
    advantages = (batch.advantages * mask).sum(1) / mask.sum(1).clamp(min=1)  # (B,); equal at every token of an answer
    metrics |= {
        "clip_fraction": over(clip_mask(ratio, advantages, settings.clip, settings.clip)),
        "sequence_ratio": over(ratio),
    }
    return over(clipped_surrogate(ratio, advantages, settings.clip, settings.clip)), metrics
