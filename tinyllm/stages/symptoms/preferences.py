"""Symptoms of learning from preferences: reward models, and alignment with pairs or judged answers."""

from __future__ import annotations

import math
from collections.abc import Callable

from tinyllm.stages.symptoms.learning import STILL, is_still, no_gradient, rate_and_gradient
from tinyllm.stages.symptoms.log import Causes, Fact, Finding, Log, faster, more_data, put, slower

LN_2 = math.log(2)  # -log sigmoid(0): what a pair costs while policy and reference agree
SAME_MARGIN = 0.01  # a margin of 0.01 is a hundredth of what a rehearsal reaches in 20 steps
FELL_SOME = 0.1  # of the first log-probability; less is not worth a word
FELL_FAR = 0.5  # of it, and more than the margin gained: a sure parent has little of it, so half alone is not too far
CHANCE = 0.55  # guessing gives 0.5, give or take 0.04 for 128 pairs
BELOW = 0.45  # as far on the other side
HUGE_MARGIN = 8.0  # sigmoid(-8) = 0.0003: nothing is left to learn from such pairs, so only overshooting goes on
PERFECT = 0.99
GAP = 0.1  # between training and held-out accuracy; two standard errors of 128 pairs
FLAT = 0.02  # of held-out accuracy, over the second half of the run
SMALL_LOSS = 0.05  # e^-3: pairs that are all but certain
FAR_LEVEL = 5.0  # of both rewards together; sigmoid sees only their difference, so a level means nothing
ENOUGH_ROWS = 5


def stuck(log: Log) -> Finding | None:
    """The best known symptom of all: DPO's loss stays at ln 2 = 0.6931."""
    held, margin = log.held_out("loss"), log.held_out("rewards/margins")
    if len(held) < 2 or len(margin) < 2 or not is_still(held):
        return None
    if abs(margin.last.value - margin.first.value) > SAME_MARGIN:
        return None
    where = "ln 2 = 0.6931" if abs(held.last.value - LN_2) < STILL else "its starting value"
    if no_gradient(log):
        causes: Causes = (
            "the answers' masks are empty: the prompt alone fills data.max_length",
            "chosen and rejected answers are the same tokens",
            "the reference is the policy itself, at every step",
        )
        length = 2 * int(log.setting("data.max_length", 256))
        advice = f"longer rows, and look in logs/run.log for records that were cut: {put('data.max_length', length)}"
    else:
        causes = ("the learning rate is too low for so few steps", "chosen and rejected answers hardly differ")
        advice = faster(log, 10)
    evidence = (*held.ends(), *margin.ends(), *rate_and_gradient(log))
    return Finding("broken", f"the loss is stuck at {where}: no preference was learned", evidence, causes, advice)


def chosen_falls(log: Log) -> Finding | None:
    """Only the difference is trained, so the chosen answers may become less likely too (arXiv 2410.08847).

    It is too far where they lose more than the difference gains: measured, runs that end well lose a third to two thirds of it, runs
    at too high a rate, or over too few pairs, once to one and a half times as much.
    """
    chosen, rejected, margin = (log.held_out(name) for name in ("logps/chosen", "logps/rejected", "rewards/margins"))
    if len(chosen) < 2 or len(rejected) < 2 or len(margin) < 2 or margin.last.value <= margin.first.value:
        return None
    fell = (chosen.first.value - chosen.last.value) / max(abs(chosen.first.value), 1e-9)
    if fell < FELL_SOME:
        return None
    evidence = (*chosen.ends(), *rejected.ends(), *margin.ends())
    lost, rejected_lost = (s.first.value - s.last.value for s in (chosen, rejected))
    if fell < FELL_FAR or lost <= rejected_lost - lost:
        return Finding(
            "note",
            "chosen answers became less likely while the margin grew: expected, only the difference is trained",
            evidence,
            ("rejected answers share words with the chosen ones, and take them down with them",),
            "nothing, while the answers read well (`tinyllm chat`)",
        )
    causes = (
        "the policy is held too loosely, or trained too long",
        "chosen and rejected answers are very alike",
        "chosen answers are unlike what the parent writes",
    )
    return Finding("warning", "chosen answers lost more than the margin gained", evidence, causes, _held_closer(log))


def _held_closer(log: Log) -> str:
    """A larger beta where it ties the policy to its reference (margins begin at 0); a lower rate where there is none."""
    key = f"{log.stage}.beta"
    beta = log.setting(key)
    if beta is None or abs(log.train("rewards/margins").first.value) > SAME_MARGIN:
        return slower(log)
    return f"hold the policy closer to its parent: {put(key, 3.0 * float(beta))}"


