"""Find runs by name or path, and the present place of paths that a run recorded. Links are followed only where the user names them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from tinyllm.diagnostics.runs.record import RunRecord, parent_of_runs, read_record
from tinyllm.train import names


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


def find_run(name: str | Path) -> tuple[RunRecord, Path | None]:
    """Return the run with a path or name, and the checkpoint, if the name says which; see `train.names`.

    Raises: UserError (USAGE) with the most similar name, or with the runs of that name if there are several.
    """
    found = names.find(name)
    if found.run is None:
        raise names.unknown(str(name), what=f"{name} is not in a run directory")
    own = found.checkpoint is not None and found.checkpoint.parent.resolve() == (found.run / "checkpoints").resolve()
    return read_record(found.run), found.checkpoint.resolve() if own and found.checkpoint else None
