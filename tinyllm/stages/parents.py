"""Where runs lie, and which checkpoint a stage starts from.

A stage that is not told its parent takes the newest finished run of the stage before it, says which, and records its hash. A rehearsal
(`--fast-dev-run`) starts from rehearsals, anything else never does. Nothing is ever replaced by fresh weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyllm.errors import INTEGRITY, UserError
from tinyllm.train import checkpoint
from tinyllm.train.run import COMPLETED, FAST_DEV_RUN, read_facts

RUNS = Path("runs")
PRETRAIN, SFT_FULL, SFT_LORA = "pretrain", "sft/full", "sft/peft/lora"
REWARD, OFFLINE, ONLINE = "rlhf/rm", "rlhf/offline", "rlhf/online"
BEFORE = {  # stage -> the places its parent may lie, in the order they are tried
    "sft": (PRETRAIN,),
    "rm": (SFT_FULL, SFT_LORA),
    "align-offline": (SFT_FULL, SFT_LORA),
    "align-online": (SFT_FULL, SFT_LORA),
    "chat": (ONLINE, OFFLINE, SFT_FULL, SFT_LORA, PRETRAIN),
    "eval": (PRETRAIN,),
    "reward model": (REWARD,),
}
_ADAPTER = "adapter_config.json"
_COMMANDS = {PRETRAIN: "tinyllm pretrain", SFT_FULL: "tinyllm sft", REWARD: "tinyllm rm"}


_File = tuple[Path, int, int, int]  # inode, size, time of the last change


@dataclass(frozen=True)
class Parent:
    """A checkpoint that exists and whose files are what its manifest says."""

    folder: Path
    sha256: str  # of its manifest; empty for a model from elsewhere, which has none
    files: tuple[_File, ...] = field(default=(), repr=False)  # as they were when they were verified

    def unchanged(self) -> None:
        """Called when all has been loaded. UserError (INTEGRITY) where a file is not the one that was verified."""
        now = [file for part in _parts(self.folder) for file in _files(part)]
        for path, *_ in set(self.files) ^ set(now):
            fix = "run the command again"
            raise UserError("changed while it was being read", where=str(path), fix=fix, code=INTEGRITY)

    def facts(self) -> dict[str, Any]:
        return {"checkpoint": self.folder.as_posix(), "manifest_sha256": self.sha256 or None}


def find(stage: str, given: Path | None, *, fast: bool) -> Parent:
    """The checkpoint `given`, or the newest fitting one. UserError (exit 2) with the command that makes one where there is none."""
    if given is not None:
        return _checked(_inside(given))
    for place in BEFORE[stage]:
        candidates = [run for run in _runs(place) if (FAST_DEV_RUN in run.name) == fast and _completed(run)]
        if candidates:
            newest = max(candidates, key=lambda run: str(read_facts(run).get("ended")))
            return _checked(newest / "checkpoints" / checkpoint.BEST)
    option = " --fast-dev-run" if fast else ""
    needed = next(p for p in BEFORE[stage] if p in _COMMANDS)
    what = (
        "there is no reward model yet"
        if stage == "reward model"
        else f"{stage} needs a checkpoint to start from, and there is none"
    )
    raise UserError(what, where=str(RUNS / needed), fix=f"run `{_COMMANDS[needed]}{option}` first")


def _runs(place: str) -> list[Path]:
    folder = RUNS / place
    runs = sorted(folder.iterdir()) if folder.is_dir() else []
    return [run for run in runs if (run / "checkpoints" / checkpoint.BEST).exists() and "~" not in run.name]


def _completed(run: Path) -> bool:
    """The best checkpoint of a run that has not finished may be the one from before its first step."""
    return read_facts(run).get("status") == COMPLETED


def _inside(given: Path) -> Path:
    """A checkpoint itself, or a run directory whose best one is meant."""
    for folder in (given, given / "checkpoints" / checkpoint.BEST, given / checkpoint.BEST):
        if any((folder / name).is_file() for name in ("config.json", _ADAPTER)) or _is_own(folder):
            return folder
    raise UserError(f"no checkpoint at {given}", where="--checkpoint", fix="name a run or a checkpoint directory")


def _checked(folder: Path) -> Parent:
    """The link followed, so that what is recorded is the step and not `ckpt_best`; its files verified if it has a manifest."""
    folder = folder.parent.resolve() / folder.resolve().name if folder.is_symlink() else folder
    if folder.is_absolute() and folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    files: list[_File] = []
    for part in _parts(folder):
        files += _files(part)
        _verify(part)
    sha256 = checkpoint.fingerprint(folder) if (folder / checkpoint.MANIFEST).is_file() else ""
    return Parent(folder, sha256, tuple(files))


def _parts(folder: Path) -> Iterator[Path]:
    """A checkpoint and, of an adapter, its base, whose files are not in the adapter's manifest."""
    yield folder
    if (folder / _ADAPTER).is_file():
        from tinyllm.model import described  # settings take a tenth of a second, and `explain` needs none

        yield described.base_folder(folder, described.read_adapter(folder)[1])


def _files(folder: Path) -> list[_File]:
    stats = [(path, path.lstat()) for path in sorted(folder.iterdir()) if not path.is_dir()]
    return [(path, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def _verify(folder: Path) -> None:
    """What has no manifest comes from elsewhere; our own checkpoints are never without one."""
    if (folder / checkpoint.MANIFEST).is_file() or _is_own(folder):
        checkpoint.verify(folder)


def _is_own(folder: Path) -> bool:
    """Whether a run has written it, whatever is left of it."""
    return folder.resolve() in checkpoint.steps(folder.resolve().parent)
