"""The training loop: optimizer steps, and between them evaluation, checkpoints, log lines and stopping.

Every training stage is a `Job` (model, source of batches, loss, evaluation, files) that a `Trainer` runs in a run directory.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinyllm import distributed as dist
from tinyllm import signals
from tinyllm.console import ProgressBar, Quiet, say
from tinyllm.distributed import heartbeat
from tinyllm.errors import INTERRUPTED, STOPS, UserError
from tinyllm.io import shell
from tinyllm.mean import Mean, values
from tinyllm.model.native import kernels as native_kernels
from tinyllm.model.transformer import ActorCritic, CausalLM, compile_blocks, set_dropout
from tinyllm.train import checkpoint, estimate, memory, nonfinite
from tinyllm.train.checkpointing import CheckpointManager
from tinyllm.train.compiling import interruptible_compilation, is_worth_compiling
from tinyllm.train.engine import Engine, choose_precision
from tinyllm.train.examination import Examination
from tinyllm.train.job import Job
from tinyllm.train.memory import explain_out_of_memory
from tinyllm.train.run import COMPLETED, FAILED_STATUS, STOPPED, Run

_MEASURED_STEPS = 10  # until the time per step is known
_NORMS_KEPT, _SPIKE = 50, 10.0  # gradient norms in the median; a norm this many times the median is a spike
_DUE = "evaluation_due"  # in the state of a checkpoint: the evaluation after its step was abandoned
_STOPPING = "stopping after this step; a second signal stops at once"
_NOT_SHOWN = (
    "lr",
    "grad_norm",
    "tokens",
    "tokens_per_second",
    "gpu_memory_mb",
    "loss",
)  # among an algorithm's own figures


@dataclass
class TrainResult:
    """Held-out figures before the first step, at the best checkpoint and at the end; totals over the whole run; the test figures."""

    before: dict[str, float]
    best: dict[str, float]
    last: dict[str, float]
    steps: int
    tokens: int
    seconds: float
    checkpoint: Path
    test: dict[str, Any] | None = None
    """records; before, best and last: see `Examination`"""


class Trainer:
    """Trains a job in a run directory, from its newest checkpoint if there is one."""

    def __init__(self, run: Run, job: Job):
        self.run, self.job = run, job
        device = next(job.model.parameters()).device
        set_dropout(job.model, job.train.dropout)
        precision = choose_precision(job.train.precision, device)
        self.engine = Engine(job.model, job.loss, job.optim, job.train.steps, precision=precision, seed=job.seed)
        self.manager = CheckpointManager(run, job, self.engine)
        self.tokens = 0
        self.history: dict[str, dict[str, float]] = {}  # "before", "best", "last"
        self.best_step: int | None = None  # of the figures "best"; None: a checkpoint of an earlier version
        self.compiled: bool | None = None  # None: not decided yet
        self.largest = (0, 0)  # rows and tokens per row of the largest micro-batch
        self._evaluation_due = False
        self._norms: deque[float] = deque(maxlen=_NORMS_KEPT)
        self._told = nonfinite.Told()
        self._examination = Examination(run, job, self.engine, self._told)

    def train(self) -> TrainResult:
        """Train to the last step.

        Raises: UserError where the disk or the memory does not suffice (RESOURCES), a loss is not finite (FAILED), or the run was stopped
        by a signal (INTERRUPTED, TERMINATED). The run directory records how the run ended.
        """
        started = time.monotonic()
        try:
            line = _STOPPING if dist.is_main() and not Quiet.on else ""
            with explain_out_of_memory(self._memory_needs), signals.holding(line):
                self._start()
                self._loop()
                return self._finish(time.monotonic() - started)
        except (Exception, signals.Stop) as error:
            stopped = isinstance(error, signals.Stop) or (isinstance(error, UserError) and error.code in STOPS)
            with suppress(UserError):  # a full disk must not hide the first error
                if self.run.facts.get("status") != COMPLETED:
                    status, why = (STOPPED, {}) if stopped else (FAILED_STATUS, {"error": str(error)})
                    self.run.finish(status, self.engine.updates, **why)
            raise
        finally:
            self.run.close()

    def _start(self) -> None:
        """Resume, and check disk and memory before anything is computed."""
        with signals.interruptible():  # nothing can be lost yet
            state = self._resume()
            if self.engine.updates < self.job.train.steps:
                self.manager.check_disk_space()
                batch = self.job.source.largest().to(self.engine.device)
                rows, length = batch.ids.shape
                self.largest = rows, length
                self._decide_checkpointing()
                self.engine.probe_memory(batch)
        if state is None:
            self.run.drop_metrics_after(-1)  # of a session that was killed before its first checkpoint
            with self._evaluating():
                self._examination.begin()
        if state is None or state.get(_DUE):
            self._evaluate()
        if state is not None and state.get(_DUE):
            self.manager.save(self._state(), again=True)

    def _resume(self) -> dict[str, Any] | None:
        """Restore the newest checkpoint. Returns its state; None without one."""
        state = self.manager.resume()
        self.run.begin(self.engine.updates, self.job.train.steps)
        if state is not None:
            self.engine.segments = self.run.plan.segments or state.get("segments") or self.engine.segments
            self.tokens, self.history, self.compiled = state["tokens"], state["history"], state.get("compiled")
            self.best_step = state.get("best_step")
            self._examination.resume(state)
            if self.compiled:
                self._compile()
        return state

    def _loop(self) -> None:
        train, engine = self.job.train, self.engine
        heartbeat.beat(engine.updates)
        with (
            ProgressBar(self.job.title, train.steps, start=engine.updates, line_at_once=True) as bar,
            interruptible_compilation(self._nothing_is_lost),
        ):
            while engine.updates < train.steps:
                try:
                    self._advance(bar)
                except signals.Stop as stop:
                    self._save_what_is_done(stop)
                    raise self._stopped() from None

    def _advance(self, bar: ProgressBar) -> None:
        """Do one step and what follows it. Raises: UserError if the run was stopped; Stop if an evaluation or compiling was."""
        train, engine = self.job.train, self.engine
        stopping = self._step_and_evaluate(bar)
        last = engine.updates == train.steps
        decides = self.compiled is None and engine.updates >= _MEASURED_STEPS and not last
        if decides:  # before it is saved, so that a run stopped after this step is compiled from the same step on
            self._decide_compile(bar.elapsed / (engine.updates - bar.start) * (train.steps - engine.updates))
        if last or stopping or engine.updates % (train.save_every * self.job.boundary) == 0:
            self.manager.save(self._state())
            if stopping and not last:
                raise self._stopped()
        if decides and self.compiled:
            self.manager.save(self._state())  # compiling takes minutes, and a signal abandons it
            with signals.interruptible():
                self._compile()

    def _step_and_evaluate(self, bar: ProgressBar) -> bool:
        """Do one optimizer step, log it, and evaluate where that is due. Return True if the run is to stop."""
        train = self.job.train
        figures = self._step()
        step = self.engine.updates
        # ranks agree on stopping in the exchange of the step; a single process need not wait for the next one
        stopping = bool(figures.pop("_stop")) or (dist.world_size() == 1 and bool(signals.code()))
        heartbeat.beat(step)
        _show(bar, step, figures)
        if step % train.log_every == 0 or step in (1, train.steps):
            self.run.log({"step": step, "split": "train", **figures})
        self._evaluation_due = step == train.steps or step % (train.eval_every * self.job.boundary) == 0
        if self._evaluation_due:
            self._evaluate()
        return stopping

    def _nothing_is_lost(self) -> bool:
        """Return True if the present step may be abandoned: its beginning is saved, or can be, which takes all ranks."""
        return dist.world_size() == 1 or self.manager.is_saved()

    def _save_what_is_done(self, stop: signals.Stop) -> None:
        """Save the last finished step after a step or an evaluation was abandoned. Raises: `stop` where that is not possible."""
        if stop.again or dist.world_size() > 1:
            raise stop
        self.engine.zero_grad()
        self.manager.save(self._state() | ({_DUE: True} if self._evaluation_due else {}))

    def _step(self) -> dict[str, float]:
        """Do one optimizer step. Returns its figures, pooled over ranks."""
        self._evaluation_due = False
        source, step, started = self.job.source, self.engine.updates, time.monotonic()
        batches = [batch.to(self.engine.device) for batch in source(step)]
        try:
            figures = self.engine.step(batches, {**source.metrics, "_stop": Mean(float(signals.code()), 1.0)})
        except UserError as error:
            error.where = error.where or source.describe(step)
            raise
        self._warn_about_spike(figures["grad_norm"])
        self._told.warn(figures, "train", self.engine.updates)
        tokens = sum(batch.ids.numel() for batch in batches) * dist.world_size()
        self.tokens += tokens
        speed = {"tokens": self.tokens, "tokens_per_second": tokens / (time.monotonic() - started)}
        return figures | speed | memory.on_gpu(self.engine.device)

    def _evaluate(self) -> None:
        """Compute held-out figures; an improvement is saved as `ckpt_best`.

        Raises: UserError (FAILED) if the figure that selects it is not finite.
        """
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            self.job.model.eval()
            with self._evaluating():
                found = self.job.evaluate(self.engine)
        self._evaluation_due = False
        step, figures = self.engine.updates, values(found)
        self.run.log({"step": step, "split": "eval", **figures})
        self._check(found)
        self.history["last"] = figures
        self.history.setdefault("before", figures)
        if self._is_best(figures):
            self.history["best"], self.best_step = figures, step
            self.manager.save(self._state(), best=True)

    def _evaluating(self) -> AbstractContextManager[None]:
        """Return the context of an evaluation. A signal abandons it: it is done again on resuming. Ranks finish it together."""
        alone = dist.world_size() == 1 or not self.engine.updates
        return signals.interruptible() if alone else nullcontext()

    def _check(self, found: Mapping[str, Mean | float]) -> None:
        """Refuse a selecting figure that is not finite, weights that are not finite being the first cause; tell of any other figure."""
        name, _ = self.job.best
        self._told.warn(
            {other: figure for other, figure in found.items() if other != name}, "eval", self.engine.updates
        )
        try:
            nonfinite.check_selecting(found, name, self.engine.updates, self.engine.precision)
        except UserError:
            self.manager.refuse_broken_weights()
            raise

    def _is_best(self, figures: dict[str, float]) -> bool:
        """Return whether these figures are better than the best so far, which an earlier version may have recorded as NaN."""
        name, direction = self.job.best
        sign = 1 if direction == "min" else -1
        best = self.history.get("best", {}).get(name, math.nan)
        return not math.isfinite(best) or sign * figures[name] < sign * best

    def _finish(self, seconds: float) -> TrainResult:
        newest = checkpoint.steps(self.run.checkpoints)[-1]
        if self.best_step == 0 < self.engine.updates and not self.run.call.fast:
            say(f"note: {self.job.best[0]} was best before the first step, so ckpt_best is what the run started from")
        with self._evaluating():
            test = self._examination.end()
        result = TrainResult(
            **self.history,
            steps=self.engine.updates,
            tokens=self.tokens,
            seconds=seconds,
            checkpoint=newest,
            test=test,
        )
        figures = {"before": result.before, "best": result.best, "last": result.last, "test": test}
        self.run.finish(COMPLETED, self.engine.updates, **figures, tokens=self.tokens)
        return result

    def _state(self) -> dict[str, Any]:
        """Return what the loop itself needs to resume."""
        found = {"tokens": self.tokens, "history": self.history, "compiled": self.compiled}
        found |= {} if self.best_step is None else {"best_step": self.best_step}
        found |= self._examination.state()
        return found | ({"segments": self.engine.segments} if len(self.engine.segments) > 1 else {})

    def _stopped(self) -> UserError:
        return UserError(
            f"stopped after step {self.engine.updates} of {self.job.train.steps}; a checkpoint was saved",
            where=str(self.run.folder),
            fix=f"continue with `tinyllm {shell.join(sys.argv[1:])}`",
            code=signals.code() or INTERRUPTED,  # another rank may have received the signal
        )

    def _warn_about_spike(self, norm: float) -> None:
        """Warn of a gradient far longer than usual: the loss often does not recover from it."""
        usual = statistics.median(self._norms) if len(self._norms) == _NORMS_KEPT else float("inf")
        if norm > max(_SPIKE * usual, self.job.optim.clip_norm):
            records = self.job.source.describe(self.engine.updates - 1)
            say(f"warning: step {self.engine.updates}: gradient norm {norm:.3g}, usually {usual:.3g} ({records})")
        self._norms.append(norm)

    def _memory_needs(self) -> str:
        run = self._training()
        held, rows, length = estimate.fixed(run), *self.largest
        return (
            f"weights, gradients and optimizer state take about {held / 1e6:,.0f} MB, "
            f"a micro-batch of {rows} rows of {length} tokens about {estimate.micro_batch(run) / 1e6:,.0f} MB"
        )

    def _training(self) -> estimate.Training:
        """Return what the memory of this run depends on."""
        train, model = self.job.train, self.job.model
        policy = model.policy if isinstance(model, ActorCritic) else model
        head = "none"
        if isinstance(policy, CausalLM):
            head = "trained" if policy.lm_head.weight.requires_grad else "frozen"
        return estimate.Training(
            policy.config,
            *self.largest,
            weights=sum(p.numel() * p.element_size() for p in model.parameters()),
            trained=sum(p.numel() for p in self.engine.trainable.values()),
            bf16=self.engine.precision == "bf16",
            head=head,
            checkpointing=self.engine.checkpointing,
            accumulates=train.batch_size > train.micro_batch_size * dist.world_size(),
            decoders=2 if isinstance(model, ActorCritic) else 1,
        )

    def _decide_checkpointing(self) -> None:
        """Switch activation checkpointing on if that is set, or if the memory is short: rank 0 decides for all."""
        mode, run = self.job.train.activation_checkpointing, self._training()
        there = memory.available_on(self.engine.device)
        wanted = mode == "on" or (mode == "auto" and bool(there) and estimate.wants_checkpointing(run, there))
        if dist.broadcast_text(str(wanted)) == "False":
            return
        self.engine.set_checkpointing(True)
        if mode == "auto":
            rows, length = self.largest
            say(
                f"activation checkpointing is on: with all activations of {rows} x {length} tokens the peak would be about "
                f"{estimate.peak(run) / 1e9:.1f} GB, and there are {there / 1e9:.1f} (train.activation_checkpointing: off turns this off)"
            )

    def _decide_compile(self, seconds_left: float) -> None:
        """Decide whether the remaining training time is worth compiling: once per run, by rank 0 for all."""
        has_kernels = all(map(native_kernels.covers, self.engine.trainable.values()))
        wanted = is_worth_compiling(self.job.train.compile, seconds_left, has_kernels=has_kernels)
        self.compiled = dist.broadcast_text(str(wanted)) == "True"

    def _compile(self) -> None:
        say("compiling the model's blocks (train.compile: off turns this off)")
        compile_blocks(self.job.model)
        self.run.note(compiled_from_step=self.engine.updates + 1)


def _show(bar: ProgressBar, step: int, figures: dict[str, float]) -> None:
    """Update the progress bar: the loss, the algorithm's first figures, learning rate and speed."""
    own = [f"{name} {value:.3f}" for name, value in figures.items() if name not in _NOT_SHOWN and math.isfinite(value)]
    speed = [f"lr {figures['lr']:.1e}", f"{figures['tokens_per_second']:,.0f} tok/s"]
    brief, full = (" ".join([f"loss {figures['loss']:.4f}", *own[:most], *speed]) for most in (3, 6))
    done = f"{step}/{bar.total}"
    bar.update(step, f"{done} {brief}", f"step {done} {full} {bar.eta(step)}", last=step == bar.total)
