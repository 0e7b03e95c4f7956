"""Checkpoint directories that are either complete or not there.

`step-00000500/` is written under another name, closed by `manifest.json` (size and sha256 of every file) and renamed into place, so a
kill at any moment leaves the earlier ones as they were. Resume takes the highest step whose manifest verifies; the links
`ckpt_latest` and `ckpt_best` are for people. safetensors and JSON only. What is inside is the caller's business (`write`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from tinyllm.errors import INTEGRITY, RESOURCES, UserError

MANIFEST = "manifest.json"
LATEST, BEST = "ckpt_latest", "ckpt_best"
_PREFIX, _UNFINISHED = "step-", ".unfinished-"


def save(folder: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a new directory and publish it as `folder/step-NNNNNNNN`. Returns that path. One process only.

    An older directory of the same step (a run that was resumed before it and came here again) is replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{_PREFIX}{step:08d}"
    draft = folder / f"{_UNFINISHED}{step:08d}-{uuid.uuid4().hex[:8]}"
    try:
        draft.mkdir()
        write(draft)
        _write_manifest(draft)
        if target.exists():
            _remove(target)
        os.replace(draft, target)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise UserError(
            f"the checkpoint could not be written: {error}", where=str(target), fix="free disk space", code=RESOURCES
        ) from None
    return target


def _write_manifest(folder: Path) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for path in files:
        _sync(path)
    entries = {p.relative_to(folder).as_posix(): {"size": p.stat().st_size, "sha256": sha256(p)} for p in files}
    path = folder / MANIFEST
    path.write_text(json.dumps({"version": 1, "files": entries}, indent=2) + "\n", encoding="utf-8")
    _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    """Have the disk hold it. Windows has no way to do so for a directory, and needs none."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems refuse to sync a directory; the data is what matters
            raise
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(folder: Path) -> str:
    """One hash that stands for a checkpoint: its manifest's, and so every file's."""
    return sha256(folder / MANIFEST)


def verify(folder: Path) -> None:
    """Raise UserError (exit 3) naming the file that is missing, cut, altered or extra."""
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        raise UserError(
            "the checkpoint has no readable manifest", where=str(folder / MANIFEST), code=INTEGRITY
        ) from None
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    for name in sorted(there ^ set(entries)):
        raise UserError(
            f"a file is {'not in the manifest' if name in there else 'missing'}",
            where=str(folder / name),
            code=INTEGRITY,
        )
    for name, entry in entries.items():
        path = folder / name
        if path.stat().st_size != entry["size"]:
            raise UserError(
                f"{path.stat().st_size} bytes, the manifest says {entry['size']}", where=str(path), code=INTEGRITY
            )
        if sha256(path) != entry["sha256"]:
            raise UserError("the content is not what was written (sha256 differs)", where=str(path), code=INTEGRITY)


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(_PREFIX))


def steps(folder: Path) -> list[Path]:
    """The finished checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.startswith(_PREFIX) and p.name.removeprefix(_PREFIX).isdigit())


def newest(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies; `warn` hears about every newer one that does not."""
    for path in reversed(steps(folder)):
        try:
            verify(path)
        except UserError as error:
            warn(f"passing over a damaged checkpoint: {error.what} ({error.where})")
        else:
            return path
    return None


def link(folder: Path, name: str, target: Path) -> None:
    """Let `folder/name` lead to its sibling `target`, swapped in one move; a copy where links cannot be made."""
    draft = folder / f"{_UNFINISHED}{name}-{uuid.uuid4().hex[:8]}"
    try:
        draft.symlink_to(target.name, target_is_directory=True)
    except OSError:
        shutil.copytree(target, draft)
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            shutil.rmtree(folder / name)
    os.replace(draft, folder / name)


def prune(folder: Path, keep: int) -> None:
    """Keep the `keep` newest checkpoints and whatever a link leads to; clear what a killed save left behind."""
    linked = {(folder / name).resolve() for name in (LATEST, BEST) if (folder / name).exists()}
    for path in steps(folder)[: -max(1, keep)]:
        if path.resolve() not in linked:
            _remove(path)
    for path in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    """Without its manifest first: a removal that is interrupted must not leave something that looks whole."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)
