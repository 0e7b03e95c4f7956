"""Symptoms of a policy that learns from its own answers: signal, clipping, KL, entropy, sampler and critic."""

from __future__ import annotations

from statistics import median

from tinyllm.stages.symptoms.learning import GAIN
from tinyllm.stages.symptoms.log import Causes, Fact, Finding, Log, faster, put, slower

MANY_CONSTANT, ALL_CONSTANT = 0.5, 0.9  # of the groups; each one lost is a part of the batch that teaches nothing
SOLVED = 0.9  # of a perfect reward
CLIPPED = 0.3  # of the tokens; PPO and GRPO with two minibatches clip up to a quarter in the rehearsals
CLIPPED_ANSWERS = 0.8  # of the answers, where an answer has one ratio: half is usual (arXiv 2507.18071 section 5.2)
ON_POLICY = 1e-4  # off 1, usually; rounding in bf16 now and then leaves more
FROZEN_KL = 1e-8  # nats a token, usually; a log-probability that moves by a thousandth leaves fifty times as much
TOKEN_KL = 0.5  # nats a token in one rollout; rehearsals at a high rate stay below 0.2
SPIKE, SPIKE_FROM = 10.0, 0.2  # times the median, and from this many nats a token
ANSWER_KL = 15.0  # nats an answer from the parent; measured: fine at 6, past the peak of true reward at 26 and 36
ANSWER_KL_A_TOKEN = 0.1  # and so many a token, for fifteen are little in an answer of hundreds of tokens
JUMP, JUMP_TIMES = 5.0, 4.0  # nats an answer between two rollouts, and times the median change
SURE = 0.1  # of the first entropy
GAP_SHARE = 0.5  # of rollout.tolerance; bf16 reaches a tenth of it
CRITIC_STILL = 0.9  # of the early value loss
CRITIC_GOOD = 0.005  # of the squared reward scale: off by a tenth of a perfect answer
ENOUGH = 5  # points; fewer have no trend


def constant_groups(log: Log) -> Finding | None:
    """Advantages are differences within a group: where all answers earn the same there are none."""
    constant = log.rollouts("constant_groups")
    if not len(constant) or constant.tail(1 / 3).mean < MANY_CONSTANT:
        return None
    late, held = constant.tail(1 / 3), log.held_out("reward")
    evidence = (constant.fact(constant.first), late.averaged(), *((held.fact(held.last),) if len(held) else ()))
    if log.setting("rollout.group_size") == 1:
        causes: Causes = ("one answer a prompt has nothing to be compared with",)
        advice = f"groups: {put('rollout.group_size', 8)}"
    elif len(held) and held.last.value > SOLVED * log.scale:
        causes = ("the task is solved: all answers to a prompt are right",)
        symptom = "most groups earn the same in all answers, and nearly all they can: there is nothing left to learn"
        return Finding("note", symptom, evidence, causes, "harder prompts, or leave it at that")
    elif _sure(log):
        causes = ("the policy has become so sure of itself that it repeats itself", "sampling that is too cold")
        advice = slower(log)
    else:
        causes = ("the prompts are too hard: all answers are equally wrong", "a reward with too few shades")
        advice = _more_variety(log)
    worst = late.mean >= ALL_CONSTANT
    symptom = f"{'nearly all' if worst else 'most'} groups earn the same in all answers, so they teach nothing"
    return Finding("broken" if worst else "warning", symptom, evidence, causes, advice)


def _sure(log: Log) -> bool:
    """Whether next to nothing is left of the entropy the policy began with."""
    entropy = log.train("entropy")
    return len(entropy) >= ENOUGH and entropy.tail(0.2).mean <= SURE * entropy.head(0.1).mean


def _more_variety(log: Log) -> str:
    """New prompts in place of such groups, where it is not done yet; else warmer sampling."""
    if log.setting("rollout.sampling_rounds") == 1:
        return f"replace such groups by new ones (dynamic sampling): {put('rollout.sampling_rounds', 4)}"
    return f"warmer sampling: {put('rollout.temperature', 1.25 * float(log.setting('rollout.temperature', 1.0)))}"


def clipping(log: Log) -> Finding | None:
    """How much of the batch clipping takes the gradient from, once the policy has moved."""
    share = log.after_first_minibatch("clip_fraction")
    if len(share) < ENOUGH:
        return None
    by_answer = len(log.train("sequence_ratio")) > 0
    late = share.tail(0.5)
    if late.mean < (CLIPPED_ANSWERS if by_answer else CLIPPED):
        return None
    causes = (
        "the learning rate is too high: one minibatch moves the policy beyond the bounds",
        f"too many minibatches or epochs for one rollout ({log.period} steps here)",
        "bounds too narrow for answers as short as these",
    )
    what = "answers" if by_answer else "tokens"
    evidence = (late.averaged(), share.fact(share.highest))
    return Finding("warning", f"clipping takes the gradient from most of the {what}", evidence, causes, slower(log))


def on_policy(log: Log) -> Finding | None:
    """Ratio 1 throughout: by design with one step a rollout, else a policy that does not move."""
    single = log.period == 1
    ratio = log.train("ratio") if single else log.after_first_minibatch("ratio")
    if len(ratio) < ENOUGH or median(abs(p.value - 1) for p in ratio) > ON_POLICY:
        return None
    kl = log.after_first_minibatch("approx_kl")
    if single:
        return Finding(
            "note",
            "every step learns from a fresh rollout, so ratios are 1 and nothing is ever clipped: fine",
            (ratio.fact(ratio.last), log.config_fact("rollout.minibatches"), log.config_fact("rollout.epochs")),
            ("one minibatch and one epoch a rollout",),
            f"nothing; {put('rollout.minibatches', 2)} learns twice from the same sampling time",
        )
    if len(kl) and kl.median > FROZEN_KL:
        return None
    causes = ("the learning rate is too low", "no answer has an advantage", "what is trained does not reach the policy")
    evidence = (ratio.fact(ratio.last), log.config_fact("optim.learning_rate"))
    return Finding(
        "broken", "the policy does not move: ratios are 1 in every minibatch", evidence, causes, faster(log, 10)
    )


