"""Names of runs and checkpoints, as a user may write them. Every command that takes one asks `find`. No torch.

A path of a run directory, of a checkpoint in it, or of any folder with a model; a path below runs/ (`sft/full/mine`, also with `runs/` in
front); the last parts of such a path (`mine`); for alignment also the `--name` without the algorithm (`mine` for `dpo-mine`). `/best`,
`/latest` or `/step-00000100` behind a run selects a checkpoint. A name of several runs is refused; nothing is guessed.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tinyllm.errors import RESOURCES, UserError
from tinyllm.io import foreign_weights
from tinyllm.io.shell import quote
from tinyllm.train import checkpoint

RUNS = Path("runs")
FACTS, CONFIG, METRICS = "run.json", "config.yaml", "metrics.jsonl"
MODEL_FILES = ("config.json", "adapter_config.json")
MAKE = "tinyllm pretrain --fast-dev-run"  # makes a first run, in seconds
_CHECKPOINTS = "checkpoints"
_LINKS = {"best": checkpoint.BEST, "latest": checkpoint.LATEST, "last": checkpoint.LATEST}
_ALIGNED = "rlhf"  # the folder of runs that are named ALGORITHM-NAME
_PLACES = ("pretrain", "sft", "rlhf", "checkpoints", "data", "logs")  # in runs/, or in a run
_SHOWN = 12  # candidates in one message
_SIMILAR = 0.6
_LONGEST_NAME = 200  # characters of a name in a message
_DEEPEST = 3  # folders between a path and a model that is suggested instead

Accepts = Callable[[Path], bool]  # whether the command can use a run


@dataclass(frozen=True)
class Found:
    """The run and the checkpoint that a name stands for.

    run: the run directory; None for a model that is not in one.
    checkpoint: the folder of the model, if the name says which.
    """

    run: Path | None
    checkpoint: Path | None = None


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run directory, which may have lost one of its files."""
    if (folder / FACTS).is_file():
        return True
    return (folder / CONFIG).is_file() and ((folder / _CHECKPOINTS).is_dir() or (folder / METRICS).is_file())


def is_model(folder: Path) -> bool:
    """Return whether a folder holds a model or an adapter, or is named as a checkpoint of a run."""
    if any((folder / name).is_file() for name in MODEL_FILES):
        return True
    return folder.is_dir() and checkpoint.is_step(folder.resolve())


def runs_below(folder: Path) -> Iterator[Path]:
    """Yield every run directory at or below `folder`, in the order of names."""
    for place, folders, _ in os.walk(folder):
        if is_run(Path(place)):
            folders.clear()
            yield Path(place)
        folders.sort()


def best_checkpoint(run: Path) -> Path:
    """Return the place of a run's best checkpoint, which need not exist."""
    return run / _CHECKPOINTS / checkpoint.BEST


def has_checkpoint(run: Path) -> bool:
    """Return whether a run has a best checkpoint."""
    return best_checkpoint(run).is_dir()


def find(name: str | Path, *, option: str = "RUN", accepts: Accepts = is_run, make: str = MAKE) -> Found:
    """Return what a name stands for.

    Args:
        option: how the user gave the name (`--checkpoint`, or RUN for an argument), for messages.
        accepts: decides between runs of one name, and which runs are suggested instead of a wrong name.
        make: see `unknown`.

    Raises: UserError (USAGE) if there is no such run, with the most similar one, or if there are several.
    """
    text = _expanded(str(name))
    _refuse_unreadable(text, option)
    found = _by_path(text) if text else None
    if found is not None:
        return found
    head, _, last = text.rstrip("/").rpartition("/")
    matches = matching(text)
    if not matches and head and (last in (*_LINKS, *_LINKS.values()) or last.startswith("step-")):
        run = find(head, option=option, accepts=accepts, make=make).run
        if run is not None:
            return Found(run, _checkpoint_of(run, last, option))
    usable = [run for run in matches if accepts(run)] or matches
    if len(usable) == 1:
        return Found(usable[0])
    raise _several(text, usable, option) if usable else unknown(text, option=option, accepts=accepts, make=make)


def folders(text: str) -> list[Path]:
    """Return the folders at a path, and at a path below runs/."""
    return [path for path in (Path(text), RUNS / text) if text and _is_folder(path)]


def is_local(text: str) -> bool:
    """Return whether a name is that of a folder or a run here, or begins as one: a mistyped run is not looked for elsewhere."""
    head = text.partition("/")[0]
    if folders(text) or matching(text) or os.path.lexists(head) or folders(head) or head == RUNS.name:
        return True
    return any(head in run.relative_to(RUNS).parts for run in runs_below(RUNS)) or bool(text and head in _PLACES)


