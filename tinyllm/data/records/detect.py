"""Detection of a file's format from the columns of its first row, and the errors for columns that do not fit."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tinyllm.data.config import DataConfig
from tinyllm.data.records.cells import typed
from tinyllm.data.records.formats import COLUMN_ALIASES, FORMATS, TITLES
from tinyllm.data.records.formats.prompts import WITH_SHORT_ANSWER
from tinyllm.data.records.formats.unpaired import LABELED
from tinyllm.data.records.turns import list_columns
from tinyllm.data.sources.errors import BadRow
from tinyllm.data.sources.files import Source
from tinyllm.data.sources.paths import expand
from tinyllm.data.sources.rows import CELLS, layout, rows
from tinyllm.errors import UserError
from tinyllm.io.shell import quote, set_option

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
    if error := _unknown_columns(kind, row, location):
        raise error
    similarity = {name: _similarity(known.needs, row) for name, known in FORMATS[kind].items()}
    needs = FORMATS[kind][max(similarity, key=similarity.__getitem__)].needs
    raise missing_column(next(name for name in needs if name not in row), needs, row, location)


_HALF = 0.5
_NOT_RECORDS = {"id", "idx", "index", "source", "lang", "language", "category", "split", "url", "date", "license"}
_GUESSED = {"documents": ("text",), "conversations": ("prompt", "completion"), "prompts": ("prompt", "answer")}
_GUESSED |= {"unpaired": ("prompt", "completion", "label"), "pairs": ("prompt", "chosen", "rejected")}


def _unknown_columns(kind: str, row: Mapping[str, Any], location: str) -> BadRow | None:
    """Return the error for a row none of whose columns resembles one of the formats; None where one does.

    Of pairs half the columns of a format must be there: which answer is the better one is never guessed.
    """
    needed = [format.needs for format in FORMATS[kind].values()]
    if kind == "documents" or (kind == "pairs" and any(_similarity(needs, row) >= _HALF for needs in needed)):
        return None
    if kind != "pairs" and any(similar_column(column, row, 0.75) for needs in needed for column in needs):
        return None
    what = f"no columns of {TITLES[kind]} in line {location.rpartition(':')[2]}; found: {list_columns(row)}"
    return BadRow("missing column", what, f"name the columns: {field_options(kind, row)}")


def field_options(kind: str, row: Mapping[str, Any], option: str = "--set data.field.") -> str:
    """Return the options that name the columns of a row for a kind, or with `COLUMN` in them where they are not evident.

    Args:
        option: the beginning of an option; `--field ` of `tinyllm data inspect`.
    """
    texts = [name for name, value in row.items() if isinstance(value, str) and not _is_about(name)]
    labels = [name for name, value in row.items() if isinstance(value, bool)]
    names = _GUESSED[kind]
    columns = [*texts, *labels] if kind == "unpaired" else texts
    if kind == "unpaired" and len(labels) != 1:
        columns = []
    if kind == "pairs" or len(columns) != len(names) or (labels and kind == "conversations"):
        columns = ["COLUMN"] * len(names)  # which answer is the better one cannot be seen
    return " ".join(field_option(name, column, option) for name, column in zip(names, columns, strict=True))


def _is_about(column: str) -> bool:
    """Return whether a column tells of a record, and is no part of it."""
    return column.lower() in _NOT_RECORDS or column.lower().endswith(("_id", "_idx", "_index"))


def field_option(name: str, column: str, option: str = "--set data.field.") -> str:
    """Return the option that names the column of a file for a column of a format, quoted for the shell."""
    if option.startswith("--set "):
        return set_option(f"{option.removeprefix('--set ')}{name}", column)
    return option + quote(f"{name}={column}")


def rename_columns(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the row under the column names of the formats.

    Args:
        columns: our name: the name in the file. Names in `COLUMN_ALIASES` need not be given.

    Raises: BadRow for a column that does not exist.
    """
    for name, actual in columns.items():
        if actual not in row:
            close = similar_column(actual, row)
            fix = f"name an existing column: {field_option(name, close[0] if close else 'COLUMN')}"
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
    fix = f"name the column: {field_option(name, likely[0] if likely else 'COLUMN')}"
    return BadRow("missing column", what, fix)