def below_chance(log: Log) -> Finding | None:
    held, train = log.held_out("rewards/accuracies"), log.train("rewards/accuracies")
    if len(held) < 2 or held.last.value >= BELOW or not len(train) or is_still(log.held_out("loss")):
        return None  # what did not move has no opinion
    learned = train.tail(0.2)
    evidence = (held.fact(held.last), learned.averaged())
    if learned.mean > CHANCE:
        causes: Causes = (
            "chosen and rejected are swapped in the held-out records, or in the training records",
            "the two come from judges who disagree",
        )
        advice = "read a pair of each; columns are renamed with --set 'data.field={chosen: rejected, rejected: chosen}'"
    else:
        causes = ("chosen and rejected are swapped", "the learning rate is too low to overcome what the parent prefers")
        advice = faster(log)
    return Finding("warning", "rejected answers are preferred to chosen ones", evidence, causes, advice)


def margin_explodes(log: Log) -> Finding | None:
    margin, held = log.train("rewards/margins"), log.held_out("rewards/margins")
    if len(margin) < ENOUGH_ROWS or margin.tail(0.2).mean < HUGE_MARGIN:
        return None
    evidence = [margin.fact(margin.first), margin.tail(0.2).averaged()]
    evidence += [held.fact(held.last)] if len(held) else []
    causes = ("every pair is long since decided, and is pushed on: too many passes", "the learning rate is too high")
    return Finding("warning", "the margin explodes", tuple(evidence), causes, _held_closer(log))


def memorised(accuracy: str) -> Callable[[Log], Finding | None]:
    """The check for a figure that some stages call accuracy and others rewards/accuracies."""

    def memorised(log: Log) -> Finding | None:
        """Every training pair is right, and held-out pairs are right no more often than before."""
        train, held, loss = log.train(accuracy), log.held_out(accuracy), log.train("loss")
        if len(train) < ENOUGH_ROWS or len(held) < 2 or train.tail(0.2).mean < PERFECT:
            return None
        if train.tail(0.2).mean - held.last.value < GAP or held.last.value - held.tail(0.5).first.value > FLAT:
            return None
        evidence = [train.tail(0.2).averaged(), *held.ends()]
        evidence += [loss.tail(0.2).averaged()] if len(loss) and loss.tail(0.2).mean < SMALL_LOSS else []
        causes = ("too many passes over too few pairs", "labels that follow no rule, and can only be learned by heart")
        return Finding(
            "warning",
            "training pairs are learned by heart: all of them right, held-out pairs no better than before",
            tuple(evidence),
            causes,
            more_data(log),
        )

    return memorised


def at_chance(log: Log) -> Finding | None:
    held, train = log.held_out("accuracy"), log.train("accuracy")
    if len(held) < 2 or held.last.value > CHANCE or not len(train) or is_still(log.held_out("loss")):
        return None
    learned = train.tail(0.2)
    evidence = (*held.ends(), learned.averaged())
    if learned.mean > CHANCE + GAP:
        causes: Causes = (
            "too few pairs: what was learned does not carry over",
            "held-out pairs of another kind",
        )
        advice = more_data(log)
    else:
        causes = (
            "the learning rate is too low, or the run too short",
            "chosen and rejected differ only where data.max_length cuts them off",
            "labels that follow no rule",
        )
        advice = faster(log)
    return Finding("warning", "the reward model guesses", evidence, causes, advice)


def rewards_drift(log: Log) -> Finding | None:
    """Bradley-Terry sees differences alone: the level of all rewards is free, unless something holds it near zero."""
    chosen, rejected = log.held_out("rewards/chosen"), log.held_out("rewards/rejected")
    if len(chosen) < 2 or len(rejected) < 2:
        return None
    first, last = (
        abs(c.value + r.value) / 2 for c, r in ((chosen.first, rejected.first), (chosen.last, rejected.last))
    )
    margin = abs(chosen.last.value - rejected.last.value)
    if last < FAR_LEVEL or last < 2 * margin or last < 2 * first:
        return None
    centering = float(log.setting("bradley_terry.centering", 0.0))
    evidence = (*chosen.ends(), *rejected.ends(), Fact("held-out level of both", last, chosen.last.step))
    causes = ("nothing holds the level of rewards: only their difference is trained",)
    advice = f"hold it at zero: {put('bradley_terry.centering', 10 * centering or 0.01)}"
    return Finding("warning", "rewards drift away from zero", evidence, causes, advice)


OFFLINE = (stuck, below_chance, chosen_falls, margin_explodes, memorised("rewards/accuracies"))
REWARD_MODEL = (at_chance, memorised("accuracy"), rewards_drift)
