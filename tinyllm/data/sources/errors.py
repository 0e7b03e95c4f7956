"""Errors while reading sources: bad rows, and failures of the operating system and of gzip as user errors."""

from __future__ import annotations

import gzip
import reprlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from tinyllm.errors import UserError

SKIP_ROWS = "skip bad rows: --set data.on_bad_line=skip"  # the end of many fixes
FAILURES = (EOFError, zlib.error, OSError)  # raised by the operating system and by gzip


class BadRow(Exception):  # noqa: N818 (about one row, often only counted)
    """A row that cannot be used.

    Args:
        reason: a few words shared by all rows with this fault, for the table of counts.
        detail: what is wrong with this row.
        fix: one edit. If empty, the reader suggests to skip bad rows.
    """

    def __init__(self, reason: str, detail: str = "", fix: str = ""):
        super().__init__(detail or reason)
        self.reason = reason
        self.detail = detail or reason
        self.fix = fix


_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxlist, _BRIEF.maxdict = (
    4,
    4,
    4,
)  # a row may hold millions of items, or be nested hundreds deep
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 60


def preview(value: object, limit: int = 40) -> str:
    """Return a short repr of a value from a file, without control characters that a terminal would act on."""
    text = repr(value[: limit + 1]) if isinstance(value, str) else _BRIEF.repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


def read_error(error: Exception, name: str, line: int = 0) -> UserError:
    """Return one of `FAILURES` as a UserError."""
    where = f"{name}:{line}" if line else name
    if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
        return UserError(f"cannot be read: {error.strerror or error}", where=where, fix=f"check it: ls -l {name}")
    return UserError(f"damaged gzip data: {error}", where=where, fix="download or compress the file again")


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn `FAILURES` while reading `name` into UserErrors."""
    try:
        yield
    except FAILURES as e:
        raise read_error(e, name) from e
