"""Checkpoint directories that are either complete or absent.

`step-00000500/` is written under another name, completed by `manifest.json` (size and sha256 of every file) and renamed into place. So a
kill at any moment leaves the earlier checkpoints intact. Removal renames first, too. Resume takes the highest step whose manifest
verifies; the links `ckpt_latest` and `ckpt_best` are for people. The caller's `write` decides what is inside: safetensors and JSON only.
Left out: saving in the background (it copies the weights, and small models are saved in no time).
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError

from tinyllm import distributed as dist
from tinyllm.errors import INTEGRITY, RESOURCES, UserError
from tinyllm.io import strict_json, untrusted_files
from tinyllm.io.files import free_bytes, sha256

MANIFEST, VERSION = "manifest.json", 1
LATEST, BEST = "ckpt_latest", "ckpt_best"
DAMAGED, DECAYED = "damaged-", "decayed-"  # prefixes of those that no longer count as checkpoints of the run
_PREFIX, _UNFINISHED = "step-", ".unfinished-"


def save(folder: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a new directory and publish it as `folder/step-NNNNNNNN`. Returns that path.

    All ranks call it, and `write` runs on each: rank 0 creates the directory before, and publishes it after all have written. An older
    directory of the same step is replaced (a run that resumed before it and arrived here again).

    Raises: UserError (RESOURCES) where the disk is full or not writable; the draft is removed and the earlier checkpoints are untouched.
    """
    target = folder / name_of(step)
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
        if not draft.exists():  # another rank could not write either, removed it and says why: this one ends with it
            dist.barrier()
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


def _write_manifest(folder: Path) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for path in (*files, *(p for p in folder.rglob("*") if p.is_dir())):
        _sync(path)
    entries = {p.relative_to(folder).as_posix(): {"size": p.stat().st_size, "sha256": sha256(p)} for p in files}
    path = folder / MANIFEST
    path.write_text(_manifest_text({"version": VERSION, "files": entries}), encoding="utf-8", newline="\n")
    _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    """Flush a file or directory to the disk. Windows cannot do so for a directory, and need not."""
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


def fingerprint(folder: Path) -> str:
    """Return the hash that identifies a checkpoint: that of its manifest, which holds the hash of every file."""
    return sha256(folder / MANIFEST)


def faults(folder: Path, *, contents: bool = True) -> Iterator[tuple[Path, str]]:
    """Yield every file that is missing, extra, truncated or altered, with a description. Without `contents` only names and sizes count."""
    manifest = _manifest(folder)
    if _is_newer(manifest):
        yield folder / MANIFEST, untrusted_files.newer_format(manifest["version"], VERSION)
        return
    try:
        entries = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (KeyError, TypeError, AttributeError):
        yield folder / MANIFEST, "the checkpoint has no readable manifest"
        return
    for name in (name for name in entries if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts):
        yield folder / MANIFEST, f"it lists {untrusted_files.short_repr(name)}, which is not in this folder"
        return
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}
    present.discard(MANIFEST)
    for name in sorted(present ^ set(entries)):
        yield folder / name, f"a file is {'not in the manifest' if name in present else 'missing'}"
    for name in (name for name in entries if name in present):
        if what := _difference(folder / name, *entries[name], contents):
            yield folder / name, what


def _manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest; empty where it is missing or invalid. One of a newer tinyllm is returned unchecked."""
    path = folder / MANIFEST
    try:
        found = untrusted_files.read_json(path)
        # every byte counts: the hash of the manifest identifies the checkpoint
        same = path.read_text(encoding="utf-8") == _manifest_text(found)
    except (UserError, OSError, ValueError):
        return {}
    version = found.get("version")
    return found if type(version) is int and (version > VERSION or (version == VERSION and same)) else {}


def _manifest_text(manifest: dict[str, Any]) -> str:
    return strict_json.dumps(manifest, indent=2) + "\n"


def _is_newer(manifest: dict[str, Any]) -> bool:
    return manifest.get("version", 0) > VERSION


def _difference(path: Path, size: int, digest: str, contents: bool) -> str:
    try:
        untrusted_files.path_inside(path.parent, path.name)
        if not path.is_file():  # reading a pipe would block
            return "not a file"
        if path.stat().st_size != size:
            return f"{path.stat().st_size} bytes, the manifest says {size}"
        return "the content has changed (sha256 differs)" if contents and sha256(path) != digest else ""
    except UserError as error:
        return error.what
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


def verify(folder: Path) -> None:
    """Check every file of a checkpoint. Raises: UserError (INTEGRITY) naming the first that is missing, extra, truncated or altered."""
    for path, what in faults(folder):
        raise UserError(what, where=str(path), code=INTEGRITY)


def name_of(step: int) -> str:
    """Return the name of the checkpoint of a step."""
    return f"{_PREFIX}{step:08d}"


def step_of(folder: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(folder.name.removeprefix(_PREFIX))


def steps(folder: Path) -> list[Path]:
    """Return the finished checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(filter(is_step, folder.iterdir()))


def is_step(path: Path) -> bool:
    """Return whether a path is named as a finished checkpoint."""
    return path.name.startswith(_PREFIX) and path.name.removeprefix(_PREFIX).isdigit()


def decayed(folder: Path) -> list[Path]:
    """Return the checkpoints that a run left behind when it was extended from before the decay of its learning rate."""
    return sorted(folder.glob(f"{DECAYED}{_PREFIX}*"))


def newest(folder: Path, warn: Callable[[UserError, Path], None]) -> Path | None:
    """Return the newest checkpoint that verifies, or None. `warn` is called with the error and path of every newer one that does not.

    Raises: UserError (INTEGRITY) if a newer tinyllm has written the newest one.
    """
    for path in reversed(steps(folder)):
        try:
            verify(path)
        except UserError as error:
            if _is_newer(_manifest(path)):  # it may be intact, so it is not skipped
                raise
            warn(error, path)
        else:
            return path
    return None


def link(folder: Path, name: str, target: Path) -> None:
    """Let `folder/name` point to its sibling `target`, replaced in one rename; it is a copy where links cannot be created."""
    draft = folder / f"{_UNFINISHED}{name}-{uuid.uuid4().hex[:8]}"
    try:
        draft.symlink_to(target.name, target_is_directory=True)
    except OSError:
        shutil.copytree(target, draft)
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            shutil.rmtree(folder / name)
    os.replace(draft, folder / name)


def prune(folder: Path, keep: int, keep_every: int = 0) -> None:
    """Remove all checkpoints but the `keep` newest, those whose step is a multiple of `keep_every`, and those a link points to.

    Nothing is removed unless the newest has all its files at their sizes, so a good one always remains. Also removes the leftovers of
    a killed save or removal.
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
    """Delete what a killed save or removal left behind."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        if path.is_symlink():
            path.unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)


def remove(path: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that an interrupted removal leaves nothing that looks complete."""
    gone = path.with_name(f"{_UNFINISHED}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        os.replace(path, gone)
    except OSError:  # an open file on Windows, or missing permissions: it stays, complete
        return
    shutil.rmtree(gone, ignore_errors=True)


def set_aside(path: Path, prefix: str = DAMAGED) -> Path:
    """Rename a checkpoint to `damaged-step-...`, which no longer counts as one of the run. Returns the new path."""
    aside = path.with_name(f"{prefix}{path.name}")
    while aside.exists():
        aside = aside.with_name(f"{aside.name}~")
    os.replace(path, aside)
    return aside


def _has_its_files(folder: Path) -> bool:
    """Check names and sizes only: cheap enough before every removal, where `verify` would read every byte."""
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == entry["size"] for name, entry in entries.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
