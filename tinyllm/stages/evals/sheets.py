"""Files of benchmark rows, and the bundled world, as sheets of items. What was detected, read and dropped is said aloud.

Every bad row is an error with file and line, or, with `data.on_bad_line: skip`, left out and counted. All ranks read all files.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tinyllm.data import records, world
from tinyllm.data.files import BadRow, Source, expand
from tinyllm.data.rows import rows
from tinyllm.data.turns import Dropped, listed
from tinyllm.errors import UserError
from tinyllm.stages.config import EvalConfig
from tinyllm.stages.evals.items import FORMATS, Format, Item
from tinyllm.stages.reading import is_world
from tinyllm.train.progress import say

_WORLD: dict[str, Callable[..., Iterable[dict[str, Any]]]] = {
    "texts": world.documents,
    "choices": world.pairs,
    "questions": world.prompts,
}
_TASK_OF = {"texts": "bits_per_byte", "choices": "choice", "questions": "exact_match"}
_NEEDS = {
    "texts": "text",
    "choices": "sentence_good and sentence_bad; question, choices and answer; input with Options: and target; "
    "or prompt, chosen and rejected",
    "questions": "question or prompt with answer, or input and target",
}
KINDS = tuple(_WORLD)


@dataclass
class Sheet:
    """The items of one file, all of one kind: `texts` (plain strings), `choices` or `questions`."""

    name: str
    source: str
    kind: str
    format: str = ""
    items: list[Any] = field(default_factory=list)
    original: int = 0
    """rows the file has; `items` are at most the first `config.rows` of them"""
    sha256: str = ""
    talk: bool = True
    dropped: dict[str, int] = field(default_factory=dict)


def read_all(kinds: Sequence[str], config: EvalConfig) -> list[Sheet]:
    """A sheet for every source and every kind that the source can be read as.

    Raises:
        UserError: a source that is none of `kinds`, a kind that no source has, a bad row.
    """
    sources: list[str] = []
    for source in config.data.val or config.data.train:
        sources += [source] if is_world(source) else [str(path) for path in expand([source])]
    if not sources:
        raise UserError("no data to evaluate on", where="data.val", fix="name a file: --set 'data.val=[file.jsonl]'")
    names = _names(sources)
    sheets = [sheet for source in sources for sheet in _read(source, names[source], kinds, config)]
    for kind in kinds:
        if not any(sheet.kind == kind for sheet in sheets):
            what = f"the task {_TASK_OF[kind]} reads {kind}, and none of the {len(sources)} sources has any"
            raise UserError(what, where="data.val", fix=f"leave out --task {_TASK_OF[kind]}")
    for sheet in sheets:
        dropped = ", ".join(f"{count:,} dropped: {reason}" for reason, count in sheet.dropped.items())
        at_most = f" (the first {len(sheet.items):,})" if config.rows < sheet.original else ""
        say(
            f"{sheet.source}: {sheet.original:,} {sheet.kind}{at_most}, format {sheet.format}{dropped and '; '}{dropped}"
        )
    return sheets


def _names(sources: Sequence[str]) -> dict[str, str]:
    """Short names: the file's without its suffixes, or the whole path where two files are called the same."""
    short = {source: Path(source).name.removesuffix(".gz").rpartition(".")[0] or source for source in sources}
    short |= {source: "world" for source in sources if is_world(source)}
    taken = list(short.values())
    return {source: name if taken.count(name) == 1 else source for source, name in short.items()}


def _read(source: str, name: str, kinds: Sequence[str], config: EvalConfig) -> list[Sheet]:
    if is_world(source):
        return [_from_world(source, name, kind, config) for kind in kinds]
    if tuple(kinds) == ("texts",):
        return [_texts(source, name, config)]
    if source == "-":  # it is read twice, to look at and to score
        raise UserError("this task cannot read standard input", where="data.val", fix="save it to a file and name that")
    fitting = _detect(source, kinds, config)
    found = [_texts(source, name, config)] if "texts" in fitting else []
    return found + [_items(source, name, kind, format, config) for kind, format in fitting.items() if kind != "texts"]


def world_count(source: str, at_most: int) -> int:
    """How many records `world:N` asks for; `world` alone, as many as are scored."""
    number = source.partition(":")[2] or str(at_most)
    if not number.isdecimal() or not int(number):
        raise UserError(
            f"{source!r} does not say how many records", where="data.val", fix="write for example world:500"
        )
    return int(number)


def _from_world(source: str, name: str, kind: str, config: EvalConfig) -> Sheet:
    count = world_count(source, config.rows)
    made = list(_WORLD[kind](min(count, config.rows), seed=config.seed, split="val"))
    sheet = Sheet(name, source, kind, "world", original=count)
    if kind == "texts":
        return replace(sheet, items=[row["text"] for row in made])
    format = next(f for f in FORMATS[kind].values() if f.fits(made[0]))
    items = [
        replace(item, place=f"{source}[{i}]")
        for i, row in enumerate(made)
        for item in format.convert(row, config.options)
    ]
    return replace(sheet, items=items)


