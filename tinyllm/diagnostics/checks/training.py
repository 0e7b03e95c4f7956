"""Checks of training: a resumed run, a repeated step, micro-batches, ranks, and bf16."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tinyllm import distributed as dist
from tinyllm.algorithms import next_token
from tinyllm.data.datasets.batches import Source, TokenBatch, right_padded
from tinyllm.diagnostics.checks import objectives, subprocesses
from tinyllm.diagnostics.checks.result import (
    CheckError,
    CheckSkipped,
    Comparison,
    Effect,
    count,
    max_difference,
    max_difference_by_name,
    smallest_difference_by_name,
)
from tinyllm.diagnostics.checks.target import Target, small_model, small_tokenizer
from tinyllm.errors import INTERRUPTED, UserError
from tinyllm.io import strict_json
from tinyllm.mean import Mean
from tinyllm.model.transformer import CausalLM
from tinyllm.stages.checkpoint_files import CheckpointFiles
from tinyllm.train import checkpoint
from tinyllm.train.config import OptimConfig, TrainConfig
from tinyllm.train.engine import autocast
from tinyllm.train.job import Job
from tinyllm.train.run import Run
from tinyllm.train.trainer import Trainer

_STEPS, _STOP_AFTER = 6, 3
_TRAINED = "trained.json"  # the steps of the resumed process
_ROUNDING = 1e-5  # of sums in another order, relative to the largest value; a wrong normalization gives 1e-2 and more
_VISIBLE = 1e-4  # the least change of a weight or a loss that counts: ten times the rounding
_SEEN_IN_BF16 = 1e-5  # nats; rounding to 8 bits changes the log-probability of some token by far more
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
    before = load_file(saved[-1] / "model.safetensors")
    subprocesses.run_workers("resume", interrupted, device, threads=torch.get_num_threads())
    whole, resumed = (checkpoint.steps(folder / "checkpoints")[-1] for folder in (uninterrupted, interrupted))
    if whole.name != resumed.name:
        raise CheckError(f"the uninterrupted run ended at {whole.name}, the resumed run at {resumed.name}")
    rest = _STEPS - _STOP_AFTER
    how = f"{_STEPS} steps vs {_STOP_AFTER} steps, Ctrl-C and {rest} more in a new process"
    files = {"weights": "model.safetensors", "optimizer state": "trainer/optimizer.safetensors"}
    ends = {what: (load_file(whole / name), load_file(resumed / name)) for what, name in files.items()}
    effects = {
        "weights": (
            Effect("change after resuming", smallest_difference_by_name(before, ends["weights"][1]), _VISIBLE),
            Effect("dropout", _effect_of_dropout(uninterrupted, device), _VISIBLE),
        )
    }
    return [
        _first_step(interrupted),
        *(
            Comparison(
                what,
                f"{what} after {how}",
                max_difference_by_name(*two),
                _exact(device),
                n=count(two[0]),
                effects=effects.get(what, ()),
            )
            for what, two in ends.items()
        ),
    ]


def _first_step(folder: Path) -> Comparison:
    """Compare the steps trained in the new process with those that were left: a run that starts over ends with the same weights."""
    steps = json.loads((folder / _TRAINED).read_text(encoding="utf-8"))
    first = steps[0] if steps else 0
    what = f"first step trained in the new process (step {first}) vs step {_STOP_AFTER + 1}"
    return Comparison("first step", what, abs(first - _STOP_AFTER - 1), 0, "steps", n=len(steps))


@torch.no_grad()
def _effect_of_dropout(folder: Path, device: torch.device) -> float:
    """Return by how much dropout changed the loss of the run's first step."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    logged = next(row["loss"] for row in rows if row["split"] == "train")
    settings, model = next_token.Settings(), small_model().to(device)
    batches = [batch.to(device) for batch in _source()(0)]
    without = sum((next_token.loss(settings, model, batch)[0] for batch in batches), Mean(0.0, 0.0)).value
    return abs(logged - without)