class WrongKind(UserError):  # noqa: N818
    """Records of another kind than a command reads."""


def wrong_kind(expected: str, found: str, format: str, location: str) -> WrongKind:
    """Return the error for records of another kind than the command reads."""
    what = f"expected {TITLES[expected]}, found {TITLES[found]} ({format})"
    return WrongKind(what, where=location, fix=f"use them with `{COMMANDS[found]}`")


# (kind, formats that indicate it), the most specific first. A question with a short answer is a prompt, not a conversation.
_INDICATORS = (
    ("pairs", tuple(FORMATS["pairs"])),
    ("unpaired", tuple(LABELED)),
    ("prompts", WITH_SHORT_ANSWER),
    ("conversations", tuple(FORMATS["conversations"])),
    ("prompts", ("prompt", "query")),
    ("documents", ("text",)),
)


_WITH_ANSWER = ("prompt-answer", "query-answer")  # whatever the prompt is called, an `answer` is a short one


class UnknownKind(UserError):  # noqa: N818
    """No format of any kind fits the first row.

    Attributes:
        row: its columns.
    """

    def __init__(self, row: Mapping[str, Any], location: str, fix: str):
        what = f"the kind of these records cannot be determined; found: {list_columns(row)}"
        super().__init__(what, where=location, fix=fix)
        self.row = row


def guess_kind(source: str | Path, data: DataConfig | None = None) -> str:
    """Return the kind of records that a file (or the first of a folder or pattern) seems to hold, from its first row.

    Args:
        data: how files are read: format, columns, encoding, delimiter, and what happens to bad rows.

    Raises: UserError for a missing or empty file, and where no format fits.
    """
    data = data or DataConfig()
    named = [kind for kind in FORMATS if data.format in FORMATS[kind]]
    if len(named) == 1:
        return named[0]
    file = Source(expand([source])[0], data.encoding)
    try:
        found = layout(file, data.delimiter)
        if found == "text":
            return "documents"
        for location, row in rows(file, delimiter=data.delimiter):
            if isinstance(row, BadRow) and data.on_bad_line == "skip":
                continue
            try:
                return _kind_of(row, location, data, cells=found in CELLS)
            except BadRow as bad:
                raise UserError(bad.detail, where=location, fix=bad.fix or "fix this row") from bad
    finally:
        file.close()
    raise UserError(f"0 rows in {file.name}", fix="add data to the file, or remove it from the command")


def fits_kind(source: str | Path, kind: str, data: DataConfig) -> bool:
    """Return whether the first row of a file can be read as records of a kind, though another may be likelier."""
    file = Source(expand([source])[0], data.encoding)
    try:
        found = layout(file, data.delimiter)
        if found == "text":
            return kind == "documents"
        row = next((row for _, row in rows(file, delimiter=data.delimiter)), None)
        if not isinstance(row, dict):
            return False
        columns = rename_columns(row, data.field)
        columns = typed(columns) if found in CELLS else columns
        return any(known.fits(columns) for known in FORMATS[kind].values())
    except (UserError, BadRow):
        return False
    finally:
        file.close()


def _kind_of(row: dict[str, Any] | str | BadRow, location: str, data: DataConfig, *, cells: bool) -> str:
    if isinstance(row, BadRow):
        raise row
    columns = {"text": row} if isinstance(row, str) else rename_columns(row, data.field)
    columns = typed(columns) if cells else columns
    for kind, names in _INDICATORS:
        has_label = kind != "unpaired" or isinstance(columns.get("label"), bool)
        if has_label and any(FORMATS[kind][name].fits(columns) for name in names):
            short = kind == "conversations" and any(FORMATS[kind][f].fits(columns) for f in _WITH_ANSWER)
            return "prompts" if short else kind
    raise UnknownKind(columns, location, f"name it, for example prompts={location.rpartition(':')[0]}")
