"""Sources of any accepted format as one stream of records of one kind.

`read_records(sources, kind)` is lazy and may be iterated again. Its `report` has the formats found and counts what was read,
repaired and dropped. Nothing is dropped without a count, and sources without a record are an error.

Left out: shuffling and sequence lengths (batches), mixing weights, downloads.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from tinyllm.data.config import DataConfig
from tinyllm.data.records.cells import typed
from tinyllm.data.records.detect import detect, missing_column, rename_columns, wrong_kind
from tinyllm.data.records.formats import FORMATS, KIND_ALIASES, KINDS, TITLES
from tinyllm.data.records.nulls import CallSurvey, survey_calls, without_added_nulls
from tinyllm.data.records.report import FileReport, Report
from tinyllm.data.records.turns import Dropped
from tinyllm.data.records.types import Record
from tinyllm.data.sources.encodings import ENCODINGS, canonical
from tinyllm.data.sources.errors import SKIP_ROWS, BadRow, preview
from tinyllm.data.sources.files import Source
from tinyllm.data.sources.paths import expand, is_pipe, skipped_files
from tinyllm.data.sources.rows import CELLS, TEXT_FORMATS, layout, rows
from tinyllm.errors import UserError

MAX_FILES_CHECKED = 100  # by `Reader.check_first_records`


class Reader:
    """An iterable of records; see `read_records`. `report` is of the latest pass."""

    def __init__(
        self,
        sources: Sequence[str | Path],
        kind: str,
        format: str | None,
        columns: Mapping[str, str],
        on_bad_line: str,
        encoding: str,
        delimiter: str | None = None,
    ):
        self.paths, self.skipped_files = tuple(expand(sources)), skipped_files(sources)
        self.kind, self.format, self.columns = kind, format, dict(columns)
        self.on_bad_line, self.encoding, self.delimiter = on_bad_line, encoding, delimiter
        self.report = Report(kind)
        self._source: Source | None = None
        self._pipes_read: set[Path] = set()

    @property
    def bytes_read(self) -> int:
        """Bytes read so far in the latest pass, as stored on disk."""
        done = sum(file.bytes for file in self.report.files)
        return done + (self._source.bytes_read if self._source is not None else 0)

    def __iter__(self) -> Iterator[Record]:
        report = self.report = Report(self.kind, skipped_files=self.skipped_files)
        for path in self.paths:
            source = self._source = self._open(path)
            try:
                yield from self._records(source, report)
            finally:
                source.close()
                self._source = None
        if not report.records:
            raise report.no_records()
        report.complete = True

    def check_first_records(self) -> None:
        """Read every file up to its first record, except pipes, so that files with a fault throughout are refused at once.

        Raises: UserError, as iteration does.
        """
        report, files = Report(self.kind), [path for path in self.paths[:MAX_FILES_CHECKED] if not is_pipe(path)]
        for path in files:
            source = self._open(path)
            try:
                next(self._records(source, report), None)
            finally:
                source.close()
        if files and len(files) == len(self.paths) and not report.records:
            raise report.no_records()

    def _open(self, path: Path) -> Source:
        source = Source(path, self.encoding)
        if path in self._pipes_read:
            source.close()
            what = "standard input can be read only once" if str(path) == "-" else "a pipe can be read only once"
            raise UserError(what, where="" if str(path) == "-" else str(path), fix="save it to a file and name that")
        if source.is_pipe:
            self._pipes_read.add(path)
        return source

    def _records(self, source: Source, report: Report) -> Iterator[Record]:
        file = FileReport(source.name, self.format or "", notes=source.notes)
        report.files.append(file)
        text_format = (self.format or "") if self.kind == "documents" and self.format in TEXT_FORMATS else ""
        found = "text" if text_format else layout(source, self.delimiter)
        if not self.format and found == "text":
            file.format = "text"
            if self.kind != "documents" and source.head.strip():
                raise wrong_kind(self.kind, "documents", "plain text", source.name)
        calls = cache(partial(self._survey_calls, source, found))
        for location, row in rows(source, text_format, self.delimiter):
            file.rows += 1
            repairs: list[str] = []
            try:
                if isinstance(row, BadRow):
                    raise row
                records = self._convert(file, self._columns(row, found), location, repairs, calls)
            except BadRow as bad:
                self._refuse(bad, location, report)
            except Dropped as dropped:
                report.drop(dropped.reason, location)
            else:
                for what in dict.fromkeys(repairs):
                    report.repair(what, location)
                file.records += len(records)
                report.records += len(records)
                yield from records
        file.sha256, file.bytes = source.finish()
        if not file.rows:
            what = f"0 {TITLES[self.kind]} in {source.name}"
            self._refuse(BadRow("empty file", what, "add data to the file, or remove it from the command"), "", report)

    def _refuse(self, bad: BadRow, location: str, report: Report) -> None:
        if self.on_bad_line == "error":
            raise UserError(bad.detail, where=location, fix=bad.fix or f"fix it, or {SKIP_ROWS}") from bad
        report.drop(bad.reason, location or bad.detail, bad.fix)

    def _columns(self, row: dict[str, Any] | str, found: str) -> dict[str, Any]:
        """Return a row of a file in the layout `found`, with our column names and, of a table, with values for its cells."""
        row = {"text": row} if isinstance(row, str) else rename_columns(row, self.columns)
        return typed(row, self.kind) if found in CELLS else row

    def _survey_calls(self, source: Source, found: str) -> CallSurvey:
        def read(again: Source) -> Iterator[dict[str, Any]]:
            for _, row in rows(again, delimiter=self.delimiter):
                if not isinstance(row, BadRow):
                    with suppress(BadRow):  # reported when its turn comes
                        yield self._columns(row, found)

        return survey_calls(source, self.encoding, read)

    def _convert(
        self,
        file: FileReport,
        row: dict[str, Any],
        location: str,
        repairs: list[str],
        calls: Callable[[], CallSurvey],
    ) -> list[Record]:
        if not file.format:
            file.format = detect(self.kind, row, location)
        chosen = FORMATS[self.kind][file.format]
        if not chosen.fits(row):
            missing = next((name for name in chosen.needs if name not in row), None)
            if missing is None:
                other = next(name for name in chosen.lacks if name in row)
                raise BadRow("another format", f"unexpected column {other!r} in a file of the format {file.format!r}")
            raise missing_column(missing, chosen.needs, row, location)
        try:
            records = chosen.convert(without_added_nulls(row, calls, repairs.append), repairs.append)
        except RecursionError as e:
            what = "lists or objects nested too deeply"
            raise BadRow("nested too deeply", what, "store them as JSON in a text") from e
        records = [replace(record, place=location) for record in records]
        if self.kind != "prompts":  # which keep all columns, for the rewards
            file.ignore(name for name, value in row.items() if value is not None and name not in chosen.columns)
        return records


def read_records(
    sources: Sequence[str | Path],
    kind: str,
    *,
    format: str | None = None,
    field: Mapping[str, str] | None = None,
    on_bad_line: str = "error",
    encoding: str = "utf-8",
    delimiter: str | None = None,
) -> Reader:
    """Open data sources for reading; nothing is read before iteration.

    Args:
        sources: files, folders, glob patterns, `-` for standard input.
        kind: one of `KINDS`; decides the class of the records.
        format: a name from `FORMATS[kind]`; by default detected from the first row of each file.
        field: our column name: the name in the files, as in `{"text": "body"}`.
        on_bad_line: `error`, or `skip` to drop bad rows. Valid rows that cannot be trained on are always dropped.
        encoding: of the files, one of `ENCODINGS`.
        delimiter: of tables, one of `DELIMITERS`; by default detected.

    Raises:
        UserError: at once for an unknown source, kind, format or field; on iteration for a bad row (with file and line), an
            empty file, data of another kind, and where no record is left.
    """
    kind, encoding = KIND_ALIASES.get(kind, kind), str(canonical(encoding))
    _check_choice(kind, KINDS, "kind of data")
    _check_choice(on_bad_line, ("error", "skip"), "value of data.on_bad_line")
    _check_choice(encoding, ENCODINGS, "value of data.encoding")
    if format is not None:
        _check_choice(format, tuple(FORMATS[kind]), f"format of {TITLES[kind]}")
    for name in field or {}:
        columns = {column for known in FORMATS[kind].values() for column in known.columns}
        _check_choice(name, tuple(sorted(columns)), f"column of {TITLES[kind]} that data.field can name")
    return Reader(sources, kind, format, field or {}, on_bad_line, encoding, delimiter)


def configured_reader(
    sources: Sequence[str | Path], kind: str, data: DataConfig, *, on_bad_line: str | None = None
) -> Reader:
    """Open sources with the reading options of a configuration; see `read_records`.

    Args:
        on_bad_line: instead of the configuration's.
    """
    return read_records(
        sources,
        kind,
        format=data.format,
        field=data.field,
        on_bad_line=on_bad_line or data.on_bad_line,
        encoding=data.encoding,
        delimiter=data.delimiter,
    )


def read_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of one JSON, JSON lines or parquet file unchanged, for benchmark files of other formats.

    Raises: UserError for a missing or empty file, plain text, and the first bad row.
    """
    source, count = Source(expand([path])[0]), 0
    try:
        for location, row in rows(source):
            if isinstance(row, str):
                raise UserError("expected JSON, found plain text", where=source.name, fix="use a .jsonl or .json file")
            if isinstance(row, BadRow):
                raise UserError(row.detail, where=location, fix=row.fix or "fix this row")
            count += 1
            yield row
    finally:
        source.close()
    if not count:
        raise UserError(f"0 rows in {source.name}", fix="add data to the file, or remove it from the command")


def _check_choice(value: str, allowed: Sequence[str], what: str) -> None:
    if value not in allowed:
        close = difflib.get_close_matches(value, allowed, n=1)
        fix = f"did you mean {close[0]!r}?" if close else f"use one of: {', '.join(allowed)}"
        raise UserError(f"{preview(value)} is not a {what}", fix=fix)
