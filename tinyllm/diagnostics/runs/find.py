"""Find runs by name or path, and the present place of paths that a run recorded. Links are followed only where the user names them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tinyllm.diagnostics.runs.record import RunRecord, is_run, parent_of_runs, read_record
from tinyllm.errors import UserError
from tinyllm.stages.parents import RUNS


def runs_below(folder: Path) -> Iterator[Path]:
    """Yield every run directory at or below `folder`, in the order of names."""
    for place, folders, _ in os.walk(folder):
        if is_run(Path(place)):
            folders.clear()
            yield Path(place)
        folders.sort()


def recorded_paths(recorded: str, run: Path) -> list[Path]:
    """Return where a path recorded by a run exists: as it is, relative to the folder that contains runs/, or to the current folder."""
    path, top = Path(recorded), parent_of_runs(run)
    if path.is_absolute():
        places = [path]
    else:
        places = [p / path for p in (*([top] if top else run.absolute().parents), Path.cwd())]
    found = []
    for place in places:
        with suppress(OSError, ValueError):  # not readable, or not a valid path
            if recorded and place.exists():
                found.append(relative_to_cwd(place))
    return list(dict.fromkeys(found))


def relative_to_cwd(path: Path) -> Path:
    """Return an absolute path relative to the current folder, if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path


def find_run(name: str) -> tuple[RunRecord, Path | None]:
    """Return the run with a path, a path below runs/, or a unique name; and the checkpoint, if the path is that of one.

    Raises: UserError (USAGE) with the most similar name, or with the runs of that name if there are several.
    """
    for path in (Path(name), RUNS / name):
        if path.is_dir() and is_run(path):
            return read_record(path), None
        run = next((p for p in path.parents if is_run(p)), None) if path.is_dir() else None
        if run is not None:
            resolved = path.resolve()
            return read_record(run), resolved if resolved.parent == (run / "checkpoints").resolve() else None
    names = {run.relative_to(RUNS).as_posix(): run for run in runs_below(RUNS)}
    same = [known for known in names if Path(known).name == name]
    if len(same) == 1:
        return read_record(names[same[0]]), None
    raise _unknown_run(name, same, list(names))


def _unknown_run(name: str, same: list[str], names: list[str]) -> UserError:
    from difflib import get_close_matches

    if same:
        what = f"there are {len(same)} runs named {name!r}"
        return UserError(what, where="RUN", fix=f"use one of {', '.join(same)}")
    near = get_close_matches(name, names, 1, 0.6) or [n for n in names if get_close_matches(name, [Path(n).name])]
    if near:
        fix = f"use {near[0]}"
    elif names:
        fix = "choose one listed by `tinyllm runs list --all`"
    else:
        fix = "run `tinyllm pretrain --fast-dev-run` first"
    return UserError(f"there is no run {name!r}", where="RUN", fix=fix)
