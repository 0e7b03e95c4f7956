"""The one loop: steps of the engine, and between them what a run owes its owner: figures, checkpoints, a way to stop.

Every training stage is a `Job` (a model, a source of batches, a loss, a way to evaluate and a way to write itself down) handed to `fit`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from tinyllm import dist
from tinyllm.errors import INTERRUPTED, TERMINATED, UserError
from tinyllm.mean import Mean
from tinyllm.model.transformer import ActorCritic, compile_blocks, set_dropout
from tinyllm.stages.keeping import Keeper
from tinyllm.stages.machine import out_of_memory_explained
from tinyllm.train import checkpoint
from tinyllm.train.config import OptimConfig, TrainConfig
from tinyllm.train.engine import Engine, Loss, choose_precision
from tinyllm.train.progress import Progress, Quiet, say
from tinyllm.train.run import COMPLETED, FAILED_STATUS, STOPPED, Run

_WORTH_COMPILING = 180.0  # seconds of training left: compiling costs 20 to 40 and gains about a third
_MEASURED_STEPS = 10  # after which that is known
_ECHO_SECONDS = 1.0
_REMEMBERED, _SPIKE = 50, 10.0  # gradient norms that make the usual one; so many times it is worth a warning


class BatchSource(Protocol):
    """step -> micro-batches; `metrics` are figures of the source itself (rewards of a rollout), empty for plain data."""

    metrics: dict[str, Mean]

    def __call__(self, step: int) -> list[Any]: ...
    def largest(self) -> Any:
        """A micro-batch that needs as much memory as any."""
        ...

    def describe(self, step: int) -> str:
        """What a step is made of, for a message about it."""
        ...

    def state(self, step: int) -> dict[str, Tensor]:
        """What this rank needs to go on with `step`, beside its number."""
        ...

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None: ...


@dataclass
class Job:
    """What makes a stage that stage.

    evaluate: figures on held-out data, pooled over ranks; called before the first step, every `eval_every` and at the end.
    write, restore: the weights into a checkpoint directory and back.
    best: which figure of `evaluate` decides `ckpt_best`, and in which direction.
    boundary: evaluations and planned checkpoints only come after a multiple of this many steps (a rollout's), and `eval_every` and
        `save_every` count such multiples.
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
    """Remembers the first SIGINT or SIGTERM, so that the step under way is finished; a second one is not held back.

    One within a second of the first is the same one: schedulers signal every process of a job, and a launcher passes it on as well.
    """

    code = 0

    @contextmanager
    def listening(self) -> Iterator[_Stop]:
        def remember(number: int, frame: Any) -> None:
            if self.code:
                if time.monotonic() - self.at > _ECHO_SECONDS:
                    signal.signal(number, old[number])
                    signal.raise_signal(number)
                return
            self.code, self.at = INTERRUPTED if number == signal.SIGINT else TERMINATED, time.monotonic()
            if dist.is_main() and not Quiet.on:  # not `print`: a handler may have interrupted just that
                os.write(2, b"stopping after this step; once more stops at once\n")

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
        self.keeper = Keeper(run, job, self.engine)
        self.tokens = 0
        self.history: dict[str, dict[str, float]] = {}  # "before", "best", "last"
        self.compiled: bool | None = None  # None: not decided yet
        self.largest = (0, 0)  # rows and tokens of the largest micro-batch
        self._norms: deque[float] = deque(maxlen=_REMEMBERED)

    def go(self) -> Fitted:
        """Train to the end, from wherever the run directory has got to."""
        begun = time.monotonic()
        try:
            with _Stop().listening() as stop, out_of_memory_explained(self._memory):
                self._begin()
                with Progress(self.job.title, self.job.train.steps, self.engine.updates) as bar:
                    self._loop(bar, stop)
            return self._finished(time.monotonic() - begun)
        except Exception as error:
            stopped = isinstance(error, UserError) and error.code in (INTERRUPTED, TERMINATED)
            with suppress(UserError):  # a full disk must not hide what went wrong first
                self.run.finish(STOPPED if stopped else FAILED_STATUS, **({} if stopped else {"error": str(error)}))
            raise
        finally:
            self.run.close()

    def _begin(self) -> None:
        """Go back to where the run was; find out before anything is computed whether memory and disk suffice."""
        state = self.keeper.resume()
        if state is not None:
            self.tokens, self.history, self.compiled = state["tokens"], state["history"], state.get("compiled")
            if self.compiled:
                self._compile()
        if self.engine.updates < self.job.train.steps:
            self.keeper.need_room()
            batch = self.job.source.largest().to(self.engine.device)
            self.largest = tuple(batch.ids.shape)
            self.engine.rehearse(batch)
        if state is None:
            self._evaluate()

    def _finished(self, seconds: float) -> Fitted:
        # every rank has trained it, rank 0 has written it
        checkpoints = checkpoint.steps(self.run.checkpoints)
        fitted = Fitted(
            **self.history, steps=self.engine.updates, tokens=self.tokens, seconds=seconds, checkpoint=checkpoints[-1]
        )
        self.run.finish(COMPLETED, before=fitted.before, best=fitted.best, last=fitted.last, tokens=self.tokens)
        return fitted

    def _loop(self, bar: Progress, stop: _Stop) -> None:
        train, engine = self.job.train, self.engine
        clock, start = time.monotonic(), engine.updates
        while engine.updates < train.steps:
            began = time.monotonic()
            figures, tokens = self._step(stop)
            # ranks agree on it in the step's own exchange; one alone need not wait for the next
            stopping, step = bool(figures.pop("_stop")) or (dist.world_size() == 1 and bool(stop.code)), engine.updates
            figures |= {"tokens": self.tokens, "tokens_per_second": tokens / (time.monotonic() - began)}
            bar.update(step, figures)
            if step % train.log_every == 0 or step in (1, train.steps):
                self.run.log({"step": step, "split": "train", **figures})
            last = step == train.steps
            if last or step % (train.eval_every * self.job.boundary) == 0:
                self._evaluate()
            if last or stopping or step % (train.save_every * self.job.boundary) == 0:
                self.keeper.save(self._facts())
                if stopping and not last:
                    self._stopped(stop.code)
            if self.compiled is None and step >= _MEASURED_STEPS:
                self._maybe_compile((time.monotonic() - clock) / (step - start) * (train.steps - step))

    def _step(self, stop: _Stop) -> tuple[dict[str, float], int]:
        """One optimiser step: its figures, and the tokens it has seen over all ranks."""
        source, step = self.job.source, self.engine.updates
        batches = [b.to(self.engine.device) for b in source(step)]
        try:
            figures = self.engine.step(batches, {**source.metrics, "_stop": Mean(float(stop.code), 1.0)})
        except UserError as error:
            error.where = error.where or source.describe(step)
            raise
        self._tell_spike(figures["grad_norm"])
        tokens = sum(b.ids.numel() for b in batches) * dist.world_size()
        self.tokens += tokens
        return figures, tokens

    def _tell_spike(self, norm: float) -> None:
        """A gradient far longer than usual often comes before a loss that does not recover."""
        middle = statistics.median(self._norms) if len(self._norms) == _REMEMBERED else float("inf")
        if norm > max(_SPIKE * middle, self.job.optim.clip_norm):
            where = self.job.source.describe(self.engine.updates - 1)
            say(f"warning: step {self.engine.updates}: gradient norm {norm:.3g}, usually {middle:.3g} ({where})")
        self._norms.append(norm)

    def _facts(self) -> dict[str, Any]:
        """What the loop itself needs to go on."""
        return {"tokens": self.tokens, "history": self.history, "compiled": self.compiled}

    def _memory(self) -> str:
        model = self.job.model
        shape = (model.policy if isinstance(model, ActorCritic) else model).config
        fixed, activations = shape.training_bytes(*self.largest)
        rows, length = self.largest
        return (
            f"weights, gradients and optimiser take about {fixed / 1e6:,.0f} MB, "
            f"a micro-batch of {rows} rows of {length} tokens about {activations / 1e6:,.0f} MB"
        )

    def _stopped(self, code: int) -> None:
        raise UserError(
            f"stopped after step {self.engine.updates} of {self.job.train.steps}; a checkpoint was saved",
            where=str(self.run.folder),
            fix=f"continue with `tinyllm {shlex.join(sys.argv[1:])}`",
            code=code or INTERRUPTED,
        )

    def _maybe_compile(self, seconds_left: float) -> None:
        """Compile where it pays. The measured remaining time decides, once in a run, on rank 0 for all."""
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
            self.keeper.save(self._facts(), best=True)
