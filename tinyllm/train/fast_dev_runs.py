"""Runs with --fast-dev-run: telling them from others, and removing the one before."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyllm.errors import UserError
from tinyllm.io.files import writing
from tinyllm.train import lock

FAST_DEV_RUN = "fast-dev-run"


def is_fast_dev_run(folder: Path, facts: Mapping[str, Any]) -> bool:
    """Return whether a run was started with --fast-dev-run, as run.json (`facts`) records. One that only has such a name was not.

    Runs of versions before it was recorded are told by their name.
    """
    if isinstance(recorded := facts.get("fast_dev_run"), bool):
        return recorded
    return folder.name == FAST_DEV_RUN or folder.name.endswith(f"-{FAST_DEV_RUN}")


def remove(folder: Path, facts: Mapping[str, Any]) -> None:
    """Empty the folder of an earlier fast-dev-run, which leaves nothing that could be mistaken for a result. The lock stays, held.

    Raises: UserError (USAGE) if the run in it is no fast-dev-run, and (RESOURCES) if something cannot be removed.
    """
    command = facts.get("command")  # an older version allowed the name without the option
    without = isinstance(command, list) and not {"--fast-dev-run", "--fast_dev_run", "--smoke"} & set(map(str, command))
    if facts and not (is_fast_dev_run(folder, facts) and (facts.get("fast_dev_run") or not without)):
        what = "the run in the folder of fast-dev-runs was not started with --fast-dev-run, and is not removed"
        raise UserError(what, where=str(folder), fix="move it to another folder")
    empty_folder(folder, last="run.json")  # until then an interrupted removal is known for what it is


def empty_folder(folder: Path, last: str = "") -> None:
    """Remove everything but the lock from a folder, the file `last` at the end. Raises: UserError (RESOURCES)."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == last):
        if path.name == lock.NAME:
            continue
        with writing(path, "cannot be removed"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
