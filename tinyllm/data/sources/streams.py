"""Raw streams between a file on disk and UTF-8 text: hashing, gzip, re-encoding, peeking at the head.

Each wraps another stream.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
from typing import Any

from tinyllm.errors import UserError

HEAD = 1 << 20  # bytes that decide what a file holds; also the size of a read
# English text shrinks to a third, a repeated line to about a hundredth.
_BOMB_BYTES, _BOMB_RATIO = 64 << 20, 400

# Files of other programs by their first bytes: (what it is, how to convert it).
_FOREIGN = {
    b"PK\x03\x04": ("a zip archive", "unpack it and name the files in it"),
    b"\x1f\x8b\x08": ("compressed with gzip twice", "unpack it once: gzip -d FILE"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "unpack it: zstd -d FILE"),
    b"\xfd7zXZ\x00": ("compressed with xz", "unpack it: xz -d FILE"),
    b"BZh91AY&SY": ("compressed with bzip2", "unpack it: bzip2 -d FILE"),
    b"7z\xbc\xaf": ("a 7z archive", "unpack it and name the files in it"),
    b"ARROW1\x00\x00": ("an Arrow file", "write it as parquet or JSON lines, as in dataset.to_json(PATH)"),
    b"\xd0\xcf\x11\xe0": (
        "an Office file of before 2007 (.xls, .doc)",
        "save it as CSV (UTF-8) or xlsx, or as plain text",
    ),
    b"%PDF-": ("a PDF", "convert it to text: pdftotext FILE"),
    b"GGUF\x03\x00": ("a model in GGUF", "name a file of text or records"),
    b"SQLite format 3\x00": ("a SQLite database", "write its rows as JSON lines"),
}
_TAR_AT, _TAR = 257, b"ustar"


_ZIPPED = {  # by the names of the files inside
    b"opendocument.spreadsheet": ("an OpenDocument spreadsheet", "save it as CSV (UTF-8) or as xlsx"),
    b"opendocument.text": ("an OpenDocument text", "save it as plain text (UTF-8)"),
    b"word/": ("a Word document", "save it as plain text (UTF-8)"),
}


def is_workbook(head: bytes, name: str) -> bool:
    """Return whether a file is an Excel workbook (.xlsx)."""
    return head.startswith(b"PK\x03\x04") and (b"xl/" in head or name.lower().endswith((".xlsx", ".xlsm")))


def foreign_format(head: bytes) -> tuple[str, str] | None:
    """Return (what this is, how to convert it) for files of other programs, recognized by their first bytes."""
    if head[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
        return "a tar archive", "unpack it and name the files in it: tar -xf FILE"
    if head.startswith(b"PK\x03\x04") and (inside := next((known for m, known in _ZIPPED.items() if m in head), None)):
        return inside
    return next((known for magic, known in _FOREIGN.items() if head.startswith(magic)), None)


def is_bomb(size: int, stored: int) -> bool:
    """Return whether `stored` bytes that unpack to `size` bytes or more are too many to be text."""
    return size > _BOMB_BYTES and size > _BOMB_RATIO * stored


class HashingReader(io.RawIOBase):
    """Pass bytes through and compute their sha256 and size."""

    def __init__(self, raw: Any):  # a binary file; typing.BinaryIO does not know readinto
        self.raw, self.sha256, self.size = raw, hashlib.sha256(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.raw.readinto(buffer)
        self.sha256.update(memoryview(buffer)[:count])
        self.size += count
        return count


class GzipReader(io.RawIOBase):
    """Decompress gzip data.

    Args:
        compressed: a binary file; `counter` is the reader below it that counts its bytes.

    Raises: what gzip raises; UserError for data that grow more than `_BOMB_RATIO` times.
    """

    def __init__(self, compressed: Any, counter: HashingReader, name: str):
        self._zip, self._counter, self._name, self._size = gzip.GzipFile(fileobj=compressed), counter, name, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._zip.readinto(buffer)
        self._size += count
        if is_bomb(self._size, self._counter.size):
            what = f"{self._counter.size:,} bytes of gzip expand to {self._size:,} or more, too many for text"
            raise UserError(what, where=self._name, fix=f"if you trust the file, unpack it: gzip -dk {self._name}")
        return count


class PrefixedReader(io.RawIOBase):
    """Yield `head`, which was read already, and then the rest."""

    def __init__(self, head: bytes, rest: io.BufferedIOBase):
        self._head, self._rest = memoryview(head), rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._head:
            return self._rest.readinto(buffer)
        count = min(len(buffer), len(self._head))
        buffer[:count] = self._head[:count]
        self._head = self._head[count:]
        return count


class Utf8Reader(io.RawIOBase):
    """Re-encode text as UTF-8.

    Bytes that are not valid in `encoding` become bytes that are not valid in UTF-8, so that the line is refused later with
    its location, as every bad line is.
    """

    def __init__(self, rest: io.BufferedIOBase, encoding: str, name: str):
        self._rest, self._ready, self._at_end = rest, memoryview(b""), False
        self._decoder, self._encoding, self._name = codecs.getincrementaldecoder(encoding)(_INVALID), encoding, name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._at_end:
            data = self._rest.read(HEAD)
            self._at_end = not data
            self._ready = memoryview(self._decoded(data).encode("utf-8", "surrogatepass"))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decoded(self, data: bytes) -> str:
        try:
            return self._decoder.decode(data, final=not data)
        except UnicodeError as e:  # utf-16 and utf-32 without a byte order mark
            fix = f"name the byte order: --set data.encoding={self._encoding}-le, or name another encoding"
            raise UserError(f"not {self._encoding}: {e}", where=f"{self._name}:1", fix=fix) from e


_INVALID = "tinyllm.invalid"


def _replace_invalid(error: UnicodeError) -> tuple[str, int]:
    """Return a lone surrogate, which surrogatepass encodes as three bytes that are not valid UTF-8."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udcff", error.end


codecs.register_error(_INVALID, _replace_invalid)
