"""Which files to read, and their bytes: gzip, byte order mark, sha256, what they hold, lines of UTF-8.

Everything streams. What a file holds is decided by looking at its first MiB; its suffix only breaks ties.
Left out: encodings other than UTF-8 (guessing one writes silent rubbish), archives, zstd.
"""

from __future__ import annotations

import codecs
import difflib
import glob
import gzip
import hashlib
import io
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyllm.errors import UserError

MAX_ROW = 32 << 20  # bytes of one line, or characters of one array element
HEAD = 1 << 20  # bytes looked at to decide what a file holds
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


def shown(value: object, most: int = 40) -> str:
    """A value from a file for an error message: short, and without control characters a terminal would obey."""
    text = repr(value)
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
        inside = sorted(p for p in path.rglob("*") if p.is_file() and _is_data(p.relative_to(path)))
        if not inside:
            raise UserError("0 data files in this folder", where=str(path), fix=f"put {', '.join(SUFFIXES)} in it")
        return inside
    if path.exists():  # a file, or a pipe such as /dev/stdin
        return [path]
    if any(mark in str(path) for mark in "*?["):
        matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
        if not matches:
            raise UserError("no file matches this pattern", where=str(path), fix="correct the pattern, in quotes")
        return matches
    raise _missing(path)


def _is_data(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.name.lower().removesuffix(".gz").endswith(SUFFIXES)


def _missing(path: Path) -> UserError:
    parent = path.parent
    if not parent.is_dir():
        return UserError("no such file: its folder does not exist", where=str(path), fix=f"check the path {parent}")
    close = difflib.get_close_matches(path.name, [p.name for p in parent.iterdir()], n=1)
    fix = f"did you mean {parent / close[0]}?" if close else f"look for it: ls {parent}"
    return UserError("no such file", where=str(path), fix=fix)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns what the operating system and gzip raise while reading `name` into UserErrors."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise UserError(f"damaged gzip data: {e}", where=name, fix="fetch or compress the file again") from e
    except OSError as e:
        raise UserError(f"cannot be read: {e.strerror}", where=name, fix=f"check it: ls -l {name}") from e


class _Hashing(io.RawIOBase):
    """Passes bytes through and keeps their sha256."""

    def __init__(self, raw: Any):  # a binary file; typing.BinaryIO does not know readinto
        self.raw, self.sha256, self.size = raw, hashlib.sha256(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.raw.readinto(buffer)
        self.sha256.update(memoryview(buffer)[:count])
        self.size += count
        return count


class _Prefixed(io.RawIOBase):
    """Gives back `head`, which was read to look at, and then the rest."""

    def __init__(self, head: bytes, rest: io.BufferedIOBase):
        self.head, self.rest = memoryview(head), rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.head:
            return self.rest.readinto(buffer)
        count = min(len(buffer), len(self.head))
        buffer[:count] = self.head[:count]
        self.head = self.head[count:]
        return count


class Source:
    """One open file (or standard input): its bytes without gzip and BOM, its first MiB in `head`.

    `finish()` reads what is left and returns (sha256, size) of the bytes as they are stored. `notes` collects what was
    taken care of on the way.
    """

    def __init__(self, path: Path):
        self.path = path
        self.name = "standard input" if str(path) == "-" else str(path)
        self.notes: list[str] = []
        self.crlf = 0
        with reading(self.name):
            self._file = sys.stdin.buffer if str(path) == "-" else path.open("rb")
        self._hashing = _Hashing(self._file)
        self._stored = io.BufferedReader(self._hashing, HEAD)
        try:
            with reading(self.name):
                zipped = self._stored.peek(2)[:2] == b"\x1f\x8b"
                plain = gzip.GzipFile(fileobj=self._stored) if zipped else self._stored
                head = plain.read(HEAD)
        except UserError:
            self.close()
            raise
        self.start = 3 if head.startswith(codecs.BOM_UTF8) else 0  # byte offset of the first character
        if self.start:
            self.notes.append("byte order mark dropped")
        self.head = head[self.start :]
        self.bytes = io.BufferedReader(_Prefixed(self.head, plain), HEAD)

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
    offset = source.start
    with reading(source.name):
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


def _decoded(source: Source, raw: bytes, offset: int) -> str | BadRow:
    try:
        return raw.decode()
    except UnicodeDecodeError as e:
        return not_utf8(source, raw[e.start], offset + e.start)


def _skip_line(source: Source) -> int:
    """Reads on to the end of the line; how many bytes that were."""
    length = 0
    while part := source.bytes.readline(HEAD):
        length += len(part)
        if part.endswith(b"\n"):
            break
    return length


def not_utf8(source: Source, byte: int, offset: int) -> BadRow:
    utf16 = source.head.startswith((b"\xff\xfe", b"\xfe\xff"))
    guess = "UTF-16" if utf16 else "LATIN1"
    detail = f"not UTF-8: byte 0x{byte:02x} at byte offset {offset}" + (
        " (UTF-16 by its first two bytes)" if utf16 else ""
    )
    return BadRow("not UTF-8", detail, f"convert it: iconv -f {guess} -t UTF-8 {source.path} > converted.txt")
