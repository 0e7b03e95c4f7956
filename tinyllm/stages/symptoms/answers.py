"""Symptoms in the answers a model writes and in what they earn: for fine-tuning and online alignment."""

from __future__ import annotations

from statistics import median

from tinyllm.stages.symptoms.learning import GAIN, is_still
from tinyllm.stages.symptoms.log import Causes, Finding, Log, Series, faster, put, slower
from tinyllm.stages.symptoms.policy import tighter

NEVER_ENDS, SELDOM_ENDS = 0.5, 0.8  # share of answers that end by themselves; a trained model is near 1
LOOPS, MORE_LOOPS = 0.5, 0.1  # of the token pairs, and more than at the start; prose is near 0, a loop near 1
AT_LIMIT = 0.9  # of rollout.max_new_tokens, on average
LONGER, MORE_TOKENS = 2.0, 8.0  # times as long, and so many tokens longer
FELL = 0.1  # of a perfect reward, below the best; five times the noise of a hundred answers
STILL_HIGH = 0.1  # of its own rise: so near its highest is a proxy that keeps rising
ERRORS = 2.0  # standard errors that a difference of two means must exceed
MEDIAN_CHANGE = 0.954  # of a standard deviation: the median difference of two draws from a normal distribution
ENOUGH = 3  # evaluations, or rollouts


def endless(log: Log) -> Finding | None:
    finished, length = log.held_out("finished"), log.held_out("length")
    if not len(finished) or not len(length) or finished.last.value >= SELDOM_ENDS:
        return None
    limit = int(log.setting("rollout.max_new_tokens", 0))
    evidence = (*finished.ends(), *length.ends())
    if limit and length.last.value >= AT_LIMIT * limit:
        causes: Causes = ("right answers need more tokens than they may have", "the reward pays for length")
        advice = f"room to end: {put('rollout.max_new_tokens', 2 * limit)}"
    elif limit:
        causes = ("not ending costs too little", "the parent seldom ends either")
        penalty = 2.0 * float(log.setting("rollout.unfinished_penalty", 0.5))
        advice = f"a higher price for it: {put('rollout.unfinished_penalty', penalty or 0.5)}"
    else:
        causes = (
            "too little training: a model that does not know the answer repeats itself",
            "answers in the data are cut off at data.max_length, so their end is never seen",
        )
        advice = f"longer training: {put('train.steps', 2 * log.steps)}"
    if finished.last.value < NEVER_ENDS:
        return Finding("warning", "most answers do not end by themselves", evidence, causes, advice)
    return Finding("note", "many answers do not end by themselves", evidence, causes, advice)


def repeats(log: Log) -> Finding | None:
    """Loops: the share of neighbouring token pairs that an answer had before."""
    again = log.held_out("repetition")
    if not len(again) or again.last.value < LOOPS:
        return None
    online = log.family == "online"
    causes = ("entropy has fallen: nothing but the likeliest token is ever written", "the reward does not mind loops")
    if not online:
        causes = (
            "too little training: a model that does not know the answer repeats itself",
            "data that repeat themselves",
        )
    advice = tighter(log) if online else f"longer training: {put('train.steps', 2 * log.steps)}"
    worse = again.last.value - again.first.value > MORE_LOOPS
    return Finding("warning" if worse else "note", "answers go in circles", again.ends(), causes, advice)


