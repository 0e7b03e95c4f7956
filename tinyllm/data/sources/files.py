"""One open file as bytes and as lines of UTF-8.

Everything streams (`streams`). What a file holds is decided from its first MiB; its suffix only breaks ties.
Left out: archives, compression other than gzip, guessing an encoding (a wrong guess writes silent garbage).
"""

from __future__ import annotations

import codecs
import io
import os
import stat
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from tinyllm.data.sources import encodings
from tinyllm.data.sources.errors import FAILURES, SKIP_ROWS, BadRow, read_error, reading
from tinyllm.data.sources.paths import open_binary
from tinyllm.data.sources.streams import (
    HEAD,
    GzipReader,
    HashingReader,
    PrefixedReader,
    Utf8Reader,
    foreign_format,
    is_workbook,
)
from tinyllm.errors import UserError

MAX_ROW = 32 << 20  # bytes of one line, or characters of one array element


class Source:
    """One open file, or standard input, as bytes of UTF-8: decompressed, re-encoded, without a byte order mark.

    Attributes:
        head: the first MiB of `stream`.
        stream: a binary file with all of the content, `head` included.
        start: the byte offset of the first character.
        is_pipe: the source cannot be read again.
        is_sheet: the source is an Excel workbook.
        doubted: an encoding likelier than the one that the user named; empty if there is none.
        is_plain: the file on disk has the same bytes as `stream` (no gzip, no pipe), but for its encoding.
        notes: what was done to the content on the way, for the report.

    Args:
        encoding: one of `encodings.ENCODINGS`.

    Raises: UserError for a file that cannot be opened, a device, a file of another program, damaged gzip data.
    """

    def __init__(self, path: Path, encoding: str = "utf-8"):
        self.path, self.encoding = path, encoding
        self.name = "standard input" if str(path) == "-" else str(path)
        self.notes: list[str] = []
        self.crlf = 0
        with reading(self.name):
            self._file = sys.stdin.buffer if str(path) == "-" else open_binary(path)
        self._hashing = HashingReader(self._file)
        self._stored = io.BufferedReader(self._hashing, 1 << 16)
        try:
            with reading(self.name):
                self._open()
        except UserError:
            self.close()
            raise

    def _open(self) -> None:
        content: Any = self._stored
        self.is_pipe = str(self.path) == "-" or stat.S_ISFIFO(os.fstat(self._file.fileno()).st_mode)
        self.is_plain = not self.is_pipe
        if content.peek(2)[:2] == b"\x1f\x8b":
            self.is_plain = False
            content = io.BufferedReader(GzipReader(self._stored, self._hashing, self.name), HEAD)
        head = content.read(HEAD)
        self.is_sheet = is_workbook(head, self.name)
        if not self.is_sheet and (known := foreign_format(head)):
            raise UserError(f"this is {known[0]}, which is not supported", where=self.name, fix=known[1])
        self.doubted = ""
        if self.encoding != "utf-8" and not self.is_sheet:
            self.doubted = encodings.doubted(head, self.encoding)
            encoded = io.BufferedReader(PrefixedReader(head, content), HEAD)
            content = io.BufferedReader(Utf8Reader(encoded, self.encoding, self.name), HEAD)
            head = content.read(HEAD)
            self.notes.append(f"read as {self.encoding}" + f", but looks like {self.doubted}" * bool(self.doubted))
        self.start = 3 if head.startswith(codecs.BOM_UTF8) else 0
        if self.start:
            self.notes.append("byte order mark dropped")
        self.head = head[self.start :]
        self.stream = io.BufferedReader(PrefixedReader(self.head, content), HEAD)

    @property
    def bytes_read(self) -> int:
        """Bytes read so far, as stored on disk."""
        return self._hashing.size

    @cached_property
    def likely_encoding(self) -> str:
        """A guess from the first MiB; empty if there is none. Made once, since it takes as long as reading megabytes."""
        return encodings.guess(self.head)

    def finish(self) -> tuple[str, int]:
        """Read what is left; return the sha256 and the size of the bytes as stored on disk."""
        with reading(self.name):
            while self._stored.read(HEAD):
                pass
        if self.crlf:
            self.notes.append(f"{self.crlf:,} CRLF line ends read as LF")
        return self._hashing.sha256.hexdigest(), self._hashing.size

    def close(self) -> None:
        if self._file is not sys.stdin.buffer:
            self._file.close()


