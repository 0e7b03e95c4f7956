"""Losses and credit: signs, directions, normalisers, detachments, and settings that do nothing."""

from __future__ import annotations

from mutants.kind import Mutant

M = Mutant
ONLINE, PREFERENCES, FORMS, KNOBS, EVERY = (
    f"algorithms/test_{name}.py" for name in ("online", "preferences", "closed_forms", "knobs", "every")
)
HEADS, PADDING, COMMON = "model/test_heads.py", "rollout/test_padding.py", "stages/test_common.py"
STAGE = "stages/test_align_online.py::test_"
SIGN = f"{EVERY}::test_the_sign_of_the_advantage"

# fmt: off
MUTANTS = [
    # --- log-probabilities and values ----------------------------------------------------------------------------------------------
    M("temperature-not-in-loss", "extra", "log-probabilities ignore the temperature", "model/heads.py",
      "(hidden / temperature if temperature != 1.0 else hidden)", "hidden", HEADS),
    M("temperature-not-passed", "extra", "the stage does not tell the loss its temperature", "stages/align_online.py",
      "loss=partial(algorithm.loss, settings, temperature=config.rollout.temperature)", "loss=partial(algorithm.loss, settings)",
      f"{STAGE}the_first_minibatch_is_on_policy_at_the_temperature_of_sampling"),
    M("temperature-not-in-gradient", "extra", "the gradient is not divided by the temperature", "model/heads.py",
      "to_rows = to_rows[:asked] / ctx.temperature if ctx.temperature != 1.0 else to_rows[:asked]", "to_rows = to_rows[:asked]", HEADS),
    M("softmax-not-in-gradient", "extra", "the head's gradient lacks the softmax", "model/heads.py",
      "to_head += p.T @ scaled[part]", "to_head += 0 * (p.T @ scaled[part])", HEADS),
    M("last-token-early", "extra", "the reward is read one token before the last", "model/heads.py",
      "last = torch.where(mask, positions, -1).amax(1).clamp(min=0)",
      "last = torch.where(mask, positions, -1).amax(1).clamp(min=1) - 1", HEADS),
    M("values-late", "extra", "values have seen the token they judge", "model/transformer.py",
      "values = F.pad(scores[:, :-1], (1, 0))", "values = scores", ONLINE),
    M("rollout-values-late", "extra", "a rollout's values have seen the token they judge", "rollout/source.py",
      "return torch.nn.functional.pad(scores[:, :-1], (1, 0))", "return scores", PADDING),
    M("old-keeps-graph", "extra", "the behaviour policy's log-probabilities keep their graph", "rollout/source.py",
      "    @torch.no_grad()\n    def _scored(", "    def _scored(", PADDING),

    # --- what online algorithms share ----------------------------------------------------------------------------------------------
    M("surrogate-sign", "extra", "the clipped surrogate with the wrong sign", "algorithms/common.py",
      "return -(ratio * advantage).minimum(", "return (ratio * advantage).minimum(", SIGN),
    M("grpo-sign", "extra", "GRPO, DAPO and Dr. GRPO with the wrong sign", "algorithms/common.py",
      "per_token = clipped(ratio, batch.advantage,", "per_token = clipped(ratio, -batch.advantage,", SIGN),
    M("gspo-sign", "extra", "GSPO with the wrong sign", "algorithms/gspo.py",
      "per_row = clipped(ratio, advantage,", "per_row = clipped(ratio, -advantage,", SIGN),
    M("ppo-sign", "extra", "PPO with the wrong sign", "algorithms/ppo.py",
      "masked(clipped(ratio, batch.advantage,", "masked(clipped(ratio, -batch.advantage,", SIGN),
    M("rloo-sign", "extra", "RLOO with the wrong sign", "algorithms/rloo.py",
      "over(clipped(ratio, advantage,", "over(clipped(ratio, -advantage,", SIGN),
    M("cispo-sign", "extra", "CISPO with the wrong sign", "algorithms/cispo.py",
      "masked(-weight * batch.advantage", "masked(weight * batch.advantage", SIGN),
    M("optimistic-clip", "extra", "the surrogate takes the better of the two", "algorithms/common.py",
      "(ratio * advantage).minimum(", "(ratio * advantage).maximum(", ONLINE),
    M("clip-bounds-swapped", "extra", "clip_low and clip_high exchanged", "algorithms/common.py",
      "ratio.clamp(1 - low, 1 + high)", "ratio.clamp(1 - high, 1 + low)", ONLINE),
    M("k3-swapped", "extra", "k3 of the reference from the policy", "algorithms/common.py",
      "difference = log_policy - log_reference", "difference = log_reference - log_policy", ONLINE),
    M("kl-weight-dropped", "extra", "kl_weighted does nothing", "algorithms/common.py",
      "return plain * (log_probs - old).exp() if weighted else plain", "return plain", ONLINE),
    M("whitening-padding", "extra", "whitening counts prompt and padding", "algorithms/common.py",
      "mean, variance = moments(values, mask)", "mean, variance = moments(values, mask | True)", ONLINE),
    M("whitening-biased", "extra", "whitening by the biased variance", "algorithms/common.py",
      "(square - count * mean * mean).clamp(min=0) / (count - 1).clamp(min=1)",
      "(square - count * mean * mean).clamp(min=0) / count", ONLINE),
    M("whitening-one-rank", "extra", "whitening over one rank's answers", "algorithms/common.py",
      "dist.sum_(kept.new_tensor([kept.sum(), (kept * kept).sum(), mask.sum()])).unbind()",
      "kept.new_tensor([kept.sum(), (kept * kept).sum(), mask.sum()]).unbind()", COMMON),

    # --- GRPO and its kin ----------------------------------------------------------------------------------------------------------
    M("grpo-std-biased", "extra", "the group's biased standard deviation", "algorithms/common.py",
      "members @ centred.square() / (count - 1).clamp(min=1)", "members @ centred.square() / count", ONLINE),
    M("grpo-no-std", "extra", "advantages are not divided by the standard deviation", "algorithms/common.py",
      'if scale == "none":', "if scale:", ONLINE),
    M("grpo-batch-mean", "extra", "the baseline is the batch's mean", "algorithms/common.py",
      "centred = reward - members @ reward / count", "centred = reward - reward.mean()", ONLINE),
    M("dr-grpo-per-token", "extra", "Dr. GRPO divided by |y| after all", "algorithms/dr_grpo.py",
      "len(batch.ids) * batch.budget", "batch.mask.sum()", ONLINE),
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
      "(members @ reward - reward) / others.clamp(min=1)", "(members @ reward) / (others + 1)", FORMS),
    M("rloo-kl-direction", "extra", "RLOO's KL rewards distance from the reference", "algorithms/rloo.py",
      "(samples.old - samples.reference)", "(samples.reference - samples.old)", FORMS),
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
      "k1 = samples.old - samples.reference", "k1 = samples.reference - samples.old", ONLINE),
    M("ppo-k3-direction", "extra", "PPO's k3 is of the reference from the policy", "algorithms/ppo.py",
      "k3(samples.old, samples.reference)", "k3(samples.reference, samples.old)", KNOBS),
    M("ppo-returns-whitened", "extra", "the critic is taught whitened returns", "algorithms/ppo.py",
      """    returns = advantage + samples.values * samples.mask
    if settings.whiten:
        advantage = whitened(advantage, samples.mask)
""", """    if settings.whiten:
        advantage = whitened(advantage, samples.mask)
    returns = advantage + samples.values * samples.mask
""", KNOBS),
    M("ppo-value-not-halved", "extra", "the critic's loss without its half", "algorithms/ppo.py",
      "value = masked(0.5 * worse, mask)", "value = masked(worse, mask)", ONLINE),
    M("ppo-no-critic-loss", "extra", "vf_coef does nothing", "algorithms/ppo.py",
      "policy.total + settings.vf_coef * value.total", "policy.total + 0.1 * value.total", KNOBS),

    # --- DPO -----------------------------------------------------------------------------------------------------------------------
    M("dpo-swapped", "extra", "chosen and rejected exchanged", "algorithms/dpo.py",
      "chosen, rejected = moved.chunk(2)", "rejected, chosen = moved.chunk(2)", PREFERENCES),
    M("dpo-no-reference", "extra", "the reference is ignored", "algorithms/dpo.py",
      "moved = log_probs - batch.reference", "moved = log_probs - 0 * batch.reference", PREFERENCES),
    M("dpo-beta-ignored", "extra", "beta is ignored", "algorithms/dpo.py",
      "settings.label_smoothing, settings.beta * gap", "settings.label_smoothing, 0.1 * gap", PREFERENCES, count=2),
    M("dpo-smoothing-ignored", "extra", "label smoothing is ignored", "algorithms/dpo.py",
      "return -(1 - e) * log_sigmoid(z) - e * log_sigmoid(-z)", "return -log_sigmoid(z)", PREFERENCES),
    M("dpo-robust-not-rescaled", "extra", "robust DPO without its 1/(1 - 2e)", "algorithms/dpo.py",
      "(-(1 - e) * log_sigmoid(z) + e * log_sigmoid(-z)) / (1 - 2 * e)", "-(1 - e) * log_sigmoid(z) + e * log_sigmoid(-z)", PREFERENCES),
    M("ipo-summed", "extra", "IPO on sums by default", "algorithms/dpo.py",
      "(gap if settings.ipo_sum else averaged_gap)", "gap", PREFERENCES),
    M("reference-interleaved", "extra", "chosen and rejected references are interleaved", "data/datasets.py",
      "self.reference[list(indices)].T.reshape(-1)", "self.reference[list(indices)].reshape(-1)", EVERY, count=2),
    M("reference-transposed", "extra", "the reference's scores are written to the wrong records", "stages/align_offline.py",
      "found[part] = scores.view(2, -1).T.to(found.dtype)", "found[part] = scores.view(-1, 2).to(found.dtype)",
      "stages/test_align_offline.py::test_every_answer_is_scored_under_the_model_as_loaded"),
    M("pairs-swapped", "extra", "chosen and rejected exchanged in the batch", "data/datasets.py",
      "rows = [(p.prompt, p.chosen) for p in chosen] + [(p.prompt, p.rejected) for p in chosen]",
      "rows = [(p.prompt, p.rejected) for p in chosen] + [(p.prompt, p.chosen) for p in chosen]", "stages/test_reading.py"),

    # --- ORPO, SimPO, KTO, reward models -------------------------------------------------------------------------------------------
    M("orpo-micro-batch-mean", "extra", "ORPO's NLL is a mean of micro-batch means", "algorithms/orpo.py",
      "    if per_pair is None:\n", "    if True:\n", PREFERENCES),
    M("orpo-answers-only", "extra", "ORPO's NLL always leaves the prompt out", "algorithms/orpo.py",
      "scored[:pairs] = batch.real[:pairs]", "pass", PREFERENCES),
    M("simpo-summed", "extra", "SimPO on sums", "algorithms/simpo.py",
      "per_answer(model.log_probs(batch.ids, batch.mask).log_probs, batch.mask)",
      "model.log_probs(batch.ids, batch.mask).log_probs.sum(1)", FORMS),
    M("simpo-no-gamma", "extra", "SimPO without its margin", "algorithms/simpo.py",
      "log_sigmoid(margin - settings.gamma)", "log_sigmoid(margin)", FORMS),
    M("kto-labels-swapped", "extra", "good answers are pushed down", "algorithms/kto.py",
      "(settings.desirable_weight * (-gap).sigmoid()).where(good,", "(settings.desirable_weight * (-gap).sigmoid()).where(~good,", FORMS),
    M("kto-weights-ignored", "extra", "KTO's weights do nothing", "algorithms/kto.py",
      "settings.undesirable_weight * gap.sigmoid()", "gap.sigmoid()", FORMS),
    M("kto-z-with-gradient", "extra", "KTO's z takes a gradient", "algorithms/kto.py",
      "    z = batch.kl\n",
      "    z = (model.log_probs(batch.ids[half:], batch.mask[half:]).log_probs.sum(1) - batch.reference[half:]).mean()\n",
      f"{EVERY}::test_every_answer_token_is_learned_from_and_nothing_else {FORMS}"),
    M("kto-z-of-one-batch", "extra", "KTO's z is of one micro-batch", "algorithms/kto.py",
      "dist.sum_(drift(model, batches))", "dist.sum_(drift(model, batches[:1]))", FORMS),
    M("kto-z-negative", "extra", "KTO's z may be negative", "algorithms/kto.py",
      "kl=(moved / count).clamp(min=0)", "kl=moved / count", FORMS),
    M("kto-own-answer", "extra", "KTO's z is of the matching answers", "data/datasets.py",
      "self.items[self.other(i)].answer", "self.items[i].answer", FORMS),
    M("rm-margin-ignored", "extra", "the reward model's margin is ignored", "algorithms/bradley_terry.py",
      "log_sigmoid(gap - batch.margin)", "log_sigmoid(gap)", PREFERENCES),
    M("rm-centering-gap", "extra", "centering pulls the gap to zero instead of the level", "algorithms/bradley_terry.py",
      "(chosen + rejected).square()", "(chosen - rejected).square()", PREFERENCES),
]