def length_runs_away(log: Log) -> Finding | None:
    length, reward = log.held_out("length"), log.held_out("reward")
    if len(length) < 2 or len(reward) < 2:
        return None
    first, last = length.first.value, length.last.value
    if last < LONGER * first or last - first < MORE_TOKENS:
        return None
    evidence = (*length.ends(), *reward.ends())
    causes = (
        "the reward pays for length as such: reward models often do",
        "ending is never rewarded",
        "answers wander off without costing anything",
    )
    buffer = max(1, int(log.setting("rollout.max_new_tokens", 32)) // 4)
    if log.setting("rollout.overlong_buffer") == 0:
        advice = f"make the last tokens cost: {put('rollout.overlong_buffer', buffer)}"
    else:
        advice = tighter(log)
    rose = reward.last.value - reward.first.value > GAIN * log.scale
    symptom = f"answers became {last / max(first, 1e-9):.1f} times as long"
    return Finding("note" if rose else "warning", symptom, evidence, causes, advice)


def reward_stays(log: Log) -> Finding | None:
    """Neither held-out nor sampled answers earn more than at the start; reward rules end at 1, which gives the scale."""
    held, sampled = log.held_out("reward"), log.rollouts("reward")
    if len(held) < 2 or len(sampled) < ENOUGH:
        return None
    enough, early, late = GAIN * log.scale, sampled.head(1 / 3), sampled.tail(1 / 3)
    if abs(held.last.value - held.first.value) > enough:
        return None
    if abs(late.mean - early.mean) > max(enough, ERRORS * _wobble(sampled) * (2 / len(early)) ** 0.5):
        return None
    evidence = (*held.ends(), early.averaged(), late.averaged())
    if held.first.value > (1 - FELL) * log.scale:
        causes: Causes = ("the parent earns nearly all there is already",)
        return Finding("note", "reward does not move: it was high from the start", evidence, causes, "harder prompts")
    causes = (
        "the learning rate is too low",
        "groups whose answers all earn the same",
        "too few steps: each sees only a rollout's worth of answers",
    )
    return Finding("warning", "reward does not move", evidence, causes, faster(log))


def _wobble(series: Series) -> float:
    """The standard deviation from one rollout to the next, whatever the trend: other prompts, other rewards."""
    changes = [b - a for a, b in zip(series.values, series.values[1:], strict=False)]
    return median(abs(change) for change in changes) / MEDIAN_CHANGE


def reward_fell(log: Log) -> Finding | None:
    """A peak and then a fall: training went on past its best."""
    held = log.held_out("reward")
    if len(held) < ENOUGH or held.highest.step == held.first.step:
        return None
    if held.highest.value - held.last.value < FELL * log.scale:
        return None
    best = held.highest
    causes = (
        "the learning rate is too high for this long",
        "the policy has lost its variety (entropy)",
        "KL to the parent costs too little",
    )
    symptom = f"reward fell after step {best.step}; ckpt_best is from there"
    return Finding(
        "warning", symptom, (held.fact(held.first), held.fact(best), held.fact(held.last)), causes, slower(log)
    )


def over_optimised(log: Log) -> Finding | None:
    """The reward model is pleased more and more, and the true reward falls (arXiv 2210.10760)."""
    proxy, true = log.held_out("rewards/reward_model"), true_reward(log)
    if true is None or len(proxy) < ENOUGH or len(true) < ENOUGH:
        return None
    rise = proxy.last.value - proxy.first.value
    if rise <= 0 or proxy.highest.value - proxy.last.value > STILL_HIGH * rise:
        return None
    if true.highest.value - true.last.value < FELL:
        return None
    peak, kl = true.highest, log.held_out("objective/kl") or log.rollouts("objective/kl")
    evidence = [*proxy.ends(), true.fact(peak), true.fact(true.last)]
    evidence += [kl.fact(min(kl, key=lambda p: abs(p.step - peak.step))), kl.fact(kl.last)] if len(kl) else []
    causes = (
        "the policy has found what the reward model likes and people do not",
        "a reward model from too few pairs",
        "KL to the parent costs too little",
    )
    symptom = f"over-optimised: the reward model is pleased more and more, the true reward falls since step {peak.step}"
    return Finding("warning", symptom, tuple(evidence), causes, tighter(log))


def true_reward(log: Log) -> Series | None:
    """A reward that cannot be talked round, if one is measured: the world's own, else exact answers."""
    found = (log.held_out(f"rewards/{name}") for name in ("gold", "exact_answer"))
    return next((series for series in found if len(series)), None)


def worse_answers(log: Log) -> Finding | None:
    """Fine-tuning or preferences that lower the loss and the worth of the answers with it."""
    true = true_reward(log)
    if true is None or len(true) < 2 or is_still(log.held_out("loss")):
        return None  # a model that has not moved says what it always said
    best = log.best_point()
    still_learning = best is not None and best.step == log.held_out("loss").last.step
    wrong = float(log.setting("wrong", 0.0)) + float(log.setting("flawed", 0.0))
    if true.first.value - true.last.value >= FELL:
        causes: Causes = ("too short a training: it forgets before it learns", "demonstrations that are wrong")
        evidence = true.ends() + (
            tuple(log.config_fact(k) for k in ("wrong", "flawed") if float(log.setting(k, 0.0))) if wrong else ()
        )
        advice = f"longer training: {put('train.steps', 2 * log.steps)}" if still_learning else slower(log)
        return Finding("warning", "answers are worth less than before", evidence, causes, advice)
    if true.name != "rewards/gold" or true.last.value >= 0 or not still_learning:
        return None
    causes = ("too short a training", "a model too small for these questions") + (
        ("demonstrations flawed on purpose (wrong, flawed)",) if wrong else ()
    )
    symptom = "answers are on average worth less than a tidy wrong one (0): they ramble, or do not end"
    return Finding("note", symptom, true.ends(), causes, f"longer training: {put('train.steps', 2 * log.steps)}")


ONLINE = (endless, repeats, length_runs_away, reward_stays, reward_fell, over_optimised)
WRITTEN = (endless, repeats, worse_answers)
