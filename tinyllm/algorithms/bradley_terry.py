"""Reward modeling from pairs (Bradley-Terry).

    L = - log sigmoid(r_chosen - r_rejected - margin)     arXiv 2203.02155; margin: arXiv 2307.09288
        + centering (r_chosen + r_rejected)^2             arXiv 2312.09244 Eq. 2

averaged over pairs. The reward is read at the last token that is not padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tinyllm.algorithms.common import log_sigmoid
from tinyllm.config import Config
from tinyllm.mean import Mean, over

if TYPE_CHECKING:
    from tinyllm.data.datasets.batches import PreferenceBatch
    from tinyllm.model.transformer import SequenceScorer

FAMILY = "reward"


class Settings(Config):
    centering: float = Field(0.01, ge=0)
    """weight of the term that keeps rewards near zero; differences alone leave their level undetermined"""


def loss(settings: Settings, model: SequenceScorer, batch: PreferenceBatch) -> tuple[Mean, dict[str, Mean]]:
    rewards = model.rewards(batch.ids, batch.real)  # (2P,)
    chosen, rejected = rewards.chunk(2)
    difference = chosen - rejected
    per_pair = -log_sigmoid(difference - batch.margin) + settings.centering * (chosen + rejected).square()
    return over(per_pair), {
        "accuracy": over(difference > 0),
        "margin": over(difference),
        "rewards/chosen": over(chosen),
        "rewards/rejected": over(rejected),
    }
