"""Checks of training: a resumed run, a repeated step, micro-batches, ranks, and bf16."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tinyllm import distributed as dist
from tinyllm.algorithms import next_token
from tinyllm.data.datasets.batches import Source, TokenBatch, right_padded
from tinyllm.diagnostics.checks import objectives, subprocesses
from tinyllm.diagnostics.checks.result import CheckError, CheckSkipped, Comparison, max_difference_by_name
from tinyllm.diagnostics.checks.target import Target, small_model, small_tokenizer
from tinyllm.errors import INTERRUPTED, UserError
from tinyllm.model.transformer import CausalLM
from tinyllm.stages.checkpoint_files import CheckpointFiles
from tinyllm.train import checkpoint
from tinyllm.train.config import OptimConfig, TrainConfig
from tinyllm.train.engine import autocast
from tinyllm.train.job import Job
from tinyllm.train.run import Run
from tinyllm.train.trainer import Trainer

_STEPS, _STOP_AFTER = 6, 3
_ROUNDING = 1e-5  # of sums in another order, relative to the largest value; a wrong normalization gives 1e-2 and more
_ACCELERATOR = 1e-5  # accelerator kernels may add in any order; a CPU is deterministic to the bit


def _exact(device: torch.device) -> float:
    """Return the difference allowed between two runs of the same computation."""
    return 0.0 if device.type == "cpu" else _ACCELERATOR


# --- resume ----------------------------------------------------------------------------------------------------------------------


def resume(target: Target) -> list[Comparison]:
    """Compare an uninterrupted run with one that was interrupted and resumed in a new process."""
    device = target.device
    uninterrupted, interrupted = target.new_folder("uninterrupted"), target.new_folder("interrupted")
    _trainer(uninterrupted, device).train()
    try:
        _trainer(interrupted, device, interrupt_at=_STOP_AFTER).train()
    except UserError as error:
        if error.code != INTERRUPTED:
            raise
    saved = checkpoint.steps(interrupted / "checkpoints")
    if not saved or checkpoint.step_of(saved[-1]) != _STOP_AFTER:
        names = ", ".join(path.name for path in saved) or "no checkpoint"
        raise CheckError(f"a run interrupted in step {_STOP_AFTER} left {names}")
    subprocesses.run_workers("resume", interrupted, device, threads=torch.get_num_threads())
    whole, resumed = (checkpoint.steps(folder / "checkpoints")[-1] for folder in (uninterrupted, interrupted))
    if whole.name != resumed.name:
        raise CheckError(f"the uninterrupted run ended at {whole.name}, the resumed run at {resumed.name}")
    rest = _STEPS - _STOP_AFTER
    how = f"{_STEPS} steps vs {_STOP_AFTER} steps, Ctrl-C and {rest} more in a new process"
    files = {"weights": "model.safetensors", "optimizer state": "trainer/optimizer.safetensors"}
    return [
        Comparison(
            f"{what} after {how}",
            max_difference_by_name(load_file(whole / name), load_file(resumed / name)),
            _exact(device),
        )
        for what, name in files.items()
    ]


def resume_task(folder: Path, device: torch.device) -> None:
    """Resume the run in `folder`. Runs in a worker process."""
    _trainer(folder, device).train()


def _trainer(folder: Path, device: torch.device, interrupt_at: int = 0) -> Trainer:
    """Return a trainer with dropout, whose random numbers must be resumed as well."""
    model = small_model().to(device)
    source = _InterruptedSource(objectives.sft_dataset(24), 8, 4, seed=0)
    source.interrupt_at = interrupt_at
    job = Job(
        title="verify",
        model=model,
        loss=partial(next_token.loss, next_token.Settings()),
        source=source,
        evaluate=lambda engine: {"loss": 0.0},
        files=CheckpointFiles(model, small_tokenizer()),
        train=TrainConfig(steps=_STEPS, batch_size=8, micro_batch_size=4, dropout=0.1, precision="fp32", compile="off"),
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=2),
        seed=0,
    )
    return Trainer(Run(folder, "name: verify\n", {}), job)


class _InterruptedSource(Source):
    """A source that raises SIGINT, as Ctrl-C does, during step `interrupt_at`, counted from 1."""

    interrupt_at = 0

    def __call__(self, step: int) -> list[Any]:
        if step + 1 == self.interrupt_at:
            signal.raise_signal(signal.SIGINT)
        return super().__call__(step)


# --- one step --------------------------------------------------------------------------------------------------------------------


def repeat(target: Target) -> list[Comparison]:
    """Compare two computations of the same optimizer step, with dropout."""
    found = {}
    for name in objectives.names():
        first, second = (objectives.engine_after_step(name, 4, target.device, dropout=0.1).trainable for _ in range(2))
        found[name] = max_difference_by_name(first, second)
    return [
        _worst_of("weights after the same optimizer step, computed twice with dropout", found, _exact(target.device))
    ]


def micro_batches(target: Target) -> list[Comparison]:
    """Compare the gradient of a batch in one forward pass with that of one row per micro-batch."""
    found = {}
    for name in objectives.names():
        whole, single = (objectives.gradients(name, micro, target.device) for micro in (objectives.ROWS, 1))
        found[name] = max_difference_by_name(whole, single, relative=True)
    what = f"gradients of {objectives.ROWS} rows in one micro-batch vs {objectives.ROWS} micro-batches"
    return [_worst_of(what, found, _ROUNDING, "relative")]


def ranks(target: Target) -> list[Comparison]:
    """Compare the gradient computed in this process with that of two ranks with one thread each."""
    cores = dist.cores()
    if cores < 2:
        raise CheckSkipped(f"two ranks need two CPU cores; available to this process: {cores}")
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        raise CheckSkipped("this build of torch has no gloo backend")
    folder, cpu = target.new_folder("ranks"), torch.device("cpu")
    subprocesses.run_workers("ranks", folder, cpu, ranks=2)
    theirs = load_file(folder / "gradients.safetensors")
    found = {}
    for name in objectives.names():
        ours = {f"{name}/{key}": value for key, value in objectives.gradients(name, objectives.ROWS, cpu).items()}
        of_ranks = {key: value for key, value in theirs.items() if key.startswith(f"{name}/")}
        found[name] = max_difference_by_name(ours, of_ranks, relative=True)
    return [_worst_of("gradients of one process vs two ranks (gloo, cpu)", found, _ROUNDING, "relative")]


def ranks_task(folder: Path, device: torch.device) -> None:
    """Compute this rank's share of one step of every objective; rank 0 saves the gradients. Runs in a worker process."""
    found = {
        f"{name}/{key}": value
        for name in objectives.names()
        for key, value in objectives.gradients(name, 2, device).items()
    }
    if dist.is_main():
        save_file(found, folder / "gradients.safetensors")


def _worst_of(what: str, found: dict[str, float], allowed: float, unit: str = "") -> Comparison:
    """Report the objective with the largest difference; NaN counts as the largest."""
    name = max(found, key=lambda n: float("inf") if found[n] != found[n] else found[n])
    return Comparison(f"{what}; {len(found)} objectives, largest for {name}", found[name], allowed, unit)


# --- precision -------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def precision(target: Target) -> list[Comparison]:
    """Compare the loss on text under bf16 autocast with that in float32."""
    model, device = target.causal_lm, target.device
    ids = right_padded(target.rows, 0)
    mask = right_padded([[False] + [True] * (len(row) - 1) for row in target.rows], False)
    batch = TokenBatch(ids, mask).to(device)
    full, half = (_loss(model, batch, kind, device) for kind in ("fp32", "bf16"))
    what = f"loss of {int(mask.sum())} tokens in bf16 vs fp32 ({full:.4f} nats)"
    return [Comparison(what, abs(half - full) / abs(full), 0.02, "relative")]


def _loss(model: CausalLM, batch: TokenBatch, kind: Any, device: torch.device) -> float:
    with autocast(kind, device):
        return next_token.loss(next_token.Settings(), model, batch)[0].value
