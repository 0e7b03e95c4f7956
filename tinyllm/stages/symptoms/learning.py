"""Symptoms of learning itself, whatever is learned: a loss that is no number, does not move, or turns. For every stage."""

from __future__ import annotations

import math

from tinyllm.stages.symptoms.log import Causes, Fact, Finding, Log, Series, faster, is_number, more_data, put, slower

STILL = 0.005  # of the first loss; the smallest rehearsal moves it by a twentieth, and rounding by a millionth
NO_GRADIENT = 1e-6  # a gradient that trains is longer than 0.01 in every stage here; rounding leaves about 1e-7
BATCHES_DIFFER = 0.1  # a tenth: so far apart are the means of a few batches under one and the same model
TURNED = 0.03  # of the best held-out loss; it is taken on the same records, so it wobbles by a percent or so
SPIKE = 10.0  # times the median; batches differ by a factor of two to four
VANISHED = 0.05  # of clip_norm; a loss near its end has hardly a gradient, and then every step is many times the median
OFTEN = 0.02  # of the steps; a rare odd batch is clipped and does no harm
ENOUGH_ROWS = 10  # fewer have no median worth the name
GAIN = 0.02  # of a perfect reward; less is within the noise of a hundred answers


def not_finite(log: Log) -> Finding | None:
    """Numbers that JSON does not know are written as null; infinity as Infinity."""
    bad = [row for row in log.rows if "loss" in row and not is_number(row["loss"])]
    if not bad:
        return None
    first = bad[0]
    evidence = [Fact(f"{first['split']} loss", _name(first["loss"]), first["step"])]
    before = log.train("grad_norm").where(lambda step: step <= first["step"])
    evidence += [before.fact(before.last)] if len(before) else []
    causes = ("the learning rate is too high", "bf16 overflows", "a batch in which everything is masked")
    return Finding("broken", "the loss is not a number", tuple(evidence), causes, slower(log))


def _name(value: object) -> str:
    return "infinite" if isinstance(value, float) and math.isinf(value) else "not a number"


def still_warming(log: Log) -> Finding | None:
    warmup, rates = int(log.setting("optim.warmup_steps", 0)), log.train("lr")
    if not log.steps or warmup < log.steps or not len(rates):
        return None
    evidence = (log.config_fact("optim.warmup_steps"), log.config_fact("train.steps"), rates.fact(rates.last))
    return Finding(
        "warning",
        "the learning rate is still warming up when the run ends",
        evidence,
        ("optim.warmup_steps is meant for a longer run",),
        f"a tenth of the run: {put('optim.warmup_steps', max(1, log.steps // 10))}",
    )


def is_still(series: Series) -> bool:
    """Whether a loss is where it began."""
    return abs(series.last.value - series.first.value) < STILL * abs(series.first.value)


def training_fell(log: Log) -> bool:
    """Whether the training loss is clearly below where it began."""
    loss = log.train("loss")
    return bool(len(loss)) and loss.tail(0.2).mean < loss.head(0.2).mean - BATCHES_DIFFER * abs(loss.head(0.2).mean)


def no_gradient(log: Log) -> bool:
    norms = log.train("grad_norm")
    return bool(len(norms)) and norms.highest.value < NO_GRADIENT


def never_moved(log: Log) -> Finding | None:
    """Not for alignment: there a loss may stay while the policy moves, and has checks of its own."""
    held, loss = log.held_out("loss"), log.train("loss")
    if log.family in ("online", "offline") or len(held) < 2 or not is_still(held):
        return None
    if training_fell(log):
        return Finding(
            "warning",
            "training loss falls and held-out loss stays where it began",
            (*held.ends(), loss.head(0.2).averaged(), loss.tail(0.2).averaged()),
            ("held-out records of another kind than the training records", "the records are being learned by heart"),
            more_data(log),
        )
    if no_gradient(log):
        causes: Causes = ("no gradient reaches the weights: all that is trained is frozen or masked",)
        length = 2 * int(log.setting("data.max_length", 256))
        advice = f"longer rows, and look in logs/run.log for records that were cut: {put('data.max_length', length)}"
    else:
        causes = (
            "the learning rate is too low",
            "warm-up takes most of the run",
            "the parent knows these data already",
        )
        advice = faster(log, 10)
    evidence = (*held.ends(), *rate_and_gradient(log))
    return Finding("broken", "the loss never left its starting value", evidence, causes, advice)


