"""Sources to files: a list of files, folders and glob patterns as the files to read."""

from __future__ import annotations

import difflib
import glob
import io
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from tinyllm.data.sources.errors import reading
from tinyllm.errors import UserError

SUFFIXES = (".txt", ".md", ".jsonl", ".ndjson", ".json", ".parquet")  # read from folders, also with .gz
TABLES = (".csv", ".tsv", ".xlsx")  # read from folders that hold nothing else: often they describe the other files
_NO_DATA = ("readme", "license", "licence", "notice", "copying", "changelog")


def expand(sources: Sequence[str | Path]) -> list[Path]:
    """Return the files to read, in a fixed order.

    Args:
        sources: files, folders, glob patterns and `-` (standard input, returned as `Path("-")`).

    Raises: UserError for a path that does not exist (names a similar one), and for a folder without data files.
    """
    files: list[Path] = []
    for source in sources:
        with reading(str(source)):
            files += [Path("-")] if str(source) == "-" else _expand(Path(source).expanduser())
    if not files:
        raise UserError("no data source given", fix="name a file, a folder, a pattern, or - for standard input")
    return files


def _expand(path: Path) -> list[Path]:
    if path.is_dir():
        inside = _data_files(path)
        if not inside:
            what = f"put {', '.join((*SUFFIXES, *TABLES))} in it"
            raise UserError("0 data files in this folder", where=str(path), fix=what)
        return inside
    if path.exists():  # a file, or a pipe such as /dev/stdin
        return [path]
    if any(mark in str(path) for mark in "*?["):
        matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if not Path(p).is_dir())
        if not matches:
            raise UserError("no file matches this pattern", where=str(path), fix="correct the pattern, in quotes")
        return matches
    raise _missing(path)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, and links to folders (not followed: they may form a cycle). Hidden ones are skipped.

    Raises: OSError for a folder that cannot be listed.
    """
    for at, folders, names in os.walk(folder, onerror=_raise):
        linked = [name for name in folders if Path(at, name).is_symlink()]
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(at, name) for name in [*names, *linked] if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise error


def _data_files(folder: Path) -> list[Path]:
    found = sorted(_walk(folder))
    return [path for path in found if _is_data(path, SUFFIXES)] or [path for path in found if _is_data(path, TABLES)]


def _is_data(path: Path, suffixes: tuple[str, ...]) -> bool:
    name = path.name.lower()
    return name.partition(".")[0] not in _NO_DATA and name.removesuffix(".gz").endswith(suffixes)


def skipped_files(sources: Sequence[str | Path]) -> list[str]:
    """Return the files in the folders among `sources` that `expand` leaves out, except hidden ones."""
    folders = [Path(s).expanduser() for s in sources if str(s) != "-" and Path(s).expanduser().is_dir()]
    read = {path for folder in folders for path in _data_files(folder)}
    return [str(file) for folder in folders for file in sorted(_walk(folder)) if file not in read]


def is_pipe(path: Path) -> bool:
    """Return whether this can be read only once: standard input, `/dev/stdin`, `<(a command)`."""
    return str(path) == "-" or stat.S_ISFIFO(path.stat().st_mode)


_DESCRIPTORS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")


def open_binary(path: Path) -> io.FileIO:
    """Open a file unbuffered. Raises: UserError for named pipes and devices, which may block for ever; OSError."""
    mode = path.stat().st_mode
    from_shell = str(path).startswith(_DESCRIPTORS)  # a pipe that the shell writes to
    if stat.S_ISFIFO(mode) and not from_shell:
        fix = f"pipe it in: use - as the source and end the command with < {path}"
        raise UserError("a named pipe may have no writer", where=str(path), fix=fix)
    if (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and not from_shell:
        raise UserError("a device, not a file", where=str(path), fix="name a file")
    return path.open("rb", buffering=0)


def _missing(path: Path) -> UserError:
    parent = path.parent
    if not parent.is_dir():
        return UserError("no such file: its folder does not exist", where=str(path), fix=f"check the path {parent}")
    if path.is_symlink():
        return UserError("a broken link", where=str(path), fix=f"check its target: ls -l {path}")
    close = difflib.get_close_matches(path.name, [p.name for p in parent.iterdir()], n=1)
    fix = f"did you mean {parent / close[0]}?" if close else f"look for it: ls {parent}"
    return UserError("no such file", where=str(path), fix=fix)
