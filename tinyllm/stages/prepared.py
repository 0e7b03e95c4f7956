"""Decide whether prepared data are still current, without reading all text again.

`prepared.json` holds a fingerprint of the settings and of every file's content, and each file's size, modification time and inode. A file
with the same three is taken as unchanged; any other is hashed and compared. A change that keeps the size and resets the time is not
noticed; `tinyllm data prepare` under another --name reads everything. A file modified within two seconds before it was read is always
hashed, because two changes can have the same time stamp.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinyllm.data.config import is_world
from tinyllm.data.sources.errors import reading
from tinyllm.data.sources.paths import expand, is_pipe
from tinyllm.data.tokens.manifest import VERSION
from tinyllm.io import strict_json
from tinyllm.io.files import sha256, write_text_atomically
from tinyllm.stages.config import PretrainConfig
from tinyllm.text.tokenizer import Tokenizer

RECORD = "prepared.json"
_RACY_SECONDS = 2


@dataclass(frozen=True)
class FileStamp:
    """Identifies the state of a file without reading it."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: str | Path) -> FileStamp | None:
        """Return the stamp of a file; None if it was modified a moment ago, or is no file."""
        if not Path(path).is_file():
            return None
        found = Path(path).stat()
        settled = time.time_ns() - found.st_mtime_ns > _RACY_SECONDS * 10**9
        return cls(found.st_size, found.st_mtime_ns, found.st_ino) if settled else None


@dataclass(frozen=True)
class SourceFile:
    """One source file as it was read."""

    path: str
    sha256: str
    stamp: FileStamp | None

    @classmethod
    def now(cls, path: str, known: Mapping[str, SourceFile]) -> SourceFile:
        """Return the file as it is now. It is read only if its stamp is not that of the known file."""
        stamp = FileStamp.of(path)
        if path in known and stamp is not None and known[path].stamp == stamp:
            return known[path]
        with reading(path):
            digest = sha256(Path(path))
        return cls(path, digest, stamp if FileStamp.of(path) == stamp else None)


def fingerprint(config: PretrainConfig, folder: Path) -> str:
    """Return a hash of everything that shapes the shards in `folder`: content of the files, reading options and tokenizer."""
    return _digest(config, _current_files(config, folder))


def is_current(folder: Path, config: PretrainConfig) -> bool:
    """Return True if the data in `folder` are what `config` asks for."""
    recorded = _read(folder)
    if recorded.get("settings") != _settings(config):
        return False  # decided without reading any text
    files = _current_files(config, folder)
    if recorded.get("fingerprint") != _digest(config, files):
        return False
    stamped = [asdict(file) for file in files]
    if recorded.get("files") != stamped:  # copied or touched files: remember their new stamps
        _save(folder, recorded | {"files": stamped})
    return True


def record(
    folder: Path, config: PretrainConfig, files: Sequence[SourceFile], sources: Sequence[dict[str, Any]]
) -> None:
    """Record that the data in `folder` were made from these files, in the order of the configuration."""
    made_from = {"config": config.model_dump(mode="json"), "sources": list(sources)}
    known = {"settings": _settings(config), "files": [asdict(file) for file in files]}
    _save(folder, {"fingerprint": _digest(config, files), **known, **made_from})


def invalidate(folder: Path) -> None:
    """Make `is_current` return False."""
    (folder / RECORD).unlink(missing_ok=True)


def is_read_once(source: str) -> bool:
    """Return True for a source that is gone once it was read: standard input, or a pipe given by its path."""
    path = Path(source).expanduser()
    return source == "-" or (path.exists() and is_pipe(path))


def _settings(config: PretrainConfig) -> dict[str, Any]:
    data = config.data
    shaping = {"val_fraction", "format", "field", "on_bad_line", "encoding", "dedup"}
    found = {"version": VERSION, **data.model_dump(mode="json", include=shaping)}
    if data.delimiter:  # only where it is set: records of earlier versions stay current
        found["delimiter"] = data.delimiter
    found["tokenizer"] = Tokenizer.load(config.tokenizer).sha256 if config.tokenizer else config.model.vocab_size
    if any(is_world(source) for source in (*data.train, *data.val)):
        found["seed"] = config.seed
    return found


def _digest(config: PretrainConfig, files: Sequence[SourceFile]) -> str:
    """Return a hash over the settings and the content of each source. The location of the files does not count."""
    rest = iter(files)
    contents = [
        [[source] if paths is None else [next(rest).sha256 for _ in paths] for source, paths in _paths(sources)]
        for sources in (config.data.train, config.data.val)
    ]
    return hashlib.sha256(strict_json.dumps([_settings(config), contents], sort_keys=True).encode()).hexdigest()


def _paths(sources: Sequence[str]) -> Iterator[tuple[str, list[Path] | None]]:
    """Yield each source with its files; None for the bundled world and for pipes, which are identified by their names."""
    for source in sources:
        yield source, None if is_world(source) or is_read_once(source) else expand([source])


def _current_files(config: PretrainConfig, folder: Path) -> list[SourceFile]:
    known = _known_files(_read(folder))
    sources = (*config.data.train, *config.data.val)
    return [SourceFile.now(str(path), known) for _, paths in _paths(sources) for path in paths or ()]


def _known_files(recorded: dict[str, Any]) -> dict[str, SourceFile]:
    try:
        files = [SourceFile(**row | {"stamp": row["stamp"] and FileStamp(**row["stamp"])}) for row in recorded["files"]]
    except (TypeError, KeyError):  # of an earlier version, or damaged: read everything
        return {}
    return {file.path: file for file in files}


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _save(folder: Path, content: dict[str, Any]) -> None:
    write_text_atomically(folder / RECORD, strict_json.dumps(content, indent=2) + "\n")
