"""Symptoms of the run as a process: it failed, stopped, slowed down, or its log has holes. For every stage."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable

from tinyllm.stages.symptoms.log import FACTS, METRICS, Causes, Fact, Finding, Log, put, slower
from tinyllm.train.run import COMPLETED, FAILED_STATUS, FAST_DEV_RUN, RUNNING, STOPPED

SILENT_SECONDS = 120.0  # longer than compiling takes (20 to 40 s), which is the longest a run is silent on purpose
SILENT_ROWS = 10.0  # and this many times as long as a line of the log has taken so far: a slow run is not a dead one
SLOWED = 0.4  # of the early speed; a busy neighbour on the same cores costs about half, thermal throttling a quarter
ENOUGH_ROWS = 12  # fewer say nothing about a trend in speed

_Advice = tuple[Causes, Callable[[Log], str]]
_ERRORS: dict[str, _Advice] = {  # part of the message -> likeliest causes, and what to try
    "gradient norm": (
        ("the learning rate is too high", "too short a warm-up", "a record that is nothing but noise"),
        lambda log: slower(log, 10),
    ),
    "token is masked": (
        ("the answers begin beyond data.max_length and are cut away", "the data hold no assistant's turns"),
        lambda log: f"longer rows: {put('data.max_length', 2 * int(log.setting('data.max_length', 256)))}",
    ),
    "sampler and training disagree": (
        ("bf16 rounds differently with and without a cache", "a sampler that masks or positions otherwise"),
        lambda log: f"full precision: {put('train.precision', 'fp32')}",
    ),
    "could not be written": (("the disk is full, or its quota is",), lambda log: "free disk space, and resume"),
}
_OTHERWISE: _Advice = (
    ("what the message says",),
    lambda log: f"mend what the message names, then resume: {_command(log)}",
)


def failed(log: Log) -> Finding | None:
    if log.facts.get("status") != FAILED_STATUS:
        return None
    error = str(log.facts.get("error", "no message was kept"))
    causes, advice = next((a for part, a in _ERRORS.items() if part in error), _OTHERWISE)
    evidence = [Fact("error", error, file=FACTS)]
    evidence += [series.fact(series.last) for name in ("loss", "grad_norm") if len(series := log.train(name))]
    return Finding("broken", "the run failed", tuple(evidence), causes, advice(log))


def unfinished(log: Log) -> Finding | None:
    """Stopped on purpose, killed, or still under way."""
    status = log.facts.get("status")
    reached = Fact("last step logged", f"{log.step:,} of {log.steps:,}")
    if status == STOPPED:
        stopped = (Fact("status", STOPPED, file=FACTS), reached)
        return Finding("note", "the run was stopped before its end", stopped, ("Ctrl-C or SIGTERM",), _resume(log))
    if status != RUNNING:
        return None
    if log.silence <= max(SILENT_SECONDS, SILENT_ROWS * _seconds_a_row(log)):
        return Finding(
            "note",
            "the run is still going; all of this is about its figures so far",
            (Fact("status", RUNNING, file=FACTS), reached),
            ("nothing: it has not ended",),
            "ask again when it has ended",
        )
    evidence = (Fact("status", RUNNING, file=FACTS), Fact("seconds without a new line", round(log.silence)), reached)
    causes = (
        "it was killed, for example for lack of memory",
        "it crashed: logs/run.log has its last words",
        "it hangs",
    )
    return Finding(
        "warning", "the run has neither ended nor written anything for a while", evidence, causes, _resume(log)
    )


def _seconds_a_row(log: Log) -> float:
    """How long a line of the log has taken on average."""
    try:
        started = time.mktime(time.strptime(str(log.facts.get("started", ""))[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return 0.0
    return max(0.0, time.time() - log.silence - started) / max(1, len(log.rows))


def _resume(log: Log) -> str:
    if FAST_DEV_RUN in log.folder.name:
        return f"a rehearsal starts over: {_command(log)}"
    saved = sorted(p.name for p in (log.folder / "checkpoints").glob("step-*"))
    place = f"after step {int(saved[-1][5:])}" if saved else "from the start, since there is no checkpoint yet"
    return f"the same command goes on {place}: {_command(log)}"


def _command(log: Log) -> str:
    """What was typed; the ranks' own command lacks --nproc."""
    words = [str(word) for word in log.facts.get("command", ["tinyllm"])]
    ranks = int(log.facts.get("world_size", 1))
    return shlex.join(words + (["--nproc", str(ranks)] if ranks > 1 and "--nproc" not in words else []))


def rows_missing(log: Log) -> Finding | None:
    """Steps that should have left a line and did not, and steps that left two."""
    every = max(1, int(log.setting("train.log_every", 1)))
    have = [row["step"] for row in log.rows if row["split"] == "train"]
    last = log.steps if have and log.facts.get("status") == COMPLETED else max(have, default=0)
    wanted = {1, *range(every, last + 1, every)} if last else set()
    missing, twice = sorted(wanted - set(have)), len(have) - len(set(have))
    if not missing and not twice:
        return None
    evidence = [Fact("train lines missing", len(missing))]
    evidence += [Fact("first step without one", missing[0], missing[0])] if missing else []
    evidence += [Fact("train lines of a step that had one", twice)] if twice else []
    causes: Causes = (
        ("two processes wrote the same run",) if twice else ("the file was edited or copied while it was written",)
    )
    causes += ("the disk was full for a while",)
    return Finding(
        "warning",
        "the log has holes or doubles, so trends in it mean less",
        tuple(evidence),
        causes,
        "start over under another --name",
    )


def nothing_logged(log: Log) -> Finding | None:
    if log.rows or log.facts.get("status") == RUNNING:
        return None
    evidence = (Fact("lines", 0), Fact("status", str(log.facts.get("status")), file=FACTS))
    causes = ("it ended before the first held-out evaluation", f"{METRICS} was removed")
    return Finding("broken", "nothing was logged", evidence, causes, f"run it again: {_command(log)}")


def damaged_lines(log: Log) -> Finding | None:
    if not log.damaged:
        return None
    return Finding(
        "note",
        "part of the log cannot be read and was passed over",
        (Fact("damaged lines", log.damaged),),
        ("the writer was killed in the middle of its last line", "the file was edited"),
        "nothing, if it is the last line of a run that was killed; else look at the lines named by `grep -vn '}$'`",
    )


def slowed(log: Log) -> Finding | None:
    """Tokens a second, at steps of the same kind: those that write a rollout are slower by nature, and the first warms up."""
    speed = (log.train if log.period == 1 else log.after_first_minibatch)("tokens_per_second").where(lambda s: s > 1)
    if len(speed) < ENOUGH_ROWS:
        return None
    early, late = speed.head(0.5), speed.tail(0.25)
    if late.median >= SLOWED * early.median:
        return None
    evidence = (
        Fact("train tokens_per_second, median of the first half", early.median, early.last.step),
        Fact("train tokens_per_second, median of the last quarter", late.median, late.last.step),
    )
    causes = (
        "another process took the cores or the GPU",
        "the machine ran hot, or out of memory into swap",
        "ranks times threads exceed the cores",
    )
    return Finding(
        "note",
        "training became much slower on the way",
        evidence,
        causes,
        "look at the machine's load (`top`) while it runs",
    )


CHECKS = (failed, nothing_logged, unfinished, rows_missing, damaged_lines, slowed)
