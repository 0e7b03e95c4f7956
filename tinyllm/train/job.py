"""A training stage as data: model, checkpoint files, loss, source of batches and held-out evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from tinyllm.mean import Mean
from tinyllm.model.transformer import ActorCritic, CausalLM, SequenceScorer
from tinyllm.train.config import OptimConfig, TrainConfig
from tinyllm.train.engine import Engine, Loss


class BatchSource(Protocol):
    """Maps a step number to micro-batches.

    `metrics` are the source's own figures (the rewards of a rollout); a source of plain data has none.
    """

    metrics: dict[str, Mean]

    def __call__(self, step: int) -> list[Any]:
        """Return this rank's micro-batches of a step."""
        ...

    def largest(self) -> Any:
        """Return a micro-batch that needs as much memory as any."""
        ...

    def describe(self, step: int) -> str:
        """Return what a step consists of, for error messages."""
        ...

    def position(self, step: int) -> int:
        """Return the number of records used before `step`, over all ranks and epochs."""
        ...

    def start_at(self, step: int, position: int) -> None:
        """Let `step` begin with record number `position`; the batch size may have been another one until then."""
        ...

    def state(self, step: int) -> dict[str, Tensor]:
        """Return the tensors that this rank needs to continue with `step`; empty for plain data."""
        ...

    def restore(self, step: int, tensors: dict[str, Tensor]) -> bool:
        """Continue with `step` from the tensors that `state` returned. Returns False if they cannot be used."""
        ...


class ModelFiles(Protocol):
    """Writes the model into a checkpoint directory, and restores it from one in place."""

    @property
    def bytes_per_weight(self) -> int: ...
    def write(self, folder: Path) -> None: ...
    def restore(self, folder: Path) -> None: ...


@dataclass
class Job:
    """Everything that distinguishes one training stage from another.

    Args:
        title: shown beside the progress bar.
        evaluate: returns held-out figures of val, pooled over ranks; called before the first step, every `eval_every` steps and at the
            end. They select `ckpt_best`.
        test: returns the same figures of the test records, by which nothing is chosen; called before the first step, and at the end for
            the best and the last checkpoint. None without test records.
        test_records: their number.
        best: the held-out figure that decides `ckpt_best`, and its direction.
        boundary: optimizer steps in one rollout. Evaluations and planned checkpoints come only after a multiple of it, and
            `eval_every` and `save_every` count such multiples.
    """

    title: str
    model: CausalLM | SequenceScorer | ActorCritic
    files: ModelFiles
    loss: Loss
    source: BatchSource
    evaluate: Callable[[Engine], Mapping[str, Mean | float]]
    train: TrainConfig
    optim: OptimConfig
    seed: int
    best: tuple[str, Literal["min", "max"]] = ("loss", "min")
    boundary: int = 1
    test: Callable[[Engine], Mapping[str, Mean | float]] | None = None
    test_records: int = 0
