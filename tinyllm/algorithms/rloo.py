"""REINFORCE leave-one-out (arXiv 2402.14740): an answer's baseline is the mean reward of its siblings, itself left out.

    R_i = r_i - kl_coef sum_t log(pi_old / ref)_t,   A_i = R_i - mean of the other R of its group
    L = mean_i -min(s A, clip(s, 1 - clip, 1 + clip) A),   s = pi(y_i|x) / pi_old(y_i|x)
The whole answer is one action: its ratio is the product over tokens and its log-probability is summed, not averaged. On the first
minibatch s = 1 and the gradient is REINFORCE's, -A_i grad log pi(y_i|x). With more minibatches than one, long answers are soon outside
the clip; `rollout.minibatches: 1` is the paper's setting.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from tinyllm.algorithms.common import clipped, constant_groups, leave_one_out, outside, policy_metrics
from tinyllm.config import Config
from tinyllm.mean import Mean, over

if TYPE_CHECKING:
    from tinyllm.data.batches import Samples
    from tinyllm.model.transformer import CausalLM

FAMILY = "online"
CRITIC = False


class Settings(Config):
    clip: float = Field(0.2, gt=0)
    kl_coef: float = Field(0.05, ge=0)
    """of the KL to the reference, summed over the answer, in its reward"""


def uses_reference(settings: Settings) -> bool:
    return settings.kl_coef > 0


def credit(settings: Settings, samples: Samples) -> tuple[Samples, dict[str, Mean]]:
    reward = samples.reward
    if samples.reference is not None:
        reward = reward - settings.kl_coef * ((samples.old - samples.reference) * samples.mask).sum(1)
    advantage = leave_one_out(reward, samples.group)[:, None] * samples.mask
    return replace(samples, advantage=advantage), {"constant_groups": constant_groups(samples.reward, samples.group)}


def loss(settings: Settings, model: CausalLM, batch: Samples, temperature: float = 1.0) -> tuple[Mean, dict[str, Mean]]:
    mask = batch.mask
    scores = model.log_probs(batch.ids, mask, temperature=temperature, entropy=True)
    ratio = ((scores.log_probs - batch.old) * mask).sum(1).exp()  # (B,)
    advantage = (batch.advantage * mask).sum(1) / mask.sum(1).clamp(min=1)  # the same at every token
    metrics = policy_metrics(scores.log_probs, batch.old, scores.entropy, mask) | {
        "clip_fraction": over(outside(ratio, advantage, settings.clip, settings.clip)),
        "sequence_ratio": over(ratio.detach()),
    }
    return over(clipped(ratio, advantage, settings.clip, settings.clip)), metrics