def rate_and_gradient(log: Log) -> list[Fact]:
    found = []
    if len(rates := log.train("lr")):
        found.append(rates.fact(rates.highest))
    if len(norms := log.train("grad_norm")):
        found.append(norms.fact(norms.highest))
    return found


def eval_turned(log: Log) -> Finding | None:
    """Held-out loss up again after its best: overfitting if the training loss goes on falling, else divergence."""
    held = log.held_out("loss")
    if log.family == "online" or len(held) < 3:
        return None
    best, last = held.lowest, held.last
    if best.step == held.first.step or last.value - best.value < max(TURNED * abs(best.value), 0.01):
        return None
    before = log.train("loss").where(lambda step: step <= best.step)
    after = log.train("loss").where(lambda step: step > best.step)
    evidence = [held.fact(best), held.fact(last)]
    if len(before) and len(after):
        before = before.tail(min(1.0, len(after) / len(before)))
        evidence += [before.averaged(), after.averaged()]
    if len(before) and len(after) and after.mean > before.mean:
        causes = ("the learning rate is too high: training got worse as well", "a change in the data on the way")
        return Finding("warning", f"the loss rises again after step {best.step}", tuple(evidence), causes, slower(log))
    causes = (
        "the records are being learned by heart: too many passes over too few of them",
        "held-out records of another kind than the training records",
    )
    symptom = (
        f"held-out loss rises after step {best.step} while training loss falls; ckpt_best is from step {best.step}"
    )
    return Finding("warning", symptom, tuple(evidence), causes, more_data(log))


def gradient_spikes(log: Log) -> Finding | None:
    clip = float(log.setting("optim.clip_norm", 1.0))
    norms = log.train("grad_norm").where(lambda step: step > int(log.setting("optim.warmup_steps", 0)))
    if len(norms) < ENOUGH_ROWS:
        return None
    middle = norms.median
    if middle < VANISHED * clip:
        return None  # there is next to no gradient for a step to differ from
    spikes = [p for p in norms if p.value > max(SPIKE * middle, clip)]
    if not spikes:
        return None
    worst = max(spikes, key=lambda p: p.value)
    often = len(spikes) > max(1, OFTEN * len(norms))
    evidence = (
        norms.fact(worst),
        Fact("train grad_norm, median", middle),
        Fact("spikes in the lines logged", f"{len(spikes)} of {len(norms)}"),
    )
    causes = ("single odd records: very long, garbled, in another language", "the learning rate is too high")
    advice = f"clip at the usual length: {put('optim.clip_norm', middle)}"
    return Finding("warning" if often else "note", "the gradient has spikes", evidence, causes, advice)


def never_improved(log: Log) -> Finding | None:
    """`ckpt_best` is the model as it was before training, and what came after is worse."""
    name, direction = log.best
    series, best = log.held_out(name), log.best_point()
    if len(series) < 2 or best is None or best.step != 0:
        return None
    worse = abs(series.last.value - best.value)
    if worse < (GAIN * log.scale if direction == "max" else STILL * abs(best.value)):
        return None  # it did not get worse either: that is a symptom of its own
    symptom = f"held-out {name} never improved on the start; ckpt_best is the model before training"
    causes: Causes = ("the held-out records are of another kind than the training records",)
    if name == "loss" and training_fell(log):
        causes = ("the records are being learned by heart: too many passes over too few of them", *causes)
        loss = log.train("loss")
        evidence = (*series.ends(), loss.head(0.2).averaged(), loss.tail(0.2).averaged())
        return Finding("warning", symptom, evidence, causes, more_data(log))
    causes = ("the learning rate is too high for a model that is trained already", *causes)
    return Finding("warning", symptom, series.ends(), causes, slower(log))


CHECKS = (not_finite, still_warming, never_moved, eval_turned, gradient_spikes, never_improved)
