"""Reading data: sources of any accepted format as one stream of documents, conversations, pairs, judgements or prompts.

`read(sources, kind)` is lazy and may be iterated again; its `report` says what was detected, read, mended and dropped.
Nothing is dropped in silence, and a source that yields nothing is an error.

Left out: shuffling and sequence lengths (batches), mixing weights, downloads.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyllm.data.detect import detect, kind_of, missing_column, renamed, wrong_kind
from tinyllm.data.files import SKIP, BadRow, Source, expand, is_pipe, passed_over, shown
from tinyllm.data.formats import FORMATS, KINDS
from tinyllm.data.report import FileReport, Report
from tinyllm.data.rows import CUTS, layout, rows
from tinyllm.data.streams import ENCODINGS
from tinyllm.data.turns import Conversation, Document, Dropped, Judgement, Pair, Prompt, Record
from tinyllm.errors import UserError

__all__ = [
    "KINDS",
    "Conversation",
    "Document",
    "Judgement",
    "Pair",
    "Prompt",
    "Reader",
    "Record",
    "Report",
    "kind_of",
    "read",
    "read_rows",
]

LOOKED_AT = 100  # files looked at before anything starts


class Reader:
    """See `read`. `report` belongs to the latest pass."""

    def __init__(
        self,
        sources: Sequence[str | Path],
        kind: str,
        format: str | None,
        columns: Mapping[str, str],
        on_bad_line: str,
        encoding: str,
    ):
        self.paths, self.passed_over = tuple(expand(sources)), passed_over(sources)
        self.kind, self.format, self.columns = kind, format, dict(columns)
        self.on_bad_line, self.encoding = on_bad_line, encoding
        self.report = Report(kind)
        self._source: Source | None = None
        self._drained: set[Path] = set()

    @property
    def read(self) -> int:
        """Bytes read so far in the latest pass, as they are stored."""
        done = sum(file.bytes for file in self.report.files)
        return done + (self._source.read if self._source is not None else 0)

    def __iter__(self) -> Iterator[Record]:
        report = self.report = Report(self.kind, passed_over=self.passed_over)
        for path in self.paths:
            source = self._source = self._open(path)
            try:
                yield from self._records(source, report)
            finally:
                source.close()
                self._source = None
        if not report.records:
            raise report.nothing_left()
        report.complete = True

    def look(self) -> None:
        """Read every file as far as its first record, but for pipes, so that what is wrong with all of it is said at once.

        Raises: UserError, as iteration does.
        """
        report, files = Report(self.kind), [path for path in self.paths[:LOOKED_AT] if not is_pipe(path)]
        for path in files:
            source = self._open(path)
            try:
                next(self._records(source, report), None)
            finally:
                source.close()
        if files and len(files) == len(self.paths) and not report.records:
            raise report.nothing_left()

    def _open(self, path: Path) -> Source:
        source = Source(path, self.encoding)
        if path in self._drained:
            source.close()
            what = "standard input can be read only once" if str(path) == "-" else "a pipe can be read only once"
            raise UserError(what, where="" if str(path) == "-" else str(path), fix="save it to a file and name that")
        if source.pipe:
            self._drained.add(path)
        return source

    def _records(self, source: Source, report: Report) -> Iterator[Record]:
        file = FileReport(source.name, self.format or "", notes=source.notes)
        report.files.append(file)
        cut = self.format if self.kind == "documents" and self.format in CUTS else ""
        if not self.format and layout(source) == "text":
            file.format = "text"
            if self.kind != "documents" and source.head.strip():
                raise wrong_kind(self.kind, "documents", "plain text", source.name)
        for place, row in rows(source, cut):
            file.rows += 1
            mended: list[str] = []
            try:
                if isinstance(row, BadRow):
                    raise row
                found = self._convert(file, row, place, mended)
            except BadRow as bad:
                self._bad(bad, place, report)
            except Dropped as drop:
                report.drop(drop.reason, place)
            else:
                for what in dict.fromkeys(mended):
                    report.mend(what, place)
                file.records += len(found)
                report.records += len(found)
                yield from found
        file.sha256, file.bytes = source.finish()
        if not file.rows:
            what = f"0 {self.kind} in {source.name}"
            self._bad(BadRow("empty file", what, "put data in it or leave it out"), "", report)

    def _bad(self, bad: BadRow, place: str, report: Report) -> None:
        if self.on_bad_line == "error":
            raise UserError(bad.detail, where=place, fix=bad.fix or f"mend it, or {SKIP}") from bad
        report.drop(bad.reason, place or bad.detail, bad.fix)

    def _convert(self, file: FileReport, row: dict[str, Any] | str, place: str, mended: list[str]) -> list[Record]:
        row = {"text": row} if isinstance(row, str) else renamed(row, self.columns)
        if not file.format:
            file.format = detect(self.kind, row, place)
        chosen = FORMATS[self.kind][file.format]
        if not chosen.fits(row):
            missing = next((name for name in chosen.needs if name not in row), None)
            if missing is None:
                other = next(name for name in chosen.lacks if name in row)
                raise BadRow("another format", f"a column {other!r}, which the format {file.format!r} does not have")
            raise missing_column(missing, chosen.needs, row, place)
        found = chosen.convert(row, mended.append)
        if self.kind != "prompts":  # whose other columns are for the rewards
            file.leave_out(name for name, value in row.items() if value is not None and name not in chosen.columns)
        return found


def read(
    sources: Sequence[str | Path],
    kind: str,
    *,
    format: str | None = None,
    field: Mapping[str, str] | None = None,
    on_bad_line: str = "error",
    encoding: str = "utf-8",
) -> Reader:
    """Open data sources for reading; nothing is read before iteration.

    Args:
        sources: files, folders, glob patterns, `-` for standard input.
        kind: `documents`, `conversations`, `pairs`, `judgements` or `prompts`: the record class that comes out.
        format: a name from `FORMATS[kind]`; found from the first row of each file by default.
        field: our column name -> the one in the files, as in `{"text": "body"}`.
        on_bad_line: `error`, or `skip` to leave bad rows out and count them. Rows that cannot train always are.
        encoding: of the files, one of `ENCODINGS`.

    Raises:
        UserError: here for a source, kind, format or field that does not exist; on iteration for a bad row (with file
            and line), an empty file, data of another kind, and when no record is left.
    """
    _one_of(kind, KINDS, "kind of data")
    _one_of(on_bad_line, ("error", "skip"), "data.on_bad_line")
    _one_of(encoding, ENCODINGS, "data.encoding")
    if format is not None:
        _one_of(format, tuple(FORMATS[kind]), f"format of {kind}")
    for name in field or {}:
        columns = {column for known in FORMATS[kind].values() for column in known.columns}
        _one_of(name, tuple(sorted(columns)), f"column of {kind} that data.field can name")
    return Reader(sources, kind, format, field or {}, on_bad_line, encoding)


def read_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """The objects of one JSON, JSON lines or parquet file as they stand, for benchmark files of their own shape.

    Raises: UserError for a missing or empty file, plain text, and the first bad row.
    """
    source, count = Source(expand([path])[0]), 0
    try:
        for place, row in rows(source):
            if isinstance(row, str):
                raise UserError(
                    "plain text, where JSON was expected", where=source.name, fix="give a .jsonl or .json file"
                )
            if isinstance(row, BadRow):
                raise UserError(row.detail, where=place, fix=row.fix or "mend this row")
            count += 1
            yield row
    finally:
        source.close()
    if not count:
        raise UserError(f"0 rows in {source.name}", fix="put data in it or leave it out")


def _one_of(value: str, allowed: Sequence[str], what: str) -> None:
    if value not in allowed:
        close = difflib.get_close_matches(value, allowed, n=1)
        fix = f"did you mean {close[0]!r}?" if close else f"use one of: {', '.join(allowed)}"
        raise UserError(f"{shown(value)} is no {what}", fix=fix)
