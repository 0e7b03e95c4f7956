"""Symptoms of learning from preferences, for reward models and offline alignment."""

from __future__ import annotations

import math

from tinyllm.diagnostics.run_log import Evidence, RunLog, Series
from tinyllm.diagnostics.symptoms.advice import (
    longer_rows,
    lower_learning_rate,
    more_records,
    raise_learning_rate,
    set_option,
)
from tinyllm.diagnostics.symptoms.check import Check, Need, check, evaluations, steps
from tinyllm.diagnostics.symptoms.finding import Causes, Finding
from tinyllm.diagnostics.symptoms.learning import (
    UNCHANGED,
    has_no_gradient,
    is_unchanged,
    learning_rate_and_gradient,
)

LN_2 = math.log(2)  # -log sigmoid(0): the loss of a pair while policy and reference agree
SAME_MARGIN = 0.01  # a hundredth of what a fast-dev-run reaches in 20 steps
FELL_SOME = 0.1  # of the first log-probability; less is not worth a note
FELL_FAR = 0.5  # of it, and more than the margin gained: a confident parent starts near 0
CHANCE = 0.55  # guessing gives 0.5, with a standard error of 0.04 for 128 pairs
BELOW = 0.45  # equally far below
HUGE_MARGIN = 8.0  # sigmoid(-8) = 0.0003: such pairs contribute almost no gradient
PERFECT = 0.99
GAP = 0.1  # between training and held-out accuracy; two standard errors for 128 pairs
FLAT = 0.02  # of held-out accuracy, over the second half of the run
SMALL_LOSS = 0.05  # e^-3: pairs that are almost certain
FAR_LEVEL = 5.0  # the mean of both rewards; the loss depends on their difference only
MIN_ROWS = 5


@check(evaluations("loss", 2), evaluations("rewards/margins", 2))
def stuck(log: RunLog) -> Finding | None:
    """The loss does not change. DPO's then stays at ln 2 = 0.6931."""
    held, margin = log.held_out("loss"), log.held_out("rewards/margins")
    if not is_unchanged(held):
        return None
    if abs(margin.last.value - margin.first.value) > SAME_MARGIN:
        return None
    where = "ln 2 = 0.6931" if abs(held.last.value - LN_2) < UNCHANGED else "its initial value"
    if has_no_gradient(log):
        causes: Causes = (
            "the answers are masked completely: the prompt alone fills data.max_length",
            "chosen and rejected answers are identical",
            "the reference is the policy itself, at every step",
        )
        advice = f"{longer_rows(log)}; logs/run.log names records that were cut"
    else:
        causes = ("the learning rate is too low for so few steps", "chosen and rejected answers hardly differ")
        advice = raise_learning_rate(log, 10)
    evidence = (*held.first_and_last(), *margin.first_and_last(), *learning_rate_and_gradient(log))
    return Finding("broken", f"the loss is stuck at {where}: no preference was learned", evidence, causes, advice)


@check(*(evaluations(name, 2) for name in ("logps/chosen", "logps/rejected", "rewards/margins")))
def chosen_falls(log: RunLog) -> Finding | None:
    """Chosen answers become less likely. The loss trains only the difference to the rejected ones (arXiv 2410.08847).

    A warning where they lose more than the difference gains. Measured: good runs lose a third to two thirds of it, runs with a high
    learning rate or too few pairs 1 to 1.5 times as much.
    """
    chosen, rejected, margin = (log.held_out(name) for name in ("logps/chosen", "logps/rejected", "rewards/margins"))
    if margin.last.value <= margin.first.value:
        return None
    fell = (chosen.first.value - chosen.last.value) / max(abs(chosen.first.value), 1e-9)
    if fell < FELL_SOME:
        return None
    evidence = (*chosen.first_and_last(), *rejected.first_and_last(), *margin.first_and_last())
    lost, rejected_lost = (s.first.value - s.last.value for s in (chosen, rejected))
    if fell < FELL_FAR or lost <= rejected_lost - lost:
        return Finding(
            "note",
            "chosen answers became less likely while the margin grew: expected, as only the difference is trained",
            evidence,
            ("rejected answers share tokens with chosen answers, which then become less likely too",),
            "nothing, if the answers are good (`tinyllm chat`)",
        )
    causes = (
        "beta is too small, or training too long",
        "chosen and rejected answers are very similar",
        "chosen answers are unlike those of the parent",
    )
    symptom = "chosen answers lost more log-probability than the margin gained"
    return Finding("warning", symptom, evidence, causes, _stay_closer(log))


def _stay_closer(log: RunLog) -> str:
    """Return the option for a larger beta, or for a lower learning rate where there is no reference (margins do not start at 0)."""
    key = f"{log.stage}.beta"
    beta = log.setting(key)
    margins = log.held_out("rewards/margins") or log.train("rewards/margins")
    if beta is None or abs(margins.first.value) > SAME_MARGIN:
        return lower_learning_rate(log)
    return f"keep the policy closer to its parent: {set_option(key, 3.0 * float(beta))}"


