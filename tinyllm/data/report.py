"""What one pass over data found: of each file its format and records, of each kind of fault a count and the first places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tinyllm.data.files import SKIP, shown
from tinyllm.errors import UserError, harmless

PLACES = 5  # places remembered for each reason
_FILES = 10  # files that are told of one by one
_NAMES = 40  # names remembered of what is left out


@dataclass
class Tally:
    count: int = 0
    places: list[str] = field(default_factory=list)  # the first few
    fix: str = ""  # of the first

    def add(self, place: str, fix: str = "") -> None:
        self.count += 1
        self.fix = self.fix or fix
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
    left_out: list[str] = field(default_factory=list)
    """columns that its format does not read"""

    def leave_out(self, columns: Iterable[str]) -> None:
        for column in columns:
            if column not in self.left_out and len(self.left_out) < _NAMES:
                self.left_out.append(column)

    def line(self, kind: str) -> str:
        columns = [f"without the columns {_names(self.left_out)}"] * bool(self.left_out)
        return f"{self.source}: {self.records:,} {kind}, format {self.format}" + _joined([*self.notes, *columns])


@dataclass
class Report:
    """What one pass over the sources found. `complete` once every source was read to its end."""

    kind: str
    files: list[FileReport] = field(default_factory=list)
    records: int = 0
    dropped: dict[str, Tally] = field(default_factory=dict)
    mended: dict[str, Tally] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)
    """files in folders that are no data by their names"""
    complete: bool = False

    def drop(self, reason: str, place: str, fix: str = "") -> None:
        self.dropped.setdefault(reason, Tally()).add(place, fix)

    def mend(self, what: str, place: str) -> None:
        self.mended.setdefault(what, Tally()).add(place)

    def sources(self) -> list[dict[str, Any]]:
        """For a shard's manifest or run.json: source, sha256, bytes and records of each file."""
        return [{key: getattr(file, key) for key in ("source", "sha256", "bytes", "records")} for file in self.files]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For people, one line a fact."""
        said = [file.line(self.kind) for file in self.files[:_FILES]]
        if rest := self.files[_FILES:]:
            formats = ", ".join(sorted({file.format for file in rest}))
            said.append(f"{len(rest):,} more files: {sum(f.records for f in rest):,} {self.kind}, format {formats}")
        if self.passed_over:
            said.append(f"not read, by their names no data: {_names(self.passed_over)}")
        said += [f"dropped {tally.count:,}: {reason}{_joined(tally.places)}" for reason, tally in self.dropped.items()]
        said += [f"mended {tally.count:,}: {reason}{_joined(tally.places)}" for reason, tally in self.mended.items()]
        return [harmless(line) for line in said]

    def nothing_left(self) -> UserError:
        names = ", ".join(file.source for file in self.files[:PLACES]) + (", …" if len(self.files) > PLACES else "")
        reasons = "".join(
            f"\n  {tally.count:>8,}  {reason}{_joined(tally.places)}" for reason, tally in self.dropped.items()
        )
        most = max(self.dropped.values(), key=lambda tally: tally.count, default=Tally())
        fix = most.fix.removesuffix(f", or {SKIP}") or "mend the rows named above"
        return UserError(f"0 {self.kind} in {names}: all rows were dropped{reasons}", fix=fix)


def _joined(parts: Sequence[str]) -> str:
    return f" ({', '.join(parts)})" if parts else ""


def _names(names: Sequence[str]) -> str:
    return ", ".join(shown(name, 60)[1:-1] for name in names[:8]) + (", …" if len(names) > 8 else "")
