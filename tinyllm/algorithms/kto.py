"""Kahneman-Tversky optimization (arXiv 2402.01306 Eq. 8): train on single answers labeled good or bad, without pairs.

    r = log pi(y|x) - log ref(y|x),   z = max(0, mean over the step of log pi(y'|x) - log ref(y'|x)),   y': an answer to another prompt
    good: desirable_weight (1 - sigmoid(beta (r - z))),   bad: undesirable_weight (1 - sigmoid(beta (z - r))),   averaged over answers

z estimates KL(pi || ref) and has no gradient. It is one number for the whole optimizer step, over micro-batches and ranks, so `prepare`
computes it before the first micro-batch is trained on. At the start pi = ref, and the loss is half the mean weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from tinyllm import distributed as dist
from tinyllm.algorithms.common import required
from tinyllm.config import Config
from tinyllm.mean import Mean, masked, over

if TYPE_CHECKING:
    from torch import Tensor

    from tinyllm.data.datasets.batches import UnpairedBatch
    from tinyllm.model.transformer import CausalLM

FAMILY = "offline"
DATA = "unpaired"
CONFIG = "rlhf/offline/kto/1.4M_kto.yaml"


class Settings(Config):
    beta: float = Field(0.1, gt=0)
    """strength of the tie to the reference: the larger, the closer"""
    desirable_weight: float = Field(1.0, ge=0)
    """if good and bad answers differ in number, weight x number should be about equal"""
    undesirable_weight: float = Field(1.0, ge=0)


def uses_reference(settings: Settings) -> bool:
    return True


def mismatched_log_ratios(model: CausalLM, batches: Sequence[UnpairedBatch]) -> Tensor:
    """Return (2,): the sum of log pi(y'|x) - log ref(y'|x) over the mismatched rows of `batches`, and their number; no gradient."""
    found = model.lm_head.weight.new_zeros(2)
    for batch in batches:
        half = len(batch.good)
        log_probs = model.log_probs(batch.ids[half:], batch.mask[half:]).sum(1).detach()
        ref_log_probs = required(batch.ref_log_probs, "ref_log_probs")[half:]
        found += found.new_tensor([(log_probs - ref_log_probs).sum(), half])
    return found


def prepare(settings: Settings, model: CausalLM, batches: Sequence[UnpairedBatch]) -> list[UnpairedBatch]:
    """Return the micro-batches of a step with its z. Called without gradients and on every rank, even on one without batches."""
    total, count = dist.sum_(mismatched_log_ratios(model, batches))
    return [replace(batch, kl=(total / count).clamp(min=0)) for batch in batches]


def loss(settings: Settings, model: CausalLM, batch: UnpairedBatch) -> tuple[Mean, dict[str, Mean]]:
    half, good = len(batch.good), batch.good
    log_probs = model.log_probs(batch.ids[:half], batch.mask[:half]).sum(1)  # (N,)
    log_ratios = log_probs - required(batch.ref_log_probs, "ref_log_probs")[:half]
    z = batch.kl
    if z is None:
        total, count = mismatched_log_ratios(model, [batch])
        z = (total / count).clamp(min=0)
    margin = settings.beta * (log_ratios - z)
    per_answer = (settings.desirable_weight * (-margin).sigmoid()).where(
        good, settings.undesirable_weight * margin.sigmoid()
    )
    rewards = settings.beta * log_ratios
    return over(per_answer), {
        "kl": Mean(z * half, half),
        "rewards/chosen": masked(rewards, good),
        "rewards/rejected": masked(rewards, ~good),
        # a difference of two means cannot be pooled; this mean equals it if good and bad answers are equally many
        "rewards/margins": over(rewards.where(good, -rewards) * 2),
        "rewards/accuracies": over((margin > 0) == good),
        "logps/chosen": masked(log_probs, good),
        "logps/rejected": masked(log_probs, ~good),
    }
