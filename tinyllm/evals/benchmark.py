"""Benchmarks: the items of a file, or of the bundled world. What was detected, read and dropped is reported.

A bad row is an error with file and line, or, with `data.on_bad_line: skip`, left out and counted. All ranks read all files.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from tinyllm.console import say
from tinyllm.data import world
from tinyllm.data.config import is_world
from tinyllm.data.records.detect import WrongKind
from tinyllm.data.records.nulls import CallSurvey, survey_calls, without_added_nulls
from tinyllm.data.records.reader import configured_reader
from tinyllm.data.records.report import Report
from tinyllm.data.records.turns import Dropped, list_columns
from tinyllm.data.records.types import Document
from tinyllm.data.sources.errors import BadRow
from tinyllm.data.sources.files import Source
from tinyllm.data.sources.paths import expand
from tinyllm.data.sources.rows import rows
from tinyllm.errors import UserError
from tinyllm.evals.formats import FORMATS, Format, Item
from tinyllm.evals.settings import EvalSettings
from tinyllm.io.shell import set_option

_WORLD: dict[str, Callable[..., Iterable[dict[str, Any]]]] = {
    "texts": world.documents,
    "choices": world.pairs,
    "questions": world.prompts,
}
_USUAL_TASKS = {"texts": "bits_per_byte", "choices": "choice", "questions": "exact_match"}
_NEEDS = {
    "texts": "text",
    "choices": "sentence_good and sentence_bad; question, choices and answer; input with Options: and target; "
    "or prompt, chosen and rejected",
    "questions": "question or prompt with answer, or input and target",
}
KINDS = tuple(_WORLD)


@dataclass
class Benchmark:
    """The items of one file, all of one kind."""

    name: str
    source: str
    kind: str
    """`texts` (strings), `choices` (`Choice`) or `questions` (`Question`)"""
    format: str = ""
    items: list[Any] = field(default_factory=list)
    """at most the first `rows` of the configuration"""
    total: int = 0
    """rows in the file"""
    sha256: str = ""
    conversational: bool = True
    """see `Format`"""
    dropped: dict[str, int] = field(default_factory=dict)
    """reason -> number of rows"""


def read_all(kinds: Sequence[str], config: EvalSettings) -> list[Benchmark]:
    """Read a benchmark for every source and every kind that the source can be read as.

    Raises:
        UserError: a source is none of `kinds`, no source is of one of `kinds`, or a row is bad.
    """
    sources: list[str] = []
    for source in config.data.test or config.data.val:
        sources += [source] if is_world(source) else [str(path) for path in expand([source])]
    if not sources:
        raise UserError("no data to evaluate on", where="data.val", fix="name a file: --set 'data.val=[file.jsonl]'")
    names = _names(sources)
    benchmarks = [benchmark for source in sources for benchmark in _read(source, names[source], kinds, config)]
    for kind in kinds:
        if not any(benchmark.kind == kind for benchmark in benchmarks):
            what = f"none of the {len(sources)} sources contains {kind}"
            fix = f"name a file with {kind}, or leave out the tasks that read them, as --task {_USUAL_TASKS[kind]}"
            raise UserError(what, where="data.val", fix=fix)
    for benchmark in benchmarks:
        dropped = ", ".join(f"{count:,} dropped: {reason}" for reason, count in benchmark.dropped.items())
        limit = f" (the first {len(benchmark.items):,})" if config.rows < benchmark.total else ""
        say(
            f"{benchmark.source}: {benchmark.total:,} {benchmark.kind}{limit}, format {benchmark.format}{dropped and '; '}{dropped}"
        )
    return benchmarks


def _names(sources: Sequence[str]) -> dict[str, str]:
    """Return short names: the file name without suffixes, or the whole path if several files have the same name."""
    short = {source: Path(source).name.removesuffix(".gz").rpartition(".")[0] or source for source in sources}
    short |= {source: "world" for source in sources if is_world(source)}
    taken = list(short.values())
    return {source: name if taken.count(name) == 1 else source for source, name in short.items()}


def _read(source: str, name: str, kinds: Sequence[str], config: EvalSettings) -> list[Benchmark]:
    if is_world(source):
        return [_from_world(source, name, kind, config) for kind in kinds]
    if tuple(kinds) == ("texts",):
        return [_texts(source, name, config)]
    if source == "-":  # the file is read twice: to detect its format, and to score it
        raise UserError(
            "this task cannot read standard input", where="data.val", fix="save it to a file and name the file"
        )
    fitting = _detect(source, kinds, config)
    found = [_texts(source, name, config)] if "texts" in fitting else []
    return found + [_items(source, name, kind, format, config) for kind, format in fitting.items() if kind != "texts"]


def world_count(source: str, at_most: int) -> int:
    """Return N of `world:N`; `at_most` for `world` alone."""
    number = source.partition(":")[2] or str(at_most)
    if not number.isdecimal() or not int(number):
        raise UserError(
            f"{source!r} does not specify a number of records", where="data.val", fix="write for example world:500"
        )
    return int(number)


def _from_world(source: str, name: str, kind: str, config: EvalSettings) -> Benchmark:
    count = world_count(source, config.rows)
    made = list(_WORLD[kind](min(count, config.rows), seed=config.seed, split="test"))
    benchmark = Benchmark(name, source, kind, "world", total=count)
    if kind == "texts":
        return replace(benchmark, items=[row["text"] for row in made])
    format = next(f for f in FORMATS[kind].values() if f.fits(made[0]))
    items = [
        replace(item, place=f"{source}[{i}]")
        for i, row in enumerate(made)
        for item in format.convert(row, config.options)
    ]
    return replace(benchmark, items=items)


def _texts(source: str, name: str, config: EvalSettings) -> Benchmark:
    found, report = read_texts(source, config)
    file = report.files[0]
    dropped = {reason: tally.count for reason, tally in report.dropped.items()}
    return Benchmark(name, source, "texts", file.format, found[: config.rows], len(found), file.sha256, dropped=dropped)


def read_texts(source: str, config: EvalSettings) -> tuple[list[str], Report]:
    """Return the documents of a source. Raises: UserError for one of another kind, with the task that reads it."""
    reader = configured_reader([source], "documents", config.data)
    try:
        return [record.text for record in reader if isinstance(record, Document)], reader.report
    except WrongKind:
        for path in [] if source == "-" else expand([source]):
            _detect(str(path), ["texts"], config)
        raise


def _detect(source: str, kinds: Sequence[str], config: EvalSettings) -> dict[str, str]:
    """Return kind -> format, for every kind that the first row of the file can be read as."""
    for place, row in _rows(source, config.data.encoding):
        if isinstance(row, BadRow):
            if config.data.on_bad_line == "skip":
                continue
            raise _bad_row_error(row, place)
        if isinstance(row, str):
            return {"texts": "text"} if "texts" in kinds else _unreadable(kinds, row, place)
        row = _renamed(row, config.data.field, place)
        fitting = {kind: name for kind in kinds if (name := _format_of(kind, row, config.data.format))}
        return fitting or _unreadable(kinds, row, place)
    raise UserError("empty file", where=source, fix="add data to the file, or remove it from the command")


def _format_of(kind: str, row: Mapping[str, Any], wanted: str | None) -> str | None:
    if kind == "texts":
        return "text" if "text" in row else None
    fitting = [name for name, known in FORMATS[kind].items() if known.fits(row)]
    return next((name for name in fitting if wanted in (None, name)), None)


def _unreadable(kinds: Sequence[str], row: dict[str, Any] | str, place: str) -> dict[str, str]:
    """Raise a UserError that names the task that can read this file, if there is one."""
    found = f"columns {list_columns(row)}" if isinstance(row, dict) else "plain text"
    needs = "; ".join(f"{_USUAL_TASKS[kind]} needs {_NEEDS[kind]}" for kind in kinds)
    fix = _task_for({"text": row} if isinstance(row, str) else row, kinds)
    raise UserError(f"none of the tasks can read this file: {found} ({needs})", where=place, fix=fix)


def _task_for(row: Mapping[str, Any], kinds: Sequence[str]) -> str:
    """Return what to do with a file of such rows, which is none of `kinds`."""
    others = [kind for kind in KINDS if kind not in kinds and _format_of(kind, row, None)]
    is_talk = any(isinstance(row.get(name), list) for name in ("messages", "conversations"))
    if is_talk and not row.keys() & {"answer", "target", "chosen"}:  # questions without an answer to compare with
        return "name the file in data.test of `tinyllm sft`, which measures the loss of held-out conversations"
    if not others:
        return "name the columns, as in --set data.field.question=COLUMN"
    return f"add --task {_USUAL_TASKS['choices' if 'choices' in others and 'chosen' in row else others[-1]]}"


def _items(source: str, name: str, kind: str, format: str, config: EvalSettings) -> Benchmark:
    known = FORMATS[kind][format]
    benchmark = Benchmark(name, source, kind, format, conversational=known.conversational)
    file = Source(Path(source), config.data.encoding)
    calls = cache(partial(survey_calls, file, config.data.encoding, lambda again: (row for _, row in rows(again))))
    try:
        for place, row in rows(file):
            benchmark.total += 1
            if len(benchmark.items) >= config.rows:
                continue  # only counted
            try:
                benchmark.items += _converted(row, known, place, config, calls)
            except BadRow as bad:
                if config.data.on_bad_line == "error":
                    raise _bad_row_error(bad, place) from bad
                benchmark.dropped[bad.reason] = benchmark.dropped.get(bad.reason, 0) + 1
            except Dropped as drop:
                benchmark.dropped[drop.reason] = benchmark.dropped.get(drop.reason, 0) + 1
        benchmark.sha256, _ = file.finish()
    finally:
        file.close()
    if not benchmark.items:
        raise UserError(f"0 {kind}: all {benchmark.total:,} rows were dropped", where=source, fix="fix the rows")
    return benchmark


def _converted(
    row: dict[str, Any] | str | BadRow, known: Format, place: str, config: EvalSettings, calls: Callable[[], CallSurvey]
) -> list[Item]:
    if isinstance(row, BadRow):
        raise row
    assert not isinstance(row, str)  # plain text has no columns, and was rejected when the format was detected
    row = without_added_nulls(_renamed(row, config.data.field, place), calls, lambda note: None)  # as in training
    missing = next((column for column in known.needs if column not in row), None)
    if missing:
        raise BadRow(
            "missing column",
            f"no {missing!r}; found: {list_columns(row)}",
            "add it, or skip: --set data.on_bad_line=skip",
        )
    return [replace(item, place=place) for item in known.convert(row, config.options)]


def _rows(source: str, encoding: str) -> Iterator[tuple[str, dict[str, Any] | str | BadRow]]:
    file = Source(Path(source), encoding)
    try:
        yield from rows(file)
    finally:
        file.close()


def _renamed(row: dict[str, Any], columns: Mapping[str, str], place: str) -> dict[str, Any]:
    """Return the row with the columns named in `data.field` renamed to the names that formats use."""
    for wanted, actual in columns.items():
        if actual not in row:
            close = difflib.get_close_matches(actual, row, n=1)
            fix = f"name an existing column: {set_option(f'data.field.{wanted}', close[0] if close else 'COLUMN')}"
            raise UserError(
                f"no column {actual!r} (data.field.{wanted}); found: {list_columns(row)}", where=place, fix=fix
            )
    moved = {wanted: row[actual] for wanted, actual in columns.items()}
    return moved | {key: value for key, value in row.items() if key not in moved and key not in columns.values()}


def _bad_row_error(bad: BadRow, place: str) -> UserError:
    fix = bad.fix or "fix it, or skip bad rows: --set data.on_bad_line=skip"
    return UserError(bad.detail, where=place, fix=fix)
