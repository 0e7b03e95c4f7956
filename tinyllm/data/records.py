"""Reading data: sources of any accepted format as one stream of documents, conversations, pairs, judgements or prompts.

`read(sources, kind)` is lazy and may be iterated again; its `report` says what was detected, read, mended and dropped.
Nothing is dropped in silence, and a source that yields nothing is an error.

Left out: shuffling and sequence lengths (batches), mixing weights, downloads.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tinyllm.data.files import BadRow, Source, expand, shown
from tinyllm.data.formats import FORMATS, KINDS
from tinyllm.data.rows import layout, rows
from tinyllm.data.turns import Conversation, Document, Dropped, Judgement, Pair, Prompt, Record, listed
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
    "read",
    "read_rows",
]

PLACES = 5  # places remembered for each reason
USES = {
    "documents": "tinyllm pretrain",
    "conversations": "tinyllm sft",
    "pairs": "tinyllm rm` or `tinyllm align-offline",
    "judgements": "tinyllm align-offline --algorithm kto",
    "prompts": "tinyllm align-online",
}


@dataclass
class Tally:
    count: int = 0
    places: list[str] = field(default_factory=list)  # the first few

    def add(self, place: str) -> None:
        self.count += 1
        if len(self.places) < PLACES:
            self.places.append(place)


@dataclass
class FileReport:
    """One file: its format and the records it gave; sha256 and bytes as stored, once it was read to its end."""

    source: str
    format: str = ""
    rows: int = 0
    records: int = 0
    sha256: str = ""
    bytes: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What one pass over the sources found. `complete` once every source was read to its end."""

    kind: str
    files: list[FileReport] = field(default_factory=list)
    records: int = 0
    dropped: dict[str, Tally] = field(default_factory=dict)
    mended: dict[str, Tally] = field(default_factory=dict)
    complete: bool = False

    def sources(self) -> list[dict[str, Any]]:
        """For a shard's manifest or run.json: source, sha256, bytes and records of each file."""
        return [{key: asdict(file)[key] for key in ("source", "sha256", "bytes", "records")} for file in self.files]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For people, one line a fact."""
        said = [f"{f.source}: {f.records:,} {self.kind}, format {f.format}" + _joined(f.notes) for f in self.files]
        said += [f"dropped {tally.count:,}: {reason}{_joined(tally.places)}" for reason, tally in self.dropped.items()]
        said += [f"mended {tally.count:,}: {reason}{_joined(tally.places)}" for reason, tally in self.mended.items()]
        return said


def _joined(parts: Sequence[str]) -> str:
    return f" ({', '.join(parts)})" if parts else ""


class Reader:
    """See `read`. `report` belongs to the latest pass."""

    def __init__(
        self, paths: Sequence[Path], kind: str, format: str | None, columns: Mapping[str, str], on_bad_line: str
    ):
        self.paths, self.kind, self.format = tuple(paths), kind, format
        self.columns, self.on_bad_line = dict(columns), on_bad_line
        self.report = Report(kind)
        self._stdin_read = False

    def __iter__(self) -> Iterator[Record]:
        report = self.report = Report(self.kind)
        for path in self.paths:
            if str(path) == "-":
                if self._stdin_read:
                    raise UserError("standard input can be read only once", fix="save it to a file and name that")
                self._stdin_read = True
            source = Source(path)
            try:
                yield from self._records(source, report)
            finally:
                source.close()
        if not report.records:
            raise _nothing_left(report)
        report.complete = True

    def _records(self, source: Source, report: Report) -> Iterator[Record]:
        file = FileReport(source.name, self.format or "", notes=source.notes)
        report.files.append(file)
        if layout(source) == "text" and not self.format:
            file.format = "text"
            if self.kind != "documents" and source.head.strip():
                raise _wrong_kind(self.kind, "documents", "plain text", source.name)
        for place, row in rows(source):
            file.rows += 1
            mended: list[str] = []
            try:
                if isinstance(row, BadRow):
                    raise row
                found = self._convert(file, row, place, mended)
            except BadRow as bad:
                self._bad(bad, place, report)
            except Dropped as drop:
                report.dropped.setdefault(drop.reason, Tally()).add(place)
            else:
                for what in dict.fromkeys(mended):
                    report.mended.setdefault(what, Tally()).add(place)
                file.records += len(found)
                report.records += len(found)
                yield from found
        file.sha256, file.bytes = source.finish()
        if not file.rows:
            self._bad(
                BadRow("empty file", f"0 {self.kind} in {source.name}", "put data in it or leave it out"), "", report
            )

    def _bad(self, bad: BadRow, place: str, report: Report) -> None:
        if self.on_bad_line == "error":
            raise UserError(
                bad.detail, where=place, fix=bad.fix or "mend it, or leave bad rows out: --set data.on_bad_line=skip"
            ) from bad
        report.dropped.setdefault(bad.reason, Tally()).add(place or bad.detail)

    def _convert(self, file: FileReport, row: dict[str, Any] | str, place: str, mended: list[str]) -> list[Record]:
        row = {"text": row} if isinstance(row, str) else self._renamed(row)
        if not file.format:
            file.format = _detect(self.kind, row, place)
        chosen = FORMATS[self.kind][file.format]
        if not chosen.fits(row):
            missing = next((name for name in chosen.needs if name not in row), None)
            if missing is None:
                other = next(name for name in chosen.lacks if name in row)
                raise BadRow("another format", f"a column {other!r}, which the format {file.format!r} does not have")
            raise _missing_column(missing, chosen.needs, row, place)
        return chosen.convert(row, mended.append)

    def _renamed(self, row: dict[str, Any]) -> dict[str, Any]:
        for name, actual in self.columns.items():
            if actual not in row:
                close = difflib.get_close_matches(actual, row, n=1)
                fix = (
                    f"name it: --set data.field.{name}={close[0]}"
                    if close
                    else f"name a column that is there: --set data.field.{name}=COLUMN"
                )
                raise BadRow("missing column", f"no {actual!r} (asked for as {name}); found: {listed(row)}", fix)
        taken = {actual for actual in self.columns.values()}
        return {name: row[actual] for name, actual in self.columns.items()} | {
            key: value for key, value in row.items() if key not in taken and key not in self.columns
        }


def read(
    sources: Sequence[str | Path],
    kind: str,
    *,
    format: str | None = None,
    field: Mapping[str, str] | None = None,
    on_bad_line: str = "error",
) -> Reader:
    """Open data sources for reading; nothing is read before iteration.

    Args:
        sources: files, folders, glob patterns, `-` for standard input.
        kind: `documents`, `conversations`, `pairs`, `judgements` or `prompts`: the record class that comes out.
        format: a name from `FORMATS[kind]`; found from the first row of each file by default.
        field: our column name -> the one in the files, as in `{"text": "body"}`.
        on_bad_line: `error`, or `skip` to leave bad rows out and count them. Rows that cannot train always are.

    Raises:
        UserError: here for a source, kind, format or field that does not exist; on iteration for a bad row (with file
            and line), an empty file, data of another kind, and when no record is left.
    """
    _one_of(kind, KINDS, "kind of data")
    _one_of(on_bad_line, ("error", "skip"), "data.on_bad_line")
    if format is not None:
        _one_of(format, tuple(FORMATS[kind]), f"format of {kind}")
    for name in field or {}:
        needed = {column for f in FORMATS[kind].values() for column in f.needs}
        _one_of(name, tuple(sorted(needed | {"system", "tools"})), f"column of {kind} that data.field can name")
    return Reader(expand(sources), kind, format, field or {}, on_bad_line)


_GUESSES = (  # (kind, formats that speak for it), the surest first; a question with a short answer is a prompt for its reward
    ("pairs", tuple(FORMATS["pairs"])),
    ("judgements", ("prompt-completion-label", "messages-label", "sharegpt-label")),
    ("prompts", ("question",)),
    ("conversations", tuple(FORMATS["conversations"])),
    ("prompts", ("prompt",)),
    ("documents", ("text",)),
)


def kind_of(source: str | Path) -> str:
    """Which kind of record a file (or the first of a folder or pattern) seems to hold, by its first row.

    Raises: UserError for a missing or empty file, and where no format fits.
    """
    file = Source(expand([source])[0])
    try:
        if layout(file) == "text":
            return "documents"
        for place, row in rows(file):
            if isinstance(row, BadRow):
                raise UserError(row.detail, where=place, fix=row.fix or "mend this row")
            fields = {"text": row} if isinstance(row, str) else row
            for kind, names in _GUESSES:
                if any(FORMATS[kind][name].fits(fields) for name in names):
                    return kind
            raise UserError(
                f"what these records are for cannot be told; found: {listed(fields)}",
                where=place,
                fix=f"say it, for example prompts={file.name}",
            )
    finally:
        file.close()
    raise UserError(f"0 rows in {file.name}", fix="put data in it or leave it out")


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


def _detect(kind: str, row: Mapping[str, Any], place: str) -> str:
    """The first format of this kind that fits. Raises: BadRow when none does, UserError for another kind of data."""
    labelled = next(
        (n for n, known in FORMATS["judgements"].items() if "label" in known.needs and known.fits(row)), None
    )
    if labelled and kind != "judgements" and isinstance(row["label"], bool):
        raise _wrong_kind(kind, "judgements", f"format {labelled}", place)
    for name, known in FORMATS[kind].items():
        if known.fits(row):
            return name
    for other in ("conversations", "pairs", "documents"):
        fitting = next((name for name, known in FORMATS[other].items() if known.fits(row)), None)
        if fitting and other != kind:
            raise _wrong_kind(kind, other, f"format {fitting}", place)
    likeness = {name: _likeness(known.needs, row) for name, known in FORMATS[kind].items()}
    needs = FORMATS[kind][max(likeness, key=likeness.__getitem__)].needs
    raise _missing_column(next(name for name in needs if name not in row), needs, row, place)


def _likeness(needs: Sequence[str], row: Mapping[str, Any]) -> float:
    """How much of a format is there: 1 for a column, somewhat less for one with a similar name."""
    scores = [
        1.0 if name in row else 0.9 if difflib.get_close_matches(name, row, n=1, cutoff=0.75) else 0.0 for name in needs
    ]
    return sum(scores) / len(scores)


def _missing_column(name: str, needs: Sequence[str], row: Mapping[str, Any], place: str) -> BadRow:
    free = {key: value for key, value in row.items() if key not in needs}
    close = difflib.get_close_matches(name, free, n=1, cutoff=0.75)
    wanted = list if name in ("messages", "conversations", "instances") else str
    likely = close or sorted((key for key in free if isinstance(free[key], wanted)), key=lambda k: -len(free[k]))
    line = place.rpartition(":")[2]
    what = f"no {name!r} in line {line}; found: {listed(row)}" + (f" - did you mean {close[0]!r}?" if close else "")
    return BadRow(
        "missing column", what, f"name the column: --set data.field.{name}={likely[0] if likely else 'COLUMN'}"
    )


def _wrong_kind(wanted: str, found: str, how: str, place: str) -> UserError:
    return UserError(
        f"these are {found} ({how}), and {wanted} were asked for", where=place, fix=f"give them to `{USES[found]}`"
    )


def _nothing_left(report: Report) -> UserError:
    names = ", ".join(file.source for file in report.files)
    reasons = "".join(
        f"\n  {tally.count:>8,}  {reason}{_joined(tally.places)}" for reason, tally in report.dropped.items()
    )
    return UserError(f"0 {report.kind} in {names}: all rows were dropped{reasons}", fix="mend the rows named above")
