"""Detection of a file's format from the columns of its first row, and the errors for columns that do not fit."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tinyllm.data.records.formats import COLUMN_ALIASES, FORMATS, TITLES
from tinyllm.data.records.formats.prompts import WITH_SHORT_ANSWER
from tinyllm.data.records.formats.unpaired import LABELED
from tinyllm.data.records.turns import list_columns
from tinyllm.data.sources.errors import BadRow
from tinyllm.data.sources.files import Source
from tinyllm.data.sources.paths import expand
from tinyllm.data.sources.rows import layout, rows
from tinyllm.errors import UserError

COMMANDS = {  # that read each kind
    "documents": "tinyllm pretrain",
    "conversations": "tinyllm sft",
    "pairs": "tinyllm rm` or `tinyllm align-offline",
    "unpaired": "tinyllm align-offline --algorithm kto",
    "prompts": "tinyllm align-online",
}
# A prompt may have a column `label` for a reward; only in these formats does the label belong to an answer.
_LABELED_ANSWERS = ("messages-label", "sharegpt-label", "prompt-completion-label")


def detect(kind: str, row: Mapping[str, Any], location: str) -> str:
    """Return the first format of this kind that fits. Raises: BadRow where none does, UserError for data of another kind."""
    names = _LABELED_ANSWERS if kind == "prompts" else tuple(LABELED)
    labeled = next((name for name in names if LABELED[name].fits(row)), None)
    if labeled and kind != "unpaired" and isinstance(row["label"], bool):
        raise wrong_kind(kind, "unpaired", f"format {labeled}", location)
    for name, known in FORMATS[kind].items():
        if known.fits(row):
            return name
    for other in ("conversations", "pairs", "documents"):
        fitting = next((name for name, known in FORMATS[other].items() if known.fits(row)), None)
        if fitting and other != kind:
            raise wrong_kind(kind, other, f"format {fitting}", location)
    similarity = {name: _similarity(known.needs, row) for name, known in FORMATS[kind].items()}
    needs = FORMATS[kind][max(similarity, key=similarity.__getitem__)].needs
    raise missing_column(next(name for name in needs if name not in row), needs, row, location)


def rename_columns(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the row under the column names of the formats.

    Args:
        columns: our name: the name in the file. Names in `COLUMN_ALIASES` need not be given.

    Raises: BadRow for a column that does not exist.
    """
    for name, actual in columns.items():
        if actual not in row:
            close = similar_column(actual, row)
            fix = f"name an existing column: --set data.field.{name}={close[0] if close else 'COLUMN'}"
            raise BadRow("missing column", f"no {actual!r} (given for {name}); found: {list_columns(row)}", fix)
    found = {name: row[actual] for name, actual in columns.items()}
    for name, value in row.items():
        if name not in columns.values() and name not in columns:
            known = COLUMN_ALIASES.get(name, name)
            found[known if known not in row else name] = value
    return found


def similar_column(name: str, row: Mapping[str, Any], cutoff: float = 0.6) -> list[str]:
    """Return the column with the most similar name, if there is one among the first 200."""
    return difflib.get_close_matches(name, list(islice(row, 200)), n=1, cutoff=cutoff)


def _similarity(needs: Sequence[str], row: Mapping[str, Any]) -> float:
    """Return the share of the needed columns that are there; one with a similar name counts 0.9."""
    scores = [1.0 if name in row else 0.9 if similar_column(name, row, 0.75) else 0.0 for name in needs]
    return sum(scores) / len(scores)


_TYPES = {"messages": list, "conversations": list, "instances": list, "choices": list, "text": str, "label": bool}


def missing_column(name: str, needs: Sequence[str], row: Mapping[str, Any], location: str) -> BadRow:
    """Return the error for a row without the column `name`; suggests one with a similar name, or a long text."""
    expected = _TYPES.get(name, str | list | dict)
    free: dict[str, Any] = {
        key: value for key, value in row.items() if key not in needs and isinstance(value, expected)
    }
    close = similar_column(name, free, 0.75)
    likely = close or sorted((key for key in free if isinstance(free[key], str | list)), key=lambda k: -len(free[k]))
    line = location.rpartition(":")[2]
    what = f"no {name!r} in line {line}; found: {list_columns(row)}"
    what += f" - did you mean {close[0]!r}?" if close else ""
    fix = f"name the column: --set data.field.{name}={likely[0] if likely else 'COLUMN'}"
    return BadRow("missing column", what, fix)


def wrong_kind(expected: str, found: str, format: str, location: str) -> UserError:
    """Return the error for records of another kind than the command reads."""
    what = f"expected {TITLES[expected]}, found {TITLES[found]} ({format})"
    return UserError(what, where=location, fix=f"use them with `{COMMANDS[found]}`")


# (kind, formats that indicate it), the most specific first. A question with a short answer is a prompt, not a conversation.
_INDICATORS = (
    ("pairs", tuple(FORMATS["pairs"])),
    ("unpaired", tuple(LABELED)),
    ("prompts", WITH_SHORT_ANSWER),
    ("conversations", tuple(FORMATS["conversations"])),
    ("prompts", ("prompt",)),
    ("documents", ("text",)),
)


def guess_kind(source: str | Path) -> str:
    """Return the kind of records that a file (or the first of a folder or pattern) seems to hold, from its first row.

    Raises: UserError for a missing or empty file, and where no format fits.
    """
    file = Source(expand([source])[0])
    try:
        if layout(file) == "text":
            return "documents"
        for location, row in rows(file):
            if isinstance(row, BadRow):
                raise UserError(row.detail, where=location, fix=row.fix or "fix this row")
            columns = {"text": row} if isinstance(row, str) else rename_columns(row, {})
            for kind, names in _INDICATORS:
                has_label = kind != "unpaired" or isinstance(columns.get("label"), bool)
                if has_label and any(FORMATS[kind][name].fits(columns) for name in names):
                    return kind
            what = f"the kind of these records cannot be determined; found: {list_columns(columns)}"
            raise UserError(what, where=location, fix=f"name it, for example prompts={file.name}")
    finally:
        file.close()
    raise UserError(f"0 rows in {file.name}", fix="add data to the file, or remove it from the command")
