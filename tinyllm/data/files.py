"""Which files to read, and their lines.

Everything streams (`streams`). What a file holds is decided by looking at its first MiB; its suffix only breaks ties.
Left out: archives, compression other than gzip, guessing an encoding (a wrong guess writes silent rubbish).
"""

from __future__ import annotations

import codecs
import difflib
import errno
import glob
import gzip
import io
import os
import reprlib
import stat
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyllm.data.streams import HEAD, Hashing, Prefixed, Unzipped, Utf8, foreign, likely
from tinyllm.errors import RESOURCES, UserError

MAX_ROW = 32 << 20  # bytes of one line, or characters of one array element
SUFFIXES = (".txt", ".md", ".jsonl", ".ndjson", ".json", ".parquet")  # what is picked up from a folder, also with .gz


class BadRow(Exception):  # noqa: N818 (of a row, and often only counted)
    """A row that is not what it should be.

    Args:
        reason: a few words shared by all rows with this fault, for the table of counts.
        detail: what is wrong with this row.
        fix: one edit; the reader offers to skip the row when empty.
    """

    def __init__(self, reason: str, detail: str = "", fix: str = ""):
        super().__init__(detail or reason)
        self.reason = reason
        self.detail = detail or reason
        self.fix = fix


_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxlist, _BRIEF.maxdict = 4, 4, 4  # a row may be a list of millions, or hundreds deep
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 60


def shown(value: object, most: int = 40) -> str:
    """A value from a file for an error message: short, and without control characters a terminal would obey."""
    text = repr(value[: most + 1]) if isinstance(value, str) else _BRIEF.repr(value)
    return text if len(text) <= most else text[:most] + "…"


def expand(sources: Sequence[str | Path]) -> list[Path]:
    """The files to read, in a fixed order, for files, folders, glob patterns and `-` (standard input, as `Path("-")`).

    Raises: UserError for a path that does not exist (names a similar one that does) and a folder without data files.
    """
    found: list[Path] = []
    for source in sources:
        with reading(str(source)):
            found += [Path("-")] if str(source) == "-" else _expand(Path(source).expanduser())
    if not found:
        raise UserError("no data source given", fix="name a file, a folder, a pattern, or - for standard input")
    return found


def _expand(path: Path) -> list[Path]:
    if path.is_dir():
        inside = sorted(filter(_is_data, _walk(path)))
        if not inside:
            raise UserError("0 data files in this folder", where=str(path), fix=f"put {', '.join(SUFFIXES)} in it")
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
    """Everything below a folder that is neither hidden nor a folder, and links to folders, which may lead in circles.

    Raises: OSError for a folder that cannot be listed.
    """
    for at, folders, names in os.walk(folder, onerror=_raise):
        linked = [name for name in folders if Path(at, name).is_symlink()]
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(at, name) for name in [*names, *linked] if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise error


_ABOUT = ("readme", "license", "licence", "notice", "copying", "changelog")


def _is_data(path: Path) -> bool:
    name = path.name.lower()
    return name.partition(".")[0] not in _ABOUT and name.removesuffix(".gz").endswith(SUFFIXES)


def passed_over(sources: Sequence[str | Path]) -> list[str]:
    """What lies in the folders among `sources` and is no data to `expand`, but for what is hidden."""
    folders = [Path(s).expanduser() for s in sources if str(s) != "-" and Path(s).expanduser().is_dir()]
    return [str(file) for folder in folders for file in sorted(_walk(folder)) if not _is_data(file)]


def is_pipe(path: Path) -> bool:
    """Whether this can be read once only: standard input, `/dev/stdin`, `<(a command)`."""
    return str(path) == "-" or stat.S_ISFIFO(path.stat().st_mode)


_DESCRIPTORS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")