@check(evaluations("rewards/accuracies", 2), evaluations("loss"), steps("rewards/accuracies"))
def below_chance(log: RunLog) -> Finding | None:
    held, train = log.held_out("rewards/accuracies"), log.train("rewards/accuracies")
    if held.last.value >= BELOW or is_unchanged(log.held_out("loss")):
        return None  # the preferences of an unchanged policy are those of its parent
    learned = train.tail(0.2)
    evidence = (held.evidence(held.last), learned.average())
    if learned.mean > CHANCE:
        causes: Causes = (
            "chosen and rejected are swapped in the held-out records, or in the training records",
            "the two sets were labeled by different criteria",
        )
        advice = (
            "compare pairs from both sets; to swap columns: --set 'data.field={chosen: rejected, rejected: chosen}'"
        )
    else:
        causes = (
            "chosen and rejected are swapped",
            "the learning rate is too low to overcome the preferences of the parent",
        )
        advice = raise_learning_rate(log)
    return Finding("warning", "the policy prefers rejected answers to chosen ones", evidence, causes, advice)


def _margins(log: RunLog) -> Series:
    """Return the argument of the sigmoid: the margin, or ORPO's log odds, since its margin has a small weight."""
    return log.train("log_odds_chosen") or log.train("rewards/margins")


@check(Need(_margins, MIN_ROWS, "logged steps"))
def margin_explodes(log: RunLog) -> Finding | None:
    margin = _margins(log)
    held = log.held_out(margin.name)
    if margin.tail(0.2).mean < HUGE_MARGIN:
        return None
    evidence = [margin.evidence(margin.first), margin.tail(0.2).average()]
    evidence += [held.evidence(held.last)] if len(held) else []
    causes = ("too many epochs: training continues on pairs that are already certain", "the learning rate is too high")
    return Finding("warning", "the reward margin keeps growing", tuple(evidence), causes, _stay_closer(log))


def memorised(accuracy: str) -> Check:
    """Return the check for overfitting to pairs, with the stage's name of the accuracy: accuracy or rewards/accuracies."""

    @check(steps(accuracy, MIN_ROWS), evaluations(accuracy, 2))
    def memorised(log: RunLog) -> Finding | None:
        """Training accuracy is perfect, but held-out accuracy does not improve."""
        train, held, loss = log.train(accuracy), log.held_out(accuracy), log.train("loss")
        if train.tail(0.2).mean < PERFECT:
            return None
        if train.tail(0.2).mean - held.last.value < GAP or held.last.value - held.tail(0.5).first.value > FLAT:
            return None
        evidence = [train.tail(0.2).average(), *held.first_and_last()]
        evidence += [loss.tail(0.2).average()] if len(loss) and loss.tail(0.2).mean < SMALL_LOSS else []
        causes = ("too many epochs over too few pairs", "labels that follow no rule and can only be memorized")
        symptom = "overfitting: every training pair is ranked correctly, held-out pairs no better than before"
        return Finding("warning", symptom, tuple(evidence), causes, more_records(log))

    return memorised


@check(evaluations("accuracy", 2), evaluations("loss"), steps("accuracy"))
def at_chance(log: RunLog) -> Finding | None:
    held, train = log.held_out("accuracy"), log.train("accuracy")
    if held.last.value > CHANCE or is_unchanged(log.held_out("loss")):
        return None
    learned = train.tail(0.2)
    evidence = (*held.first_and_last(), learned.average())
    if learned.mean > CHANCE + GAP:
        causes: Causes = (
            "too few pairs to generalize from",
            "the held-out pairs differ in kind from the training pairs",
        )
        advice = more_records(log)
    else:
        causes = (
            "the learning rate is too low, or the run too short",
            "chosen and rejected answers differ only after data.max_length",
            "labels that follow no rule",
        )
        advice = raise_learning_rate(log)
    return Finding("warning", "the reward model is no better than chance", evidence, causes, advice)


@check(evaluations("rewards/chosen", 2), evaluations("rewards/rejected", 2))
def rewards_drift(log: RunLog) -> Finding | None:
    """The mean reward drifts. The Bradley-Terry loss depends on differences only, so nothing keeps the mean near zero."""
    chosen, rejected = log.held_out("rewards/chosen"), log.held_out("rewards/rejected")
    first, last = (
        abs(c.value + r.value) / 2 for c, r in ((chosen.first, rejected.first), (chosen.last, rejected.last))
    )
    margin = abs(chosen.last.value - rejected.last.value)
    if last < FAR_LEVEL or last < 2 * margin or last < 2 * first:
        return None
    centering = float(log.setting("bradley_terry.centering", 0.0))
    level = Evidence("held-out mean of chosen and rejected", last, chosen.last.step)
    evidence = (*chosen.first_and_last(), *rejected.first_and_last(), level)
    causes = ("the loss depends on the difference of rewards only, so their mean is free",)
    advice = f"penalize the distance from zero: {set_option('bradley_terry.centering', 10 * centering or 0.01)}"
    return Finding("warning", "rewards drift away from zero", evidence, causes, advice)


OFFLINE = (stuck, below_chance, chosen_falls, margin_explodes, memorised("rewards/accuracies"))
REWARD_MODEL = (at_chance, memorised("accuracy"), rewards_drift)
