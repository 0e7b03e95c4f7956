"""Kahneman-Tversky optimisation (arXiv 2402.01306 Eq. 8): learn from single answers, each called good or bad; no pairs needed.

    r = log pi(y|x) - log ref(y|x),   z = max(0, mean over the step of log pi(y'|x) - log ref(y'|x)), y' an answer to another prompt
    good: desirable_weight (1 - sigmoid(beta (r - z))),   bad: undesirable_weight (1 - sigmoid(beta (z - r))),   averaged over answers
z estimates KL(pi || ref) and takes no gradient. It is one number for the whole optimiser step, over micro-batches and ranks, so
`prepare` finds it before the first micro-batch is trained on. At the start pi = ref, and the loss is half the mean weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from tinyllm import dist
from tinyllm.config import Config
from tinyllm.mean import Mean, masked, over

if TYPE_CHECKING:
    from torch import Tensor

    from tinyllm.data.batches import Judged
    from tinyllm.model.transformer import CausalLM

FAMILY = "offline"
REFERENCE = True
DATA = "judgements"


class Settings(Config):
    beta: float = Field(0.1, gt=0)
    """how strongly the policy is held to the reference: the larger, the closer"""
    desirable_weight: float = Field(1.0, ge=0)
    """where good and bad answers are not equally many, weight x number should be about equal"""
    undesirable_weight: float = Field(1.0, ge=0)


def drift(model: CausalLM, batches: Sequence[Judged]) -> Tensor:
    """(2,): the sum of log pi(y'|x) - log ref(y'|x) over the mismatched rows, and their number. Takes no gradient."""
    found = model.lm_head.weight.new_zeros(2)
    for batch in batches:
        half = len(batch.good)
        log_probs = model.log_probs(batch.ids[half:], batch.mask[half:]).log_probs.sum(1).detach()
        found += found.new_tensor([(log_probs - batch.reference[half:]).sum(), half])
    return found


def prepare(settings: Settings, model: CausalLM, batches: Sequence[Judged]) -> list[Judged]:
    """Put the step's z onto each of its micro-batches. Called without gradients and on every rank at once, if need be with none."""
    moved, count = dist.sum_(drift(model, batches))
    return [replace(batch, kl=(moved / count).clamp(min=0)) for batch in batches]


def loss(settings: Settings, model: CausalLM, batch: Judged) -> tuple[Mean, dict[str, Mean]]:
    half, good = len(batch.good), batch.good
    log_probs = model.log_probs(batch.ids[:half], batch.mask[:half]).log_probs.sum(1)  # (N,)
    moved = log_probs - batch.reference[:half]
    z = batch.kl
    if z is None:  # of this batch alone
        total, count = drift(model, [batch])
        z = (total / count).clamp(min=0)
    gap = settings.beta * (moved - z)
    per_answer = (settings.desirable_weight * (-gap).sigmoid()).where(good, settings.undesirable_weight * gap.sigmoid())
    rewards = settings.beta * moved.detach()
    return over(per_answer), {
        "kl": Mean(z * half, half),
        "rewards/chosen": masked(rewards, good),
        "rewards/rejected": masked(rewards, ~good),
        # a difference of two means cannot be pooled; counted by label, this one is it where good and bad are equally many
        "rewards/margins": over(rewards.where(good, -rewards) * 2),
        "rewards/accuracies": over(((gap.detach() > 0) == good).float()),
        "logps/chosen": masked(log_probs, good),
        "logps/rejected": masked(log_probs, ~good),
    }
