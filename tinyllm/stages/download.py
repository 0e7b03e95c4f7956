"""`tinyllm data download`: download a known data set by its short name, or any data set `owner/name` of a Hugging Face hub.

The files go to `runs/data/downloads/NAME` (or `--out`) under their names in the repository, with `.source.json`: repository, commit,
license, and size and sha256 of every file. Intact files are not downloaded again, and partial ones are resumed.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
import time
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tinyllm.console import say
from tinyllm.data.hub import answers, api
from tinyllm.data.hub.answers import Listing, RemoteFile
from tinyllm.data.hub.api import Hub
from tinyllm.data.hub.catalog import CATALOG, File, KnownDataset
from tinyllm.data.hub.download import matches
from tinyllm.data.sources.errors import preview
from tinyllm.errors import INTEGRITY, RESOURCES, UserError
from tinyllm.io import strict_json
from tinyllm.io.files import free_bytes, write_text_atomically
from tinyllm.io.shell import quote
from tinyllm.stages.foreign.transfer import download_file, size_text
from tinyllm.stages.parents import RUNS
from tinyllm.train import lock

SOURCE = ".source.json"  # hidden, so that it does not count as data where the folder is a source
DOWNLOADS = RUNS / "data" / "downloads"
_MAX_UNNAMED = 20_000_000_000  # bytes that are downloaded without naming files
_SPARE = 100_000_000  # bytes of disk that stay free


def catalogue() -> dict[str, Any]:
    """Return the known data sets, without using the network."""
    return {
        "schema_version": 1,
        "stage": "download",
        "sets": [
            {
                "name": name,
                "repository": known.repository,
                "revision": known.revision,
                "files": [{"path": f.path, "bytes": f.size, "sha256": f.sha256} for f in known.files],
                "bytes": known.size,
                "licence": known.license,
                "stage": known.stage,
                "about": known.about,
                "use": known.use.format(folder=(DOWNLOADS / name).as_posix()),
            }
            for name, known in CATALOG.items()
        ],
    }


def run(
    name: str, *, patterns: Sequence[str] = (), revision: str | None = None, out: Path | None = None
) -> dict[str, Any]:
    """Download a data set and verify its files.

    Args:
        name: a name of `catalog.CATALOG`, or `owner/name`.
        patterns: the files, as in `data/*.parquet`; by default those of the catalog, or all data files.
        revision: branch, tag or commit; by default that of the catalog, or main.

    Raises:
        UserError: an unknown name, no such files, a token is needed (USAGE); files other than the catalog or the hub state (INTEGRITY);
            no network, a missing extra, a full disk (RESOURCES).
    """
    started = time.monotonic()
    name = name.lower() if name.lower() in CATALOG else name  # it is often written TinyStories
    known = _lookup(name)
    repository = known.repository if known else name
    folder = out or DOWNLOADS / name.replace("/", "--")
    if api.offline() and (earlier := _earlier_download(folder, repository, patterns)):
        say(f"HF_HUB_OFFLINE is set; {folder} is complete")
        return _result(name, folder, earlier, known, started)
    pinned = revision or (known.revision if known else None)
    if not api.offline():
        say(f"using the network: {api.endpoint()}, data set {repository} at {pinned or 'main'}")
    pins = known.files if known and not patterns and not revision else ()
    connection = Hub()
    try:
        listing = connection.listing(repository, pinned)
        if pinned != listing.revision:
            say(f"unpinned: {pinned or 'main'} is {listing.revision} today, recorded in {SOURCE}")
        wanted = [file.path for file in pins] or list(patterns)
        chosen = _select_files(listing, wanted)
        _check_pins(pins, chosen, repository)
        _checksize_text(chosen, wanted, folder)
        lock.acquire(folder)
        files = _download_files(connection, listing, chosen, pins, folder)
        source = {
            "repository": repository,
            "revision": listing.revision,
            "asked_for": pinned,
            "endpoint": connection.endpoint,
            "licence": listing.license or (known.license if known else None),
            "downloaded": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "files": [{key: file[key] for key in ("path", "bytes", "sha256")} for file in files],
        }
        write_text_atomically(folder / SOURCE, strict_json.dumps(source, indent=2, ensure_ascii=False) + "\n")
        (folder / lock.NAME).unlink(missing_ok=True)
    finally:
        lock.release(folder)
        connection.close()
    return _result(name, folder, source | {"files": files}, known, started)


def _lookup(name: str) -> KnownDataset | None:
    if name in CATALOG:
        return CATALOG[name]
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return None
    close = difflib.get_close_matches(name, CATALOG, n=1)
    fix = (
        f"did you mean {close[0]}?"
        if close
        else "list them with `tinyllm data download`, or name a repository as OWNER/NAME"
    )
    raise UserError(f"unknown data set {name!r}", where="NAME", fix=fix)


def _select_files(listing: Listing, wanted: Sequence[str]) -> list[RemoteFile]:
    """Return the data files that match the patterns; all of them without patterns."""
    if not listing.files:
        what = f"{listing.repository} has no data files ({', '.join(s for s in answers.data_suffixes())})"
        raise UserError(what, where=listing.revision[:12], fix="choose another data set")
    found: dict[str, RemoteFile] = {} if wanted else {remote.path: remote for remote in listing.files}
    for pattern in wanted:
        matching = [remote for remote in listing.files if fnmatch.fnmatchcase(remote.path, pattern)]
        if not matching:
            names = [remote.path for remote in listing.files]
            close = difflib.get_close_matches(pattern, names, n=1) or names[:1]
            no_data = "" if answers.is_data_file(pattern.replace("*", "x")) else "; only data files are downloaded"
            what = f"{listing.repository} has no data file {pattern!r}{no_data}"
            raise UserError(what, where="--file", fix=f"use for example --file {quote(close[0])}")
        found |= {remote.path: remote for remote in matching}
    for path in found:
        if fault := answers.path_fault(path):
            what = f"{listing.repository} lists a file {fault}: {preview(path, 80)}"
            raise UserError(what, where=listing.revision[:12], fix="do not use this data set", code=INTEGRITY)
    return [found[path] for path in sorted(found)]


def _check_pins(pins: Iterable[File], chosen: Sequence[RemoteFile], repository: str) -> None:
    """Refuse files of the hub whose size or checksum is not the one in the catalog."""
    by_path = {remote.path: remote for remote in chosen}
    for file in pins:
        if remote := by_path.get(file.path):  # else a pattern
            _refuse_difference(file.path, "size", file.size, remote.size, repository)
            _refuse_difference(file.path, "sha256", file.sha256, remote.sha256, repository)


def _refuse_difference(path: str, what: str, pinned: object, offered: object, where: str) -> None:
    if pinned is not None and offered is not None and pinned != offered:
        raise UserError(
            f"{path}: the {what} is {offered}, expected {pinned}",
            where=where,
            fix="check HF_ENDPOINT; if it is the public hub, report this",
            code=INTEGRITY,
        )


def _checksize_text(chosen: Sequence[RemoteFile], wanted: Sequence[str], folder: Path) -> None:
    total = sum(remote.size for remote in chosen)
    if total > _MAX_UNNAMED and not wanted:
        what = f"{len(chosen)} files of {size_text(total)} in total"
        raise UserError(
            what, where="--file", fix=f"name the files you want, for example --file {quote(chosen[0].path)}"
        )
    missing = sum(remote.size for remote in chosen if not (folder / remote.path).is_file())
    if (free := free_bytes(folder)) < missing + _SPARE:
        what = f"{size_text(missing)} to download, {size_text(free)} of disk space free"
        raise UserError(what, where=str(folder), fix="free disk space, or choose another --out", code=RESOURCES)
    say(f"{len(chosen)} {'file' if len(chosen) == 1 else 'files'}, {size_text(total)}, to {folder}")


def _download_files(
    connection: Hub, listing: Listing, chosen: Sequence[RemoteFile], pins: Iterable[File], folder: Path
) -> list[dict[str, Any]]:
    pinned = {file.path: file.sha256 for file in pins}
    files = []
    for remote in chosen:
        to = folder / remote.path
        sha256, state = matches(to, remote), "there"
        if sha256 is None:
            sha256, before = download_file(connection, listing, remote, to)
            state = "resumed" if before else "downloaded"
        _refuse_difference(remote.path, "sha256", pinned.get(remote.path), sha256, listing.repository)
        files.append({"path": remote.path, "bytes": remote.size, "sha256": sha256, "state": state})
    return files


def _earlier_download(folder: Path, repository: str, patterns: Sequence[str]) -> dict[str, Any] | None:
    """Return the record of an earlier download if all its files are intact, else None."""
    try:
        source = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
        intact = source["repository"] == repository
        for file in source["files"]:
            intact = intact and bool(
                matches(folder / file["path"], RemoteFile(file["path"], file["bytes"], file["sha256"], None))
            )
            file["state"] = "there"
        names = [file["path"] for file in source["files"]]
        intact = intact and {"revision", "asked_for", "licence"} <= source.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return source if intact and all(fnmatch.filter(names, pattern) for pattern in patterns) else None


def _result(
    name: str, folder: Path, source: dict[str, Any], known: KnownDataset | None, started: float
) -> dict[str, Any]:
    paths = [file["path"] for file in source["files"]]
    if any(path.endswith(".parquet") for path in paths) and find_spec("pyarrow") is None:
        say("to read parquet files: pip install 'tinyllm-lifecycle[parquet]'")
    place = folder.as_posix()
    use = known.use.format(folder=place) if known else f"tinyllm data inspect {quote(place)}"
    return {
        "schema_version": 1,
        "stage": "download",
        "name": name,
        "repository": source["repository"],
        "revision": source["revision"],
        "pinned": bool(source["asked_for"] == source["revision"]),
        "licence": source["licence"],
        "folder": place,
        "files": source["files"],
        "bytes": sum(file["bytes"] for file in source["files"]),
        "use": use,
        "seconds": round(time.monotonic() - started, 2),
    }
