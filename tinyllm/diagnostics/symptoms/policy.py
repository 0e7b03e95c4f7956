"""Symptoms of online alignment: advantages, clipping, KL, entropy, sampler and critic."""

from __future__ import annotations

from statistics import median

from tinyllm.diagnostics.run_log import Evidence, RunLog, Series
from tinyllm.diagnostics.symptoms.advice import (
    ANOTHER_TASK,
    MIN_ROLLOUTS,
    full_precision,
    lower_learning_rate,
    nothing_rewarded,
    raise_learning_rate,
    set_option,
    stronger_kl_penalty,
    zero_rewards,
)
from tinyllm.diagnostics.symptoms.check import Need, check, later_minibatches, rollouts, steps
from tinyllm.diagnostics.symptoms.finding import Causes, Finding
from tinyllm.diagnostics.symptoms.learning import GAIN

MANY_CONSTANT = 0.5  # of the groups; a constant group contributes no gradient
NEARLY_ALL_CONSTANT = 0.9
SOLVED = 0.9  # of a perfect reward
CLIPPED = 0.3  # of the tokens; PPO and GRPO with two minibatches clip up to a quarter in fast-dev-runs
CLIPPED_ANSWERS = 0.8  # of the answers, for ratios per answer: half is usual (arXiv 2507.18071 section 5.2)
ON_POLICY = 1e-4  # median distance of ratios from 1; rounding in bf16 leaves more only now and then
FROZEN_KL = 1e-8  # median, in nats per token; a log-probability that changes by a thousandth leaves fifty times as much
TOKEN_KL = 0.5  # nats per token within one rollout; fast-dev-runs at a high learning rate stay below 0.2
SPIKE = 10.0  # times the median
SPIKE_FROM = 0.2  # and at least this many nats per token
ANSWER_KL = 15.0  # nats per answer from the parent; measured: fine at 6, past the peak of true reward at 26 and 36
ANSWER_KL_PER_TOKEN = 0.1  # and this many nats per token, since 15 are little for an answer of hundreds of tokens
JUMP = 5.0  # nats per answer between two rollouts
JUMP_TIMES = 4.0  # and times the median change
LOW_ENTROPY = 0.1  # of the first entropy
GAP_SHARE = 0.5  # of rollout.tolerance; bf16 reaches a tenth of it
CRITIC_UNCHANGED = 0.9  # of the early value loss
CRITIC_GOOD = 0.005  # of the squared reward scale: an error of a tenth of a perfect answer
MIN_POINTS = 5  # fewer show no trend


def _first_reward(log: RunLog) -> Series:
    return next(iter(log.reward_parts()), log.rollouts("rewards/NAME"))


@check(Need(_first_reward, MIN_ROLLOUTS, "rollouts"))
def zero_reward(log: RunLog) -> Finding | None:
    """A reward is 0 on every answer of the whole run, so nothing is learned from it."""
    if not (zero := zero_rewards(log)):
        return None
    useless = nothing_rewarded(log)
    evidence = [series.average() for series in zero]
    if useless:
        evidence += [e for name in ("reward", "length") if len(s := log.rollouts(name)) for e in s.first_and_last()]
    causes = (
        "the prompts are too hard: no answer is right",
        "the reward reads another column or format than the data and the answers have",
    )
    symptom = f"{', '.join(series.name for series in zero)} was 0 on every answer"
    symptom += ": only penalties on length and ending could be learned" if useless else ""
    return Finding("broken" if useless else "warning", symptom, tuple(evidence), causes, ANOTHER_TASK)


def _no_groups(log: RunLog) -> str:
    alone = log.setting("rollout.group_size") == 1
    return "rollout.group_size is 1: answers are not compared with each other" if alone else ""


@check(rollouts("constant_groups"), excluded=_no_groups)
def constant_groups(log: RunLog) -> Finding | None:
    """All answers of a group have the same reward. Advantages are differences within a group, so all are zero."""
    constant = log.rollouts("constant_groups")
    if constant.tail(1 / 3).mean < MANY_CONSTANT:
        return None
    late, held = constant.tail(1 / 3), log.held_out("reward")
    evidence = [constant.evidence(constant.first), late.average()]
    evidence += [held.evidence(held.last)] if len(held) else []
    if len(held) and held.last.value > SOLVED * log.max_reward:
        causes: Causes = ("the task is solved: all answers to a prompt are correct",)
        symptom = "in most groups all answers have the same, nearly perfect reward: there is nothing left to learn"
        return Finding("note", symptom, tuple(evidence), causes, "use harder prompts, or stop here")
    if _entropy_collapsed(log):
        causes = ("entropy collapsed: the policy repeats the same answer", "the sampling temperature is too low")
        advice = lower_learning_rate(log)
    else:
        causes = ("the prompts are too hard: all answers are wrong", "the reward has too few levels")
        advice = ANOTHER_TASK if nothing_rewarded(log) else _more_variety(log)
    worst = late.mean >= NEARLY_ALL_CONSTANT
    share = "nearly all" if worst else "most"
    symptom = f"in {share} groups all answers have the same reward, so they contribute no gradient"
    return Finding("broken" if worst else "warning", symptom, tuple(evidence), causes, advice)


