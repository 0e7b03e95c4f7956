"""Raw streams between a file on disk and UTF-8 text: hashing, gzip, re-encoding, peeking at the head.

Each wraps another stream. Left out: reading with a guessed encoding; a guess is only ever suggested to the user.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
from typing import Any, Literal, get_args

from tinyllm.errors import UserError

HEAD = 1 << 20  # bytes that decide what a file holds; also the size of a read
Encoding = Literal[
    "utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "latin-1", "cp1252", "cp1251", "koi8-r",
    "gb18030", "big5", "shift_jis", "euc-jp", "euc-kr",
]  # fmt: skip
ENCODINGS: tuple[str, ...] = get_args(Encoding)
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
    b"%PDF-": ("a PDF", "convert it to text: pdftotext FILE"),
    b"GGUF\x03\x00": ("a model in GGUF", "name a file of text or records"),
    b"SQLite format 3\x00": ("a SQLite database", "write its rows as JSON lines"),
}
_TAR_AT, _TAR = 257, b"ustar"


def foreign_format(head: bytes) -> tuple[str, str] | None:
    """Return (what this is, how to convert it) for files of other programs, recognized by their first bytes."""
    if head[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
        return "a tar archive", "unpack it and name the files in it: tar -xf FILE"
    return next((known for magic, known in _FOREIGN.items() if head.startswith(magic)), None)


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
        if self._size > _BOMB_BYTES and self._size > _BOMB_RATIO * self._counter.size:
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


def guess_encoding(head: bytes) -> str:
    """Return the likely encoding of text that is not valid UTF-8; empty where most of it is UTF-8."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    even, odd = head[::2].count(0), head[1::2].count(0)
    if 4 * max(even, odd) > len(head) // 2:  # every second byte of a Latin letter is zero
        return "utf-16-le" if odd > even else "utf-16-be"
    if not even and not odd:
        read = head.decode("utf-8", "replace")
        wrong = read.count("\ufffd")
        if 2 * wrong < sum(char > "\x7f" for char in read):
            return ""
        return _guess_bytewise(head)
    return ""


def _guess_bytewise(head: bytes) -> str:
    high = [byte for byte in head if byte > 0x7F]
    if 3 * len(high) > len(head) and _decodes(head, "gb18030"):
        return "gb18030"
    return "cp1252" if any(byte < 0xA0 for byte in high) else "latin-1"


def _decodes(head: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return False
    return True
