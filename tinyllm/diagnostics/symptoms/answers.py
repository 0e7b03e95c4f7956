"""Symptoms of generated answers and their rewards, for fine-tuning and alignment."""

from __future__ import annotations

from statistics import median

from tinyllm.diagnostics.run_log import Evidence, RunLog, Series
from tinyllm.diagnostics.symptoms.advice import (
    ANOTHER_TASK,
    lower_learning_rate,
    nothing_rewarded,
    raise_learning_rate,
    set_option,
    stronger_kl_penalty,
    train_longer,
)
from tinyllm.diagnostics.symptoms.check import Need, check, evaluations, rollouts
from tinyllm.diagnostics.symptoms.finding import Causes, Finding
from tinyllm.diagnostics.symptoms.learning import GAIN, is_unchanged

MOST_UNFINISHED = 0.5  # fraction of answers with an end token; near 1 for a trained model
MANY_UNFINISHED = 0.8
LOOPS = 0.5  # of the token pairs; prose is near 0, a loop near 1
MORE_LOOPS = 0.1  # than at the start
AT_LIMIT = 0.9  # of rollout.max_new_tokens, on average
LONGER = 2.0  # times the length at the start
MORE_TOKENS = 8.0  # and this many tokens more
FELL = 0.1  # of a perfect reward, below the best; five times the noise of a hundred answers
STILL_HIGH = 0.1  # of its own rise: this close to its maximum, a reward model's score is still rising
ERRORS = 2.0  # standard errors that a difference of two means must exceed
MEDIAN_CHANGE = 0.954  # of a standard deviation: the median difference of two draws from a normal distribution
MIN_POINTS = 3  # evaluations, or rollouts

_TRAINED_TOO_LITTLE = "too little training: a model that does not know the answer repeats itself"


def _no_answers(log: RunLog) -> str:
    """Return why no answers are generated: supervised fine-tuning does so for the questions of the bundled world only."""
    sources = log.setting("data.train", [])
    own = log.family == "sft" and not all(str(source).startswith("world:") for source in sources)
    return "answers are generated for the bundled world only" if own and not len(log.held_out("length")) else ""


@check(evaluations("finished"), evaluations("length"), excluded=_no_answers)
def endless(log: RunLog) -> Finding | None:
    finished, length = log.held_out("finished"), log.held_out("length")
    if finished.last.value >= MANY_UNFINISHED:
        return None
    limit = int(log.setting("rollout.max_new_tokens", 0))
    evidence = (*finished.first_and_last(), *length.first_and_last())
    if limit and length.last.value >= AT_LIMIT * limit:
        causes: Causes = ("correct answers need more than rollout.max_new_tokens", "the reward favors long answers")
        advice = f"allow longer answers: {set_option('rollout.max_new_tokens', 2 * limit)}"
    elif limit:
        causes = ("the penalty for unfinished answers is too small", "the parent does not end its answers either")
        penalty = 2.0 * float(log.setting("rollout.unfinished_penalty", 0.5))
        advice = f"increase the penalty: {set_option('rollout.unfinished_penalty', penalty or 0.5)}"
    else:
        causes = (
            _TRAINED_TOO_LITTLE,
            "answers in the data are cut at data.max_length, so their end token is never trained on",
        )
        advice = train_longer(log)
    if finished.last.value < MOST_UNFINISHED:
        return Finding("warning", "most answers have no end token", evidence, causes, advice)
    return Finding("note", "many answers have no end token", evidence, causes, advice)


@check(evaluations("repetition"), excluded=_no_answers)
def repeats(log: RunLog) -> Finding | None:
    """Answers loop. `repetition` is the fraction of token pairs that occurred earlier in the answer."""
    repetition = log.held_out("repetition")
    if repetition.last.value < LOOPS:
        return None
    if log.family == "online":
        causes: Causes = ("entropy is low: only the most likely token is sampled", "the reward does not penalize loops")
        advice = stronger_kl_penalty(log)
    else:
        causes = (_TRAINED_TOO_LITTLE, "the training data contain repetition")
        advice = train_longer(log)
    worse = repetition.last.value - repetition.first.value > MORE_LOOPS
    evidence = repetition.first_and_last()
    return Finding("warning" if worse else "note", "answers repeat themselves", evidence, causes, advice)