def _entropy_collapsed(log: RunLog) -> bool:
    entropy = log.train("entropy")
    return len(entropy) >= MIN_POINTS and entropy.tail(0.2).mean <= LOW_ENTROPY * entropy.head(0.1).mean


def _more_variety(log: RunLog) -> str:
    """Return the option for dynamic sampling, or for a higher temperature where it is already on."""
    if log.setting("rollout.sampling_rounds") == 1:
        return f"replace constant groups (dynamic sampling): {set_option('rollout.sampling_rounds', 4)}"
    temperature = 1.25 * float(log.setting("rollout.temperature", 1.0))
    return f"raise the sampling temperature: {set_option('rollout.temperature', temperature)}"


def _one_step_per_rollout(log: RunLog) -> str:
    return "every step uses a new rollout, so ratios are 1" if log.steps_per_rollout == 1 else ""


def _never_clips(log: RunLog) -> str:
    return "cispo bounds weights and keeps every gradient" if log.stage == "cispo" else _one_step_per_rollout(log)


@check(later_minibatches("clip_fraction", MIN_POINTS), excluded=_never_clips)
def clipping(log: RunLog) -> Finding | None:
    """Clipping removes the gradient of a large part of the batch, after the first minibatch of a rollout."""
    clipped = log.after_first_minibatch("clip_fraction")
    by_answer = len(log.train("sequence_ratio")) > 0
    late = clipped.tail(0.5)
    if late.mean < (CLIPPED_ANSWERS if by_answer else CLIPPED):
        return None
    causes = (
        "the learning rate is too high: one minibatch moves the policy past the clip bounds",
        f"too many minibatches or epochs per rollout ({log.steps_per_rollout} steps here)",
        "the clip bounds are too narrow for answers this short",
    )
    symptom = f"clipping removes the gradient of a large fraction of {'answers' if by_answer else 'tokens'}"
    evidence = (late.average(), clipped.evidence(clipped.highest))
    return Finding("warning", symptom, evidence, causes, lower_learning_rate(log))


def _ratios(log: RunLog) -> Series:
    return log.train("ratio") if log.steps_per_rollout == 1 else log.after_first_minibatch("ratio")


@check(Need(_ratios, MIN_POINTS, "steps"))
def on_policy(log: RunLog) -> Finding | None:
    """All ratios are 1: by design with one step per rollout, otherwise because the policy does not change."""
    single, ratio = log.steps_per_rollout == 1, _ratios(log)
    if median(abs(p.value - 1) for p in ratio) > ON_POLICY:
        return None
    if single:
        settings = (log.setting_evidence("rollout.minibatches"), log.setting_evidence("rollout.epochs"))
        return Finding(
            "note",
            "training is fully on-policy: every step uses a new rollout, so ratios are 1 and nothing is clipped",
            (ratio.evidence(ratio.last), *settings),
            ("one minibatch and one epoch per rollout",),
            f"nothing; {set_option('rollout.minibatches', 2)} takes two steps per rollout",
        )
    kl = log.after_first_minibatch("approx_kl")
    if len(kl) and kl.median > FROZEN_KL:
        return None
    causes = (
        "the learning rate is too low",
        "all advantages are zero",
        "the trained parameters do not affect the policy",
    )
    evidence = (ratio.evidence(ratio.last), log.setting_evidence("optim.learning_rate"))
    symptom = "the policy does not change: ratios are 1 in every minibatch"
    advice = ANOTHER_TASK if nothing_rewarded(log) else raise_learning_rate(log, 10)
    return Finding("broken", symptom, evidence, causes, advice)


@check(later_minibatches("approx_kl", MIN_POINTS), excluded=_one_step_per_rollout)
def kl_spike(log: RunLog) -> Finding | None:
    """The policy moves far from the one that sampled the rollout."""
    kl = log.after_first_minibatch("approx_kl")
    top = kl.highest
    if top.value < min(TOKEN_KL, max(SPIKE_FROM, SPIKE * kl.median)):
        return None
    evidence = (kl.evidence(top), Evidence("train approx_kl, median", kl.median))
    causes = (
        "the learning rate is too high",
        "too many minibatches or epochs per rollout",
        "a single very large advantage",
    )
    symptom = f"KL spike at step {top.step}: the policy is far from the one that sampled the rollout"
    return Finding("warning", symptom, evidence, causes, lower_learning_rate(log))