def _texts(source: str, name: str, config: EvalConfig) -> Sheet:
    data = config.data
    reader = records.read(
        [source],
        "documents",
        format=data.format,
        field=data.field,
        on_bad_line=data.on_bad_line,
        encoding=data.encoding,
    )
    found = [record.text for record in reader if isinstance(record, records.Document)]
    file = reader.report.files[0]
    dropped = {reason: tally.count for reason, tally in reader.report.dropped.items()}
    return Sheet(name, source, "texts", file.format, found[: config.rows], len(found), file.sha256, dropped=dropped)


def _detect(source: str, kinds: Sequence[str], config: EvalConfig) -> dict[str, str]:
    """kind -> format, for every kind the file's first row can be read as."""
    for place, row in _rows(source, config.data.encoding):
        if isinstance(row, BadRow):
            if config.data.on_bad_line == "skip":
                continue
            raise _refused(row, place)
        if isinstance(row, str):
            return {"texts": "text"} if "texts" in kinds else _no_kind(kinds, row, place)
        row = _renamed(row, config.data.field, place)
        fitting = {kind: name for kind in kinds if (name := _format_of(kind, row, config.data.format))}
        return fitting or _no_kind(kinds, row, place)
    raise UserError("empty file", where=source, fix="put data in it or leave it out")


def _format_of(kind: str, row: Mapping[str, Any], asked: str | None) -> str | None:
    if kind == "texts":
        return "text" if "text" in row else None
    fitting = [name for name, known in FORMATS[kind].items() if known.fits(row)]
    return next((name for name in fitting if asked in (None, name)), None)


def _no_kind(kinds: Sequence[str], row: dict[str, Any] | str, place: str) -> dict[str, str]:
    """Raises: UserError, with the task that could read this file if there is one."""
    others = [
        k for k in KINDS if k not in kinds and (_format_of(k, row, None) if isinstance(row, dict) else k == "texts")
    ]
    found = f"columns {listed(row)}" if isinstance(row, dict) else "plain text"
    needs = "; ".join(f"{_TASK_OF[kind]} needs {_NEEDS[kind]}" for kind in kinds)
    fix = f"add --task {_TASK_OF[others[-1]]}" if others else "name the columns, as in --set data.field.question=COLUMN"
    raise UserError(f"no task that was asked for can read this: {found} ({needs})", where=place, fix=fix)


def _items(source: str, name: str, kind: str, format: str, config: EvalConfig) -> Sheet:
    known = FORMATS[kind][format]
    sheet = Sheet(name, source, kind, format, talk=known.talk)
    file = Source(Path(source), config.data.encoding)
    try:
        for place, row in rows(file):
            sheet.original += 1
            if len(sheet.items) >= config.rows:
                continue  # counted only
            try:
                sheet.items += _converted(row, known, place, config)
            except BadRow as bad:
                if config.data.on_bad_line == "error":
                    raise _refused(bad, place) from bad
                sheet.dropped[bad.reason] = sheet.dropped.get(bad.reason, 0) + 1
            except Dropped as drop:
                sheet.dropped[drop.reason] = sheet.dropped.get(drop.reason, 0) + 1
        sheet.sha256, _ = file.finish()
    finally:
        file.close()
    if not sheet.items:
        raise UserError(f"0 {kind}: all {sheet.original:,} rows were dropped", where=source, fix="mend the rows")
    return sheet


def _converted(row: dict[str, Any] | str | BadRow, known: Format, place: str, config: EvalConfig) -> list[Item]:
    if isinstance(row, BadRow):
        raise row
    assert not isinstance(row, str)  # plain text has no columns, and was refused when the format was looked for
    row = _renamed(row, config.data.field, place)
    missing = next((column for column in known.needs if column not in row), None)
    if missing:
        raise BadRow(
            "missing column", f"no {missing!r}; found: {listed(row)}", "add it, or skip: --set data.on_bad_line=skip"
        )
    return [replace(item, place=place) for item in known.convert(row, config.options)]


def _rows(source: str, encoding: str) -> Iterator[tuple[str, dict[str, Any] | str | BadRow]]:
    file = Source(Path(source), encoding)
    try:
        yield from rows(file)
    finally:
        file.close()


def _renamed(row: dict[str, Any], columns: Mapping[str, str], place: str) -> dict[str, Any]:
    """The row with the columns that `data.field` names under the names that the formats use."""
    for wanted, actual in columns.items():
        if actual not in row:
            close = difflib.get_close_matches(actual, row, n=1)
            fix = f"name a column that is there: --set data.field.{wanted}={close[0] if close else 'COLUMN'}"
            raise UserError(f"no {actual!r} (asked for as {wanted}); found: {listed(row)}", where=place, fix=fix)
    moved = {wanted: row[actual] for wanted, actual in columns.items()}
    return moved | {key: value for key, value in row.items() if key not in moved and key not in columns.values()}


def _refused(bad: BadRow, place: str) -> UserError:
    fix = bad.fix or "mend it, or leave bad rows out: --set data.on_bad_line=skip"
    return UserError(bad.detail, where=place, fix=fix)