@check(evaluations("length", 2), evaluations("reward", 2))
def length_runs_away(log: RunLog) -> Finding | None:
    length, reward = log.held_out("length"), log.held_out("reward")
    first, last = length.first.value, length.last.value
    if last < LONGER * first or last - first < MORE_TOKENS:
        return None
    evidence = (*length.first_and_last(), *reward.first_and_last())
    causes = (
        "the reward favors length itself, as reward models often do",
        "the reward does not favor ending",
        "additional text costs nothing",
    )
    buffer = max(1, int(log.setting("rollout.max_new_tokens", 32)) // 4)
    if log.setting("rollout.overlong_buffer") == 0:
        advice = f"penalize the last tokens before the limit: {set_option('rollout.overlong_buffer', buffer)}"
    else:
        advice = stronger_kl_penalty(log)
    rose = reward.last.value - reward.first.value > GAIN * log.max_reward
    symptom = f"answers became {last / max(first, 1e-9):.1f} times as long"
    return Finding("note" if rose else "warning", symptom, evidence, causes, advice)


@check(evaluations("reward", 2), rollouts("reward", MIN_POINTS))
def reward_stays(log: RunLog) -> Finding | None:
    """Neither the held-out reward nor that of the rollouts changes."""
    held, sampled = log.held_out("reward"), log.rollouts("reward")
    gain, early, late = GAIN * log.max_reward, sampled.head(1 / 3), sampled.tail(1 / 3)
    if abs(held.last.value - held.first.value) > gain:
        return None
    if abs(late.mean - early.mean) > max(gain, ERRORS * _noise(sampled) * (2 / len(early)) ** 0.5):
        return None
    evidence = (*held.first_and_last(), early.average(), late.average())
    if held.first.value > (1 - FELL) * log.max_reward:
        causes: Causes = ("the parent already solves the task",)
        symptom = "the reward does not change: it was high from the start"
        return Finding("note", symptom, evidence, causes, "use harder prompts")
    causes = (
        "the learning rate is too low",
        "all answers to a prompt have the same reward",
        "too few steps: each learns from one rollout only",
    )
    advice = ANOTHER_TASK if nothing_rewarded(log) else raise_learning_rate(log)
    return Finding("warning", "the reward does not change", evidence, causes, advice)


def _noise(series: Series) -> float:
    """Return the standard deviation between rollouts, which have different prompts, whatever the trend."""
    changes = [b - a for a, b in zip(series.values, series.values[1:], strict=False)]
    return median(abs(change) for change in changes) / MEDIAN_CHANGE


@check(evaluations("reward", MIN_POINTS))
def reward_fell(log: RunLog) -> Finding | None:
    """The reward reached a peak and then fell."""
    held = log.held_out("reward")
    if held.highest.step == held.first.step:
        return None
    if held.highest.value - held.last.value < FELL * log.max_reward:
        return None
    best = held.highest
    causes = (
        "the learning rate is too high for a run of this length",
        "the entropy of the policy collapsed",
        "the KL penalty is too small",
    )
    evidence = (held.evidence(held.first), held.evidence(best), held.evidence(held.last))
    symptom = f"the reward falls after step {best.step}; ckpt_best is from step {best.step}"
    return Finding("warning", symptom, evidence, causes, lower_learning_rate(log))


def _no_reward_model(log: RunLog) -> str:
    return "no reward model among the rewards" if "reward_model" not in log.setting("rewards", {}) else ""


@check(
    evaluations("rewards/reward_model", MIN_POINTS),
    Need(lambda log: true_reward(log), MIN_POINTS, "evaluations"),
    excluded=_no_reward_model,
)
def over_optimised(log: RunLog) -> Finding | None:
    """The reward model's score rises while the true reward falls (arXiv 2210.10760)."""
    proxy, true = log.held_out("rewards/reward_model"), true_reward(log)
    rise = proxy.last.value - proxy.first.value
    if rise <= 0 or proxy.highest.value - proxy.last.value > STILL_HIGH * rise:
        return None
    if true.highest.value - true.last.value < FELL:
        return None
    peak, kl = true.highest, log.held_out("objective/kl") or log.rollouts("objective/kl")
    evidence = [*proxy.first_and_last(), true.evidence(peak), true.evidence(true.last)]
    if len(kl):
        evidence += [kl.evidence(min(kl, key=lambda p: abs(p.step - peak.step))), kl.evidence(kl.last)]
    causes = (
        "the policy exploits errors of the reward model",
        "the reward model was trained on too few pairs",
        "the KL penalty is too small",
    )
    symptom = (
        f"reward over-optimization: the reward model's score rises, but the true reward falls after step {peak.step}"
    )
    return Finding("warning", symptom, tuple(evidence), causes, stronger_kl_penalty(log))


def true_reward(log: RunLog) -> Series:
    """Return a reward that does not come from a model: that of the bundled world, else exact answers. Empty if neither was measured."""
    gold = log.held_out("rewards/gold")
    return gold or log.held_out("rewards/exact_answer") or gold


@check(
    Need(lambda log: true_reward(log), 2, "evaluations"),
    evaluations("loss"),
    excluded=_no_answers,
)
def worse_answers(log: RunLog) -> Finding | None:
    """The loss changes, but answers earn less reward than before training, or still less than 0."""
    true = true_reward(log)
    if is_unchanged(log.held_out("loss")):
        return None  # an unchanged model gives the same answers
    best = log.best_point()
    still_learning = best is not None and best.step == log.held_out("loss").last.step
    flaws = tuple(log.setting_evidence(key) for key in ("wrong", "flawed") if float(log.setting(key, 0.0)))
    if true.first.value - true.last.value >= FELL:
        causes: Causes = ("too little training: the model forgets before it learns", "wrong demonstrations in the data")
        advice = train_longer(log) if still_learning else lower_learning_rate(log)
        evidence: tuple[Evidence, ...] = (*true.first_and_last(), *flaws)
        return Finding("warning", "answers have a lower reward than before training", evidence, causes, advice)
    if true.name != "rewards/gold" or true.last.value >= 0 or not still_learning:
        return None
    causes = ("too little training", "the model is too small for these questions")
    causes += ("demonstrations with deliberate flaws (settings wrong and flawed)",) if flaws else ()
    symptom = "answers have a lower reward, on average, than a short wrong answer (0): they ramble or do not end"
    return Finding("note", symptom, true.first_and_last(), causes, train_longer(log))


ONLINE = (endless, repeats, length_runs_away, reward_stays, reward_fell, over_optimised)
FINE_TUNING = (endless, repeats, worse_answers)
