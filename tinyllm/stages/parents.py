"""Locations of runs, and the checkpoint that a stage starts from.

Without --checkpoint a stage starts from the newest completed run of the stage before it, reports which, and records its hash. A
fast-dev-run starts only from fast-dev-runs, and other runs never do. A missing checkpoint is an error, never replaced by fresh weights.
A name that is no folder and no run here, `OWNER/NAME`, is a model of a Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllm.console import say
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.io import foreign_weights, hub_cache
from tinyllm.io.hub_cache import HubName
from tinyllm.train import checkpoint, names
from tinyllm.train.fast_dev_runs import is_fast_dev_run
from tinyllm.train.names import RUNS, best_checkpoint, has_checkpoint
from tinyllm.train.run import COMPLETED, read_facts

if TYPE_CHECKING:
    from tinyllm.text.tokenizer import Tokenizer

PRETRAIN, SFT_FULL, SFT_LORA = "pretrain", "sft/full", "sft/peft/lora"
REWARD, OFFLINE, ONLINE = "rlhf/rm", "rlhf/offline", "rlhf/online"
PARENT_PLACES = {  # stage -> folders of runs that it can start from, in the order of preference
    "sft": (PRETRAIN,),
    "rm": (SFT_FULL, SFT_LORA),
    "align-offline": (SFT_FULL, SFT_LORA),
    "align-online": (SFT_FULL, SFT_LORA),
    "chat": (ONLINE, OFFLINE, SFT_FULL, SFT_LORA, PRETRAIN),
    "eval": (PRETRAIN,),
    "reward model": (REWARD,),
}
_ADAPTER = "adapter_config.json"
_OPTIONS = {
    "reward model": "reward_model",
    "verify": "RUN",
}  # how a user names the checkpoint, where it is not --checkpoint
_COMMANDS = {PRETRAIN: "tinyllm pretrain", SFT_FULL: "tinyllm sft", REWARD: "tinyllm rm"}


_File = tuple[Path, int, int, int]  # inode, size, time of the last change


@dataclass(frozen=True)
class Parent:
    """A verified checkpoint: its files are those that its manifest lists."""

    folder: Path
    sha256: str  # of its manifest; empty for a model from elsewhere
    files: tuple[_File, ...] = field(default=(), repr=False)  # as they were when verified
    base: Path | None = None  # of an adapter, where the user named it
    hub: HubName | None = None  # repository and commit of a model from a hub

    def check_unchanged(self) -> None:
        """Call it after loading. Raises: UserError (INTEGRITY) if a file is no longer the one that was verified."""
        now = [file for part in _parts(self.folder, self.base) for file in _files(part)]
        for path, *_ in set(self.files) ^ set(now):
            fix = "run the command again"
            raise UserError("changed while it was being read", where=str(path), fix=fix, code=INTEGRITY)

    def facts(self) -> dict[str, Any]:
        """Return what run.json records about it."""
        found: dict[str, Any] = {"checkpoint": self.folder.as_posix(), "manifest_sha256": self.sha256 or None}
        if self.hub is not None:
            from tinyllm.stages.foreign import hub_models

            sha256 = hub_models.verify(self.folder)
            found["hub"] = {"repository": self.hub.repository, "revision": self.hub.revision, "sha256": sha256}
        return found


def find_checkpoint(
    stage: str, given: Path | None, *, fast: bool, base: Path | None = None, weights: bool = True
) -> Parent:
    """Return the checkpoint `given`, or the best one of the newest completed run that `stage` can start from.

    Args:
        stage: a key of `PARENT_PLACES`; with `given`, any name.
        given: a checkpoint, or a run, whose best checkpoint is meant; by its path or its name, see `train.names`. Or a model of a hub,
            which is downloaded unless it is in the cache.
        fast: look for a fast-dev-run.
        base: the base model of an adapter, where it is not the one that the adapter names: a folder, a run or its name, or a name of a hub.
        weights: False downloads no weights: for a look at what a model is.

    Raises: UserError if there is none (USAGE), or its files are damaged (INTEGRITY); see also `hub_models.find`.
    """
    if given is not None:
        folder = named_checkpoint(stage, given, fast=fast, weights=weights, with_base=base is None)
        return _verified(folder, base and named_base(base, weights=weights), weights=weights)
    if newest := _newest(stage, fast):
        return _verified(best_checkpoint(newest), base and named_base(base, weights=weights))
    needed = _needed(stage)
    what = (
        "there is no reward model yet"
        if stage == "reward model"
        else f"{stage} needs a checkpoint to start from; none was found"
    )
    raise UserError(what, where=str(RUNS / needed), fix=f"run `{_command(stage, fast)}` first")


def tokenizer_of(folder: Path, base: Path | None = None) -> Tokenizer:
    """Load the tokenizer of a checkpoint. PEFT saves an adapter without one, or without generation settings: then the base has them.

    Args:
        base: the base model of an adapter, where the user named it.
    """
    from tinyllm.text import importing  # `explain` can do without
    from tinyllm.text.tokenizer import Tokenizer

    *_, last = _parts(folder, base)
    return Tokenizer.load(folder if last == folder or importing.is_in(folder) else last, last)


def expected_parent(stage: str, given: Path | None, *, fast: bool) -> Path | None:
    """Return the checkpoint that `find_checkpoint` would return, not verified, and without weights if it is a model of a hub.

    None where no name is given and there is none, and for a run that is still to be made, as a lifecycle plans them: the stage reports
    it. Raises: UserError as `find_checkpoint`.
    """
    if given is not None and given.parts[:1] == RUNS.parts and not given.exists():
        return None
    if given is not None:
        return named_checkpoint(stage, given, fast=fast)
    newest = _newest(stage, fast)
    return best_checkpoint(newest) if newest else None


def _newest(stage: str, fast: bool) -> Path | None:
    """Return the newest completed run that a stage can start from."""
    for place in PARENT_PLACES.get(stage, ()):
        candidates = [run for run in _runs(place) if is_fast_dev_run(run, read_facts(run)) == fast and _completed(run)]
        if candidates:
            return max(candidates, key=lambda run: str(read_facts(run).get("ended")))
    return None


def _needed(stage: str) -> str:
    """Return the folder of runs that a stage usually starts from."""
    return next(p for p in PARENT_PLACES.get(stage, (PRETRAIN,)) if p in _COMMANDS)


def _command(stage: str, fast: bool) -> str:
    """Return the command that makes a run to start from."""
    return _COMMANDS[_needed(stage)] + (" --fast-dev-run" if fast else "")


def _runs(place: str) -> list[Path]:
    folder = RUNS / place
    runs = sorted(folder.iterdir()) if folder.is_dir() else []
    return [run for run in runs if has_checkpoint(run) and "~" not in run.name]


def _completed(run: Path) -> bool:
    """Return True for a completed run. The best checkpoint of any other may be the one from before its first step."""
    return read_facts(run).get("status") == COMPLETED


def named_checkpoint(stage: str, given: Path, *, fast: bool, weights: bool = False, with_base: bool = True) -> Path:
    """Return the checkpoint that a name stands for, by default without weights if it is a model of a hub.

    Args:
        with_base: download the base of an adapter, too.

    Raises: UserError (USAGE) where there is none; see also `find_checkpoint`.
    """
    option = _OPTIONS.get(stage, "--checkpoint")

    def accepts(run: Path) -> bool:
        return can_start_from(stage, run)

    remote = _hub_name(given)
    if remote is not None:
        from tinyllm.stages.foreign import hub_models  # only then: it brings what a download needs

        return hub_models.find(remote, weights=weights, with_base=with_base)
    make = _command(stage, fast)
    found = names.find(given, option=option, accepts=accepts, make=make)
    if found.checkpoint is not None:
        return found.checkpoint
    assert found.run is not None
    if names.is_model(best := best_checkpoint(found.run)):
        return best
    what = f"{found.run} has no checkpoint yet"
    raise names.unknown(str(given), option=option, accepts=accepts, what=what, make=make)


def _hub_name(given: Path) -> HubName | None:
    """Return the model of a hub that a name stands for; None if it is, or looks like, something on this machine, which always wins."""
    name = hub_cache.parse(given.as_posix())
    if name is None:
        return None
    if not name.revision and names.is_local(given.as_posix()):
        if hub_cache.complete_snapshot(name):
            say(
                f"note: {given} is on this machine; the model of the hub with this name would be {name.repository}@main"
            )
        return None
    return None if name.revision and names.folders(given.as_posix()) else name


def can_start_from(stage: str, run: Path) -> bool:
    """Return whether a run has a checkpoint of the kind that a stage takes."""
    from tinyllm.stages.origin import read_origin  # it brings the tokenizers library, which `explain` can do without

    if not has_checkpoint(run) or "~" in run.name:
        return False
    try:
        kind = read_origin(best_checkpoint(run)).kind
    except UserError:
        return False
    return stage == "verify" or (kind == "reward_model") == (stage == "reward model")


def named_base(given: Path, *, weights: bool = True) -> Path:
    """Return the checkpoint that --base stands for. Raises: UserError (USAGE) where there is none; see also `find_checkpoint`."""

    def accepts(run: Path) -> bool:
        return can_start_from("chat", run)

    if remote := _hub_name(given):
        from tinyllm.stages.foreign import hub_models

        return hub_models.find(remote, weights=weights)
    found = names.find(given, option="--base", accepts=accepts, make=_COMMANDS[PRETRAIN])
    folder = found.checkpoint or (found.run and best_checkpoint(found.run))
    assert folder is not None
    return _followed(folder)


def _followed(folder: Path) -> Path:
    """Return a checkpoint's own folder for a link to it, relative to the working directory where it is below that."""
    folder = folder.parent.resolve() / folder.resolve().name if folder.is_symlink() else folder
    below = folder.is_absolute() and folder.is_relative_to(Path.cwd())
    return folder.relative_to(Path.cwd()) if below else folder


