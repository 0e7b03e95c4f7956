"""Test figures of a run: before the first step, of the best checkpoint and of the last one. Nothing is chosen by them.

They are the rows of metrics.jsonl with the split "test", and `test` in run.json. Those before the first step are part of the state of every
checkpoint, so a resumed run has them as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from tinyllm import distributed as dist
from tinyllm.console import say
from tinyllm.errors import UserError
from tinyllm.mean import Mean, values
from tinyllm.train import checkpoint
from tinyllm.train.checkpointing import read_state
from tinyllm.train.engine import Engine
from tinyllm.train.nonfinite import Told

if TYPE_CHECKING:
    from tinyllm.train.job import Job
    from tinyllm.train.run import Run

Figures = dict[str, Any]
"""step; figures by name; counts by name: the number of tokens, pairs or answers that a figure is the mean of"""


class Examination:
    """The test figures of one run. Every rank has one and makes the same calls; without `job.test` nothing happens.

    A run that began without a test split has none either: the records that are test now were among those that selected its checkpoint.
    One whose test records have changed since has none from before the first step: a difference would be that of the records.
    """

    def __init__(self, run: Run, job: Job, engine: Engine, told: Told):
        self.run, self.job, self.engine, self.told = run, job, engine, told
        self.before: Figures | None = None
        self._began: dict[str, Any] = {}
        self._resumed_after: int | None = None

    def begin(self) -> None:
        """Examine the model before the first step."""
        if self.job.test is not None:
            self.before = self._measure(self.engine.updates)
            self._began = {"test": self.before, "test_sha256": self.run.test_sha256}
            self._log(self.before)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Take over the figures before the first step from the state of a checkpoint, if they are of the same records."""
        self._resumed_after = self.engine.updates
        if not _is_figures(state.get("test")):
            if self.job.test is not None:
                say(
                    "note: no test figures: this run began without a test split, and selected by records that are now test"
                )
            return
        self._began = {key: state[key] for key in ("test", "test_sha256") if key in state}
        if state.get("test_sha256", self.run.test_sha256) == self.run.test_sha256:
            self.before = state["test"]
        elif self.job.test is not None:
            say("note: no test figures from before the first step: the test records have changed since this run began")

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds for `resume`."""
        return self._began

    def end(self) -> dict[str, Any] | None:
        """Examine the last and the best checkpoint. Return the entry of run.json; None without test records.

        The weights are those of the last checkpoint, as before.
        """
        if self.job.test is None:
            return None
        found = {"records": self.job.test_records, "before": self.before}
        if not self._began:  # see the class
            return found | {"best": None, "last": None}
        step, best = self.engine.updates, self._best_step()
        if known := self._known(best, step):
            return found | known
        self.run.drop_test_figures()
        last = self._measure(step)
        if best == step:
            chosen: Figures | None = last
        elif best == 0 and self.before:
            chosen = self.before
        else:
            chosen = self._measure_best(best) if best >= 0 else None
        for figures in (chosen, last) if chosen not in (self.before, last) else (last,):
            self._log(figures)
        return found | {"best": chosen, "last": last}

    def _best_step(self) -> int:
        """Return the step of the best checkpoint; -1 where it cannot be read."""
        try:
            found = read_state(self.run.checkpoints / checkpoint.BEST)["updates"] if dist.is_main() else -1
        except UserError as error:
            say(f"warning: the best checkpoint cannot be examined: {error.what}")
            found = -1
        return int(dist.broadcast_text(str(found)))

    def _known(self, best: int, last: int) -> dict[str, Any]:
        """Return the figures that an earlier session recorded of the same two checkpoints; nothing if this one has trained."""
        recorded: dict[str, Any] = self.run.tested if isinstance(self.run.tested, dict) else {}
        pair = {when: recorded[when] for when in ("best", "last") if _is_figures(recorded.get(when))}
        steps = [figures["step"] for figures in pair.values()]
        same = dist.broadcast_text(str(steps == [best, last] and last == self._resumed_after)) == "True"
        return pair if same else {}

    def _measure_best(self, step: int) -> Figures | None:
        """Examine the best checkpoint, and restore the weights of the last one."""
        folder = self.run.checkpoints
        try:
            self.job.files.restore(folder / checkpoint.BEST)
            return self._measure(step)
        except UserError as error:
            say(f"warning: the best checkpoint cannot be examined: {error.what}")
            return None
        finally:
            self.job.files.restore(checkpoint.steps(folder)[-1])

    def _measure(self, step: int) -> Figures:
        assert self.job.test is not None
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            self.job.model.eval()
            found = self.job.test(self.engine)
        self.told.warn(found, "test", step)
        counts = {name: float(mean.count) for name, mean in found.items() if isinstance(mean, Mean)}
        return {"step": step, "figures": values(found), "counts": counts}

    def _log(self, found: Figures | None) -> None:
        if found is not None:
            self.run.log({"step": found["step"], "split": "test", **found["figures"]})


def _is_figures(found: Any) -> bool:
    return isinstance(found, dict) and type(found.get("step")) is int and isinstance(found.get("figures"), dict)
