"""Checks of training: a resumed run, a repeated step, micro-batches, ranks, and bf16."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tinyllm import dist
from tinyllm.algorithms import next_token
from tinyllm.data.batches import Rows, Source, right_padded
from tinyllm.errors import INTERRUPTED, UserError
from tinyllm.model.transformer import CausalLM
from tinyllm.stages.checks import apart, objectives
from tinyllm.stages.checks.outcome import Broken, Compared, Skipped, furthest_of
from tinyllm.stages.checks.subject import Subject, small_model, small_tokenizer
from tinyllm.stages.common import Files
from tinyllm.stages.fit import Fit, Job
from tinyllm.train import checkpoint
from tinyllm.train.config import OptimConfig, TrainConfig
from tinyllm.train.engine import autocast
from tinyllm.train.run import Run

_STEPS, _STOP = 6, 3
_ROUNDING = (
    1e-5  # of sums in another order, relative to the largest number; a wrong normalisation is off by 1e-2 and more
)
_ACCELERATOR = 1e-5  # whose kernels may add in any order; a CPU repeats itself to the bit


def _exact(device: torch.device) -> float:
    return 0.0 if device.type == "cpu" else _ACCELERATOR


# --- resume ----------------------------------------------------------------------------------------------------------------------


def resume(subject: Subject) -> list[Compared]:
    """Steps in one go, against as many with a stop between them and another process after it."""
    device = subject.device
    straight, broken_off = subject.place("straight"), subject.place("stopped")
    _job_run(straight, device).go()
    try:
        _job_run(broken_off, device, stop_after=_STOP).go()
    except UserError as error:
        if error.code != INTERRUPTED:
            raise
    saved = checkpoint.steps(broken_off / "checkpoints")
    if not saved or checkpoint.step_of(saved[-1]) != _STOP:
        raise Broken(f"a run that was told to stop after step {_STOP} left {[p.name for p in saved]}")
    apart.run("resume", broken_off, device, threads=torch.get_num_threads())
    once, twice = (checkpoint.steps(folder / "checkpoints")[-1] for folder in (straight, broken_off))
    if once.name != twice.name:
        raise Broken(f"the straight run ended at {once.name}, the resumed one at {twice.name}")
    how = f"{_STEPS} steps at once, and {_STOP} + {_STEPS - _STOP} in two processes"
    files = {"weights": "model.safetensors", "optimizer state": "trainer/optimizer.safetensors"}
    return [
        Compared(f"{what}: {how}", furthest_of(load_file(once / name), load_file(twice / name)), _exact(device))
        for what, name in files.items()
    ]


def resumed(folder: Path, device: torch.device) -> None:
    """In another process: go on with the run in `folder`."""
    _job_run(folder, device).go()


def _job_run(folder: Path, device: torch.device, stop_after: int = 0) -> Fit:
    """A run of the real loop, with dropout: its random numbers must come back as well."""
    model = small_model().to(device)
    files = Files(model, small_tokenizer())
    source = _Stopping(objectives.conversations(24), 8, 4, seed=0)
    source.after = stop_after
    job = Job(
        title="verify",
        model=model,
        loss=partial(next_token.loss, next_token.Settings()),
        source=source,
        evaluate=lambda engine: {"loss": 0.0},
        write=files.write,
        restore=files.restore,
        train=TrainConfig(steps=_STEPS, batch_size=8, micro_batch_size=4, dropout=0.1, precision="fp32", compile="off"),
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=2),
        seed=0,
    )
    return Fit(Run(folder, "name: verify\n", {}), job)


class _Stopping(Source):
    """Stops the run as Ctrl-C does, while the step numbered `after` (from 1) is under way."""

    after = 0

    def __call__(self, step: int) -> list[Any]:
        if step + 1 == self.after:
            signal.raise_signal(signal.SIGINT)
        return super().__call__(step)


# --- one step --------------------------------------------------------------------------------------------------------------------


def repeat(subject: Subject) -> list[Compared]:
    """The same step twice, dropout and all."""
    found = {}
    for name in objectives.names():
        first, second = (objectives.stepped(name, 4, subject.device, dropout=0.1).trained for _ in range(2))
        found[name] = furthest_of(first, second)
    return [_worst("weights after the same step, twice, with dropout", found, _exact(subject.device))]


def micro_batches(subject: Subject) -> list[Compared]:
    """A step in one forward pass, against one row at a time."""
    found = {}
    for name in objectives.names():
        whole, single = (objectives.gradients(name, micro, subject.device) for micro in (objectives.ROWS, 1))
        found[name] = furthest_of(whole, single, relative=True)
    return [_worst(f"gradients of {objectives.ROWS} rows at once, and one at a time", found, _ROUNDING, "relative")]


def ranks(subject: Subject) -> list[Compared]:
    """A step in this process, against two ranks of one thread each."""
    cores = dist.cores()
    if cores < 2:
        raise Skipped(f"two ranks need two cores, this process may use {cores}")
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        raise Skipped("this torch has no gloo")
    folder, cpu = subject.place("ranks"), torch.device("cpu")
    apart.run("ranks", folder, cpu, ranks=2)
    theirs = load_file(folder / "gradients.safetensors")
    found = {}
    for name in objectives.names():
        ours = {f"{name}/{key}": value for key, value in objectives.gradients(name, objectives.ROWS, cpu).items()}
        found[name] = furthest_of(ours, {k: v for k, v in theirs.items() if k.startswith(f"{name}/")}, relative=True)
    return [_worst("gradients of one process, and of two ranks over gloo (cpu)", found, _ROUNDING, "relative")]


def ranked(folder: Path, device: torch.device) -> None:
    """In each rank: its share of a step of every objective; rank 0 writes the gradients down."""
    found = {
        f"{name}/{key}": value
        for name in objectives.names()
        for key, value in objectives.gradients(name, 2, device).items()
    }
    if dist.is_main():
        save_file(found, folder / "gradients.safetensors")


def _worst(what: str, found: dict[str, float], allowed: float, unit: str = "") -> Compared:
    """The objective that is furthest off stands for all."""
    name = max(found, key=lambda n: float("inf") if found[n] != found[n] else found[n])
    return Compared(f"{what}, {len(found)} objectives (most: {name})", found[name], allowed, unit)


# --- precision -------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def precision(subject: Subject) -> list[Compared]:
    """The loss of some text under autocast to bf16, against float32."""
    model, device = subject.writer, subject.device
    ids = right_padded(subject.rows, 0)
    mask = right_padded([[False] + [True] * (len(row) - 1) for row in subject.rows], False)
    batch = Rows(ids, mask).to(device)
    full, half = (_loss(model, batch, kind, device) for kind in ("fp32", "bf16"))
    what = f"loss of {int(mask.sum())} tokens in bf16 and fp32 ({full:.4f} nats)"
    return [Compared(what, abs(half - full) / abs(full), 0.02, "relative")]


def _loss(model: CausalLM, batch: Rows, kind: Any, device: torch.device) -> float:
    with autocast(kind, device):
        return next_token.loss(next_token.Settings(), model, batch)[0].value