def short_name(run: Path) -> str:
    """Return the path of a run below runs/, as `find` reads it."""
    return run.relative_to(RUNS).as_posix() if run.is_relative_to(RUNS) else run.as_posix()


# --- paths -----------------------------------------------------------------------------------------------------------------------


def _by_path(text: str) -> Found | None:
    """Return the run or model at a path, or at a path below runs/."""
    for path in folders(text):
        if is_run(path):
            return Found(path)
        run = next((parent for parent in path.parents if is_run(parent)), None)
        if is_model(path):
            return Found(run, path)
        if run is not None:  # checkpoints/, logs/
            return Found(run)
        if is_model(path / checkpoint.BEST):
            return Found(None, path / checkpoint.BEST)
    return None


def _expanded(text: str) -> str:
    """Return a path with the home folder in place of `~`, which shells leave in `--checkpoint=~/model`."""
    return os.path.expanduser(text) if text.startswith("~") else text


def _refuse_unreadable(text: str, option: str) -> None:
    """Raise UserError (RESOURCES) for a path that may not be looked at."""
    path = Path(text)
    try:
        allowed = not path.is_dir() or os.access(path, os.R_OK | os.X_OK)
    except PermissionError:
        allowed = False
    except OSError:  # no name of a file: not found, later
        return
    if not allowed:
        fix = "give yourself read permission for it and the folders above it"
        raise UserError(f"{_short(text)} cannot be read: permission denied", where=option, fix=fix, code=RESOURCES)


def _is_folder(path: Path) -> bool:
    return _exists(path) and path.is_dir()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for the file system
        return False


def _checkpoint_of(run: Path, choice: str, option: str) -> Path:
    """Return the checkpoint of a run by `best`, `latest` or its step."""
    folder = run / _CHECKPOINTS
    path = folder / _LINKS.get(choice, choice)
    if path.is_dir():
        return path
    known = [name for name, link in _LINKS.items() if (folder / link).is_dir() and name != "last"]
    known += [step.name for step in checkpoint.steps(folder)]
    fix = f"use one of {', '.join(known)}" if known else "choose another run: this one has no checkpoint"
    raise UserError(f"there is no checkpoint {choice!r} in {run}", where=option, fix=fix)


# --- names -----------------------------------------------------------------------------------------------------------------------


def matching(text: str) -> list[Path]:
    """Return the runs whose path below runs/ ends in `text`, with or without the algorithm in front of the last part."""
    parts = [part for part in text.split("/") if part]
    parts = parts[1:] if parts[:1] == [RUNS.name] else parts
    return [run for run in runs_below(RUNS) if parts and any(_ends(spelled, parts) for spelled in _spellings(run))]


def _spellings(run: Path) -> Iterator[list[str]]:
    parts = list(run.relative_to(RUNS).parts)
    yield parts
    if parts[0] == _ALIGNED and "-" in parts[-1]:
        yield [*parts[:-1], parts[-1].partition("-")[2]]


def _ends(parts: list[str], with_parts: list[str]) -> bool:
    return parts[-len(with_parts) :] == with_parts


# --- errors ----------------------------------------------------------------------------------------------------------------------


def _typed(run: Path, option: str) -> str:
    """Return what to type for a run: its name, behind the option if there is one."""
    name = quote(short_name(run))
    return name if option == "RUN" else f"{option} {name}" if option.startswith("--") else f"{option}={name}"


def _several(text: str, runs: list[Path], option: str, what: str = "") -> UserError:
    if len(runs) == 1:
        return UserError(what, where=option, fix=f"use {_typed(runs[0], option)}")
    names = list(map(short_name, runs))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    fix = f"use one of {', '.join(quote(name) for name in names[:_SHOWN])}{more}"
    return UserError(what or f"there are {len(names)} runs named {text!r}", where=option, fix=fix)


def _inside(text: str, accepts: Accepts) -> list[Path]:
    """Return the usable runs in a folder, or the run that a file is in."""
    for path in filter(_exists, (Path(text), RUNS / text) if text.strip("./") else ()):
        around = [parent for parent in path.parents if is_run(parent)][:1]
        if found := around or [run for run in runs_below(path) if accepts(run)]:
            return found
    return []


