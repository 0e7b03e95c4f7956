"""Save checkpoints of a run, and resume from the newest valid one.

A checkpoint holds everything the rest of a run depends on: weights, optimizer state, the step, and the state of the source of batches
(an unfinished rollout). Random numbers are functions of (seed, step, rank, micro-batch) and data of (seed, step), so no generator state
is saved. On the same machine, with the same number of ranks and threads, a resumed run equals the uninterrupted one bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tinyllm import distributed as dist
from tinyllm.console import say
from tinyllm.errors import FAILED, INTEGRITY, RESOURCES, UserError
from tinyllm.io import strict_json, untrusted_files
from tinyllm.io.files import free_bytes
from tinyllm.model import tensors
from tinyllm.train import checkpoint, lock
from tinyllm.train.engine import Engine
from tinyllm.train.run import Run

if TYPE_CHECKING:
    from tinyllm.train.job import Job

FORMAT = 1  # of trainer/state.json
_MAX_COUNT = 1 << 62  # of steps and tokens in trainer/state.json
_BYTES_OF_MOMENTS = 8  # Adam's two for each weight, in float32


class CheckpointManager:
    """The checkpoints of one run. Every rank has one and makes the same calls."""

    def __init__(self, run: Run, job: Job, engine: Engine):
        self.run, self.job, self.engine = run, job, engine
        self.folder = run.checkpoints
        self._saved_step = -1

    def is_saved(self) -> bool:
        """Return True if there is a checkpoint of the current step."""
        return self._saved_step == self.engine.updates

    def save(self, loop_state: dict[str, Any], *, best: bool = False, again: bool = False) -> None:
        """Save a checkpoint of the current step, unless there is one, and remove old ones.

        Args:
            loop_state: the training loop's own state, which `resume` returns.
            best: let `ckpt_best` point to it.
            again: replace the checkpoint of this step.

        Raises: UserError for weights that are not finite (FAILED) and for a disk that is full (RESOURCES).
        """
        step = self.engine.updates
        path = self.folder / checkpoint.name_of(step)
        if again or not self.is_saved():
            if dist.is_main():
                lock.check(self.run.folder)
            self.refuse_broken_weights()
            path = checkpoint.save(self.folder, step, lambda folder: self._write(folder, loop_state))
        if dist.is_main():
            checkpoint.link(self.folder, checkpoint.LATEST, path)
            if best:
                checkpoint.link(self.folder, checkpoint.BEST, path)
            checkpoint.prune(self.folder, self.job.train.keep, self.job.train.keep_every)
        self._saved_step = step
        dist.barrier()

    def refuse_broken_weights(self) -> None:
        """Raise UserError (FAILED) if a weight is not finite."""
        weights = self.engine.trainable
        if torch.isfinite(torch.nn.utils.get_total_norm(list(weights.values()))):
            return
        broken = next((name for name, p in weights.items() if not torch.isfinite(p).all()), "all together")
        raise UserError(
            f"after step {self.engine.updates} the weights are not finite ({broken}); they were not saved, earlier checkpoints are "
            "untouched",
            where=str(self.folder),
            fix="lower optim.learning_rate, under another --name or with --no-resume",
            code=FAILED,
        )

    def _write(self, folder: Path, loop_state: dict[str, Any]) -> None:
        trainer, step = folder / "trainer", self.engine.updates
        trainer.mkdir(exist_ok=True)
        source_state = self.job.source.state(step)
        if source_state:  # every rank writes its own
            save_file({k: v.contiguous() for k, v in source_state.items()}, trainer / self._source_file())
        if not dist.is_main():
            return
        self.job.files.write(folder)
        save_file({k: v.contiguous() for k, v in self.engine.state().items()}, trainer / "optimizer.safetensors")
        position = self.job.source.position(step)
        state = {"format": FORMAT, "updates": step, "position": position, "seed": self.job.seed}
        state |= {**loop_state, **self._environment()}
        (trainer / "state.json").write_text(strict_json.dumps(state, indent=2) + "\n", encoding="utf-8")

    def _source_file(self) -> str:
        return f"source-{dist.rank()}-of-{dist.world_size()}.safetensors"

    def _environment(self) -> dict[str, Any]:
        """Return what the last bits of a sum depend on."""
        return {
            "world_size": dist.world_size(),
            "threads": torch.get_num_threads(),
            "device": self.engine.device.type,
            "torch": torch.__version__,
        }

    def resume(self) -> dict[str, Any] | None:
        """Restore model, optimizer and source from the newest valid checkpoint. Returns its state, or None without checkpoints.

        Damaged checkpoints newer than that one are reported and renamed.
        Raises: UserError (INTEGRITY) if all are damaged, or if the newest belongs to another model or a newer tinyllm.
        """
        damaged: list[Path] = []

        def warn(error: UserError, path: Path) -> None:
            say(f"warning: skipping a damaged checkpoint: {error.what} ({error.where})")
            damaged.append(path)

        newest = checkpoint.newest(self.folder, warn) if dist.is_main() else None
        if dist.is_main() and damaged and newest is None:
            raise UserError(
                "every checkpoint of this run is damaged; nothing was changed",
                where=str(self.folder),
                fix="restore one from a backup, or add --no-resume to move the run aside and start over",
                code=INTEGRITY,
            )
        for path in damaged:  # else `prune` would count them as the newest
            say(f"renamed to {checkpoint.set_aside(path)}")
        found = dist.broadcast_text(str(newest or ""))
        return self._restore(Path(found)) if found else None

    def _restore(self, folder: Path) -> dict[str, Any]:
        state = read_state(folder)
        step = state["updates"]
        self.job.files.restore(folder)
        optimizer = folder / "trainer" / "optimizer.safetensors"
        try:
            self.engine.restore(tensors.read([optimizer]), step)
        except UserError as error:
            error.where = error.where or str(optimizer)
            raise
        source_file = folder / "trainer" / self._source_file()
        source_state: dict[str, Tensor] = tensors.read([source_file], finite=False) if source_file.is_file() else {}
        self._continue_data_order(state)
        restored = self.job.source.restore(step, source_state)
        self._saved_step = step
        if dist.is_main():
            checkpoint.link(self.folder, checkpoint.LATEST, folder)
            best = self.folder / checkpoint.name_of(state.get("best_step", -1))
            if best.is_dir():  # a kill between saving it and letting the link point to it
                checkpoint.link(self.folder, checkpoint.BEST, best)
        if dist.broadcast_text(str((self.folder / checkpoint.BEST).exists())) == "False":
            if self.run.plan.rewound:  # it pointed to one set aside, and not to a damaged one that will be found again
                state["history"]["best"], state["best_step"] = state["history"]["last"], step
            if dist.is_main():
                checkpoint.link(self.folder, checkpoint.BEST, folder)
        self.run.drop_metrics_after(step)
        if step < self.job.train.steps:
            say(f"resuming {self.run.folder} after step {step} of {self.job.train.steps}")
            self._warn_about_differences(state, not restored and any((folder / "trainer").glob("source-*")))
        return state

    def _continue_data_order(self, state: dict[str, Any]) -> None:
        """Continue with the record after the last one used, also if the batch size has changed."""
        step, source, before = state["updates"], self.job.source, self.run.plan.batch_size_before
        if "position" in state:
            source.start_at(step, state["position"])
        elif before is not None:  # saved by an earlier version, in which no batch size could change
            source.start_at(step, source.position(step) * before // self.job.train.batch_size)

    def _warn_about_differences(self, state: dict[str, Any], lost_rollout: bool) -> None:
        now = self._environment()
        changed = [f"{k.replace('_', ' ')} changed from {state[k]} to {now[k]}" for k in now if state.get(k) != now[k]]
        if changed:
            say(f"warning: from here on equal only up to rounding, not bitwise: {', '.join(changed)}")
        if lost_rollout:
            say(
                "warning: the unfinished rollout belongs to another number of ranks or batch size; a new one is sampled"
            )

    def check_disk_space(self) -> None:
        """Refuse to start a run whose checkpoints the disk cannot hold. Raises: UserError (RESOURCES)."""
        if not dist.is_main():
            return
        train = self.job.train
        milestones = train.steps // train.keep_every if train.keep_every else 0
        size = (_BYTES_OF_MOMENTS + self.job.files.bytes_per_weight) * sum(
            p.numel() for p in self.engine.trainable.values()
        )
        most = min(train.keep + milestones, 1 + train.steps // train.save_every) + 2  # the best, and one being written
        present = sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())
        needed, free = size * most - present, free_bytes(self.folder)
        if needed > free:
            raise UserError(
                f"{most} checkpoints of about {size:,} bytes need {needed:,} bytes more, and {free:,} are free",
                where=str(self.folder),
                fix="free disk space, or lower train.keep or train.keep_every",
                code=RESOURCES,
            )


def read_state(folder: Path) -> dict[str, Any]:
    """Return trainer/state.json of a checkpoint. Raises: UserError (INTEGRITY) if this version cannot resume from it."""
    path = folder / "trainer" / "state.json"
    state = strict_json.restored(untrusted_files.read_json(path, nan=True))  # earlier versions wrote NaN itself
    version, updates, tokens = state.get("format", FORMAT), state.get("updates"), state.get("tokens")
    if newer := untrusted_files.newer_format(version, FORMAT):
        raise UserError(newer, where=str(path), fix="update tinyllm", code=INTEGRITY)
    segments = [number for pair in state.get("segments", []) for number in pair]
    numbers = (updates, tokens, state.get("position", 0), state.get("best_step", 0), *segments)
    counts = all(type(number) is int and 0 <= number < _MAX_COUNT for number in numbers)
    if version != FORMAT or not counts or not _is_history(state.get("history")):
        raise UserError("not a valid trainer state", where=str(path), code=INTEGRITY)
    if folder in checkpoint.steps(folder.parent) and updates != checkpoint.step_of(folder):
        raise UserError(f"the state of step {updates}", where=str(path), code=INTEGRITY)
    return state


def _is_history(history: Any) -> bool:
    """Return True for figures before the first step, at the best checkpoint and at the last evaluation."""
    if not isinstance(history, dict) or set(history) != {"before", "best", "last"}:
        return False
    return all(
        isinstance(figures, dict) and figures and all(type(value) in (int, float) for value in figures.values())
        for figures in history.values()
    )
