"""Odds-ratio preference optimization (arXiv 2403.07691 Eq. 6-7): supervised loss and preference loss in one, without a reference.

    L = NLL(chosen) - weight * log sigmoid(log odds(chosen) - log odds(rejected)),   odds = P / (1 - P),   P = exp(l)

l is the *mean* log-probability of the answer's tokens. log odds = l - log(1 - e^l), the latter by log1mexp, which neither overflows nor
loses digits. NLL is a mean over tokens and the other term a mean over pairs; both are normalized over the whole optimizer step.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from tinyllm.algorithms.common import log_sigmoid
from tinyllm.config import Config
from tinyllm.mean import Mean, over

if TYPE_CHECKING:
    from torch import Tensor

    from tinyllm.data.datasets.batches import PreferenceBatch
    from tinyllm.model.transformer import CausalLM

FAMILY = "offline"
DATA = "pairs"
CONFIG = "rlhf/offline/orpo/1.4M_orpo.yaml"
IN_LIFECYCLE = True


class Settings(Config):
    weight: float = Field(0.1, ge=0)
    """weight of the odds-ratio term; lambda in the paper, beta in TRL"""
    prompt_loss: bool = True
    """the NLL covers prompt and answer, as in TRL and the authors' code; false: the answer only"""


def log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - e^x) for x < 0, elementwise: by expm1 near zero and by log1p elsewhere, each where it is accurate."""
    x = x.clamp(max=-1e-7)  # a probability of one has infinite odds; this keeps them finite
    near = x > -math.log(2)
    return (-x.where(near, -1.0).expm1()).log().where(near, (-x.where(~near, -1.0).exp()).log1p())


def loss(settings: Settings, model: CausalLM, batch: PreferenceBatch) -> tuple[Mean, dict[str, Mean]]:
    pairs = batch.count
    scored = batch.mask.clone()
    if settings.prompt_loss:
        scored[:pairs] = batch.real[:pairs]
        scored[:, 0] = False
    log_probs = model.log_probs(batch.ids, scored)  # (2P, T)
    mean = (log_probs * batch.mask).sum(1) / batch.mask.sum(1)
    chosen, rejected = mean.chunk(2)
    log_odds = (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))
    tokens_per_pair = batch.tokens_per_pair if settings.prompt_loss else batch.answer_tokens_per_pair
    if tokens_per_pair is None:
        tokens_per_pair = float(scored[:pairs].sum()) / pairs
    nll = -log_probs[:pairs].sum()
    preference = -log_sigmoid(log_odds).sum()
    return Mean(nll / tokens_per_pair + settings.weight * preference, pairs), {
        "nll_loss": Mean(nll, scored[:pairs].sum()),
        "log_odds_ratio": Mean(-preference, pairs),
        "log_odds_chosen": over(log_odds),
        "rewards/accuracies": over(chosen > rejected),
        "rewards/margins": over(settings.weight * (chosen - rejected)),
        "logps/chosen": over(chosen),
        "logps/rejected": over(rejected),
    }
