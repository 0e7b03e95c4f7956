"""Shared parts of the losses: clipped ratios, KL estimates, advantages within groups. Tensor methods only, so torch is not imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinyllm import distributed as dist
from tinyllm.mean import Mean, masked, over

if TYPE_CHECKING:
    from typing import Protocol

    from torch import Tensor

    from tinyllm.data.datasets.batches import ScoredSamples
    from tinyllm.model.heads import TokenScores
    from tinyllm.model.transformer import CausalLM

    class TokenLossSettings(Protocol):
        """Settings of a loss with one ratio per token."""

        @property
        def clip_low(self) -> float: ...
        @property
        def clip_high(self) -> float: ...
        @property
        def kl_coef(self) -> float: ...
        @property
        def kl_weighted(self) -> bool: ...


def required(value: Tensor | None, name: str) -> Tensor:
    """Return an optional tensor of a batch that this algorithm cannot do without."""
    assert value is not None, f"the batch has no {name}: does the algorithm declare uses_reference or CRITIC?"
    return value


def log_sigmoid(x: Tensor) -> Tensor:
    """Return log(1 / (1 + e^-x)), finite for any x, with gradient 1/2 at 0."""
    return -(-x).logaddexp(x.new_zeros(()))


def clipped_surrogate(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """Return the clipped surrogate as a loss, -min(r A, clip(r, 1 - low, 1 + high) A), elementwise.

    arXiv 1707.06347 Eq. 7, with separate bounds as in arXiv 2503.14476.
    """
    return -(ratio * advantages).minimum(ratio.clamp(1 - low, 1 + high) * advantages)


def clip_mask(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """Return 1 where clipping removed the gradient and 0 elsewhere, in the dtype of `ratio`."""
    return (((ratio < 1 - low) & (advantages < 0)) | ((ratio > 1 + high) & (advantages > 0))).to(ratio.dtype)


def k3(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """Return Schulman's k3 estimate of KL(policy || reference) from samples of the policy: e^-d - 1 + d >= 0, d = log pi/ref."""
    difference = log_probs - ref_log_probs
    return (-difference).exp() - 1 + difference


def policy_metrics(log_probs: Tensor, old_log_probs: Tensor, entropy: Tensor, mask: Tensor) -> dict[str, Mean]:
    """Return per-token means of the ratio to the behavior policy, of k3 between the two, and of the entropy. All inputs (B, T)."""
    log_ratio = (log_probs - old_log_probs).detach()
    return {
        "ratio": masked(log_ratio.exp(), mask),
        "approx_kl": masked(log_ratio.exp() - 1 - log_ratio, mask),
        "entropy": masked(entropy, mask),
    }


def score_policy(
    model: CausalLM, batch: ScoredSamples, temperature: float
) -> tuple[TokenScores, Tensor, dict[str, Mean]]:
    """Return the policy's scores of the answers, log-probabilities of the behavior policy (B, T), and the policy metrics."""
    mask = batch.mask
    scores = model.token_scores(batch.ids, mask, group=batch.group, temperature=temperature)
    old = scores.log_probs.detach() if batch.only_step else batch.old_log_probs
    metrics = policy_metrics(scores.log_probs, old, scores.entropy, mask)
    if batch.only_step:  # otherwise the rollout has measured it
        metrics["sampler_gap"] = masked((batch.sampler_log_probs - old).abs(), mask)
    return scores, old, metrics


def kl_penalty(log_probs: Tensor, old_log_probs: Tensor, ref_log_probs: Tensor, weighted: bool) -> Tensor:
    """Return k3 per token (B, T).

    Weighted by the ratio, its gradient is that of KL(pi || ref) (arXiv 2512.02556); unweighted, that of KL(ref || pi).
    """
    plain = k3(log_probs, ref_log_probs)
    return plain * (log_probs - old_log_probs).exp() if weighted else plain


def sequence_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `values` (B, T) over each answer's tokens, (B,)."""
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


def token_policy_loss(
    settings: TokenLossSettings, model: CausalLM, batch: ScoredSamples, temperature: float
) -> tuple[Tensor, dict[str, Mean]]:
    """Return -min(rho A, clip(rho, 1 - low, 1 + high) A) + kl_coef k3 per token (B, T), rho_t = pi / pi_old, and the policy metrics.

    Shared by GRPO, Dr. GRPO and DAPO, which differ in how they average it.
    """
    mask = batch.mask
    scores, old, metrics = score_policy(model, batch, temperature)
    ratio = (scores.log_probs - old).exp()
    per_token = clipped_surrogate(ratio, batch.advantages, settings.clip_low, settings.clip_high)
    clipped = clip_mask(ratio, batch.advantages, settings.clip_low, settings.clip_high)
    metrics["clip_fraction"] = masked(clipped, mask)
    if batch.ref_log_probs is not None:
        metrics["kl"] = masked(k3(scores.log_probs, batch.ref_log_probs), mask)
        penalty = kl_penalty(scores.log_probs, old, batch.ref_log_probs, settings.kl_weighted)
        per_token = per_token + settings.kl_coef * penalty
    return per_token, metrics


def masked_mean_variance(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance of the masked values over all ranks, scalars in the dtype of `values`."""
    wide = values if values.device.type == "mps" else values.double()  # MPS has no float64
    kept = wide * mask
    total, square, count = dist.sum_(kept.new_tensor([kept.sum(), (kept * kept).sum(), mask.sum()])).unbind()
    mean = total / count
    variance = (square - count * mean * mean).clamp(min=0) / (count - 1).clamp(min=1)
    return mean.to(values.dtype), variance.to(values.dtype)


def masked_whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Return `values` scaled to mean 0 and variance 1 over the masked values of all ranks; 0 where the mask is not set."""
    mean, variance = masked_mean_variance(values, mask)
    return (values - mean) * (variance + 1e-8).rsqrt() * mask


def group_advantages(reward: Tensor, group: Tensor, scale: str, eps: float = 1e-4) -> Tensor:
    """Return (r - mean of its group) / (std + eps), (B,); the unbiased std is that of the group, of the batch, or left out.

    Args:
        reward: (B,) float.
        group: (B,) int64, equal for answers to the same prompt.
        scale: `group` (arXiv 2402.03300 section 4.1.2), `batch` (arXiv 2508.08221) or `none` (arXiv 2503.20783).
    """
    same_group = (group[:, None] == group[None, :]).to(reward.dtype)  # (B, B)
    count = same_group.sum(1)
    centered = reward - same_group @ reward / count
    if scale == "none":
        return centered
    if scale == "group":
        return centered / ((same_group @ centered.square() / (count - 1).clamp(min=1)).sqrt() + eps)
    _, variance = masked_mean_variance(reward, reward == reward)
    return centered / (variance.sqrt() + eps)


def leave_one_out_advantages(reward: Tensor, group: Tensor) -> Tensor:
    """Return r_i minus the mean of the *other* rewards of its group, (B,); 0 in a group of one. arXiv 2402.14740 section 3.2."""
    same_group = (group[:, None] == group[None, :]).to(reward.dtype)
    others = same_group.sum(1) - 1
    return (reward - (same_group @ reward - reward) / others.clamp(min=1)) * (others > 0)


def constant_group_fraction(reward: Tensor, group: Tensor) -> Mean:
    """Return the fraction of answers in groups whose rewards are all equal, and which therefore have no gradient."""
    same_group = group[:, None] == group[None, :]
    spread = reward.where(same_group, float("-inf")).amax(1) - reward.where(same_group, float("inf")).amin(1)
    return over(spread == 0)
