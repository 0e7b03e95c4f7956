"""What several algorithms need: clipped ratios, estimates of KL, advantages within groups. Tensor methods only, no torch import."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinyllm import dist
from tinyllm.mean import Mean, masked

if TYPE_CHECKING:
    from typing import Protocol

    from torch import Tensor

    from tinyllm.data.batches import Samples
    from tinyllm.model.transformer import CausalLM

    class TokenSettings(Protocol):
        """What a loss with one ratio a token is told."""

        clip_low: float
        clip_high: float
        kl_coef: float
        kl_weighted: bool


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


def kl_penalty(log_probs: Tensor, old: Tensor, reference: Tensor, weighted: bool) -> Tensor:
    """k3 per token (B, T). Weighted by the ratio its gradient is that of KL(pi || ref) (arXiv 2512.02556); without, that of the KL
    the other way round."""
    plain = k3(log_probs, reference)
    return plain * (log_probs - old).exp() if weighted else plain


def per_answer(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over each answer's tokens, (B,)."""
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


def token_surrogate(
    settings: TokenSettings, model: CausalLM, batch: Samples, temperature: float
) -> tuple[Tensor, dict[str, Mean]]:
    """Per token (B, T): -min(rho A, clip(rho, 1 - low, 1 + high) A) + kl_coef k3, rho_t = pi / pi_old; and the usual metrics.

    GRPO, Dr. GRPO and DAPO share it and differ in what they average it over.
    """
    mask = batch.mask
    scores = model.log_probs(batch.ids, mask, temperature=temperature, entropy=True)
    ratio = (scores.log_probs - batch.old).exp()
    per_token = clipped(ratio, batch.advantage, settings.clip_low, settings.clip_high)
    metrics = policy_metrics(scores.log_probs, batch.old, scores.entropy, mask) | {
        "clip_fraction": masked(outside(ratio, batch.advantage, settings.clip_low, settings.clip_high), mask)
    }
    if batch.reference is not None:
        metrics["kl"] = masked(k3(scores.log_probs, batch.reference), mask)
        penalty = kl_penalty(scores.log_probs, batch.old, batch.reference, settings.kl_weighted)
        per_token = per_token + settings.kl_coef * penalty
    return per_token, metrics


def moments(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of the masked values, over all ranks."""
    wide = values if values.device.type == "mps" else values.double()  # which has no float64
    kept = wide * mask
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


def leave_one_out(reward: Tensor, group: Tensor) -> Tensor:
    """r_i minus the mean of the *other* rewards of its group (B,); 0 for an answer without siblings. arXiv 2402.14740 section 3.2."""
    members = (group[:, None] == group[None, :]).to(reward.dtype)
    others = members.sum(1) - 1
    return (reward - (members @ reward - reward) / others.clamp(min=1)) * (others > 0)


def constant_groups(reward: Tensor, group: Tensor) -> Mean:
    """The share of answers in groups whose rewards are all equal: they teach nothing."""
    members = group[:, None] == group[None, :]
    spread = reward.where(members, float("-inf")).amax(1) - reward.where(members, float("inf")).amin(1)
    return Mean((spread == 0).float().sum(), len(reward))
