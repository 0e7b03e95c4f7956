"""Symptoms of losses and gradients, for every stage: a loss that is not finite, does not change, or rises again."""

from __future__ import annotations

import re
from typing import Any

from tinyllm.diagnostics.run_log import FACTS, Evidence, RunLog, Series, is_number
from tinyllm.diagnostics.symptoms.advice import (
    longer_rows,
    lower_learning_rate,
    more_records,
    raise_learning_rate,
    set_option,
)
from tinyllm.diagnostics.symptoms.check import Need, check, evaluations, steps
from tinyllm.diagnostics.symptoms.finding import Causes, Finding
from tinyllm.io.strict_json import NONFINITE

UNCHANGED = 0.005  # of the first loss; the smallest fast-dev-run changes it by a twentieth, rounding by a millionth
NO_GRADIENT = 1e-6  # gradient norms in training are above 0.01 in every stage; rounding leaves about 1e-7
BATCH_NOISE = 0.1  # relative difference between the means of a few batches under the same model
ROSE = 0.03  # of the best held-out loss; measured on the same records, it varies by about one percent
ROSE_AT_LEAST = 0.01  # nats: near a loss of 0 a fraction is no measure
SPIKE = 10.0  # times the median; batches differ by a factor of two to four
VANISHED = 0.05  # of clip_norm; near the end the gradient can be so small that every step is many times the median
FREQUENT = 0.02  # of the steps; a rare outlier is clipped and does no harm
MIN_ROWS = 10  # fewer give no useful median
GAIN = 0.02  # of a perfect reward; less is within the noise of a hundred answers

_MOST_SHOWN = 4  # figures in one finding
_STOPPED_STEP = re.compile(r"step (\d+): loss (\S+), gradient norm (\S+) ")  # in the error of a step that was not taken

_OVERFITTING = "overfitting: too many epochs over too few records"
_OTHER_RECORDS = "the held-out records differ in kind from the training records"


@check(Need(lambda log: log.lines("train") or log.lines("eval"), 1, "lines"))
def not_finite(log: RunLog) -> Finding | None:
    """A figure is NaN or infinite. With the loss, its gradient, or the figure that selects `ckpt_best` the run is broken.

    Such figures are logged as null, with a note. Those of a training step that was refused are in the error in run.json only.
    """
    if (stopped := _refused_step(log)) is not None:
        return stopped
    judged = ("loss", log.best_by[0])
    bad: dict[str, Evidence] = {}  # by figure, where it first was
    for row in log.rows:
        for name, value in _nonfinite(row, judged).items():
            words = "infinite" if "inf" in value else "not a number"
            bad.setdefault(name, Evidence(f"{row['split']} {name}", words, row["step"]))
    if not bad:
        return None
    decisive = [name for name in judged if name in bad]
    name = (decisive or list(bad))[0]
    evidence = [bad[name], *(found for other, found in bad.items() if other != name)][:_MOST_SHOWN]
    norms = log.train("grad_norm").where(lambda step: step <= (bad[name].step or 0))
    evidence += [norms.evidence(norms.last)] if len(norms) else []
    causes: Causes = ("the learning rate is too high", "overflow in bf16", "a batch in which every token is masked")
    advice = lower_learning_rate(log, 10)
    if name.startswith("reward") and "loss" not in bad:
        causes = ("a reward is not finite for some prompts, for example 0/0 of a column", *causes[:1])
        advice = "call the functions under `rewards` with the rows of data.train and data.val"
    symptom = f"{'the loss' if name == 'loss' else name} is not finite"
    return Finding("broken" if decisive else "warning", symptom, tuple(evidence), causes, advice)


def _refused_step(log: RunLog) -> Finding | None:
    """Return the finding for a training step that was not taken because its loss or gradient was not finite."""
    found = _STOPPED_STEP.search(str(log.facts.get("error", "")))
    if found is None:
        return None
    step = int(found[1])
    evidence = [
        Evidence(f"train {name}", "infinite" if "inf" in value else "not a number", step, FACTS)
        for name, value in (("loss", found[2]), ("grad_norm", found[3]))
        if "nan" in value or "inf" in value
    ]
    if not evidence:
        return None
    evidence += [series.evidence(series.last) for name in ("loss", "grad_norm") if len(series := log.train(name))]
    name = "the loss" if evidence[0].figure == "train loss" else "the gradient"
    causes = ("the learning rate is too high", "overflow in bf16", "the warm-up is too short")
    return Finding("broken", f"{name} is not finite", tuple(evidence), causes, lower_learning_rate(log, 10))


def _nonfinite(row: dict[str, Any], judged: tuple[str, ...]) -> dict[str, str]:
    """Return the figures of a line that are not finite.

    Earlier versions wrote infinities as they are, and null without a note: for NaN, but also for a mean of nothing, which is harmless
    unless the run is judged by it.
    """
    note = row.get(NONFINITE)
    found = {str(name): str(value) for name, value in note.items()} if isinstance(note, dict) else {}
    for name, value in row.items():
        if (value is None and name in judged) or (isinstance(value, float) and not is_number(value)):
            found.setdefault(name, str(value))
    return found


@check(steps("lr"))
def still_warming(log: RunLog) -> Finding | None:
    warmup, rates = int(log.setting("optim.warmup_steps", 0)), log.train("lr")
    if not log.steps or warmup < log.steps:
        return None
    settings = (log.setting_evidence("optim.warmup_steps"), log.setting_evidence("train.steps"))
    return Finding(
        "warning",
        "the learning rate is still warming up when the run ends",
        (*settings, rates.evidence(rates.last)),
        ("optim.warmup_steps is meant for a longer run",),
        f"warm up for a tenth of the run: {set_option('optim.warmup_steps', max(1, log.steps // 10))}",
    )