def resume_task(folder: Path, device: torch.device) -> None:
    """Resume the run in `folder`, and write the steps that were trained. Runs in a worker process."""
    trainer = _trainer(folder, device)
    trainer.train()
    source = trainer.job.source
    assert isinstance(source, _InterruptedSource)
    (folder / _TRAINED).write_text(strict_json.dumps(source.trained), encoding="utf-8")


def _trainer(folder: Path, device: torch.device, interrupt_at: int = 0) -> Trainer:
    """Return a trainer with dropout, whose random numbers must be resumed as well."""
    model = small_model().to(device)
    source = _source(interrupt_at)
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


def _source(interrupt_at: int = 0) -> _InterruptedSource:
    source = _InterruptedSource(objectives.sft_dataset(24), 8, 4, seed=0)
    source.interrupt_at, source.trained = interrupt_at, []
    return source


class _InterruptedSource(Source):
    """A source that raises SIGINT, as Ctrl-C does, during step `interrupt_at`, counted from 1. It lists the steps `trained`."""

    interrupt_at: int
    trained: list[int]

    def __call__(self, step: int) -> list[Any]:
        self.trained.append(step + 1)
        if step + 1 == self.interrupt_at:
            signal.raise_signal(signal.SIGINT)
        return super().__call__(step)


# --- one step --------------------------------------------------------------------------------------------------------------------


def repeat(target: Target) -> list[Comparison]:
    """Compare two computations of the same optimizer step, with dropout. The weights must move, and another seed must matter."""
    found, moved, seeds, n = {}, {}, {}, 0
    for name in objectives.names():
        first, second, other = (
            objectives.take_step(name, 4, target.device, dropout=0.1, seed=seed) for seed in (0, 0, 1)
        )
        weights = first.engine.trainable
        found[name] = max_difference_by_name(weights, second.engine.trainable)
        moved[name] = smallest_difference_by_name(first.before, weights)
        seeds[name] = smallest_difference_by_name(weights, other.engine.trainable)
        n += count(weights)
    what = "weights after the same optimizer step, computed twice with dropout"
    effects = (_least_of("update", moved), _least_of("another seed", seeds))
    return [_worst_of("weights", what, found, _exact(target.device), n=n, effects=effects)]


def micro_batches(target: Target) -> list[Comparison]:
    """Compare the gradient of a batch in one forward pass with that of one row per micro-batch."""
    found, sizes, n = {}, {}, 0
    for name in objectives.names():
        whole, single = (objectives.take_step(name, micro, target.device).gradients() for micro in (objectives.ROWS, 1))
        found[name] = max_difference_by_name(whole, single, relative=True)
        sizes[name] = _smallest(whole)
        n += count(whole)
    what = f"gradients of {objectives.ROWS} rows in one micro-batch vs {objectives.ROWS} micro-batches"
    effects = (_least_of("gradient", sizes, _ROUNDING),)
    return [_worst_of("gradients", what, found, _ROUNDING, "relative", n=n, effects=effects)]