def kl_spike(log: Log) -> Finding | None:
    """One rollout after which the policy is far from the one that wrote it."""
    moved = log.after_first_minibatch("approx_kl")
    if len(moved) < ENOUGH:
        return None
    top = moved.highest
    if top.value < min(TOKEN_KL, max(SPIKE_FROM, SPIKE * moved.median)):
        return None
    evidence = (moved.fact(top), Fact("train approx_kl, median", moved.median))
    causes = (
        "the learning rate is too high",
        "too many minibatches or epochs for one rollout",
        "a single very large advantage",
    )
    symptom = f"the policy jumps at step {top.step}: it is far from the one that wrote the rollout"
    return Finding("warning", symptom, evidence, causes, slower(log))


def far_from_parent(log: Log) -> Finding | None:
    """KL to the parent that jumps, or is so large that rewards cannot be trusted any more (arXiv 2210.10760)."""
    kl, length = log.rollouts("objective/kl"), log.rollouts("length")
    if len(kl) < ENOUGH:
        return None
    steps = [(b, b.value - a.value) for a, b in zip(kl.points, kl.points[1:], strict=False)]
    at, jump = max(steps, key=lambda pair: pair[1])
    usual = median(abs(change) for _, change in steps)
    a_token = kl.last.value / max(1.0, length.last.value) if len(length) else ANSWER_KL_A_TOKEN
    far = kl.last.value > ANSWER_KL and a_token > ANSWER_KL_A_TOKEN
    if not far and not (jump > JUMP and jump > JUMP_TIMES * usual):
        return None
    evidence = (kl.fact(kl.first), kl.fact(at), kl.fact(kl.last))
    causes = (
        "the penalty on KL is too small for this reward",
        "the learning rate is too high",
        "the reward pays for text that no person would write",
    )
    symptom = "the policy is far from its parent" if far else f"KL to the parent jumps at step {at.step}"
    return Finding("warning", symptom, evidence, causes, tighter(log))


def tighter(log: Log) -> str:
    """A larger price for distance from the parent, where the algorithm has one."""
    key = f"{log.stage}.kl_coef"
    price = log.setting(key)
    if price is None:
        return slower(log)
    return f"a higher price for KL: {put(key, 2.0 * float(price) or 0.05)}"


def entropy_collapse(log: Log) -> Finding | None:
    """A policy that is sure of itself explores no more. That is success where it is right, and the end of learning where not."""
    entropy, reward = log.train("entropy"), log.held_out("reward")
    if not _sure(log):
        return None
    evidence = (entropy.fact(entropy.first), entropy.tail(0.2).averaged(), *(reward.ends() if len(reward) else ()))
    rose = len(reward) > 1 and reward.last.value - reward.first.value > GAIN * log.scale
    if rose and reward.highest.value - reward.last.value < GAIN * log.scale:
        symptom = "the policy has become sure of itself, and reward rose with it"
        return Finding("note", symptom, evidence, ("it has found what earns reward",), "nothing, while reward rises")
    causes = (
        "the learning rate is too high: the first success was repeated until nothing else was left",
        "clip_high gives unlikely tokens no room to rise",
        "sampling that is too cold",
    )
    symptom = "entropy has collapsed while reward has not risen: no new answers are tried"
    return Finding("warning", symptom, evidence, causes, slower(log))


def sampler_gap(log: Log) -> Finding | None:
    gap, tolerance = log.rollouts("sampler_gap"), float(log.setting("rollout.tolerance", 0.1))
    if not len(gap) or gap.tail(0.5).mean < GAP_SHARE * tolerance:
        return None
    evidence = (gap.fact(gap.first), gap.tail(0.5).averaged(), log.config_fact("rollout.tolerance"))
    causes = ("bf16 rounds differently with and without a cache", "a model so sure of itself that small errors count")
    return Finding(
        "warning",
        "sampler and training disagree about the same tokens, so ratios are off from the start",
        evidence,
        causes,
        f"full precision: {put('train.precision', 'fp32')}",
    )


def idle_critic(log: Log) -> Finding | None:
    """Advantages are as good as the critic: one that does not learn leaves the noise of the returns in them."""
    value = log.train("value_loss")
    if len(value) < 2 * ENOUGH:
        return None
    early, late = value.head(1 / 3), value.tail(1 / 3)
    if late.mean < CRITIC_STILL * early.mean or late.mean < CRITIC_GOOD * log.scale**2:
        return None
    causes = (
        "value_clip lets it move only a little at a time",
        "vf_coef gives it too small a part of the gradient",
        "returns that change faster than it can follow",
    )
    coefficient = float(log.setting(f"{log.stage}.vf_coef", 0.1))
    advice = f"a larger part for the critic: {put(f'{log.stage}.vf_coef', 5 * coefficient or 0.1)}"
    return Finding("warning", "the critic does not learn", (early.averaged(), late.averaged()), causes, advice)


CHECKS = (
    constant_groups,
    clipping,
    on_policy,
    kl_spike,
    far_from_parent,
    entropy_collapse,
    sampler_gap,
    idle_critic,
)