def _verified(folder: Path, base: Path | None = None, *, weights: bool = True) -> Parent:
    """Verify a checkpoint. A link is followed, so that the step is recorded and not `ckpt_best`."""
    folder = _followed(folder)
    if base is not None and not (folder / _ADAPTER).is_file():
        what = f"{folder} is a whole model, and no adapter that needs a base"
        raise UserError(what, where="--base", fix="leave it out")
    if weights:
        _refuse_incomplete(part for part in _parts(folder, base) if part != folder)
    files: list[_File] = []
    for part in _parts(folder, base):
        files += _files(part)
        _verify(part)
    sha256 = checkpoint.fingerprint(folder) if (folder / checkpoint.MANIFEST).is_file() else ""
    return Parent(folder, sha256, tuple(files), base, hub_cache.name_of(folder))


def _refuse_incomplete(parts: Iterable[Path]) -> None:
    """Raise UserError (INTEGRITY) for a model of a hub of which only the settings are in the cache: the base of an adapter."""
    for part in parts:
        name = hub_cache.name_of(part)
        if name and not hub_cache.has_weights(part):
            fix = f"download it, by `tinyllm verify {name}`"
            raise UserError("the weights are not in the cache", where=str(part), fix=fix, code=INTEGRITY)


def _parts(folder: Path, base: Path | None) -> Iterator[Path]:
    """Yield the checkpoint and, for an adapter, its base, whose files are not in the adapter's manifest."""
    yield folder
    if (folder / _ADAPTER).is_file():
        from tinyllm.model import (
            adapter_config,  # importing pydantic models takes a tenth of a second, which `explain` can do without
        )

        yield adapter_config.base_folder(folder, adapter_config.read_adapter(folder)[1], base)


def _files(folder: Path) -> list[_File]:
    stats = [(path, path.lstat()) for path in sorted(folder.iterdir()) if not path.is_dir()]
    return [(path, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def _verify(folder: Path) -> None:
    """Verify a folder against its manifest, or a model of a hub against the hub's checksums.

    Other models from elsewhere have neither; a checkpoint of a run without a manifest is damaged.
    """
    if hub_cache.name_of(folder):
        from tinyllm.stages.foreign import hub_models

        hub_models.verify(folder)
    elif (folder / checkpoint.MANIFEST).is_file() or _is_own(folder):
        checkpoint.verify(folder)
    elif foreign_weights.is_foreign(files := [path.name for path in folder.iterdir()]):
        raise foreign_weights.error(folder.resolve().as_posix(), files, str(folder))


def _is_own(folder: Path) -> bool:
    """Return True for a folder named as a run's checkpoint, whatever its content."""
    return checkpoint.is_step(folder.resolve())