def _opened(path: Path) -> io.FileIO:
    """Raises: UserError for what would never end or never begin; OSError."""
    mode = path.stat().st_mode
    handed_over = str(path).startswith(_DESCRIPTORS)  # by the shell, which has filled it or will
    if stat.S_ISFIFO(mode) and not handed_over:
        fix = f"pipe it in: write - for it and end the command with < {path}"
        raise UserError("a named pipe, which may have nobody to fill it", where=str(path), fix=fix)
    if (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and not handed_over:
        raise UserError("a device, not a file", where=str(path), fix="name a file")
    return path.open("rb", buffering=0)


def _missing(path: Path) -> UserError:
    parent = path.parent
    if not parent.is_dir():
        return UserError("no such file: its folder does not exist", where=str(path), fix=f"check the path {parent}")
    if path.is_symlink():
        return UserError("a link that leads nowhere", where=str(path), fix=f"look where to: ls -l {path}")
    close = difflib.get_close_matches(path.name, [p.name for p in parent.iterdir()], n=1)
    fix = f"did you mean {parent / close[0]}?" if close else f"look for it: ls {parent}"
    return UserError("no such file", where=str(path), fix=fix)


FAILURES = (EOFError, zlib.error, OSError)  # what the operating system and gzip raise


def unreadable(error: Exception, name: str, line: int = 0) -> UserError:
    where = f"{name}:{line}" if line else name
    if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
        return UserError(f"cannot be read: {error.strerror or error}", where=where, fix=f"check it: ls -l {name}")
    return UserError(f"damaged gzip data: {error}", where=where, fix="fetch or compress the file again")


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns `FAILURES` while reading `name` into UserErrors."""
    try:
        yield
    except FAILURES as e:
        raise unreadable(e, name) from e


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the operating system raises while writing prepared data into UserErrors (RESOURCES)."""
    try:
        yield
    except OSError as e:
        fix = "free some disk space" if e.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another --name"
        raise UserError(f"shards cannot be written: {e.strerror}", where=str(path), fix=fix, code=RESOURCES) from e


class Source:
    """One open file (or standard input): its bytes unpacked, as UTF-8, without a byte order mark; its first MiB in `head`.

    `finish()` reads what is left and returns (sha256, size) of the bytes as they are stored. `notes` collects what was
    taken care of on the way.

    Args:
        encoding: one of `streams.ENCODINGS`.

    Raises: UserError for a file that cannot be opened, a device, a file of another program, damaged gzip data.
    """

    def __init__(self, path: Path, encoding: str = "utf-8"):
        self.path, self.encoding = path, encoding
        self.name = "standard input" if str(path) == "-" else str(path)
        self.notes: list[str] = []
        self.crlf = 0
        with reading(self.name):
            self._file = sys.stdin.buffer if str(path) == "-" else _opened(path)
        self._hashing = Hashing(self._file)
        self._stored = io.BufferedReader(self._hashing, 1 << 16)
        try:
            with reading(self.name):
                self._open()
        except UserError:
            self.close()
            raise

    def _open(self) -> None:
        plain: Any = self._stored
        self.pipe = str(self.path) == "-" or stat.S_ISFIFO(
            os.fstat(self._file.fileno()).st_mode
        )  # cannot be read again
        self.plain = not self.pipe  # what stands in the file is what `bytes` gives
        if plain.peek(2)[:2] == b"\x1f\x8b":
            self.plain = False
            plain = io.BufferedReader(Unzipped(self._stored, self._hashing, self.name), HEAD)
        head = plain.read(HEAD)
        if known := foreign(head):
            raise UserError(f"this is {known[0]}, which is not read", where=self.name, fix=known[1])
        if self.encoding != "utf-8":
            plain = io.BufferedReader(
                Utf8(io.BufferedReader(Prefixed(head, plain), HEAD), self.encoding, self.name), HEAD
            )
            head = plain.read(HEAD)
            self.notes.append(f"read as {self.encoding}")
        self.start = 3 if head.startswith(codecs.BOM_UTF8) else 0  # byte offset of the first character
        if self.start:
            self.notes.append("byte order mark dropped")
        self.head = head[self.start :]
        self.bytes = io.BufferedReader(Prefixed(self.head, plain), HEAD)

    @property
    def read(self) -> int:
        """Bytes read so far, as they are stored."""
        return self._hashing.size

    def finish(self) -> tuple[str, int]:
        with reading(self.name):
            while self._stored.read(HEAD):
                pass
        if self.crlf:
            self.notes.append(f"{self.crlf:,} CRLF line ends read as LF")
        return self._hashing.sha256.hexdigest(), self._hashing.size

    def close(self) -> None:
        if self._file is not sys.stdin.buffer:
            self._file.close()


def lines(source: Source) -> Iterator[tuple[str, int, str | BadRow]]:
    """(place, byte offset, line without its end) of every line."""
    offset, number = source.start, 0
    try:
        for number, raw in enumerate(iter(lambda: source.bytes.readline(MAX_ROW + 1), b""), 1):
            length = len(raw)
            if length > MAX_ROW and not raw.endswith(b"\n"):
                length += _skip_line(source)
                what = f"one line of {length:,} bytes; the most is {MAX_ROW:,}"
                line: str | BadRow = BadRow("line too long", what, "break it into lines")
            else:
                source.crlf += raw.endswith(b"\r\n")
                line = _decoded(source, raw.removesuffix(b"\n").removesuffix(b"\r"), offset)
            yield f"{source.name}:{number}", offset, line
            offset += length
    except FAILURES as e:
        raise unreadable(e, source.name, number + 1) from e


def _decoded(source: Source, raw: bytes, offset: int) -> str | BadRow:
    try:
        text = raw.decode()
    except UnicodeDecodeError as e:
        return not_utf8(source, raw[e.start], offset + e.start)
    return not_text(source, offset + raw.index(b"\0")) if b"\0" in raw else text


def _skip_line(source: Source) -> int:
    """Reads on to the end of the line; how many bytes that were."""
    length = 0
    while part := source.bytes.readline(HEAD):
        length += len(part)
        if part.endswith(b"\n"):
            break
    return length


SKIP = "leave bad rows out: --set data.on_bad_line=skip"


def not_utf8(source: Source, byte: int, offset: int, *, skips: bool = True) -> BadRow:
    """A `BadRow`; `skips`: it may be stepped over."""
    if source.encoding != "utf-8":
        what = f"not {source.encoding}: bytes that stand for no character in it"
        return BadRow(
            f"not {source.encoding}", what, f"name another encoding, or {SKIP}" if skips else "name another encoding"
        )
    return BadRow("not UTF-8", f"not UTF-8: byte 0x{byte:02x} at byte offset {offset}", _fix_encoding(source, skips))


def not_text(source: Source, offset: int, *, skips: bool = True) -> BadRow:
    return BadRow("not text", f"a NUL byte at byte offset {offset}: this is no text", _fix_encoding(source, skips))


def _fix_encoding(source: Source, skips: bool) -> str:
    guess = likely(source.head) if source.encoding == "utf-8" else ""
    fix = f"name its encoding, perhaps --set data.encoding={guess}" if guess else "mend it"
    return f"{fix}, or {SKIP}" if skips else fix
