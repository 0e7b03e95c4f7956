"""The training loop: optimizer steps, and between them evaluation, checkpoints, log lines and stopping.

Every training stage is a `Job` (model, source of batches, loss, evaluation, files) that a `Trainer` runs in a run directory.
"""

from __future__ import annotations

import shlex
import shutil
import statistics
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinyllm import distributed as dist
from tinyllm.console import ProgressBar, say
from tinyllm.distributed import heartbeat
from tinyllm.errors import INTERRUPTED, TERMINATED, UserError
from tinyllm.mean import Mean
from tinyllm.model.transformer import ActorCritic, compile_blocks, set_dropout
from tinyllm.train import checkpoint
from tinyllm.train.checkpointing import CheckpointManager
from tinyllm.train.engine import Engine, choose_precision
from tinyllm.train.job import Job
from tinyllm.train.memory import explain_out_of_memory
from tinyllm.train.run import COMPLETED, FAILED_STATUS, STOPPED, Run
from tinyllm.train.signals import StopSignal

_WORTH_COMPILING = 180.0  # seconds of training left: compiling costs 20 to 40 and gains about a third
_MEASURED_STEPS = 10  # until the time per step is known
_NORMS_KEPT, _SPIKE = 50, 10.0  # gradient norms in the median; a norm this many times the median is a spike
_NOT_SHOWN = ("lr", "grad_norm", "tokens", "tokens_per_second", "loss")  # among an algorithm's own figures


@dataclass
class TrainResult:
    """Held-out figures before the first step, at the best checkpoint and at the end; totals over the whole run."""

    before: dict[str, float]
    best: dict[str, float]
    last: dict[str, float]
    steps: int
    tokens: int
    seconds: float
    checkpoint: Path