MAX_BLANK = 100_000  # blank lines in a row: nobody writes them, and a few megabytes of gzip hold billions


def lines(source: Source) -> Iterator[tuple[str, int, str | BadRow]]:
    """Yield (location, byte offset, line without its line end) for every line. Raises: UserError for `MAX_BLANK` blank lines in a row."""
    offset, number, last_text = source.start, 0, 0
    try:
        for number, raw in enumerate(iter(lambda: source.stream.readline(MAX_ROW + 1), b""), 1):
            length = len(raw)
            if length > MAX_ROW and not raw.endswith(b"\n"):
                length += _skip_line(source)
                what = f"a line of {length:,} bytes; the limit is {MAX_ROW:,}"
                line: str | BadRow = BadRow("line too long", what, "break it into lines")
            else:
                source.crlf += raw.endswith(b"\r\n")
                line = _decode(source, raw.removesuffix(b"\n").removesuffix(b"\r"), offset)
            if not raw.isspace():
                last_text = number
            elif number - last_text > MAX_BLANK:
                raise _blank(source, number)
            yield f"{source.name}:{number}", offset, line
            offset += length
    except FAILURES as e:
        raise read_error(e, source.name, number + 1) from e


def _blank(source: Source, number: int) -> UserError:
    trim = "sed 's/[[:space:]]*$//'"  # cat -s takes a line with white space, or CR LF, for text
    squeeze = f"{trim} FILE | cat -s > NEW" if source.is_plain else f"gzip -dc FILE | {trim} | cat -s | gzip > NEW"
    what, where = f"more than {MAX_BLANK:,} blank lines in a row", f"{source.name}:{number}"
    return UserError(what, where=where, fix=f"remove them: {squeeze}")


def _decode(source: Source, raw: bytes, offset: int) -> str | BadRow:
    try:
        text = raw.decode()
    except UnicodeDecodeError as e:
        return not_utf8(source, raw[e.start], offset + e.start)
    return not_text(source, offset + raw.index(b"\0")) if b"\0" in raw else text


def _skip_line(source: Source) -> int:
    """Read on to the end of the line; return the number of bytes read."""
    length = 0
    while part := source.stream.readline(HEAD):
        length += len(part)
        if part.endswith(b"\n"):
            break
    return length


def not_utf8(source: Source, byte: int, offset: int, *, can_skip: bool = True) -> BadRow:
    """Return the error for a byte that is not valid in the source's encoding; `can_skip`: reading may continue after it."""
    if source.encoding != "utf-8":
        fix = "name another encoding" + f", perhaps --set data.encoding={source.doubted}" * bool(source.doubted)
        fix += f", or {SKIP_ROWS}" * can_skip
        return BadRow(f"not {source.encoding}", f"not {source.encoding}: bytes without a character in it", fix)
    what = f"not UTF-8: byte 0x{byte:02x} at byte offset {offset}"
    return BadRow("not UTF-8", what, _fix_encoding(source, can_skip))


def not_text(source: Source, offset: int, *, can_skip: bool = True) -> BadRow:
    """Return the error for a NUL byte."""
    return BadRow("not text", f"not text: a NUL byte at byte offset {offset}", _fix_encoding(source, can_skip))


def _fix_encoding(source: Source, can_skip: bool) -> str:
    likely = source.likely_encoding if source.encoding == "utf-8" else ""
    fix = f"name its encoding, perhaps --set data.encoding={likely}" if likely else "fix the file"
    return fix + f", or {SKIP_ROWS}" * can_skip
