"""Checkpoint directories that are either complete or not there.

`step-00000500/` is written under another name, closed by `manifest.json` (size and sha256 of every file) and renamed into place, so a
kill at any moment leaves the earlier ones as they were; one is removed the same way, renamed first. Resume takes the highest step
whose manifest verifies; the links `ckpt_latest` and `ckpt_best` are for people. safetensors and JSON only. What is inside is the
caller's business (`write`). Left out: saving in the background (a copy of the weights, for a pause that small models do not notice).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError

from tinyllm import dist, foreign
from tinyllm.errors import INTEGRITY, RESOURCES, UserError

MANIFEST, VERSION = "manifest.json", 1
LATEST, BEST = "ckpt_latest", "ckpt_best"
_PREFIX, _UNFINISHED = "step-", ".unfinished-"


def save(folder: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a new directory and publish it as `folder/step-NNNNNNNN`. Returns that path.

    All ranks call it, and `write` runs on each (rank 0 first makes the directory, and publishes it when all have written). An older
    directory of the same step (a run that was resumed before it and came here again) is replaced.

    Raises: UserError (RESOURCES) where the disk is full or refuses; the draft is removed and the earlier checkpoints are untouched.
    """
    target = folder / f"{_PREFIX}{step:08d}"
    draft = folder / dist.broadcast_text(f"{_UNFINISHED}{step:08d}-{uuid.uuid4().hex[:8]}")
    try:
        if dist.is_main():
            draft.mkdir(parents=True)
        dist.barrier()
        write(draft)
        dist.barrier()
        if dist.is_main():
            _write_manifest(draft)
            if target.exists():
                remove(target)
            os.replace(draft, target)
            _sync(folder)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as an error of its own
        written = sum(p.stat().st_size for p in draft.rglob("*") if p.is_file())
        shutil.rmtree(draft, ignore_errors=True)
        raise UserError(
            f"the checkpoint of step {step} could not be written after {written:,} bytes: {error}; earlier ones are untouched",
            where=str(target),
            fix=f"free disk space ({free_bytes(folder):,} bytes are free), then run the same command again",
            code=RESOURCES,
        ) from None
    dist.barrier()
    return target


def free_bytes(folder: Path) -> int:
    """What the disk of `folder` (or of its nearest existing parent) has left for us."""
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(place).free


def _write_manifest(folder: Path) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for path in (*files, *(p for p in folder.rglob("*") if p.is_dir())):
        _sync(path)
    entries = {p.relative_to(folder).as_posix(): {"size": p.stat().st_size, "sha256": sha256(p)} for p in files}
    path = folder / MANIFEST
    path.write_text(_written({"version": VERSION, "files": entries}), encoding="utf-8", newline="\n")
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


def faults(folder: Path, *, contents: bool = True) -> Iterator[tuple[Path, str]]:
    """Every file that is missing, extra, cut or altered, and what is wrong with it. Without `contents`, none is read, only measured."""
    manifest = _manifest(folder)
    if _is_newer(manifest):
        yield (
            folder / MANIFEST,
            f"written by a newer tinyllm: format {foreign.short(manifest['version'])}, this one reads {VERSION}",
        )
        return
    try:
        entries = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (KeyError, TypeError, AttributeError):
        yield folder / MANIFEST, "the checkpoint has no readable manifest"
        return
    for name in (name for name in entries if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts):
        yield folder / MANIFEST, f"it lists {foreign.short(name)}, which is not in this folder"
        return
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}
    there.discard(MANIFEST)
    for name in sorted(there ^ set(entries)):
        yield folder / name, f"a file is {'not in the manifest' if name in there else 'missing'}"
    for name in (name for name in entries if name in there):
        if what := _difference(folder / name, *entries[name], contents):
            yield folder / name, what


def _manifest(folder: Path) -> dict[str, Any]:
    """Empty where it is missing, or is nobody's manifest. What a newer tinyllm has written is returned as it is."""
    path = folder / MANIFEST
    try:
        found = foreign.read_json(path)
        same = path.read_text(encoding="utf-8") == _written(
            found
        )  # every byte counts: the whole checkpoint is known by its hash
    except (UserError, OSError, ValueError):
        return {}
    version = found.get("version")
    return found if type(version) is int and (version > VERSION or (version == VERSION and same)) else {}


def _written(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=2) + "\n"


def _is_newer(manifest: dict[str, Any]) -> bool:
    return manifest.get("version", 0) > VERSION


def _difference(path: Path, size: int, digest: str, contents: bool) -> str:
    try:
        foreign.inside(path.parent, path.name)
        if not path.is_file():  # a pipe would be waited for
            return "not a file"
        if path.stat().st_size != size:
            return f"{path.stat().st_size} bytes, the manifest says {size}"
        return "the content is not what was written (sha256 differs)" if contents and sha256(path) != digest else ""
    except UserError as error:
        return error.what
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


def verify(folder: Path) -> None:
    """Raise UserError (exit 3) naming the first file that is missing, extra, cut or altered."""
    for path, what in faults(folder):
        raise UserError(what, where=str(path), code=INTEGRITY)


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(_PREFIX))


def steps(folder: Path) -> list[Path]:
    """The finished checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.startswith(_PREFIX) and p.name.removeprefix(_PREFIX).isdigit())


def newest(folder: Path, warn: Callable[[UserError, Path], None]) -> Path | None:
    """The newest checkpoint that verifies; `warn` hears about every newer one that does not, and where it is."""
    for path in reversed(steps(folder)):
        try:
            verify(path)
        except UserError as error:
            if _is_newer(_manifest(path)):  # whole, for all that we know: nothing to pass over
                raise
            warn(error, path)
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


def prune(folder: Path, keep: int, keep_every: int = 0) -> None:
    """Keep the `keep` newest checkpoints, every one whose step is a multiple of `keep_every`, and whatever a link leads to.

    Nothing is removed unless the newest has all its files at their sizes, so a good one always remains. Clears what a killed save
    or removal left behind.
    """
    linked = {(folder / name).resolve() for name in (LATEST, BEST) if (folder / name).exists()}
    found = steps(folder)
    if found and _has_its_files(found[-1]):
        for path in found[: -max(1, keep)]:
            milestone = keep_every and step_of(path) and step_of(path) % keep_every == 0
            if path.resolve() not in linked and not milestone:
                remove(path)
    clear_leftovers(folder)


def clear_leftovers(folder: Path) -> None:
    """What a killed save or removal left behind."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        if path.is_symlink():
            path.unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)


def remove(path: Path) -> None:
    """Renamed first: a removal that is interrupted must not leave something that looks whole."""
    gone = path.with_name(f"{_UNFINISHED}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        os.replace(path, gone)
    except OSError:  # a reader on Windows, or rights taken away: it stays, whole
        return
    shutil.rmtree(gone, ignore_errors=True)


def set_aside(path: Path) -> Path:
    """Give a damaged checkpoint a name that nothing takes for a checkpoint. Returns the new path."""
    aside = path.with_name(f"damaged-{path.name}")
    while aside.exists():
        aside = aside.with_name(f"{aside.name}~")
    os.replace(path, aside)
    return aside


def _has_its_files(folder: Path) -> bool:
    """A look at names and sizes: cheap enough for every removal, where `verify` reads every byte."""
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == entry["size"] for name, entry in entries.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
