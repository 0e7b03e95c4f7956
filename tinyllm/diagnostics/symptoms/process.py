"""Symptoms of the run as a process, for every stage: it failed, stopped, or slowed down, or its log has gaps."""

from __future__ import annotations

import time
from collections.abc import Callable

from tinyllm.diagnostics.run_log import FACTS, METRICS, Evidence, RunLog, Series
from tinyllm.diagnostics.symptoms.advice import full_precision, longer_rows, lower_learning_rate
from tinyllm.diagnostics.symptoms.check import Need, check
from tinyllm.diagnostics.symptoms.finding import Causes, Finding
from tinyllm.errors import one_line
from tinyllm.io.shell import join
from tinyllm.train.fast_dev_runs import is_fast_dev_run
from tinyllm.train.run import COMPLETED, FAILED_STATUS, RUNNING, STOPPED

SILENT_SECONDS = 120.0  # more than the 20 to 40 s of compiling, the longest time a healthy run writes nothing
SILENT_ROWS = 10.0  # and this many times the usual time per line: a slow run is not a dead one
SLOWED = 0.4  # of the early speed; another process on the same cores costs about half, thermal throttling a quarter
MIN_ROWS = 12  # fewer show no trend in speed

_Advice = tuple[Causes, Callable[[RunLog], str]]
_ERRORS: dict[str, _Advice] = {  # part of the error message -> likely causes, and what to try
    "gradient norm": (
        ("the learning rate is too high", "the warm-up is too short", "a record contains only noise"),
        lambda log: lower_learning_rate(log, 10),
    ),
    "held-out figure reward": (
        ("a reward is not finite for some held-out prompts, for example 0/0 of a column",),
        lambda log: "call the functions under `rewards` with the rows of data.val",
    ),
    "held-out figure": (
        ("the learning rate is too high", "overflow in bf16", "held-out records that leave nothing to score"),
        lambda log: lower_learning_rate(log, 10) if log.step else "look at data.val with `tinyllm data inspect`",
    ),
    "token is masked": (
        ("answers start after data.max_length and are cut off", "the data contain no assistant turns"),
        longer_rows,
    ),
    "sampler and training disagree": (
        ("bf16 rounds differently with and without the KV cache", "the sampler uses another mask or other positions"),
        lambda log: full_precision(),
    ),
    "could not be written": (("the disk or its quota is full",), lambda log: "free disk space, then resume"),
}
_OTHER_ERRORS: _Advice = (
    ("see the error message",),
    lambda log: f"fix what the error message names, then resume: {_command(log)}",
)


@check()
def failed(log: RunLog) -> Finding | None:
    if log.facts.get("status") != FAILED_STATUS:
        return None
    error = str(log.facts.get("error", "no error message was recorded"))
    causes, advice = next((a for part, a in _ERRORS.items() if part in error), _OTHER_ERRORS)
    evidence = [Evidence("error", one_line(error), file=FACTS)]
    evidence += [series.evidence(series.last) for name in ("loss", "grad_norm") if len(series := log.train(name))]
    return Finding("broken", "the run failed", tuple(evidence), causes, advice(log))


@check()
def unfinished(log: RunLog) -> Finding | None:
    """The run was stopped or killed, or is still running."""
    status = log.facts.get("status")
    reached = Evidence("last step logged", f"{log.step:,} of {log.steps:,}")
    if status == STOPPED:
        stopped = (Evidence("status", STOPPED, file=FACTS), reached)
        return Finding(
            "note", "the run was stopped before its last step", stopped, ("Ctrl-C or SIGTERM",), _resume(log)
        )
    if status != RUNNING:
        return None
    if log.seconds_since_write <= max(SILENT_SECONDS, SILENT_ROWS * _seconds_per_row(log)):
        return Finding(
            "note",
            "the run is still running; these findings are about its metrics so far",
            (Evidence("status", RUNNING, file=FACTS), reached),
            ("none: the run has not ended",),
            "run `tinyllm explain` again when it has ended",
        )
    silence = Evidence("seconds since the last write", round(log.seconds_since_write))
    evidence = (Evidence("status", RUNNING, file=FACTS), silence, reached)
    causes = (
        "it was killed, for example when memory ran out",
        "it crashed: see the end of logs/run.log",
        "it hangs",
    )
    symptom = "the run has not ended, but has stopped writing"
    return Finding("warning", symptom, evidence, causes, _resume(log))