def is_unchanged(loss: Series) -> bool:
    """Return whether a loss ends where it started."""
    return abs(loss.last.value - loss.first.value) < UNCHANGED * abs(loss.first.value)


def training_loss_fell(log: RunLog) -> bool:
    """Return whether the training loss ends clearly below its start."""
    loss = log.train("loss")
    return bool(len(loss)) and loss.tail(0.2).mean < loss.head(0.2).mean - BATCH_NOISE * abs(loss.head(0.2).mean)


def has_no_gradient(log: RunLog) -> bool:
    norms = log.train("grad_norm")
    return bool(len(norms)) and norms.highest.value < NO_GRADIENT


@check(evaluations("loss", 2))
def never_moved(log: RunLog) -> Finding | None:
    """The held-out loss does not change. Not for alignment, where the policy can change at the same loss; it has its own checks."""
    held, loss = log.held_out("loss"), log.train("loss")
    if not is_unchanged(held):
        return None
    if training_loss_fell(log):
        return Finding(
            "warning",
            "the training loss falls, but the held-out loss does not change",
            (*held.first_and_last(), loss.head(0.2).average(), loss.tail(0.2).average()),
            (_OTHER_RECORDS, _OVERFITTING),
            more_records(log),
        )
    if has_no_gradient(log):
        causes: Causes = ("no gradient reaches the weights: all trainable parts are frozen or masked",)
        advice = f"{longer_rows(log)}; logs/run.log names records that were cut"
    else:
        causes = (
            "the learning rate is too low",
            "warm-up takes most of the run",
            "the parent already knows these data",
        )
        advice = raise_learning_rate(log, 10)
    evidence = (*held.first_and_last(), *learning_rate_and_gradient(log))
    return Finding("broken", "the loss did not change", evidence, causes, advice)


def learning_rate_and_gradient(log: RunLog) -> list[Evidence]:
    """Return the highest learning rate and the largest gradient norm."""
    return [series.evidence(series.highest) for name in ("lr", "grad_norm") if len(series := log.train(name))]


@check(evaluations("loss", 3))
def eval_turned(log: RunLog) -> Finding | None:
    """The held-out loss rises after its best value: overfitting if the training loss still falls, else divergence."""
    held = log.held_out("loss")
    best, last = held.lowest, held.last
    if best.step == held.first.step or last.value - best.value < max(ROSE * abs(best.value), ROSE_AT_LEAST):
        return None
    before = log.train("loss").where(lambda step: step <= best.step)
    after = log.train("loss").where(lambda step: step > best.step)
    evidence = [held.evidence(best), held.evidence(last)]
    if len(before) and len(after):
        before = before.tail(min(1.0, len(after) / len(before)))
        evidence += [before.average(), after.average()]
    if len(before) and len(after) and after.mean > before.mean:
        causes = ("the learning rate is too high: the training loss rises as well", "the data change during the run")
        symptom = f"training and held-out loss rise after step {best.step}"
        return Finding("warning", symptom, tuple(evidence), causes, lower_learning_rate(log))
    symptom = f"the held-out loss rises after step {best.step} while the training loss falls; ckpt_best is from step {best.step}"
    return Finding("warning", symptom, tuple(evidence), (_OVERFITTING, _OTHER_RECORDS), more_records(log))


def _norms_after_warmup(log: RunLog) -> Series:
    return log.train("grad_norm").where(lambda step: step > int(log.setting("optim.warmup_steps", 0)))


@check(Need(_norms_after_warmup, MIN_ROWS, "logged steps after the warm-up"))
def gradient_spikes(log: RunLog) -> Finding | None:
    clip, norms = float(log.setting("optim.clip_norm", 1.0)), _norms_after_warmup(log)
    median = norms.median
    if median < VANISHED * clip:
        return None
    spikes = [p for p in norms if p.value > max(SPIKE * median, clip)]
    if not spikes:
        return None
    worst = max(spikes, key=lambda p: p.value)
    often = len(spikes) > max(1, FREQUENT * len(norms))
    evidence = (
        norms.evidence(worst),
        Evidence("train grad_norm, median", median),
        Evidence("lines with a spike", f"{len(spikes)} of {len(norms)}"),
    )
    causes = (
        "unusual records: very long, garbled, or in another language",
        "the learning rate is too high",
    )
    advice = f"clip at the median norm: {set_option('optim.clip_norm', median)}"
    return Finding("warning" if often else "note", "the gradient norm has spikes", evidence, causes, advice)


@check(Need(lambda log: log.held_out(log.best_by[0]), 2, "evaluations"))
def never_improved(log: RunLog) -> Finding | None:
    """`ckpt_best` is the model before training, and the later ones are worse."""
    name, direction = log.best_by
    series, best = log.held_out(name), log.best_point()
    if best is None or best.step != 0:
        return None
    worse = abs(series.last.value - best.value)
    if worse < (GAIN * log.max_reward if direction == "max" else UNCHANGED * abs(best.value)):
        return None  # unchanged, which other checks report
    symptom = f"held-out {name} was never better than before training; ckpt_best is the model before training"
    if name == "loss" and training_loss_fell(log):
        loss = log.train("loss")
        evidence = (*series.first_and_last(), loss.head(0.2).average(), loss.tail(0.2).average())
        return Finding("warning", symptom, evidence, (_OVERFITTING, _OTHER_RECORDS), more_records(log))
    causes = ("the learning rate is too high for a trained model", _OTHER_RECORDS)
    return Finding("warning", symptom, series.first_and_last(), causes, lower_learning_rate(log))


CHECKS = (not_finite, still_warming, gradient_spikes, never_improved)
LOSS = (eval_turned,)  # not for online alignment, whose loss is no measure of learning
SUPERVISED = (never_moved,)
