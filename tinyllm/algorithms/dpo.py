"""Direct preference optimization (arXiv 2305.18290 Eq. 7): train on preference pairs without a reward model.

u = log pi(y|x) - log ref(y|x), summed over the answer with its end token; d = u_chosen - u_rejected.

    sigmoid  -(1 - e) log s(beta d) - e log s(-beta d)              e: label smoothing (cDPO); 0 is the paper's loss
    hinge    max(0, 1 - beta d)                                     arXiv 2305.10425
    ipo      (u_c/|c| - u_r/|r| - 1/(2 beta))^2                      arXiv 2310.12036, averaged over tokens unless `ipo_sum`
    robust   (-(1 - e) log s(beta d) + e log s(-beta d)) / (1 - 2e)  arXiv 2403.00409

At the start policy = reference, so d = 0 and the sigmoid loss is ln 2; with dropout, which the reference does not have, on held-out pairs
only. The log-probability of the chosen answers usually falls while the margin grows, since only the difference is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tinyllm.algorithms.common import log_sigmoid, required
from tinyllm.config import Config
from tinyllm.mean import Mean, over

if TYPE_CHECKING:
    from torch import Tensor

    from tinyllm.data.datasets.batches import PreferenceBatch
    from tinyllm.model.transformer import CausalLM

FAMILY = "offline"
DATA = "pairs"
CONFIG = "rlhf/offline/dpo/1.4M_dpo.yaml"
IN_LIFECYCLE = True


class Settings(Config):
    beta: float = Field(0.1, gt=0)
    """strength of the tie to the reference: the larger, the closer"""
    variant: Literal["sigmoid", "hinge", "ipo", "robust"] = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """fraction of pairs whose labels are assumed to be wrong"""
    ipo_sum: bool = False
    """IPO on summed instead of averaged log-probabilities, as in the paper"""


def uses_reference(settings: Settings) -> bool:
    return True


def _sigmoid(settings: Settings, difference: Tensor, averaged_difference: Tensor) -> Tensor:
    e, z = settings.label_smoothing, settings.beta * difference
    return -(1 - e) * log_sigmoid(z) - e * log_sigmoid(-z)


def _hinge(settings: Settings, difference: Tensor, averaged_difference: Tensor) -> Tensor:
    return (1 - settings.beta * difference).clamp(min=0)


def _ipo(settings: Settings, difference: Tensor, averaged_difference: Tensor) -> Tensor:
    return ((difference if settings.ipo_sum else averaged_difference) - 1 / (2 * settings.beta)).square()


def _robust(settings: Settings, difference: Tensor, averaged_difference: Tensor) -> Tensor:
    e, z = settings.label_smoothing, settings.beta * difference
    return (-(1 - e) * log_sigmoid(z) + e * log_sigmoid(-z)) / (1 - 2 * e)


VARIANTS: dict[str, Callable[[Settings, Tensor, Tensor], Tensor]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
}


def loss(settings: Settings, model: CausalLM, batch: PreferenceBatch) -> tuple[Mean, dict[str, Mean]]:
    log_probs = model.log_probs(batch.ids, batch.mask, group=batch.group).sum(1)  # (2P,)
    log_ratios = log_probs - required(batch.ref_log_probs, "ref_log_probs")
    chosen, rejected = log_ratios.chunk(2)
    averaged_chosen, averaged_rejected = (log_ratios / batch.mask.sum(1)).chunk(2)
    per_pair = VARIANTS[settings.variant](settings, chosen - rejected, averaged_chosen - averaged_rejected)
    return over(per_pair), {
        "rewards/accuracies": over(chosen > rejected),
        "rewards/margins": over(settings.beta * (chosen - rejected)),
        "rewards/chosen": over(settings.beta * chosen),
        "rewards/rejected": over(settings.beta * rejected),
        "logps/chosen": over(log_probs.chunk(2)[0]),
        "logps/rejected": over(log_probs.chunk(2)[1]),
    }