def ranks(target: Target) -> list[Comparison]:
    """Compare the gradient computed in this process with that of two ranks with one thread each, which share the rows."""
    cores = dist.cores()
    if cores < 2:
        raise CheckSkipped(f"two ranks need two CPU cores; available to this process: {cores}")
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        raise CheckSkipped("this build of torch has no gloo backend")
    folder, cpu = target.new_folder("ranks"), torch.device("cpu")
    subprocesses.run_workers("ranks", folder, cpu, ranks=2)
    theirs = load_file(folder / "gradients.safetensors")
    shares = [json.loads((folder / f"rows-{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    found, sizes, rows, wrong = {}, {}, 0, 0
    for name in objectives.names():
        step = objectives.take_step(name, objectives.ROWS, cpu)
        ours = {f"{name}/{key}": value for key, value in step.gradients().items()}
        of_ranks = {key: value for key, value in theirs.items() if key.startswith(f"{name}/")}
        found[name] = max_difference_by_name(ours, of_ranks, relative=True)
        sizes[name] = _smallest(ours)
        rows += len(step.rows)
        wrong += _count_differences(step.rows, [tuple(row) for share in shares for row in share[name]])
    what = "gradients of one process vs two ranks (gloo, cpu)"
    effects = (_least_of("gradient", sizes, _ROUNDING),)
    return [
        _worst_of("gradients", what, found, _ROUNDING, "relative", n=count(theirs), effects=effects),
        Comparison(
            "rows",
            f"rows of {len(found)} steps that no rank or more than one rank trained on",
            wrong,
            0,
            "rows",
            n=rows,
        ),
    ]


def ranks_task(folder: Path, device: torch.device) -> None:
    """Compute this rank's share of one step of every objective; rank 0 saves the gradients. Runs in a worker process."""
    steps = {name: objectives.take_step(name, 2, device) for name in objectives.names()}
    rows = {name: step.rows for name, step in steps.items()}
    (folder / f"rows-{dist.rank()}.json").write_text(strict_json.dumps(rows), encoding="utf-8")
    if dist.is_main():
        found = {f"{name}/{key}": value for name, step in steps.items() for key, value in step.gradients().items()}
        save_file(found, folder / "gradients.safetensors")


def _count_differences(a: list[Any], b: list[Any]) -> int:
    """Count the entries that one list has more often than the other."""
    first, second = Counter(a), Counter(b)
    return sum(((first - second) + (second - first)).values())


def _smallest(gradients: Mapping[str, torch.Tensor]) -> float:
    """Return the largest value of the tensor whose largest value is smallest."""
    return min((float(value.abs().max()) for value in gradients.values()), default=0.0)


def _least_of(what: str, found: Mapping[str, float], least: float = _VISIBLE) -> Effect:
    """Report the objective with the smallest effect; NaN does not pass."""
    return Effect(what, next((value for value in found.values() if value != value), min(found.values())), least)


def _worst_of(
    key: str, what: str, found: dict[str, float], allowed: float, unit: str = "", *, n: int, effects: Sequence[Effect]
) -> Comparison:
    """Report the objective with the largest difference; NaN counts as the largest."""
    name = max(found, key=lambda name: float("inf") if found[name] != found[name] else found[name])
    what = f"{what}; {len(found)} objectives, largest for {name}"
    return Comparison(key, what, found[name], allowed, unit, n=n, effects=effects)


# --- precision -------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def precision(target: Target) -> list[Comparison]:
    """Compare the loss on text under bf16 autocast with that in float32. The log-probabilities must show that bf16 was used."""
    model, device = target.causal_lm, target.device
    ids = right_padded(target.rows, 0)
    mask = right_padded([[False] + [True] * (len(row) - 1) for row in target.rows], False)
    batch = TokenBatch(ids, mask).to(device)
    (full, ours), (half, theirs) = (_loss(model, batch, kind, device) for kind in ("fp32", "bf16"))
    what = f"loss of {int(mask.sum())} tokens in bf16 vs fp32 ({full:.4f} nats)"
    effect = Effect("bf16", max_difference(ours, theirs), _SEEN_IN_BF16)
    difference = abs(half - full) / abs(full)
    return [Comparison("loss", what, difference, 0.02, "relative", n=int(mask.sum()), effects=(effect,))]


def _loss(model: CausalLM, batch: TokenBatch, kind: Any, device: torch.device) -> tuple[float, torch.Tensor]:
    """Return the loss, and the log-probability of every token (N,)."""
    with autocast(kind, device):
        loss = next_token.loss(next_token.Settings(), model, batch)[0].value
        return loss, model.log_probs(batch.ids, batch.mask)[batch.mask].float()
