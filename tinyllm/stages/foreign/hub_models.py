"""A model by its name on a Hugging Face hub: taken from the cache, or downloaded into it.

A complete model in the cache is used without a network. Otherwise the commit is resolved once and recorded in `refs`; settings and
tokenizer come first, since they decide whether the weights can be used at all. Every file has the size and the checksum that the hub
states, and an interrupted download is resumed. Several processes that need one model download it once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from tinyllm.console import say
from tinyllm.data.hub import api, models
from tinyllm.data.hub.answers import Listing, RemoteFile
from tinyllm.data.hub.api import Hub
from tinyllm.data.hub.download import matches
from tinyllm.errors import INTEGRITY, RESOURCES, UserError
from tinyllm.io import hub_cache, strict_json, untrusted_files
from tinyllm.io.files import free_bytes, sha256, write_text_atomically, writing
from tinyllm.io.hub_cache import HubName
from tinyllm.model.hf_config import read_config
from tinyllm.stages.foreign.transfer import download_file
from tinyllm.train import lock

_SPARE = 100_000_000  # bytes of disk that stay free
_SAID = 1_000_000  # bytes of a file that has a line of its own
_WAIT = 0.5  # seconds between looks at another process's download


def find(name: HubName, *, weights: bool = True, with_base: bool = True) -> Path:
    """Return the folder of a model in the cache, after downloading what is missing.

    Args:
        weights: False downloads only settings and tokenizer, which tell what the model is.
        with_base: bring the base of an adapter, too.

    Raises:
        UserError: no such model, terms to accept, or no safetensors in it (USAGE); another checksum (INTEGRITY); no network, offline
            mode, a full disk (RESOURCES). What was downloaded is kept.
    """
    folder = _find(name, weights)
    if with_base and (base := _base_of(folder)):
        _find(base, weights)
    return folder


def _base_of(folder: Path) -> HubName | None:
    """Return the base of an adapter, where it is another model of the hub."""
    if not (folder / hub_cache.ADAPTER).is_file():
        return None
    base = hub_cache.base_of(untrusted_files.read_json(folder / hub_cache.ADAPTER))
    return hub_cache.parse(base) if base and not Path(base).is_dir() else None


def _find(name: HubName, weights: bool) -> Path:
    if folder := _usable(name, weights):
        return folder
    if api.offline():
        what = f"{name}: no run and no folder here has this name, HF_HUB_OFFLINE is set, and the model is not in {hub_cache.cache_folder()}"
        fix = "unset HF_HUB_OFFLINE, or copy the model to a folder and name that: --checkpoint FOLDER"
        raise UserError(what, where="--checkpoint", fix=fix, code=RESOURCES)
    place = hub_cache.repository_folder(name.repository)
    with _locked(place, name):
        if folder := _usable(name, weights):  # another process has downloaded it meanwhile
            return folder
        return _download(name, place, weights)


def _usable(name: HubName, weights: bool) -> Path | None:
    if weights:
        return hub_cache.complete_snapshot(name)
    folder = hub_cache.snapshot(name)
    there = folder is not None and any((folder / file).is_file() for file in (hub_cache.CONFIG, hub_cache.ADAPTER))
    return folder if there else None


@contextmanager
def _locked(place: Path, name: HubName) -> Iterator[None]:
    """Hold the lock of a model in the cache; wait while another process (a rank, another command) holds it."""
    said = False
    with writing(place, fix=models.MODEL.elsewhere):
        place.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            lock.acquire(place, fix=models.MODEL.elsewhere)
            break
        except UserError:
            if not lock.is_held(place):
                raise
        if not said:
            say(f"waiting for another process, which downloads {name}")
        said = True
        time.sleep(_WAIT)
    try:
        yield
    finally:
        lock.release(place)
        with suppress(OSError):
            (place / lock.NAME).unlink()


# --- downloading -----------------------------------------------------------------------------------------------------------------


def _download(name: HubName, place: Path, weights: bool) -> Path:
    listing = _listing(api.endpoint(), name.repository, hub_cache.commit_of(name) or name.revision)
    chosen = models.choose(listing)
    folder = place / "snapshots" / listing.revision
    _check_disk(chosen, place)
    with writing(folder, fix=models.MODEL.elsewhere):
        (place / "blobs").mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        _remember_commit(name, listing.revision, place)
    settings = [remote for remote in chosen if not models.is_weights(remote.path)]
    large = [remote for remote in chosen if models.is_weights(remote.path)] if weights else []
    connection = Hub()
    try:
        files = [_place(connection, listing, remote, folder) for remote in settings]
        if (folder / hub_cache.CONFIG).is_file():
            read_config(folder)  # a model that cannot be loaded is refused before its weights are downloaded
        files += [_place(connection, listing, remote, folder) for remote in large]
    finally:
        connection.close()
    if weights:
        record = hub_cache.record_path(folder)
        source = {"repository": listing.repository, "revision": listing.revision, "endpoint": connection.endpoint}
        with writing(record, fix=models.MODEL.elsewhere):
            record.parent.mkdir(exist_ok=True)
        write_text_atomically(record, strict_json.dumps(source | {"files": files}, indent=2) + "\n")
    return folder


@lru_cache
def _listing(endpoint: str, repository: str, revision: str) -> Listing:
    """Return the files of a model, asked for once in a process."""
    say(f"using the network: {endpoint}, model {repository} at {revision or hub_cache.MAIN}")
    try:
        connection = Hub(endpoint)
    except UserError as error:
        if error.code != RESOURCES:
            raise
        what = f"{repository}: no run and no folder here has this name, nor the cache, and {error.what}"
        raise UserError(what, where=error.where, fix=error.fix, code=RESOURCES) from None
    try:
        listing = connection.listing(repository, revision or None, models.MODEL)
    finally:
        connection.close()
    chosen = models.choose(listing)
    size = sum(remote.size for remote in chosen)
    say(
        f"{repository} at {listing.revision[:12]}: {len(chosen)} files, {_megabytes(size)}, to {hub_cache.cache_folder()}"
    )
    return listing


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= _SAID else f"{size:,} bytes"


def _check_disk(chosen: Sequence[RemoteFile], place: Path) -> None:
    missing = sum(remote.size for remote in chosen if not (place / "blobs" / _hash(remote)).exists())
    if (free := free_bytes(place)) < missing + _SPARE:
        what = f"{missing / 1e6:,.1f} MB to download, {free / 1e6:,.1f} MB of disk space free"
        fix = "free disk space, or set HF_HOME to a folder on another disk"
        raise UserError(what, where=str(hub_cache.cache_folder()), fix=fix, code=RESOURCES)


def _hash(remote: RemoteFile) -> str:
    """Return the name of a file's content in the cache; a name that no content has where the hub gave no checksum."""
    return remote.sha256 or remote.git_sha1 or "unknown"


