"""What records a file holds, told from the columns of a row; and what to say where they are not what was asked for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tinyllm.data.files import BadRow, Source, expand
from tinyllm.data.formats import ALIASES, FORMATS
from tinyllm.data.rows import layout, rows
from tinyllm.data.turns import listed
from tinyllm.errors import UserError

_JUDGED = tuple(name for name, known in FORMATS["judgements"].items() if "label" in known.needs)
USES = {
    "documents": "tinyllm pretrain",
    "conversations": "tinyllm sft",
    "pairs": "tinyllm rm` or `tinyllm align-offline",
    "judgements": "tinyllm align-offline --algorithm kto",
    "prompts": "tinyllm align-online",
}


def detect(kind: str, row: Mapping[str, Any], place: str) -> str:
    """The first format of this kind that fits. Raises: BadRow when none does, UserError for another kind of data."""
    # a question may have a label without an answer that it judges
    judged = _JUDGED if kind != "prompts" else ("messages-label", "sharegpt-label", "prompt-completion-label")
    labelled = next((name for name in judged if FORMATS["judgements"][name].fits(row)), None)
    if labelled and kind != "judgements" and isinstance(row["label"], bool):
        raise wrong_kind(kind, "judgements", f"format {labelled}", place)
    for name, known in FORMATS[kind].items():
        if known.fits(row):
            return name
    for other in ("conversations", "pairs", "documents"):
        fitting = next((name for name, known in FORMATS[other].items() if known.fits(row)), None)
        if fitting and other != kind:
            raise wrong_kind(kind, other, f"format {fitting}", place)
    likeness = {name: _likeness(known.needs, row) for name, known in FORMATS[kind].items()}
    needs = FORMATS[kind][max(likeness, key=likeness.__getitem__)].needs
    raise missing_column(next(name for name in needs if name not in row), needs, row, place)


def renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with the names that formats use, for those of `columns` (ours: theirs) and for what others call the same.

    Raises: BadRow for a column that is not there.
    """
    for name, actual in columns.items():
        if actual not in row:
            close = similar(actual, row)
            fix = (
                f"name it: --set data.field.{name}={close[0]}"
                if close
                else f"name a column that is there: --set data.field.{name}=COLUMN"
            )
            raise BadRow("missing column", f"no {actual!r} (asked for as {name}); found: {listed(row)}", fix)
    found = {name: row[actual] for name, actual in columns.items()}
    for name, value in row.items():
        if name not in columns.values() and name not in columns:
            known = ALIASES.get(name, name)
            found[known if known not in row else name] = value
    return found


def similar(name: str, row: Mapping[str, Any], cutoff: float = 0.6) -> list[str]:
    """The column with the most similar name, if one is similar; of rows with thousands of columns the first are looked at."""
    return difflib.get_close_matches(name, list(islice(row, 200)), n=1, cutoff=cutoff)


def _likeness(needs: Sequence[str], row: Mapping[str, Any]) -> float:
    """How much of a format is there: 1 for a column, somewhat less for one with a similar name."""
    scores = [1.0 if name in row else 0.9 if similar(name, row, 0.75) else 0.0 for name in needs]
    return sum(scores) / len(scores)


_HOLDS = {"messages": list, "conversations": list, "instances": list, "choices": list, "text": str, "label": bool}


def missing_column(name: str, needs: Sequence[str], row: Mapping[str, Any], place: str) -> BadRow:
    wanted = _HOLDS.get(name, str | list | dict)
    free: dict[str, Any] = {key: value for key, value in row.items() if key not in needs and isinstance(value, wanted)}
    close = similar(name, free, 0.75)
    likely = close or sorted((key for key in free if isinstance(free[key], str | list)), key=lambda k: -len(free[k]))
    line = place.rpartition(":")[2]
    what = f"no {name!r} in line {line}; found: {listed(row)}" + (f" - did you mean {close[0]!r}?" if close else "")
    return BadRow(
        "missing column", what, f"name the column: --set data.field.{name}={likely[0] if likely else 'COLUMN'}"
    )


def wrong_kind(wanted: str, found: str, how: str, place: str) -> UserError:
    return UserError(
        f"these are {found} ({how}), and {wanted} were asked for", where=place, fix=f"give them to `{USES[found]}`"
    )


# (kind, formats that speak for it), the surest first; a question with a short answer is a prompt for its reward
_GUESSES = (
    ("pairs", tuple(FORMATS["pairs"])),
    ("judgements", _JUDGED),
    ("prompts", ("multiple-choice", "question", "input-target")),
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
            fields = {"text": row} if isinstance(row, str) else renamed(row, {})
            for kind, names in _GUESSES:
                judges = kind != "judgements" or isinstance(fields.get("label"), bool)
                if judges and any(FORMATS[kind][name].fits(fields) for name in names):
                    return kind
            raise UserError(
                f"what these records are for cannot be told; found: {listed(fields)}",
                where=place,
                fix=f"say it, for example prompts={file.name}",
            )
    finally:
        file.close()
    raise UserError(f"0 rows in {file.name}", fix="put data in it or leave it out")