def _seconds_per_row(log: RunLog) -> float:
    """Return the average time between two lines of the log."""
    try:
        started = time.mktime(time.strptime(str(log.facts.get("started", ""))[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return 0.0
    return max(0.0, time.time() - log.seconds_since_write - started) / max(1, len(log.rows))


def _resume(log: RunLog) -> str:
    if is_fast_dev_run(log.folder, log.facts):
        return f"a fast-dev-run starts from the beginning: {_command(log)}"
    saved = sorted(p.name for p in (log.folder / "checkpoints").glob("step-*"))
    where = (
        f"resume after step {int(saved[-1][5:])}"
        if saved
        else "start from the beginning, as there is no checkpoint yet"
    )
    return f"{where}, with the same command: {_command(log)}"


def _command(log: RunLog) -> str:
    """Return the command of the run. The command recorded by the ranks lacks --nproc."""
    words = [str(word) for word in log.facts.get("command", ["tinyllm"])]
    ranks = int(log.facts.get("world_size", 1))
    return join(words + (["--nproc", str(ranks)] if ranks > 1 and "--nproc" not in words else []))


@check(Need(lambda log: log.lines("train"), 1, "lines"))
def rows_missing(log: RunLog) -> Finding | None:
    """Steps are missing from the log, or were logged twice."""
    every = max(1, int(log.setting("train.log_every", 1)))
    logged = [row["step"] for row in log.rows if row["split"] == "train"]
    last = log.steps if logged and log.facts.get("status") == COMPLETED else max(logged, default=0)
    expected = {1, *range(every, last + 1, every)} if last else set()
    if any(isinstance(c, dict) and c.get("key") == "train.log_every" for c in log.facts.get("changes") or ()):
        expected = set()  # no single interval
    missing, duplicates = sorted(expected - set(logged)), len(logged) - len(set(logged))
    if not missing and not duplicates:
        return None
    evidence = [Evidence("train lines missing", len(missing))]
    evidence += [Evidence("first step missing", missing[0], missing[0])] if missing else []
    evidence += [Evidence("duplicate train lines", duplicates)] if duplicates else []
    causes: Causes = (
        ("two processes wrote to the same run",)
        if duplicates
        else ("the file was edited, or copied while it was written",)
    )
    causes += ("the disk was full for some time",)
    return Finding(
        "warning",
        "the log has missing or duplicate steps, so trends in it are less reliable",
        tuple(evidence),
        causes,
        "repeat the run under another --name",
    )


@check()
def nothing_logged(log: RunLog) -> Finding | None:
    if log.rows or log.facts.get("status") == RUNNING or _failed_before_the_first_step(log):
        return None
    evidence = (Evidence("lines", 0), Evidence("status", str(log.facts.get("status")), file=FACTS))
    causes = ("the run ended before the first evaluation", f"{METRICS} was deleted")
    return Finding("broken", "nothing was logged", evidence, causes, f"run it again: {_command(log)}")


def _failed_before_the_first_step(log: RunLog) -> bool:
    """Return whether the run failed when there was nothing to log yet, which `failed` reports."""
    sessions = log.facts.get("sessions")
    entries = [entry for entry in (sessions if isinstance(sessions, list) else []) if isinstance(entry, dict)]
    return log.facts.get("status") == FAILED_STATUS and not any(entry.get("to_step") for entry in entries)


@check()
def damaged_lines(log: RunLog) -> Finding | None:
    if not log.damaged_lines:
        return None
    return Finding(
        "note",
        "some lines of the log cannot be read and were skipped",
        (Evidence("damaged lines", log.damaged_lines),),
        ("the run was killed while it wrote its last line", "the file was edited"),
        "nothing, if it is the last line of a killed run; otherwise find incomplete lines with `grep -vn '}$'`",
    )


def _speed(log: RunLog) -> Series:
    """Return the tokens per second of steps of one kind: steps that sample a rollout are slower, and the first step warms up."""
    series = log.train if log.steps_per_rollout == 1 else log.after_first_minibatch
    return series("tokens_per_second").where(lambda step: step > 1)


@check(Need(_speed, MIN_ROWS, "comparable steps"))
def slowed(log: RunLog) -> Finding | None:
    """Tokens per second fell."""
    speed = _speed(log)
    early, late = speed.head(0.5), speed.tail(0.25)
    if late.median >= SLOWED * early.median:
        return None
    evidence = (
        Evidence("train tokens_per_second, median of the first half", early.median, early.last.step),
        Evidence("train tokens_per_second, median of the last quarter", late.median, late.last.step),
    )
    causes = (
        "another process used the cores or the GPU",
        "the machine overheated, or swapped memory",
        "ranks times threads exceed the number of cores",
    )
    advice = "watch the load of the machine (`top`) during a run"
    return Finding("note", "training became much slower during the run", evidence, causes, advice)


CHECKS = (failed, nothing_logged, unfinished, rows_missing, damaged_lines, slowed)
