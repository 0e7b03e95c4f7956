"""A short training run on a small model, with held-out figures that are given instead of measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tests.support import small
from tinyllm.algorithms import next_token
from tinyllm.data.datasets.batches import Source
from tinyllm.data.datasets.datasets import SFTDataset
from tinyllm.mean import Mean
from tinyllm.model import lora
from tinyllm.model.config import LoRAConfig
from tinyllm.stages.checkpoint_files import CheckpointFiles
from tinyllm.train import checkpoint
from tinyllm.train.config import OptimConfig, TrainConfig
from tinyllm.train.engine import Engine
from tinyllm.train.job import Job
from tinyllm.train.run import Run
from tinyllm.train.trainer import Trainer, TrainResult

ROWS = [([5 + (3 * i + j) % 200 for j in range(4 + i % 7)], [j > 1 for j in range(4 + i % 7)]) for i in range(30)]
PLANNED = [3.0, 2.0, 1.0, 2.5, 1.5, 2.0, 4.0]  # held-out losses before the first step and after each


def planned(engine: Engine) -> dict[str, float]:
    assert not engine.model.training, "dropout is off while a model is judged"
    return {"planned": PLANNED[engine.updates]}


def train_small(
    folder: Path,
    *,
    steps: int = 6,
    best: tuple = ("planned", "min"),
    evaluate: Callable[[Engine], Mapping[str, Mean | float]] = planned,
    keep: int = 9,
    log_every: int = 10,
    precision: str = "fp32",
    optimizer: str = "adamw",
    adapter: bool = False,
    test: Callable[[Engine], Mapping[str, Mean | float]] | None = None,
    loss: Callable | None = None,
    every: int = 1,
    compiled: str = "off",
    records: str = "",
) -> TrainResult:
    """Train the small model for some steps in `folder`, or resume the run there.

    Args:
        records: a hash of the test records, as run.json has it.
    """
    model = small.rough(scale=0.1)
    config = LoRAConfig(r=2) if adapter else None
    if config:
        lora.attach(model, config)
    files = CheckpointFiles(model, small.tokenizer(), adapter=config, base="base")
    train = TrainConfig(
        steps=steps,
        batch_size=6,
        micro_batch_size=3,
        eval_every=every,
        save_every=every,
        keep=keep,
        log_every=log_every,
        dropout=0.1,
        precision=precision,
        compile=compiled,
    )
    job = Job(
        title="test",
        model=model,
        loss=loss or partial(next_token.loss, next_token.Settings()),
        source=Source(SFTDataset(ROWS, 3), 6, 3, seed=0),
        evaluate=evaluate,
        files=files,
        train=train,
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=3, optimizer=optimizer),
        seed=0,
        best=best,
        test=test,
        test_records=11 if test else 0,
    )
    facts = {"splits": {"test": {"sha256": records}}} if records else {}
    return Trainer(Run(folder, f"steps: {steps}\n", facts), job).train()


def place(folder: Path, name: str) -> str:
    return (folder / "checkpoints" / name).resolve().name


def cut(whole: Path, folder: Path, after: int) -> Path:
    """A copy of a run as it was after some step."""
    shutil.copytree(whole, folder, symlinks=True)
    for path in checkpoint.steps(folder / "checkpoints"):
        if checkpoint.step_of(path) > after:
            shutil.rmtree(path)
    return folder
