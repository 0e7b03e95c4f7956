"""The result of one pass over data: format and counts of each file; of each kind of fault, a count and the first locations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tinyllm.data.records.formats import TITLES
from tinyllm.data.sources.errors import SKIP_ROWS, preview
from tinyllm.data.sources.paths import TABLES
from tinyllm.errors import UserError, escape_unprintable

MAX_LOCATIONS = 5  # remembered for each reason
MAX_FILES, FIRST_FILES = 10, 3  # files described one by one; of more files, the first ones
_MAX_COLUMNS = 40  # remembered of the ignored ones


@dataclass
class Tally:
    """The count of an event, and its first locations."""

    count: int = 0
    locations: list[str] = field(default_factory=list)
    fix: str = ""

    def add(self, location: str, fix: str = "") -> None:
        self.count += 1
        self.fix = self.fix or fix
        if len(self.locations) < MAX_LOCATIONS:
            self.locations.append(location)


@dataclass
class FileReport:
    """One file: its format and counts. `sha256` and `bytes` (as stored on disk) are set after its last row."""

    source: str
    format: str = ""
    rows: int = 0
    records: int = 0
    sha256: str = ""
    bytes: int = 0
    notes: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    """columns that its format does not read"""

    def ignore(self, columns: Iterable[str]) -> None:
        for column in columns:
            if column not in self.ignored and len(self.ignored) < _MAX_COLUMNS:
                self.ignored.append(column)

    def line(self, kind: str) -> str:
        columns = [f"without the columns {_names(self.ignored)}"] * bool(self.ignored)
        return f"{self.source}: {self.records:,} {kind}, format {self.format}" + _joined([*self.notes, *columns])


@dataclass
class Report:
    """The result of one pass over the sources; `complete` once all of them were read to the end."""

    kind: str
    files: list[FileReport] = field(default_factory=list)
    records: int = 0
    dropped: dict[str, Tally] = field(default_factory=dict)
    repaired: dict[str, Tally] = field(default_factory=dict)
    skipped_files: list[str] = field(default_factory=list)
    """files in folders whose names are not those of data files"""
    complete: bool = False

    def drop(self, reason: str, location: str, fix: str = "") -> None:
        self.dropped.setdefault(reason, Tally()).add(location, fix)

    def repair(self, what: str, location: str) -> None:
        self.repaired.setdefault(what, Tally()).add(location)

    def sources(self) -> list[dict[str, Any]]:
        """Return source, sha256, bytes and records of each file, for a shard manifest or run.json."""
        return [{key: getattr(file, key) for key in ("source", "sha256", "bytes", "records")} for file in self.files]

    def lines(self) -> list[str]:
        """Return the report for a person, one line for each fact."""
        title = TITLES[self.kind]
        shown = len(self.files) if len(self.files) <= MAX_FILES else FIRST_FILES
        found = [file.line(title) for file in self.files[:shown]]
        if rest := self.files[shown:]:
            formats = ", ".join(sorted({file.format for file in rest}))
            found.append(f"{len(rest):,} more files: {sum(f.records for f in rest):,} {title}, format {formats}")
        if self.skipped_files:
            found.append(skipped_line(self.skipped_files))
        for verb, tallies in (("dropped", self.dropped), ("repaired", self.repaired)):
            found += [f"{verb} {tally.count:,}: {what}{_joined(tally.locations)}" for what, tally in tallies.items()]
        return [escape_unprintable(line) for line in found]

    def merge(self, other: Report) -> None:
        """Add the files and events of another pass."""
        self.files += other.files
        self.records += other.records
        self.skipped_files += other.skipped_files
        for own, tallies in ((self.dropped, other.dropped), (self.repaired, other.repaired)):
            for what, tally in tallies.items():
                known = own.setdefault(what, Tally(fix=tally.fix))
                known.count += tally.count
                known.locations = [*known.locations, *tally.locations][:MAX_LOCATIONS]

    def no_records(self) -> UserError:
        """Return the error for data of which no record is left."""
        names = ", ".join(file.source for file in self.files[:MAX_LOCATIONS])
        names += ", …" * (len(self.files) > MAX_LOCATIONS)
        reasons = "".join(
            f"\n  {tally.count:>8,}  {reason}{_joined(tally.locations)}" for reason, tally in self.dropped.items()
        )
        most = max(self.dropped.values(), key=lambda tally: tally.count, default=Tally())
        fix = most.fix.removesuffix(f", or {SKIP_ROWS}") or "fix the rows named above"
        return UserError(f"0 {TITLES[self.kind]} in {names}: all rows were dropped{reasons}", fix=fix)


def first_files(lines: Sequence[str]) -> tuple[list[str], str]:
    """Return the texts of the files that are described one by one, and `N more files` for the others, or nothing."""
    shown = len(lines) if len(lines) <= MAX_FILES else FIRST_FILES
    return list(lines[:shown]), f"{len(lines) - shown:,} more files" if lines[shown:] else ""


def skipped_line(files: Sequence[str]) -> str:
    """Return the line that names the files of a folder that are not read: those of other names, and tables beside other files."""
    files = [name if len(name) <= 58 else f"…{name[-57:]}" for name in files]  # the end tells more than the folders
    tables = [name for name in files if name.lower().removesuffix(".gz").endswith(TABLES)]
    others = [name for name in files if name not in tables]
    found = [f"not data files by their names: {_names(others)}"] * bool(others)
    found += [f"tables beside other files, to be named one by one: {_names(tables)}"] * bool(tables)
    return f"skipped, {'; '.join(found)}"


def _joined(parts: Sequence[str]) -> str:
    return f" ({', '.join(parts)})" if parts else ""


def _names(names: Sequence[str]) -> str:
    return ", ".join(preview(name, 60)[1:-1] for name in names[:8]) + (", …" if len(names) > 8 else "")
