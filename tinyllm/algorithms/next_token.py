"""Next-token prediction: pretraining, and supervised fine-tuning with a mask.

L = - sum_t m_t log p(y_t | y_<t) / N, where N counts the scored tokens of the whole optimiser step, over micro-batches and ranks: a mean
of means would weigh a token by the company it keeps. Packed rows name each token's document, so that none sees another's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinyllm.config import Config
from tinyllm.mean import Mean

if TYPE_CHECKING:
    from tinyllm.data.batches import Rows
    from tinyllm.model.transformer import CausalLM

FAMILY = "supervised"


class Settings(Config):
    """None: the loss has no knobs."""


def loss(settings: Settings, model: CausalLM, batch: Rows) -> tuple[Mean, dict[str, Mean]]:
    scores = model.log_probs(batch.ids, batch.mask, attend=batch.documents)
    return Mean(-scores.log_probs.sum(), batch.mask.sum()), {}
