"""Simple preference optimisation (arXiv 2405.14734 Eq. 6): preferences without a reference, on length-averaged log-probabilities.

    L = - log sigmoid( beta (l_chosen - l_rejected) - gamma ),   l = 1/|y| sum_t log pi(y_t | x, y_<t)
The average is what generation maximises, so the reward that is trained is the one that is used; gamma is the margin by which the
chosen answer is to win. Nothing holds the policy near where it started: a low learning rate has to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tinyllm.algorithms.common import log_sigmoid, per_answer
from tinyllm.config import Config
from tinyllm.mean import Mean, over

if TYPE_CHECKING:
    from tinyllm.data.batches import Pairs
    from tinyllm.model.transformer import CausalLM

FAMILY = "offline"
REFERENCE = False
DATA = "pairs"


class Settings(Config):
    beta: float = Field(2.0, gt=0)
    gamma: float = Field(1.0, ge=0)
    """the margin asked for, in units of beta (l_chosen - l_rejected); the paper's gamma/beta is 0.3 to 0.5 or so"""


def loss(settings: Settings, model: CausalLM, batch: Pairs) -> tuple[Mean, dict[str, Mean]]:
    average = per_answer(model.log_probs(batch.ids, batch.mask).log_probs, batch.mask)  # (2P,)
    chosen, rejected = average.chunk(2)
    margin = settings.beta * (chosen - rejected)
    return over(-log_sigmoid(margin - settings.gamma)), {
        "rewards/accuracies": over((chosen > rejected).float()),
        "rewards/margins": over(margin),
        "rewards/chosen": over(settings.beta * chosen),
        "rewards/rejected": over(settings.beta * rejected),
        "logps/chosen": over(chosen),
        "logps/rejected": over(rejected),
    }