def _no_reference(log: RunLog) -> str:
    return (
        "track_kl is false and the loss has no KL term"
        if not len(log.rollouts("objective/kl")) and log.setting("track_kl") is False
        else ""
    )


@check(rollouts("objective/kl", MIN_POINTS), excluded=_no_reference)
def far_from_parent(log: RunLog) -> Finding | None:
    """KL to the parent jumps, or is so large that rewards are no longer reliable (arXiv 2210.10760)."""
    kl, length = log.rollouts("objective/kl"), log.rollouts("length")
    changes = [(b, b.value - a.value) for a, b in zip(kl.points, kl.points[1:], strict=False)]
    at, jump = max(changes, key=lambda pair: pair[1])
    usual = median(abs(change) for _, change in changes)
    per_token = kl.last.value / max(1.0, length.last.value) if len(length) else ANSWER_KL_PER_TOKEN
    far = kl.last.value > ANSWER_KL and per_token > ANSWER_KL_PER_TOKEN
    if not far and not (jump > JUMP and jump > JUMP_TIMES * usual):
        return None
    evidence = (kl.evidence(kl.first), kl.evidence(at), kl.evidence(kl.last))
    causes = (
        "the KL penalty is too small for this reward",
        "the learning rate is too high",
        "the reward favors unnatural text",
    )
    symptom = "KL to the parent is too large" if far else f"KL to the parent jumps at step {at.step}"
    return Finding("warning", symptom, evidence, causes, stronger_kl_penalty(log))


@check(steps("entropy", MIN_POINTS))
def entropy_collapse(log: RunLog) -> Finding | None:
    """Entropy collapsed, which ends exploration. Expected where the reward is high, a problem where it is not."""
    entropy, reward = log.train("entropy"), log.held_out("reward")
    if not _entropy_collapsed(log):
        return None
    evidence = [entropy.evidence(entropy.first), entropy.tail(0.2).average()]
    evidence += reward.first_and_last() if len(reward) else ()
    rose = len(reward) > 1 and reward.last.value - reward.first.value > GAIN * log.max_reward
    if rose and reward.highest.value - reward.last.value < GAIN * log.max_reward:
        symptom = "entropy is low, and the reward rose as it fell"
        causes: Causes = ("the policy has found the answers with a high reward",)
        return Finding("note", symptom, tuple(evidence), causes, "nothing, while the reward rises")
    causes = (
        "the learning rate is too high: early successes were reinforced until no other answers remained",
        "clip_high is too low for unlikely tokens to gain probability",
        "the sampling temperature is too low",
    )
    symptom = "entropy collapsed without a rise in reward: no new answers are explored"
    return Finding("warning", symptom, tuple(evidence), causes, lower_learning_rate(log))


@check(rollouts("sampler_gap"))
def sampler_gap(log: RunLog) -> Finding | None:
    gap, tolerance = log.rollouts("sampler_gap"), float(log.setting("rollout.tolerance", 0.1))
    if gap.tail(0.5).mean < GAP_SHARE * tolerance:
        return None
    evidence = (gap.evidence(gap.first), gap.tail(0.5).average(), log.setting_evidence("rollout.tolerance"))
    causes = (
        "bf16 rounds differently with and without the KV cache",
        "log-probabilities so extreme that rounding errors matter",
    )
    symptom = "sampler and training compute different log-probabilities, so ratios are biased"
    return Finding("warning", symptom, evidence, causes, full_precision())


def _no_critic(log: RunLog) -> str:
    return f"{log.stage} has no critic" if log.stage != "ppo" and not len(log.train("value_loss")) else ""


@check(steps("value_loss", 2 * MIN_POINTS), excluded=_no_critic)
def idle_critic(log: RunLog) -> Finding | None:
    """The value loss does not fall, so the noise of the returns remains in the advantages."""
    value = log.train("value_loss")
    early, late = value.head(1 / 3), value.tail(1 / 3)
    if late.mean < CRITIC_UNCHANGED * early.mean or late.mean < CRITIC_GOOD * log.max_reward**2:
        return None
    causes = (
        "value_clip limits each update of the critic too much",
        "vf_coef gives the value loss too little weight",
        "the returns change faster than the critic can learn",
    )
    key = f"{log.stage}.vf_coef"
    coefficient = 5 * float(log.setting(key, 0.1)) or 0.1
    advice = f"give the value loss more weight: {set_option(key, coefficient)}"
    return Finding("warning", "the critic does not learn", (early.average(), late.average()), causes, advice)


CHECKS = (
    zero_reward,
    constant_groups,
    clipping,
    on_policy,
    kl_spike,
    far_from_parent,
    entropy_collapse,
    sampler_gap,
    idle_critic,
)
