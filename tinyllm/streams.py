"""Standard streams that fail in a defined way.

Progress on stderr never stops a run: what nobody can read is dropped. A result on stdout that cannot be written ends the command with an
exit code other than 0: 141 where the reader has closed the pipe, as programs end that SIGPIPE kills, otherwise 4 and the reason.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from typing import Any, TextIO

from tinyllm.errors import RESOURCES, UNREAD, UserError


class _Progress(io.FileIO):
    """A file that drops what it cannot write: a closed pipe or terminal, a full disk, a reader that is slower than a run."""

    def write(self, data: Any, /) -> int:
        try:
            written: int | None = super().write(data)
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written


class _Results(io.FileIO):
    """A file that reports the first failure to write as a UserError, and drops what follows."""

    failed = False

    def write(self, data: Any, /) -> int:
        if self.failed:
            return memoryview(data).nbytes
        try:
            while (written := super().write(data)) is None:  # the reader has made the pipe non-blocking, and is slow
                select.select((), (self,), ())
            return int(written)
        except OSError as error:
            self.failed = True
            raise unwritten(error) from error


def unwritten(error: OSError) -> UserError:
    """Return the error for a result that cannot be written to stdout. It has no text where the reader is gone."""
    if isinstance(error, BrokenPipeError):
        return UserError("", code=UNREAD)
    closed = error.errno == errno.EBADF
    return UserError(
        f"the result cannot be written to standard output: {'it is closed' if closed else error.strerror}",
        fix="redirect it to a file, or to /dev/null" if closed else "redirect it to a disk with space and try again",
        code=RESOURCES,
    )


def open_streams() -> None:
    """Replace stdout and stderr. Streams that a test or a notebook has replaced are left alone."""
    for number in (0, 1, 2):  # a file opened later must not become the standard output of a library
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)  # gets the lowest free number
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if isinstance(sys.stdin, io.TextIOWrapper):  # in the C locale Python would read ASCII
        ascii_only = codecs.lookup(sys.stdin.encoding).name == "ascii"
        sys.stdin.reconfigure(encoding="utf-8" if ascii_only else None, errors="replace")
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(_Results(1, "w", closefd=False), sys.stdout, "replace")
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Progress(2, "w", closefd=False), sys.stderr, "backslashreplace")


def _text(raw: io.FileIO, before: TextIO | None, errors: str) -> TextIO:
    """Return a text stream over `raw` with the encoding and buffering that Python chose for the stream before."""
    encoding = "utf-8" if before is None else before.encoding
    at_once = raw.isatty() or errors == "backslashreplace"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=at_once)


def decode_argument(text: str) -> str:
    """Return a text from the command line without the surrogates that stand for bytes the locale cannot decode: as UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def close_results() -> None:
    """Write what is buffered for stdout. Raises: UserError if it cannot be written."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError) as error:  # a stream that is not ours
        raise unwritten(error if isinstance(error, OSError) else OSError(errno.EBADF, str(error))) from error
