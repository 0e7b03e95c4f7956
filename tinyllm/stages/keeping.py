"""What a run owes its owner between steps: checkpoints on disk, and the way back to the newest good one.

A checkpoint holds all that decides the rest of a run: weights, optimiser state, the step, and what the source of batches goes on with
(an unfinished rollout). Random numbers are functions of (seed, step, rank, micro-batch) and data of (seed, step), so there is no
state of theirs to save. On the same machine, with as many ranks and threads, a resumed run is the undisturbed one bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tinyllm import dist, foreign
from tinyllm.errors import FAILED, INTEGRITY, RESOURCES, UserError
from tinyllm.model import tensors
from tinyllm.train import checkpoint
from tinyllm.train.engine import Engine
from tinyllm.train.progress import say
from tinyllm.train.run import Run

if TYPE_CHECKING:
    from tinyllm.stages.fit import Job

FORMAT = 1  # of trainer/state.json
_MOST = 1 << 62  # of what is counted
_BYTES_A_WEIGHT = 12  # the weight and Adam's two moments


class Keeper:
    """The checkpoints of one run. Every rank has one, and calls it at the same moments."""

    def __init__(self, run: Run, job: Job, engine: Engine):
        self.run, self.job, self.engine = run, job, engine
        self.folder = run.checkpoints
        self._saved_at = -1

    def save(self, facts: dict[str, Any], *, best: bool = False) -> None:
        """One directory a step; the same step is not written twice. `facts` are the loop's own, for `resume` to give back."""
        step = self.engine.updates
        path = self.folder / f"step-{step:08d}"
        if self._saved_at != step:
            self._refuse_broken_weights()
            path = checkpoint.save(self.folder, step, lambda folder: self._write(folder, facts))
        if dist.is_main():
            checkpoint.link(self.folder, checkpoint.LATEST, path)
            if best:
                checkpoint.link(self.folder, checkpoint.BEST, path)
            checkpoint.prune(self.folder, self.job.train.keep, self.job.train.keep_every)
        self._saved_at = step
        dist.barrier()

    def _refuse_broken_weights(self) -> None:
        weights = self.engine.trained
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

    def _write(self, folder: Path, facts: dict[str, Any]) -> None:
        trainer, step = folder / "trainer", self.engine.updates
        trainer.mkdir(exist_ok=True)
        unfinished = self.job.source.state(step)
        if unfinished:  # every rank's own
            save_file({k: v.contiguous() for k, v in unfinished.items()}, trainer / self._source_file())
        if not dist.is_main():
            return
        self.job.write(folder)
        save_file({k: v.contiguous() for k, v in self.engine.state().items()}, trainer / "optimizer.safetensors")
        state = {"format": FORMAT, "updates": step, "seed": self.job.seed, **facts, **self._surroundings()}
        (trainer / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

    def _source_file(self) -> str:
        return f"source-{dist.rank()}-of-{dist.world_size()}.safetensors"

    def _surroundings(self) -> dict[str, Any]:
        """What the last bits of a sum depend on."""
        return {
            "world_size": dist.world_size(),
            "threads": torch.get_num_threads(),
            "device": self.engine.device.type,
            "torch": torch.__version__,
        }

    def resume(self) -> dict[str, Any] | None:
        """Go back to the newest checkpoint that verifies, if the run has any, and return what `save` was given with it."""
        damaged: list[Path] = []

        def warn(error: UserError, path: Path) -> None:
            say(f"warning: passing over a damaged checkpoint: {error.what} ({error.where})")
            damaged.append(path)

        newest = checkpoint.newest(self.folder, warn) if dist.is_main() else None
        if dist.is_main() and damaged and newest is None:
            raise UserError(
                "every checkpoint of this run is damaged; nothing was changed",
                where=str(self.folder),
                fix="restore one from a copy, or add --no-resume to move the run aside and start over",
                code=INTEGRITY,
            )
        for path in damaged:  # else the next removal of old checkpoints would take them for the newest
            say(f"it is now {checkpoint.set_aside(path)}")
        found = dist.broadcast_text(str(newest or ""))
        return self._restore(Path(found)) if found else None

    def _restore(self, folder: Path) -> dict[str, Any]:
        state = read_state(folder)
        self.job.restore(folder)
        moments = folder / "trainer" / "optimizer.safetensors"
        try:
            self.engine.restore(tensors.read([moments]), state["updates"])
        except UserError as error:
            error.where = error.where or str(moments)
            raise
        unfinished = folder / "trainer" / self._source_file()
        kept: dict[str, Tensor] = tensors.read([unfinished], finite=False) if unfinished.is_file() else {}
        self.job.source.restore(state["updates"], kept)
        self._saved_at = state["updates"]
        if dist.is_main():
            checkpoint.link(self.folder, checkpoint.LATEST, folder)
            if not (self.folder / checkpoint.BEST).exists():  # it led to one that was set aside; it will be met again
                checkpoint.link(self.folder, checkpoint.BEST, folder)
        self.run.forget_after(state["updates"])
        if state["updates"] < self.job.train.steps:
            say(f"resuming {self.run.folder} after step {state['updates']} of {self.job.train.steps}")
            self._tell_differences(state, cut=not kept and any((folder / "trainer").glob("source-*")))
        return state

    def _tell_differences(self, state: dict[str, Any], cut: bool) -> None:
        now = self._surroundings()
        changed = [f"{k.replace('_', ' ')} changed from {state[k]} to {now[k]}" for k in now if state.get(k) != now[k]]
        if changed:
            say(f"warning: from here on equal only to rounding, not bitwise: {', '.join(changed)}")
        if cut:
            say("warning: the rollout under way belongs to another number of ranks; a new one is written")

    def need_room(self) -> None:
        """Refuse to begin what the disk cannot hold to its end.

        Raises: UserError (RESOURCES) with the bytes that checkpoints will take and the bytes that are free.
        """
        if not dist.is_main():
            return
        train = self.job.train
        milestones = train.steps // train.keep_every if train.keep_every else 0
        size = _BYTES_A_WEIGHT * sum(p.numel() for p in self.engine.trained.values())
        most = min(train.keep + milestones, 1 + train.steps // train.save_every) + 2  # the best, and one being written
        there = sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())
        needed, free = size * most - there, checkpoint.free_bytes(self.folder)
        if needed > free:
            raise UserError(
                f"{most} checkpoints of about {size:,} bytes need {needed:,} bytes more, and {free:,} are free",
                where=str(self.folder),
                fix="free disk space, or lower train.keep or train.keep_every",
                code=RESOURCES,
            )


def read_state(folder: Path) -> dict[str, Any]:
    """trainer/state.json of a checkpoint. Raises: UserError (INTEGRITY) where it is not one this version can go on with."""
    path = folder / "trainer" / "state.json"
    state = foreign.read_json(path, nan=True)  # a figure may be one
    version, updates, tokens = state.get("format", FORMAT), state.get("updates"), state.get("tokens")
    if type(version) is int and version > FORMAT:
        what = f"written by a newer tinyllm: format {foreign.short(version)}, this one reads {FORMAT}"
        raise UserError(what, where=str(path), fix="update tinyllm", code=INTEGRITY)
    counts = all(type(number) is int and 0 <= number < _MOST for number in (updates, tokens))
    if version != FORMAT or not counts or not _is_history(state.get("history")):
        raise UserError("not the state of a run", where=str(path), code=INTEGRITY)
    if folder in checkpoint.steps(folder.parent) and updates != checkpoint.step_of(folder):
        raise UserError(f"the state of step {updates}", where=str(path), code=INTEGRITY)
    return state


def _is_history(history: Any) -> bool:
    """Figures before the first step, at the best checkpoint and at the last evaluation."""
    if not isinstance(history, dict) or set(history) != {"before", "best", "last"}:
        return False
    return all(
        isinstance(figures, dict) and figures and all(type(value) in (int, float) for value in figures.values())
        for figures in history.values()
    )
