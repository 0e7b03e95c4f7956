"""Simple preference optimization (arXiv 2405.14734 Eq. 6): preferences without a reference, on length-averaged log-probabilities.

    L = - log sigmoid( beta (l_chosen - l_rejected) - gamma ),   l = 1/|y| sum_t log pi(y_t | x, y_<t)

The average is what generation maximizes, so the trained reward is the one that decoding uses; gamma is the margin by which the chosen
answer should win. Nothing ties the policy to where it started, so the learning rate must be low.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tinyllm.algorithms.common import log_sigmoid, sequence_mean
from tinyllm.config import Config
from tinyllm.mean import Mean, over

if TYPE_CHECKING:
    from tinyllm.data.datasets.batches import PreferenceBatch
    from tinyllm.model.transformer import CausalLM

FAMILY = "offline"
DATA = "pairs"
CONFIG = "rlhf/offline/simpo/1.4M_simpo.yaml"


class Settings(Config):
    beta: float = Field(2.0, gt=0)
    gamma: float = Field(1.0, ge=0)
    """target margin, in units of beta (l_chosen - l_rejected); the paper's gamma/beta is about 0.3 to 0.5"""


def loss(settings: Settings, model: CausalLM, batch: PreferenceBatch) -> tuple[Mean, dict[str, Mean]]:
    average = sequence_mean(model.log_probs(batch.ids, batch.mask, group=batch.group), batch.mask)  # (2P,)
    chosen, rejected = average.chunk(2)
    margin = settings.beta * (chosen - rejected)
    return over(-log_sigmoid(margin - settings.gamma)), {
        "rewards/accuracies": over(chosen > rejected),
        "rewards/margins": over(margin),
        "rewards/chosen": over(settings.beta * chosen),
        "rewards/rejected": over(settings.beta * rejected),
        "logps/chosen": over(chosen),
        "logps/rejected": over(rejected),
    }
