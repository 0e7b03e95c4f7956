"""The one loop: steps of the engine, and between them what a run owes its owner: figures, checkpoints, a way to stop.

Every training stage is a `Job` (a model, a source of batches, a loss, a way to evaluate and a way to write itself down) handed to `fit`.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tinyllm import dist
from tinyllm.errors import INTEGRITY, INTERRUPTED, TERMINATED, UserError
from tinyllm.mean import Mean
from tinyllm.model.transformer import compile_blocks, set_dropout
from tinyllm.train import checkpoint
from tinyllm.train.config import OptimConfig, TrainConfig
from tinyllm.train.engine import Engine, Loss, choose_precision
from tinyllm.train.progress import Progress, say
from tinyllm.train.run import COMPLETED, FAILED_STATUS, STOPPED, Run

_WORTH_COMPILING = 180.0  # seconds of training left: compiling costs 20 to 40 and gains about a third


class BatchSource(Protocol):
    """step -> micro-batches; `metrics` are figures of the source itself (rewards of a rollout), empty for plain data."""

    metrics: dict[str, Mean]

    def __call__(self, step: int) -> list[Any]: ...


@dataclass
class Job:
    """What makes a stage that stage.

    evaluate: figures on held-out data, pooled over ranks; called before the first step, every `eval_every` and at the end.
    write, restore: the weights into a checkpoint directory and back.
    best: which figure of `evaluate` decides `ckpt_best`, and in which direction.
    boundary: evaluations and checkpoints only come after a multiple of this many steps (a rollout is not cut in two), and
        `eval_every` and `save_every` count such multiples.
    """

    title: str
    model: nn.Module
    loss: Loss
    source: BatchSource
    evaluate: Callable[[Engine], dict[str, float]]
    write: Callable[[Path], None]
    restore: Callable[[Path], None]
    train: TrainConfig
    optim: OptimConfig
    seed: int
    best: tuple[str, Literal["min", "max"]] = ("loss", "min")
    boundary: int = 1


@dataclass
class Fitted:
    """How it went: held-out figures before the first step, at the best checkpoint and at the end."""

    before: dict[str, float]
    best: dict[str, float]
    last: dict[str, float]
    steps: int
    tokens: int
    seconds: float
    checkpoint: Path


class _Stop:
    """Remembers the first SIGINT or SIGTERM, so that the step under way is finished; a second one is not held back."""

    code = 0

    @contextmanager
    def listening(self) -> Iterator[_Stop]:
        def remember(number: int, frame: Any) -> None:
            self.code = INTERRUPTED if number == signal.SIGINT else TERMINATED
            signal.signal(number, old[number])
            say("stopping after this step; once more stops at once")

        old = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


class Fit:
    """A job under way in a run directory."""

    def __init__(self, run: Run, job: Job):
        self.run, self.job = run, job
        device = next(job.model.parameters()).device
        set_dropout(job.model, job.train.dropout)
        precision = choose_precision(job.train.precision, device)
        self.engine = Engine(job.model, job.loss, job.optim, job.train.steps, precision=precision, seed=job.seed)
        self.tokens = 0
        self.history: dict[str, dict[str, float]] = {}  # "before", "best", "last"
        self._saved_at = -1

    def go(self) -> Fitted:
        """Train to the end, from wherever the run directory has got to."""
        begun = time.monotonic()
        try:
            with _Stop().listening() as stop:
                self._resume()
                if "before" not in self.history:
                    self._evaluate()
                with Progress(self.job.title, self.job.train.steps, self.engine.updates) as bar:
                    self._loop(bar, stop)
        except UserError as error:
            if error.code not in (INTERRUPTED, TERMINATED):
                self.run.finish(FAILED_STATUS, error=error.what)
            raise
        steps = checkpoint.steps(self.run.checkpoints)
        seconds = time.monotonic() - begun
        # every rank has trained it, rank 0 has written it
        fitted = Fitted(
            **self.history, steps=self.engine.updates, tokens=self.tokens, seconds=seconds, checkpoint=steps[-1]
        )
        self.run.finish(COMPLETED, before=fitted.before, best=fitted.best, last=fitted.last, tokens=self.tokens)
        return fitted

    def _loop(self, bar: Progress, stop: _Stop) -> None:
        train, engine = self.job.train, self.engine
        clock, timed = time.monotonic(), 0
        while engine.updates < train.steps:
            began = time.monotonic()
            batches = [b.to(engine.device) for b in self.job.source(engine.updates)]
            figures = engine.step(batches, {**self.job.source.metrics, "_stop": Mean(float(stop.code), 1.0)})
            tokens = sum(b.ids.numel() for b in batches) * dist.world_size()
            self.tokens += tokens
            stopping = bool(figures.pop("_stop"))
            step = engine.updates
            figures |= {"tokens": self.tokens, "tokens_per_second": tokens / (time.monotonic() - began)}
            bar.update(step, figures)
            if step % train.log_every == 0 or step in (1, train.steps):
                self.run.log({"step": step, "split": "train", **figures})
            last = step == train.steps
            if last or step % (train.eval_every * self.job.boundary) == 0:
                self._evaluate()
            if (
                last
                or step % (train.save_every * self.job.boundary) == 0
                or (stopping and step % self.job.boundary == 0)
            ):
                self._save()
                if stopping and not last:
                    self._stopped(stop.code)
            timed += 1
            if timed == 10:
                self._maybe_compile((time.monotonic() - clock) / timed * (train.steps - step))

    def _stopped(self, code: int) -> None:
        self.run.finish(STOPPED)
        raise UserError(
            f"stopped after step {self.engine.updates} of {self.job.train.steps}; a checkpoint was saved",
            where=str(self.run.folder),
            fix=f"continue with `tinyllm {' '.join(sys.argv[1:])}`",
            code=code or INTERRUPTED,
        )

    def _maybe_compile(self, seconds_left: float) -> None:
        """Compile where it pays. The measured remaining time decides, on rank 0 for all."""
        mode = self.job.train.compile
        possible = sys.platform != "win32" and any(map(shutil.which, ("g++", "clang++", "c++")))
        wanted = mode == "on" or (mode == "auto" and possible and seconds_left > _WORTH_COMPILING)
        if dist.broadcast_text(str(wanted)) == "True":
            say("compiling the model's blocks (train.compile: off turns this off)")
            compile_blocks(self.job.model)
            self.run.note(compiled_from_step=self.engine.updates + 1)

    def _evaluate(self) -> None:
        """Held-out figures; an improvement becomes `ckpt_best`."""
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            self.job.model.eval()
            figures = self.job.evaluate(self.engine)
        self.history["last"] = figures
        self.history.setdefault("before", figures)
        self.run.log({"step": self.engine.updates, "split": "eval", **figures})
        name, direction = self.job.best
        sign = 1 if direction == "min" else -1
        if "best" not in self.history or sign * figures[name] < sign * self.history["best"][name]:
            self.history["best"] = figures
            self._save(best=True)

    def _save(self, best: bool = False) -> None:
        """One directory a step; the same step is not written twice."""
        if dist.is_main():
            folder = self.run.checkpoints
            path = folder / f"step-{self.engine.updates:08d}"
            if self._saved_at != self.engine.updates:
                path = checkpoint.save(folder, self.engine.updates, self._write)
            checkpoint.link(folder, checkpoint.LATEST, path)
            if best:
                checkpoint.link(folder, checkpoint.BEST, path)
            checkpoint.prune(folder, self.job.train.keep)
        self._saved_at = self.engine.updates
        dist.barrier()

    def _write(self, folder: Path) -> None:
        self.job.write(folder)
        trainer = folder / "trainer"
        trainer.mkdir(exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.engine.state().items()}, trainer / "optimizer.safetensors")
        # random numbers are functions of (seed, step, rank, micro-batch) and data of (seed, step): the step is all there is to save
        state = {"updates": self.engine.updates, "tokens": self.tokens, "seed": self.job.seed, "history": self.history}
        state |= {
            "world_size": dist.world_size(),
            "threads": torch.get_num_threads(),
            "device": str(self.engine.device),
        }
        (trainer / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

    def _resume(self) -> None:
        """Go back to the newest checkpoint that verifies, if the run has any."""
        found = dist.broadcast_text(str(checkpoint.newest(self.run.checkpoints, say) or ""))
        if not found:
            if checkpoint.steps(self.run.checkpoints):
                raise UserError(
                    "every checkpoint of this run is damaged; nothing was changed",
                    where=str(self.run.checkpoints),
                    fix="restore one from a copy, or add --no-resume to move the run aside and start over",
                    code=INTEGRITY,
                )
            return
        folder = Path(found)
        state = json.loads((folder / "trainer" / "state.json").read_text(encoding="utf-8"))
        self.job.restore(folder)
        self.engine.restore(load_file(folder / "trainer" / "optimizer.safetensors"), state["updates"])
        self.tokens, self.history = state["tokens"], state["history"]
        self._saved_at = state["updates"]
        self.run.forget_after(state["updates"])
        if state["updates"] < self.job.train.steps:
            say(f"resuming {self.run.folder} after step {state['updates']} of {self.job.train.steps}")
