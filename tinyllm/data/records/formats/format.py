"""A format: the columns it needs, and the function that turns a row into records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tinyllm.data.records.turns import Note
from tinyllm.data.records.types import Record, Row
from tinyllm.text.chat import Message

Turns = Callable[[Row, Note], list[Message]]
Convert = Callable[[Row, Note], list[Record]]


@dataclass(frozen=True)
class Format:
    """Rows with the columns `needs` and without the columns `lacks`.

    Args:
        convert: `convert(row, note)` returns the records of a row and passes `note` a description of every repair.
            Raises BadRow for a row that is not of this format, Dropped for one that cannot be trained on.
        optional: columns that are read if present. All other columns are ignored and listed in the report.
    """

    needs: tuple[str, ...]
    convert: Convert
    lacks: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        return self.needs + self.optional

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Return whether `row` has all columns of `needs` and none of `lacks`."""
        return all(column in row for column in self.needs) and not any(column in row for column in self.lacks)
