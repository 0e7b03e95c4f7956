"""Whether prepared data still are what a configuration asks for, without reading all text again.

`prepared.json` keeps, beside a fingerprint of the settings and of every file's content, each file's size, time of change and inode. A file
whose three are what they were is taken for unchanged; of any other the content is hashed and compared. What this cannot notice is a
change of content that keeps the size and sets the time back; `tinyllm data prepare` under another --name reads everything. A file that
was changed within two seconds before it was read is not trusted by its time (two changes can fall into one tick of a file system's clock).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinyllm.data import records
from tinyllm.data.files import is_pipe, reading
from tinyllm.data.manifest import VERSION
from tinyllm.stages.config import PretrainConfig, is_world
from tinyllm.text.tokenizer import Tokenizer

RECORD = "prepared.json"
_RACY_SECONDS = 2


@dataclass(frozen=True)
class Stamp:
    """What tells that a file is the same without reading it."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: str | Path) -> Stamp | None:
        """None for what changed a moment ago, or is no file."""
        if not Path(path).is_file():
            return None
        found = Path(path).stat()
        settled = time.time_ns() - found.st_mtime_ns > _RACY_SECONDS * 10**9
        return cls(found.st_size, found.st_mtime_ns, found.st_ino) if settled else None


@dataclass(frozen=True)
class Seen:
    """One source file as it was read."""

    path: str
    sha256: str
    stamp: Stamp | None

    @classmethod
    def now(cls, path: str, known: Mapping[str, Seen]) -> Seen:
        """The file as it is: by its stamp if that is known, else by reading it."""
        stamp = Stamp.of(path)
        if path in known and stamp is not None and known[path].stamp == stamp:
            return known[path]
        with reading(path), Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(path, digest, stamp if Stamp.of(path) == stamp else None)


def fingerprint(config: PretrainConfig, folder: Path) -> str:
    """A hash of everything that shapes the shards in `folder`: the files' content, the reading options, the tokenizer."""
    return _digest(config, _current(config, folder))


def holds(folder: Path, config: PretrainConfig) -> bool:
    """Whether what was made in `folder` is what `config` asks for."""
    record = _read(folder)
    if record.get("settings") != _settings(config):
        return False  # no text need be read to know that
    files = _current(config, folder)
    if record.get("fingerprint") != _digest(config, files):
        return False
    if record.get("files") != [
        asdict(file) for file in files
    ]:  # copied or touched: known by their new stamps from now on
        _save(folder, record | {"files": [asdict(file) for file in files]})
    return True


def write(folder: Path, config: PretrainConfig, files: Sequence[Seen], sources: Sequence[dict[str, Any]]) -> None:
    """Remember that `folder` was made from these files, in the order of the configuration, and now holds what it asks for."""
    made_from = {"config": config.model_dump(mode="json"), "sources": list(sources)}
    known = {"settings": _settings(config), "files": [asdict(file) for file in files]}
    _save(folder, {"fingerprint": _digest(config, files), **known, **made_from})


def forget(folder: Path) -> None:
    (folder / RECORD).unlink(missing_ok=True)


def _settings(config: PretrainConfig) -> dict[str, Any]:
    data = config.data
    shaping = {"val_fraction", "format", "field", "on_bad_line", "encoding", "dedup"}
    found = {"version": VERSION, **data.model_dump(mode="json", include=shaping)}
    found["tokenizer"] = Tokenizer.load(config.tokenizer).sha256 if config.tokenizer else config.model.vocab_size
    if any(is_world(source) for source in (*data.train, *data.val)):
        found["seed"] = config.seed
    return found


def _digest(config: PretrainConfig, files: Sequence[Seen]) -> str:
    """Over the settings and, source by source, the content; where the files lie does not count."""
    rest = iter(files)
    sides = [
        [[source] if paths is None else [next(rest).sha256 for _ in paths] for source, paths in _sources(side)]
        for side in (config.data.train, config.data.val)
    ]
    return hashlib.sha256(json.dumps([_settings(config), sides], sort_keys=True).encode()).hexdigest()


def _sources(side: Sequence[str]) -> Iterator[tuple[str, list[Path] | None]]:
    """Each source with its files; None for the world and for pipes, which are known by their names alone."""
    for source in side:
        yield source, None if is_world(source) or read_once(source) else records.expand([source])


def read_once(source: str) -> bool:
    """Whether a source is gone when it was read: standard input, or a pipe by its path."""
    path = Path(source).expanduser()
    return source == "-" or (path.exists() and is_pipe(path))


def _current(config: PretrainConfig, folder: Path) -> list[Seen]:
    known = _known(_read(folder))
    sides = (*config.data.train, *config.data.val)
    return [Seen.now(str(path), known) for _, paths in _sources(sides) for path in paths or ()]


def _known(record: dict[str, Any]) -> dict[str, Seen]:
    try:
        files = [Seen(**row | {"stamp": row["stamp"] and Stamp(**row["stamp"])}) for row in record["files"]]
    except (TypeError, KeyError):  # of an earlier version, or damaged: read everything
        return {}
    return {file.path: file for file in files}


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _save(folder: Path, record: dict[str, Any]) -> None:
    draft = folder / f"{RECORD}.new"
    draft.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, folder / RECORD)
