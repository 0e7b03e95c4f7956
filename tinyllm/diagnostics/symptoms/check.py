"""A symptom check: a function `(RunLog) -> Finding | None`, the series it cannot do without, and the runs to which it does not apply.

A check whose series are missing or too short has examined nothing: `Check.examine` returns the missing series instead of a result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tinyllm.diagnostics.run_log import RunLog, Series
from tinyllm.diagnostics.symptoms.finding import Finding

Excluded = Callable[[RunLog], str]


@dataclass(frozen=True)
class Need:
    """A series that a check reads, and its fewest points. `unit` names the points, in the plural."""

    series: Callable[[RunLog], Series]
    points: int
    unit: str


@dataclass(frozen=True)
class NotExamined:
    """A check that saw nothing: `figure` is missing or too short, or, with an empty `figure`, the check does not apply to the run."""

    check: str
    why: str
    figure: str = ""
    points: int = 0
    needed: int = 0


@dataclass(frozen=True)
class Check:
    """A check for one symptom.

    needs: all of them must be in the log. Figures that only add evidence are not among them.
    excluded: returns why the check does not apply to a run; "" if it does.
    """

    name: str
    find: Callable[[RunLog], Finding | None]
    needs: tuple[Need, ...] = ()
    excluded: Excluded = lambda log: ""

    def __call__(self, log: RunLog) -> Finding | None:
        """Return the finding; None if there is none, or if nothing could be examined."""
        found = self.examine(log)
        return found if isinstance(found, Finding) else None

    def examine(self, log: RunLog) -> Finding | NotExamined | None:
        """Return the finding, None if the symptom is absent, or what the check lacks."""
        if reason := self.excluded(log):
            return NotExamined(self.name, reason)
        for need in self.needs:
            series = need.series(log)
            if len(series) < need.points:
                figure = f"{series.split} {series.name}"
                return NotExamined(self.name, _why(log, series, need), figure, len(series), need.points)
        return self.find(log)


def _why(log: RunLog, series: Series, need: Need) -> str:
    rows = [row for row in log.rows if row["split"] == series.split]
    if not rows:
        return f"no {series.split} lines"
    if not len(series) and not any(series.name in row for row in rows):
        return f"not logged by {log.stage}"
    return f"{len(series)} of at least {need.points} {need.unit}"


def check(*needs: Need, excluded: Excluded = lambda log: "") -> Callable[[Callable[[RunLog], Finding | None]], Check]:
    """Return a decorator that makes a `Check` of a function, called like the function."""
    return lambda find: Check(find.__name__, find, needs, excluded)


def evaluations(name: str, points: int = 1) -> Need:
    """Return the need of a held-out metric."""
    return Need(lambda log: log.held_out(name), points, "evaluations")


def steps(name: str, points: int = 1) -> Need:
    """Return the need of a metric of the training steps."""
    return Need(lambda log: log.train(name), points, "logged steps")


def rollouts(name: str, points: int = 1) -> Need:
    """Return the need of a metric of the rollouts."""
    return Need(lambda log: log.rollouts(name), points, "rollouts")


def later_minibatches(name: str, points: int) -> Need:
    """Return the need of a metric of the steps after the first of each rollout."""
    return Need(lambda log: log.after_first_minibatch(name), points, "steps after the first of a rollout")
