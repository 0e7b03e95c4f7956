"""`tinyllm data download`: a known set by its short name, or any data set `owner/name` of a Hugging Face hub.

Into `runs/data/downloads/NAME` (or `--out`), under the names the repository has, with `.source.json`: repository, commit, licence, and
size and sha256 of every file. What is there already and right is not fetched again; what was half fetched is gone on with.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from tinyllm.data import hub
from tinyllm.data.catalogue import SETS, DataSet, File
from tinyllm.data.fetching import fetch, matches
from tinyllm.data.hub import Hub, Listing, Remote
from tinyllm.errors import INTEGRITY, RESOURCES, UserError
from tinyllm.stages.parents import RUNS
from tinyllm.train import lock
from tinyllm.train.progress import Quiet, say

SOURCE = ".source.json"  # hidden, so that it is no data where the folder itself is named as a source
DOWNLOADS = RUNS / "data" / "downloads"
_MOST = 20_000_000_000  # bytes that come without being asked for by name
_SPARE = 100_000_000  # bytes of disk left over
_SECONDS_BETWEEN_LINES = 10.0


def catalogue() -> dict[str, Any]:
    """The known sets, without a network."""
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
                "licence": known.licence,
                "stage": known.stage,
                "about": known.about,
                "use": known.use.format(folder=(DOWNLOADS / name).as_posix()),
            }
            for name, known in SETS.items()
        ],
    }


def run(
    name: str, *, patterns: Sequence[str] = (), revision: str | None = None, out: Path | None = None
) -> dict[str, Any]:
    """Download a set, checked.

    Args:
        name: one of `catalogue.SETS`, or `owner/name`.
        patterns: which files, as in `data/*.parquet`; those of the table, or all data files, by default.
        revision: branch, tag or commit; the table's, or main, by default.

    Raises:
        UserError: an unknown name, no such files, a token is needed (USAGE); files that are not what the table or the hub say
            (INTEGRITY); no network, no extra, no disk (RESOURCES).
    """
    started = time.monotonic()
    name = name.lower() if name.lower() in SETS else name  # TinyStories is how everybody writes it
    known = _known(name)
    repository = known.repository if known else name
    folder = out or DOWNLOADS / name.replace("/", "--")
    if hub.offline() and (there := _already_there(folder, repository, patterns)):
        say(f"HF_HUB_OFFLINE is set; {folder} has it all")
        return _result(name, folder, there, known, started)
    pinned = revision or (known.revision if known else None)
    if not hub.offline():
        say(f"using the network: {hub.endpoint()}, data set {repository} at {pinned or 'main'}")
    pins = known.files if known and not patterns and not revision else ()
    connection = Hub()
    try:
        listing = connection.listing(repository, pinned)
        if pinned != listing.revision:
            say(f"unpinned: {pinned or 'main'} is {listing.revision} today, which {SOURCE} keeps")
        wanted = [file.path for file in pins] or list(patterns)
        chosen = _chosen(listing, wanted)
        _compare(pins, chosen, repository)
        _refuse_too_much(chosen, wanted, folder)
        lock.claim(folder)
        files = _fetched(connection, listing, chosen, pins, folder)
        source = {
            "repository": repository,
            "revision": listing.revision,
            "asked_for": pinned,
            "endpoint": connection.endpoint,
            "licence": listing.licence or (known.licence if known else None),
            "downloaded": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "files": [{key: file[key] for key in ("path", "bytes", "sha256")} for file in files],
        }
        _write(folder / SOURCE, source)
        (folder / lock.NAME).unlink(missing_ok=True)
    except KeyboardInterrupt:
        say("stopped; the same command goes on from there")
        raise
    finally:
        lock.release(folder)
        connection.close()
    return _result(name, folder, source | {"files": files}, known, started)


def _known(name: str) -> DataSet | None:
    if name in SETS:
        return SETS[name]
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return None
    close = difflib.get_close_matches(name, SETS, n=1)
    fix = f"did you mean {close[0]}?" if close else "`tinyllm data download` lists them; any other is named OWNER/NAME"
    raise UserError(f"there is no data set {name!r}", where="NAME", fix=fix)


def _chosen(listing: Listing, wanted: Sequence[str]) -> list[Remote]:
    """The data files that fit the patterns; all of them without one."""
    if not listing.files:
        what = f"{listing.repository} has no data files ({', '.join(s for s in hub.kinds())})"
        raise UserError(what, where=listing.revision[:12], fix="choose another data set")
    found: dict[str, Remote] = {} if wanted else {remote.path: remote for remote in listing.files}
    for pattern in wanted:
        fitting = [remote for remote in listing.files if fnmatch.fnmatchcase(remote.path, pattern)]
        if not fitting:
            names = [remote.path for remote in listing.files]
            close = difflib.get_close_matches(pattern, names, n=1) or names[:1]
            no_data = "" if hub.is_data(pattern.replace("*", "x")) else "; only data files are downloaded"
            what = f"{listing.repository} has no data file {pattern!r}{no_data}"
            raise UserError(what, where="--file", fix=f"there is for example --file {close[0]!r}")
        found |= {remote.path: remote for remote in fitting}
    for path in found:
        if not hub.stays_inside(path):
            what = f"{listing.repository} names a file that would not stay in its folder: {path!r}"
            raise UserError(what, where=listing.revision[:12], fix="do not use this data set", code=INTEGRITY)
    return [found[path] for path in sorted(found)]


def _compare(pins: Iterable[File], chosen: Sequence[Remote], repository: str) -> None:
    """The hub must offer what the table pins, or somebody has put something else in its place."""
    by_path = {remote.path: remote for remote in chosen}
    for file in pins:
        if remote := by_path.get(file.path):  # else a pattern
            _same(file.path, "size", file.size, remote.size, repository)
            _same(file.path, "sha256", file.sha256, remote.sha256, repository)


def _same(path: str, what: str, pinned: object, offered: object, where: str) -> None:
    if pinned is not None and offered is not None and pinned != offered:
        raise UserError(
            f"{path}: the {what} is {offered}, and should be {pinned}",
            where=where,
            fix="check HF_ENDPOINT; if the hub itself offers this, report it",
            code=INTEGRITY,
        )


def _refuse_too_much(chosen: Sequence[Remote], wanted: Sequence[str], folder: Path) -> None:
    total = sum(remote.size for remote in chosen)
    if total > _MOST and not wanted:
        what = f"{len(chosen)} files of {_size(total)} together"
        raise UserError(what, where="--file", fix=f"name those you want, for example --file {chosen[0].path!r}")
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    missing = sum(remote.size for remote in chosen if not (folder / remote.path).is_file())
    if (free := shutil.disk_usage(place).free) < missing + _SPARE:
        what = f"{_size(missing)} are to come, {_size(free)} of disk are free"
        raise UserError(what, where=str(place), fix="free some disk space, or choose another --out", code=RESOURCES)
    say(f"{len(chosen)} {'file' if len(chosen) == 1 else 'files'}, {_size(total)}, to {folder}")


def _fetched(
    connection: Hub, listing: Listing, chosen: Sequence[Remote], pins: Iterable[File], folder: Path
) -> list[dict[str, Any]]:
    pinned = {file.path: file.sha256 for file in pins}
    files = []
    for remote in chosen:
        to = folder / remote.path
        sha256, state = matches(to, remote), "there"
        if sha256 is None:
            with _Bar(remote) as bar:
                sha256 = fetch(connection, listing, remote, to, bar.update)
            state = "resumed" if bar.start else "downloaded"
        _same(remote.path, "sha256", pinned.get(remote.path), sha256, listing.repository)
        files.append({"path": remote.path, "bytes": remote.size, "sha256": sha256, "state": state})
    return files


def _already_there(folder: Path, repository: str, patterns: Sequence[str]) -> dict[str, Any] | None:
    """source.json of an earlier download, if every file is still what it says."""
    try:
        source = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
        right = source["repository"] == repository
        for file in source["files"]:
            right = right and bool(
                matches(folder / file["path"], Remote(file["path"], file["bytes"], file["sha256"], None))
            )
            file["state"] = "there"
        names = [file["path"] for file in source["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return source if right and all(fnmatch.filter(names, pattern) for pattern in patterns) else None


def _result(name: str, folder: Path, source: dict[str, Any], known: DataSet | None, started: float) -> dict[str, Any]:
    paths = [file["path"] for file in source["files"]]
    if any(path.endswith(".parquet") for path in paths) and find_spec("pyarrow") is None:
        say("parquet files are read with: pip install 'tinyllm-lifecycle[parquet]'")
    place = folder.as_posix()
    use = known.use.format(folder=place) if known else f"tinyllm data inspect {place}"
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


def _write(file: Path, facts: dict[str, Any]) -> None:
    draft = file.with_name(file.name + ".new")
    draft.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(draft, file)


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


class _Bar:
    """How far a file is: a bar on a terminal, a line now and then in a pipe."""

    def __init__(self, remote: Remote):
        self.remote = remote
        self.start: int | None = None  # bytes that were there from before
        self._bar: Any = None
        self._last = time.monotonic()

    def __enter__(self) -> _Bar:
        if not Quiet.on and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            columns = (TextColumn("{task.description}"), BarColumn(24), DownloadColumn(), TransferSpeedColumn())
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self.remote.path, total=self.remote.size)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is None:
            say(
                f"{self.remote.path}: {_size(self.remote.size)}"
                + (f", {_size(self.start)} from before" if self.start else "")
            )

    def update(self, there: int) -> None:
        """`there` bytes have come."""
        if self.start is None:
            self.start = there
        if self._bar is not None:
            self._bar.update(self._task, completed=there)
        elif time.monotonic() - self._last > _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            say(f"{self.remote.path}: {_size(there)} of {_size(self.remote.size)}")