def _wrong_place(text: str, option: str) -> UserError | None:
    """Return the error for a path that misses a model by a little: a folder above one, a file in one, or weights that are never read."""
    path = Path(text)
    if os.path.islink(text) and not _exists(path):
        what = f"{_short(text)} is a link to {_short(os.readlink(path))}, which does not exist"
        return UserError(what, where=option, fix="restore what it leads to, or name another folder")
    if not text or not _exists(path) or next(runs_below(path if path.is_dir() else path.parent), None):
        return None
    folder = path if path.is_dir() else path.parent
    below = _models_below(path) if path.is_dir() else []
    if not below and foreign_weights.is_foreign(files := [file.name for file in folder.iterdir()]):
        return foreign_weights.error(folder.resolve().as_posix(), files, text)
    if not path.is_dir():
        fix = _typed(folder, option) if is_model(folder) else "the folder of a model, with config.json in it"
        return UserError(f"{_short(text)} is a file", where=option, fix=f"use {fix}")
    if below:
        what = f"{text} is not the folder of a model: {'it lies' if len(below) == 1 else f'{len(below)} lie'} below it"
        fix = (
            _typed(below[0], option)
            if len(below) == 1
            else f"one of {', '.join(quote(str(b)) for b in below[:_SHOWN])}"
        )
        return UserError(what, where=option, fix=f"use {fix}")
    return None


def _models_below(folder: Path) -> list[Path]:
    """Return the models up to three folders below one, as archives and caches nest them."""
    found: list[Path] = []
    for place, folders, _ in os.walk(folder):
        here = Path(place)
        if here != folder and is_model(here):
            found.append(here)
        if (found and found[-1] == here) or len(here.relative_to(folder).parts) >= _DEEPEST or len(found) > _SHOWN:
            folders.clear()
        folders.sort()
    return found


def unknown(
    text: str, *, option: str = "RUN", accepts: Accepts = is_run, what: str = "", where: str = "", make: str = MAKE
) -> UserError:
    """Return the error for a name that cannot be used, with the most similar one that can.

    Args:
        what: the error, if it is not that nothing has this name.
        where: the place of the error, if it is not the option.
        make: the command that makes a usable run, for when there is none.
    """
    if not what and (error := _wrong_place(text, option)):
        return error
    kind = "run or checkpoint" if option != "RUN" else "run"
    what = what or f"there is no {kind} {_short(text)!r}"
    if inside := _inside(text, accepts):
        return _several(text, inside, option, f"{text} is a folder of {len(inside)} runs" if len(inside) > 1 else what)
    usable = [run for run in runs_below(RUNS) if accepts(run)]
    near = (None if _is_path(text) else nearest(text, usable)) or _model_beside(text)
    models = option in ("--checkpoint", "--base")
    if near is not None:
        fix = f"use {_typed(near, option)}"
    elif _is_path(text):
        fix = "check the path: the folder of a model has config.json in it, an adapter's adapter_config.json"
    elif len(usable) == 1:
        fix = f"use {_typed(usable[0], option)}" + ", the only run, or name the folder of another model" * models
    elif usable:
        fix = f"choose one of the {len(usable)} listed by `tinyllm runs list --all`, such as {quote(short_name(usable[-1]))}"
    else:
        fix = f"run `{make}` first" + ", or name the folder of a model, or owner/name of a hub" * models
    return UserError(what, where=where or option, fix=fix)


def _is_path(text: str) -> bool:
    """Return whether a name is written as a path to somewhere else than runs/."""
    head, *more = Path(text).parts or ("",)
    return (
        text.startswith(("/", ".", "~")) or ".." in more or (bool(more) and head != RUNS.name and _exists(Path(head)))
    )


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}…"


def _model_beside(text: str) -> Path | None:
    """Return the folder of a model whose name is most similar to the last part of a path, in the folder that the path names."""
    place, name = Path(text).parent, Path(text).name
    if not name or not _is_folder(place):
        return None
    try:
        models = {
            path.name: path for path in sorted(place.iterdir()) if path.is_dir() and (is_model(path) or is_run(path))
        }
    except OSError:  # a folder that may not be read
        return None
    found = difflib.get_close_matches(name, models, n=1, cutoff=_SIMILAR)
    return models[found[0]] if found else None


def nearest(text: str, runs: Iterable[Path]) -> Path | None:
    """Return the run whose name is most similar, or None if none is."""
    word = text.strip("/").removeprefix(f"{RUNS.name}/")
    words = {word, word.rpartition("/")[2]}

    def similarity(run: Path) -> float:
        spelled = {"/".join(parts[n:]) for parts in _spellings(run) for n in (0, len(parts) - 1)}
        pairs = ((one, other) for one in words for other in spelled)
        return max(difflib.SequenceMatcher(None, one, other, autojunk=False).ratio() for one, other in pairs)

    ranked = [(similarity(run), -number, run) for number, run in enumerate(runs)]
    best = max(ranked, default=None)
    return best[2] if best and best[0] >= _SIMILAR else None
