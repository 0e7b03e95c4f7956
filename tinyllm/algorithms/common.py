"""What several algorithms need: clipped ratios, estimates of KL, advantages within groups. Tensor methods only, no torch import."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinyllm import dist
from tinyllm.mean import Mean, masked

if TYPE_CHECKING:
    from torch import Tensor


def log_sigmoid(x: Tensor) -> Tensor:
    """log(1 / (1 + e^-x)), finite for any x, with gradient 1/2 at 0."""
    return -(-x).logaddexp(x.new_zeros(()))


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """The pessimistic surrogate as a loss, -min(r A, clip(r, 1 - low, 1 + high) A): arXiv 1707.06347 Eq. 7, with the two bounds
    apart as in arXiv 2503.14476."""
    return -(ratio * advantage).minimum(ratio.clamp(1 - low, 1 + high) * advantage)


def outside(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """1 where clipping has taken the gradient away, else 0."""
    return (((ratio < 1 - low) & (advantage < 0)) | ((ratio > 1 + high) & (advantage > 0))).to(ratio.dtype)


def k3(log_policy: Tensor, log_reference: Tensor) -> Tensor:
    """Schulman's low-variance estimate of KL(policy || reference) from samples of the policy: e^-d - 1 + d >= 0, d = log pi/ref."""
    difference = log_policy - log_reference
    return (-difference).exp() - 1 + difference


def policy_metrics(log_probs: Tensor, old: Tensor, entropy: Tensor, mask: Tensor) -> dict[str, Mean]:
    """How far the policy has moved since it wrote the samples, per token."""
    log_ratio = (log_probs - old).detach()
    return {
        "ratio": masked(log_ratio.exp(), mask),
        "approx_kl": masked(log_ratio.exp() - 1 - log_ratio, mask),
        "entropy": masked(entropy, mask),
    }


def moments(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of the masked values, over all ranks."""
    kept = values.double() * mask
    total, square, count = dist.sum_(kept.new_tensor([kept.sum(), (kept * kept).sum(), mask.sum()])).unbind()
    mean = total / count
    variance = (square - count * mean * mean).clamp(min=0) / (count - 1).clamp(min=1)
    return mean.to(values.dtype), variance.to(values.dtype)


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the masked values of all ranks; 0 elsewhere."""
    mean, variance = moments(values, mask)
    return (values - mean) * (variance + 1e-8).rsqrt() * mask


def group_advantage(reward: Tensor, group: Tensor, scale: str, eps: float = 1e-4) -> Tensor:
    """(r - mean of its group) / (std + eps), std unbiased and taken over the group, the batch, or left out (`none`).

    reward, group (B,). arXiv 2402.03300 section 4.1.2; `none`: arXiv 2503.20783; `batch`: arXiv 2508.08221.
    """
    members = (group[:, None] == group[None, :]).to(reward.dtype)  # (B, B)
    count = members.sum(1)
    centred = reward - members @ reward / count
    if scale == "none":
        return centred
    if scale == "group":
        return centred / ((members @ centred.square() / (count - 1).clamp(min=1)).sqrt() + eps)
    _, variance = moments(reward, reward == reward)
    return centred / (variance.sqrt() + eps)


def constant_groups(reward: Tensor, group: Tensor) -> Mean:
    """The share of answers in groups whose rewards are all equal: they teach nothing."""
    members = group[:, None] == group[None, :]
    spread = reward.where(members, float("-inf")).amax(1) - reward.where(members, float("inf")).amin(1)
    return Mean((spread == 0).double().sum(), len(reward))
