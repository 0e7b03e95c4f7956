"""Losses and advantages: signs, directions, normalisers, detachments, and settings that do nothing."""

from __future__ import annotations

from mutants.kind import Mutant

M = Mutant
ONLINE, PREFERENCES, FORMS, KNOBS, EVERY = (
    f"algorithms/test_{name}.py" for name in ("online", "preferences", "closed_forms", "knobs", "every")
)
HEADS, PADDING, COMMON = "model/test_heads.py", "rollout/test_padding.py", "stages/test_common.py"
STAGE = "stages/test_align_online.py::test_"
SIGN = f"{EVERY}::test_sign_of_the_advantage"

# fmt: off
MUTANTS = [
    # --- log-probabilities and values ----------------------------------------------------------------------------------------------
    M("temperature-not-in-loss", "extra", "log-probabilities ignore the temperature", "model/heads.py",
      "(hidden / temperature if temperature != 1.0 else hidden)", "hidden", HEADS),
    M("temperature-not-passed", "extra", "the stage does not tell the loss its temperature", "stages/align_online.py",
      "loss=partial(algorithm.loss, settings, temperature=config.rollout.temperature)", "loss=partial(algorithm.loss, settings)",
      f"{STAGE}the_first_minibatch_is_on_policy_at_the_sampling_temperature"),
    M("temperature-not-in-gradient", "extra", "the gradient is not divided by the temperature", "model/heads.py",
      "to_rows = to_rows[:count] / ctx.temperature if ctx.temperature != 1.0 else to_rows[:count]", "to_rows = to_rows[:count]", HEADS),
    M("softmax-not-in-gradient", "extra", "the head's gradient lacks the softmax", "model/heads.py",
      "_add_product(to_head, p, scaled[part])", "_add_product(to_head, 0 * p, scaled[part])", HEADS),
    M("last-token-early", "extra", "the reward is read one token before the last", "model/heads.py",
      "last = torch.where(mask, positions, -1).amax(1).clamp(min=0)",
      "last = torch.where(mask, positions, -1).amax(1).clamp(min=1) - 1", HEADS),
    M("values-late", "extra", "values have seen the token they judge", "model/transformer.py",
      "values = F.pad(scores[:, :-1], (1, 0))", "values = scores", ONLINE),
    M("rollout-values-late", "extra", "a rollout's values have seen the token they judge", "rollout/source.py",
      "return torch.nn.functional.pad(scores[:, :-1], (1, 0))", "return scores", PADDING),
    M("old-keeps-graph", "extra", "the behaviour policy's log-probabilities keep their graph", "rollout/source.py",
      "    @torch.no_grad()\n    def _measure(", "    def _measure(", PADDING),

    # --- what online algorithms share ----------------------------------------------------------------------------------------------
    M("surrogate-sign", "extra", "the clipped surrogate with the wrong sign", "algorithms/common.py",
      "return -(ratio * advantages).minimum(", "return (ratio * advantages).minimum(", SIGN),
    M("grpo-sign", "extra", "GRPO, DAPO and Dr. GRPO with the wrong sign", "algorithms/common.py",
      "per_token = clipped_surrogate(ratio, batch.advantages,", "per_token = clipped_surrogate(ratio, -batch.advantages,", SIGN),
    M("gspo-sign", "extra", "GSPO with the wrong sign", "algorithms/gspo.py",
      "per_row = clipped_surrogate(ratio, advantages,", "per_row = clipped_surrogate(ratio, -advantages,", SIGN),
    M("ppo-sign", "extra", "PPO with the wrong sign", "algorithms/ppo.py",
      "masked(clipped_surrogate(ratio, batch.advantages,", "masked(clipped_surrogate(ratio, -batch.advantages,", SIGN),
    M("rloo-sign", "extra", "RLOO with the wrong sign", "algorithms/rloo.py",
      "over(clipped_surrogate(ratio, advantages,", "over(clipped_surrogate(ratio, -advantages,", SIGN),
    M("cispo-sign", "extra", "CISPO with the wrong sign", "algorithms/cispo.py",
      "masked(-weight * batch.advantages", "masked(weight * batch.advantages", SIGN),
    M("optimistic-clip", "extra", "the surrogate takes the better of the two", "algorithms/common.py",
      "(ratio * advantages).minimum(", "(ratio * advantages).maximum(", ONLINE),
    M("clip-bounds-swapped", "extra", "clip_low and clip_high exchanged", "algorithms/common.py",
      "ratio.clamp(1 - low, 1 + high)", "ratio.clamp(1 - high, 1 + low)", ONLINE),
    M("k3-swapped", "extra", "k3 of the reference from the policy", "algorithms/common.py",
      "difference = log_probs - ref_log_probs", "difference = ref_log_probs - log_probs", ONLINE),
    M("kl-weight-dropped", "extra", "kl_weighted does nothing", "algorithms/common.py",
      "return plain * (log_probs - old_log_probs).exp() if weighted else plain", "return plain", ONLINE),
    M("whitening-padding", "extra", "whitening counts prompt and padding", "algorithms/common.py",
      "mean, variance = masked_mean_variance(values, mask)", "mean, variance = masked_mean_variance(values, mask | True)", ONLINE),
    M("whitening-biased", "extra", "whitening by the biased variance", "algorithms/common.py",
      "(square - count * mean * mean).clamp(min=0) / (count - 1).clamp(min=1)",
      "(square - count * mean * mean).clamp(min=0) / count", ONLINE),
    M("whitening-one-rank", "extra", "whitening over one rank's answers", "algorithms/common.py",
      "dist.sum_(kept.new_tensor([kept.sum(), (kept * kept).sum(), mask.sum()])).unbind()",
      "kept.new_tensor([kept.sum(), (kept * kept).sum(), mask.sum()]).unbind()", COMMON),

    # --- GRPO and its kin ----------------------------------------------------------------------------------------------------------
    M("grpo-std-biased", "extra", "the group's biased standard deviation", "algorithms/common.py",
      "same_group @ centered.square() / (count - 1).clamp(min=1)", "same_group @ centered.square() / count", ONLINE),
    M("grpo-no-std", "extra", "advantages are not divided by the standard deviation", "algorithms/common.py",
      'if scale == "none":', "if scale:", ONLINE),
    M("grpo-batch-mean", "extra", "the baseline is the batch's mean", "algorithms/common.py",
      "centered = reward - same_group @ reward / count", "centered = reward - reward.mean()", ONLINE),
    M("dr-grpo-per-token", "extra", "Dr. GRPO divided by |y| after all", "algorithms/dr_grpo.py",
      "len(batch.ids) * batch.max_new_tokens", "batch.mask.sum()", ONLINE),
    M("dapo-mean-of-means", "extra", "DAPO as a mean of answers' means", "algorithms/dapo.py",
      "return masked(per_token, batch.mask), metrics",
      "return Mean(((per_token * batch.mask).sum(1) / batch.mask.sum(1)).sum(), len(batch.ids)), metrics", ONLINE),
    M("gspo-token-mean", "extra", "GSPO weighs answers by their length", "algorithms/gspo.py",
      "return over(per_row), metrics", "return Mean((per_row * mask.sum(1)).sum(), mask.sum()), metrics", ONLINE),
    M("cispo-no-detach", "extra", "CISPO's weight takes a gradient", "algorithms/cispo.py",
      ".exp().detach().clamp(", ".exp().clamp(", FORMS),
    M("cispo-unbounded", "extra", "CISPO's weight is not bounded", "algorithms/cispo.py",
      ".detach().clamp(max=1 + settings.clip_high)", ".detach()", FORMS),
    M("rloo-itself", "extra", "RLOO's baseline includes the answer itself", "algorithms/common.py",
      "(same_group @ reward - reward) / others.clamp(min=1)", "(same_group @ reward) / (others + 1)", FORMS),
    M("rloo-kl-direction", "extra", "RLOO's KL rewards distance from the reference", "algorithms/rloo.py",
      "(samples.old_log_probs - samples.ref_log_probs)", "(samples.ref_log_probs - samples.old_log_probs)", FORMS),
    M("rloo-averaged", "extra", "RLOO's ratio is averaged over tokens", "algorithms/rloo.py",
      "* mask).sum(1).exp()  # (B,)", "* mask).sum(1).div(mask.sum(1)).exp()  # (B,)", FORMS),

    # --- PPO -----------------------------------------------------------------------------------------------------------------------
    M("gae-off-by-one", "extra", "the next value is this one", "algorithms/ppo.py",
      "following = values.roll(-1, 1)", "following = values.clone()", ONLINE),
    M("gae-strictly-later", "extra", "an advantage leaves its own token's reward out", "algorithms/ppo.py",
      "(distance >= 0)", "(distance > 0)", ONLINE),
    M("gae-bootstraps-padding", "extra", "the value behind an answer's end is counted", "algorithms/ppo.py",
      "    values = values * mask\n", "", ONLINE),
    M("ppo-score-early", "extra", "the score is given one token before the end", "algorithms/ppo.py",
      ".flip(1) == 1  #", ".flip(1) == 2  #", ONLINE),
    M("ppo-score-everywhere", "extra", "the score is given to every token", "algorithms/ppo.py",
      "samples.reward[:, None] * (last & samples.mask)", "samples.reward[:, None] * samples.mask", ONLINE),
    M("ppo-kl-direction", "extra", "PPO's KL rewards distance from the reference", "algorithms/ppo.py",
      "k1 = samples.old_log_probs - samples.ref_log_probs", "k1 = samples.ref_log_probs - samples.old_log_probs", ONLINE),
    M("ppo-k3-direction", "extra", "PPO's k3 is of the reference from the policy", "algorithms/ppo.py",
      "k3(samples.old_log_probs, samples.ref_log_probs)", "k3(samples.ref_log_probs, samples.old_log_probs)", KNOBS),
    M("ppo-returns-whitened", "extra", "the critic is taught whitened returns", "algorithms/ppo.py",
      """    returns = advantages + values * samples.mask
    if settings.whiten:
        advantages = masked_whiten(advantages, samples.mask)
""", """    if settings.whiten:
        advantages = masked_whiten(advantages, samples.mask)
    returns = advantages + values * samples.mask
""", KNOBS),
    M("ppo-value-not-halved", "extra", "the critic's loss without its half", "algorithms/ppo.py",
      "value_loss = masked(0.5 * value_errors, mask)", "value_loss = masked(value_errors, mask)", ONLINE),
    M("ppo-no-critic-loss", "extra", "vf_coef does nothing", "algorithms/ppo.py",
      "policy_loss.total + settings.vf_coef * value_loss.total", "policy_loss.total + 0.1 * value_loss.total", KNOBS),

    # --- DPO -----------------------------------------------------------------------------------------------------------------------
    M("dpo-swapped", "extra", "chosen and rejected exchanged", "algorithms/dpo.py",
      "chosen, rejected = log_ratios.chunk(2)", "rejected, chosen = log_ratios.chunk(2)", PREFERENCES),
    M("dpo-no-reference", "extra", "the reference is ignored", "algorithms/dpo.py",
      "log_ratios = log_probs - required(", "log_ratios = log_probs - 0 * required(", PREFERENCES),
    M("dpo-beta-ignored", "extra", "beta is ignored", "algorithms/dpo.py",
      "settings.label_smoothing, settings.beta * difference", "settings.label_smoothing, 0.1 * difference", PREFERENCES, count=2),
    M("dpo-smoothing-ignored", "extra", "label smoothing is ignored", "algorithms/dpo.py",
      "return -(1 - e) * log_sigmoid(z) - e * log_sigmoid(-z)", "return -log_sigmoid(z)", PREFERENCES),
    M("dpo-robust-not-rescaled", "extra", "robust DPO without its 1/(1 - 2e)", "algorithms/dpo.py",
      "(-(1 - e) * log_sigmoid(z) + e * log_sigmoid(-z)) / (1 - 2 * e)", "-(1 - e) * log_sigmoid(z) + e * log_sigmoid(-z)", PREFERENCES),
    M("ipo-summed", "extra", "IPO on sums by default", "algorithms/dpo.py",
      "(difference if settings.ipo_sum else averaged_difference)", "difference", PREFERENCES),
    M("reference-interleaved", "extra", "chosen and rejected references are interleaved", "data/datasets/datasets.py",
      "self.ref_log_probs[list(indices)].T.reshape(-1)", "self.ref_log_probs[list(indices)].reshape(-1)", EVERY, count=2),
    M("reference-transposed", "extra", "the reference's scores are written to the wrong records", "stages/align_offline.py",
      "found[part] = scores.view(2, -1).T.to(found.dtype)", "found[part] = scores.view(-1, 2).to(found.dtype)",
      "stages/test_align_offline.py::test_reference_log_probs_are_those_of_the_loaded_model"),
    M("pairs-swapped", "extra", "chosen and rejected exchanged in the batch", "data/datasets/datasets.py",
      "rows = [(p.prompt, p.chosen) for p in chosen] + [(p.prompt, p.rejected) for p in chosen]",
      "rows = [(p.prompt, p.rejected) for p in chosen] + [(p.prompt, p.chosen) for p in chosen]", "data/test_loading.py"),

    # --- ORPO, SimPO, KTO, reward models -------------------------------------------------------------------------------------------
    M("orpo-micro-batch-mean", "extra", "ORPO's NLL is a mean of micro-batch means", "algorithms/orpo.py",
      "    if tokens_per_pair is None:\n", "    if True:\n", PREFERENCES),
    M("orpo-answers-only", "extra", "ORPO's NLL always leaves the prompt out", "algorithms/orpo.py",
      "scored[:pairs] = batch.real[:pairs]", "pass", PREFERENCES),
    M("simpo-summed", "extra", "SimPO on sums", "algorithms/simpo.py",
      "sequence_mean(model.log_probs(batch.ids, batch.mask), batch.mask)",
      "model.log_probs(batch.ids, batch.mask).sum(1)", FORMS),
    M("simpo-no-gamma", "extra", "SimPO without its margin", "algorithms/simpo.py",
      "log_sigmoid(margin - settings.gamma)", "log_sigmoid(margin)", FORMS),
    M("kto-labels-swapped", "extra", "good answers are pushed down", "algorithms/kto.py",
      "(settings.desirable_weight * (-margin).sigmoid()).where(\n        good,",
      "(settings.desirable_weight * (-margin).sigmoid()).where(\n        ~good,", FORMS),
    M("kto-weights-ignored", "extra", "KTO's weights do nothing", "algorithms/kto.py",
      "settings.undesirable_weight * margin.sigmoid()", "margin.sigmoid()", FORMS),
    M("kto-z-with-gradient", "extra", "KTO's z takes a gradient", "algorithms/kto.py",
      "    z = batch.kl\n",
      "    z = (model.log_probs(batch.ids[half:], batch.mask[half:]).sum(1) - batch.ref_log_probs[half:]).mean()\n",
      f"{EVERY}::test_exactly_the_answer_tokens_have_a_derivative {FORMS}"),
    M("kto-z-of-one-batch", "extra", "KTO's z is of one micro-batch", "algorithms/kto.py",
      "dist.sum_(mismatched_log_ratios(model, batches))", "dist.sum_(mismatched_log_ratios(model, batches[:1]))", FORMS),
    M("kto-z-negative", "extra", "KTO's z may be negative", "algorithms/kto.py",
      "kl=(total / count).clamp(min=0)", "kl=total / count", FORMS),
    M("kto-own-answer", "extra", "KTO's z is of the matching answers", "data/datasets/datasets.py",
      "self.items[self.mismatched(i)].answer", "self.items[i].answer", FORMS),
    M("rm-margin-ignored", "extra", "the reward model's margin is ignored", "algorithms/bradley_terry.py",
      "log_sigmoid(difference - batch.margin)", "log_sigmoid(difference)", PREFERENCES),
    M("rm-centering-gap", "extra", "centering pulls the gap to zero instead of the level", "algorithms/bradley_terry.py",
      "(chosen + rejected).square()", "(chosen - rejected).square()", PREFERENCES),
]