def _remember_commit(name: HubName, commit: str, place: Path) -> None:
    """Write the commit that a branch or tag is today."""
    if not hub_cache.is_commit(name.revision):
        reference = place / "refs" / (name.revision or hub_cache.MAIN)
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit, encoding="ascii")


def _place(connection: Hub, listing: Listing, remote: RemoteFile, folder: Path) -> dict[str, Any]:
    """Bring one file into the snapshot; return its entry in the list of files."""
    target, blob = folder / remote.path, folder.parents[1] / "blobs" / _hash(remote)
    digest = matches(target, remote) or matches(blob, remote)
    if digest is None:
        digest, _ = download_file(connection, listing, remote, blob, said_from=_SAID)
    if matches(target, remote) is None:
        with writing(target, fix=models.MODEL.elsewhere):
            target.unlink(missing_ok=True)
            try:
                target.symlink_to(Path("..", "..", "blobs", blob.name))
            except OSError:  # Windows, some network file systems
                shutil.copyfile(blob, target)
    return {"path": remote.path, "bytes": remote.size, "sha256": digest}


# --- verifying -------------------------------------------------------------------------------------------------------------------


def verify(folder: Path) -> dict[str, str]:
    """Check the files of a snapshot against the hashes that the cache knows. Returns the SHA-256 of every file, by name.

    Raises: UserError (INTEGRITY) for the first that is missing or altered.
    """
    record = hub_cache.read_record(folder)
    present = {path.name for path in folder.iterdir() if models.is_model_file(path.name) and path.is_file()}
    found = {}
    for name in sorted({*record, *present}):
        path = folder / name
        if name not in present:
            raise _damaged(path, "a file of the model is missing")
        found[name] = sha256(path)
        stated = record.get(name, {}).get("sha256") or hub_cache.expected_hash(path)
        if stated and stated != (_git_sha1(path) if len(stated) == 40 else found[name]):
            raise _damaged(path, "the content has changed since it was downloaded: its checksum is not the hub's")
    return found


def _damaged(path: Path, what: str) -> UserError:
    fix = f"remove {os.path.realpath(path)} and run the same command again: it downloads that file"
    return UserError(what, where=str(path), fix=fix, code=INTEGRITY)


def _git_sha1(path: Path) -> str:
    found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()