class Trainer:
    """Trains a job in a run directory, from its newest checkpoint if there is one."""

    def __init__(self, run: Run, job: Job):
        self.run, self.job = run, job
        device = next(job.model.parameters()).device
        set_dropout(job.model, job.train.dropout)
        precision = choose_precision(job.train.precision, device)
        self.engine = Engine(job.model, job.loss, job.optim, job.train.steps, precision=precision, seed=job.seed)
        self.manager = CheckpointManager(run, job, self.engine)
        self.stop = StopSignal()
        self.tokens = 0
        self.history: dict[str, dict[str, float]] = {}  # "before", "best", "last"
        self.compiled: bool | None = None  # None: not decided yet
        self.largest = (0, 0)  # rows and tokens per row of the largest micro-batch
        self._norms: deque[float] = deque(maxlen=_NORMS_KEPT)

    def train(self) -> TrainResult:
        """Train to the last step.

        Raises: UserError where the disk or the memory does not suffice (RESOURCES), a loss is not finite (FAILED), or the run was stopped
        by a signal (INTERRUPTED, TERMINATED). The run directory records how the run ended.
        """
        started = time.monotonic()
        try:
            with self.stop.listening(), explain_out_of_memory(self._memory_needs):
                self._start()
                self._loop()
            return self._finish(time.monotonic() - started)
        except Exception as error:
            stopped = isinstance(error, UserError) and error.code in (INTERRUPTED, TERMINATED)
            with suppress(UserError):  # a full disk must not hide the first error
                self.run.finish(STOPPED if stopped else FAILED_STATUS, **({} if stopped else {"error": str(error)}))
            raise
        finally:
            self.run.close()

    def _start(self) -> None:
        """Resume, and check disk and memory before anything is computed."""
        state = self.manager.resume()
        if state is not None:
            self.tokens, self.history, self.compiled = state["tokens"], state["history"], state.get("compiled")
            if self.compiled:
                self._compile()
        if self.engine.updates < self.job.train.steps:
            self.manager.check_disk_space()
            batch = self.job.source.largest().to(self.engine.device)
            rows, length = batch.ids.shape
            self.largest = rows, length
            self.engine.probe_memory(batch)
        if state is None:
            self._evaluate()

    def _loop(self) -> None:
        train, engine, boundary = self.job.train, self.engine, self.job.boundary
        heartbeat.beat(engine.updates)
        with ProgressBar(self.job.title, train.steps, start=engine.updates, line_at_once=True) as bar:
            while engine.updates < train.steps:
                figures = self._step()
                step = engine.updates
                # ranks agree on stopping in the exchange of the step; a single process need not wait for the next one
                stopping = bool(figures.pop("_stop")) or (dist.world_size() == 1 and bool(self.stop.code))
                heartbeat.beat(step)
                _show(bar, step, figures)
                if step % train.log_every == 0 or step in (1, train.steps):
                    self.run.log({"step": step, "split": "train", **figures})
                last = step == train.steps
                if last or step % (train.eval_every * boundary) == 0:
                    self._evaluate()
                if last or stopping or step % (train.save_every * boundary) == 0:
                    self.manager.save(self._state())
                    if stopping and not last:
                        raise self._stopped()
                if self.compiled is None and step >= _MEASURED_STEPS:
                    self._decide_compile(bar.elapsed / (step - bar.start) * (train.steps - step))

    def _step(self) -> dict[str, float]:
        """Do one optimizer step. Returns its figures, pooled over ranks."""
        source, step, started = self.job.source, self.engine.updates, time.monotonic()
        batches = [batch.to(self.engine.device) for batch in source(step)]
        try:
            figures = self.engine.step(batches, {**source.metrics, "_stop": Mean(float(self.stop.code), 1.0)})
        except UserError as error:
            error.where = error.where or source.describe(step)
            raise
        self._warn_about_spike(figures["grad_norm"])
        tokens = sum(batch.ids.numel() for batch in batches) * dist.world_size()
        self.tokens += tokens
        return figures | {"tokens": self.tokens, "tokens_per_second": tokens / (time.monotonic() - started)}

    def _evaluate(self) -> None:
        """Compute held-out figures; an improvement is saved as `ckpt_best`."""
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
            self.manager.save(self._state(), best=True)

    def _finish(self, seconds: float) -> TrainResult:
        newest = checkpoint.steps(self.run.checkpoints)[-1]
        result = TrainResult(
            **self.history, steps=self.engine.updates, tokens=self.tokens, seconds=seconds, checkpoint=newest
        )
        self.run.finish(COMPLETED, before=result.before, best=result.best, last=result.last, tokens=self.tokens)
        return result

    def _state(self) -> dict[str, Any]:
        """Return what the loop itself needs to resume."""
        return {"tokens": self.tokens, "history": self.history, "compiled": self.compiled}

    def _stopped(self) -> UserError:
        return UserError(
            f"stopped after step {self.engine.updates} of {self.job.train.steps}; a checkpoint was saved",
            where=str(self.run.folder),
            fix=f"continue with `tinyllm {shlex.join(sys.argv[1:])}`",
            code=self.stop.code or INTERRUPTED,  # another rank may have received the signal
        )

    def _warn_about_spike(self, norm: float) -> None:
        """Warn of a gradient far longer than usual: the loss often does not recover from it."""
        usual = statistics.median(self._norms) if len(self._norms) == _NORMS_KEPT else float("inf")
        if norm > max(_SPIKE * usual, self.job.optim.clip_norm):
            records = self.job.source.describe(self.engine.updates - 1)
            say(f"warning: step {self.engine.updates}: gradient norm {norm:.3g}, usually {usual:.3g} ({records})")
        self._norms.append(norm)

    def _memory_needs(self) -> str:
        model = self.job.model
        shape = (model.policy if isinstance(model, ActorCritic) else model).config
        fixed, activations = shape.training_bytes(*self.largest)
        rows, length = self.largest
        return (
            f"weights, gradients and optimizer state take about {fixed / 1e6:,.0f} MB, "
            f"a micro-batch of {rows} rows of {length} tokens about {activations / 1e6:,.0f} MB"
        )

    def _decide_compile(self, seconds_left: float) -> None:
        """Compile if the remaining training time is worth it. Decided once per run, by rank 0 for all."""
        mode = self.job.train.compile
        possible = sys.platform != "win32" and any(map(shutil.which, ("g++", "clang++", "c++")))
        wanted = mode == "on" or (mode == "auto" and possible and seconds_left > _WORTH_COMPILING)
        self.compiled = dist.broadcast_text(str(wanted)) == "True"
        if self.compiled:
            self._compile()

    def _compile(self) -> None:
        say("compiling the model's blocks (train.compile: off turns this off)")
        compile_blocks(self.job.model)
        self.run.note(compiled_from_step=self.engine.updates + 1)


def _show(bar: ProgressBar, step: int, figures: dict[str, float]) -> None:
    """Update the progress bar: the loss, the algorithm's first figures, learning rate and speed."""
    own = [f"{name} {value:.3f}" for name, value in figures.items() if name not in _NOT_SHOWN]
    speed = [f"lr {figures['lr']:.1e}", f"{figures['tokens_per_second']:,.0f} tok/s"]
    brief, full = (" ".join([f"loss {figures['loss']:.4f}", *own[:most], *speed]) for most in (3, 6))
    done = f"{step}/{bar.total}"
    bar.update(step, f"{done} {brief}", f"step {done} {full} {bar.eta(step)}", last=step == bar.total)
