"""Which run is meant, which there are, and where a path that a run wrote down leads now. Links are not followed, except as named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tinyllm.errors import UserError
from tinyllm.stages.parents import RUNS
from tinyllm.stages.runs.read import Record, home, is_run, read


def below(folder: Path) -> Iterator[Path]:
    """Every run directory at or below `folder`, by name."""
    for place, folders, _ in os.walk(folder):
        if is_run(Path(place)):
            folders.clear()
            yield Path(place)
        folders.sort()


def located(recorded: str, near: Path) -> list[Path]:
    """Where a path that the run at `near` wrote down may lie now: as it stands, from the folder that runs/ is in, from where we are."""
    path, top = Path(recorded), home(near)
    places = (
        [path] if path.is_absolute() else [p / path for p in (*([top] if top else near.absolute().parents), Path.cwd())]
    )
    found = []
    for place in places:
        with suppress(OSError, ValueError):  # closed to us, or no path at all
            if recorded and place.exists():
                found.append(shortened(place))
    return list(dict.fromkeys(found))


def shortened(path: Path) -> Path:
    """The same path as seen from here, if it is below."""
    return path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path


def chosen(given: str) -> tuple[Record, Path | None]:
    """The run that is meant, and the checkpoint in it if one was named: a path, a path below runs/, or a name there is one of.

    Raises: UserError (USAGE) with the nearest name, or those there is a choice of.
    """
    for path in (Path(given), RUNS / given):
        if path.is_dir() and is_run(path):
            return read(path), None
        run = next((p for p in path.parents if is_run(p)), None) if path.is_dir() else None
        if run is not None:
            whole = path.resolve()
            return read(run), whole if whole.parent == (run / "checkpoints").resolve() else None
    names = {run.relative_to(RUNS).as_posix(): run for run in below(RUNS)}
    same = [name for name in names if Path(name).name == given]
    if len(same) == 1:
        return read(names[same[0]]), None
    raise _none_such(given, same, list(names))


def _none_such(given: str, same: list[str], names: list[str]) -> UserError:
    from difflib import get_close_matches

    if same:
        return UserError(f"{given!r} may be any of {', '.join(same)}", where="RUN", fix="name one of them")
    near = get_close_matches(given, names, 1, 0.6) or [n for n in names if get_close_matches(given, [Path(n).name])]
    if near:
        fix = f"use {near[0]}"
    else:
        fix = (
            "`tinyllm runs list --all` shows those there are"
            if names
            else "run `tinyllm pretrain --fast-dev-run` first"
        )
    return UserError(f"there is no run {given!r}", where="RUN", fix=fix)
