"""Next-token prediction: pretraining, and supervised fine-tuning with a mask.

    L = - sum_t m_t log p(y_t | y_<t) / N,   m_t: the token is scored

N counts the scored tokens of the whole optimizer step, over micro-batches and ranks: a mean of micro-batch means would weight tokens
unequally. Packed rows number each token's document, and documents do not attend to each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinyllm.config import Config
from tinyllm.mean import Mean

if TYPE_CHECKING:
    from tinyllm.data.datasets.batches import TokenBatch
    from tinyllm.model.transformer import CausalLM

FAMILY = "supervised"


class Settings(Config):
    """No settings."""


def loss(settings: Settings, model: CausalLM, batch: TokenBatch) -> tuple[Mean, dict[str, Mean]]:
    total = model.log_prob_total(batch.ids, batch.mask, attend=batch.documents)
    return Mean(-total, batch.mask.sum()), {}
