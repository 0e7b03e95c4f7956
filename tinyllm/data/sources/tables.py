"""Rows of delimited tables (CSV, TSV): an object per row, every value as the text in the file.

The first row names the columns; above it may be a line `sep=;`, which names the delimiter to Excel. Nothing is guessed about values:
`1,50`, `007` and an empty cell stay as they are. The delimiter is the one that gives all rows of a sample the same number of cells,
quotes respected (`csv.Sniffer` ignores most of them); if two do, it must be named. Left out: tables without a header, other escapes
than a doubled quote.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from tinyllm.data.sources.errors import BadRow, preview
from tinyllm.data.sources.files import MAX_ROW, Source, lines
from tinyllm.data.sources.json_rows import LocatedRow
from tinyllm.errors import UserError

Delimiter = Literal["comma", "semicolon", "tab", "pipe"]
DELIMITERS: dict[str, str] = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
_NAMES = {mark: name for name, mark in DELIMITERS.items()}
_SAMPLE_BYTES, _SAMPLE_ROWS = 1 << 16, 200
_SEPARATOR = re.compile(rb'"?sep=(.)"?\r?\n', re.IGNORECASE)
_MAX_BROKEN = 100  # quotes that are not closed, each of which costs a search to the end of the row


class _Dialect(NamedTuple):
    delimiter: str
    quoting: int = csv.QUOTE_MINIMAL
    spaces: bool = False
    """spaces before a cell are dropped, as in `"a", "b"`"""

    def reader(self, source: Iterator[str]) -> Iterator[list[str]]:
        csv.field_size_limit(MAX_ROW)
        options = {"delimiter": self.delimiter, "quoting": self.quoting, "skipinitialspace": self.spaces}
        return csv.reader(source, strict=True, **options)  # type: ignore[arg-type]


def delimiter_name(value: object) -> object:
    """Return the name of a delimiter that is given as a character; others unchanged."""
    return _NAMES.get({"\\t": "\t"}.get(value, value), value) if isinstance(value, str) else value


def table_rows(source: Source, delimiter: str | None = None) -> Iterator[LocatedRow]:
    """Yield the rows of a table as objects; a row that cannot be read is a `BadRow`, and reading continues at the next line.

    Args:
        delimiter: one of `DELIMITERS`; by default detected.

    Raises: UserError for a header that names no columns, or a delimiter that cannot be determined.
    """
    named = _SEPARATOR.match(source.head)
    if named and not delimiter:
        mark = named[1].decode("latin-1")
        if mark not in _NAMES:
            what = f"the first line names a delimiter that is not supported: {preview(mark)}"
            raise UserError(what, where=f"{source.name}:1", fix=f"use one of {', '.join(DELIMITERS)}")
        delimiter = _NAMES[mark]
    dialect = _dialect(source, delimiter, after=named.end() if named else 0)
    located = itertools.islice(_split(source, dialect), 1 if named else 0, None)
    how = f", delimiter {_NAMES[dialect.delimiter]}" + ", quotes read as text" * (dialect.quoting == csv.QUOTE_NONE)
    yield from named_rows(source, located, "a table of", how, dialect.delimiter)


def named_rows(
    source: Source, located: Iterable[tuple[str, list[str] | BadRow]], what: str, how: str = "", mark: str = ","
) -> Iterator[LocatedRow]:
    """Yield rows of cells as objects, by the names in the first of them.

    Args:
        located: (location, cells) of every row.
        what, how: the beginning and the end of the note on this table.
        mark: between the names that an error suggests.
    """
    names: list[str] = []
    unnamed: set[str] = set()
    is_first = True  # row below the header
    for location, cells in located:
        if isinstance(cells, BadRow):
            yield location, cells
        elif not names:
            names = _header(cells, location, mark)
            unnamed = {name for name, cell in zip(names, cells, strict=True) if not cell.strip()}
            source.notes.append(f"{what} {len(names)} column{'s' * (len(names) > 1)}{how}")
        elif len(cells) != len(names):
            yield location, _uneven(cells, names, mark, is_first=is_first)
            is_first = False
        else:
            is_first = False
            yield location, {name: cell for name, cell in zip(names, cells, strict=True) if cell or name not in unnamed}


def _uneven(cells: Sequence[str], names: Sequence[str], mark: str, *, is_first: bool) -> BadRow:
    what = f"{len(cells)} cell{'s' * (len(cells) > 1)}, but the header has {len(names)}: {_shown(names)}"
    fix = "add the missing cells"
    if len(cells) > len(names):
        fix = f"put quotes around the cell with a {_NAMES[mark]} in it"
        if is_first:  # programs leave out the name of an index, or write a title above the names
            fix = f"name all columns in the first line, or {fix}"
    return BadRow("another number of cells", what, fix)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(preview(name)[1:-1] for name in names[:8]) + (", …" if len(names) > 8 else "")


# --- rows of cells ---------------------------------------------------------------------------------------------------------------


class _Lines:
    """The physical lines of a source, with those of the row that is being read, which may be given back."""

    def __init__(self, source: Source):
        self._lines, self._again = lines(source), deque[tuple[str, str | BadRow]]()
        self.begin()

    def begin(self) -> None:
        self.row: list[tuple[str, str | BadRow]] = []
        self.size = 0
        self.bad: tuple[str, BadRow] | None = None
        """the first line of this row that is not text"""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        location, line = self._again.popleft() if self._again else self._next()
        if isinstance(line, BadRow):
            self.bad = self.bad or (location, line)
            self.row.append((location, line))
            return "\n"  # the row is read to its end: what follows this line in a cell is no row
        if not self.row:  # concatenated files have a byte order mark inside
            line = line.lstrip("\ufeff")
        self.row.append((location, line))
        self.size += len(line) + 1
        if self.size > MAX_ROW:
            raise csv.Error("row too long")
        return line + "\n"

    def _next(self) -> tuple[str, str | BadRow]:
        location, _, line = next(self._lines)
        return location, line

    def give_back(self, kept: int) -> None:
        """Read the lines of this row again, but for the first `kept`."""
        self._again.extendleft(reversed(self.row[kept:]))


def _split(source: Source, dialect: _Dialect) -> Iterator[tuple[str, list[str] | BadRow]]:
    """Yield (location, cells) of all rows that are not blank."""
    feed, broken, spanning = _Lines(source), 0, 0
    reader = dialect.reader(feed)
    while True:
        feed.begin()
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as e:
            broken += 1
            location, bad, kept = _broken_row(feed.row, dialect, str(e))
            if broken > _MAX_BROKEN:
                raise UserError(f"{broken:,} rows with broken quotes", where=location, fix=bad.fix) from e
            feed.give_back(kept)
            yield location, bad
        else:
            spanning += len(feed.row) > 1
            if feed.bad:
                yield feed.bad
            elif cells and (len(cells) > 1 or cells[0].strip()):
                yield feed.row[0][0], cells
    if spanning:
        source.notes.append(f"{spanning:,} row{'s' * (spanning > 1)} with a line break in a cell")


_QUOTES_FIX = 'close the quote, or write "" for a quote inside a quoted cell'


def _broken_row(row: Sequence[tuple[str, str | BadRow]], dialect: _Dialect, error: str) -> tuple[str, BadRow, int]:
    """Return the error for a row that cannot be split, its location, and the number of lines it takes."""
    if "new-line character" in error:
        fix = "end its lines with LF: tr '\\r' '\\n' < FILE > NEW"
        return row[0][0], BadRow("not a table", "a carriage return outside quotes", fix), len(row)
    opened = _last_opened(["" if isinstance(line, BadRow) else line for _, line in row], dialect)
    if "expected after" in error:
        what = "text after the closing quote of a quoted cell that opens here"
    else:
        what = "a quote that opens here is never closed"
    return row[opened][0], BadRow("broken quotes", what, _QUOTES_FIX), opened + 1


def _last_opened(row: Sequence[str], dialect: _Dialect) -> int:
    """Return the index of the line in which the last quoted cell of a row opens."""
    opened, inside = 0, False
    for number, line in enumerate(row):
        if '"' not in line:
            continue
        before, *parts = line.split('"')
        doubled = False
        for index, after in enumerate(parts):
            if doubled:
                doubled = False
            elif not inside:
                stripped = before.rstrip(" ") if dialect.spaces else before
                if not stripped or stripped.endswith(dialect.delimiter):
                    inside, opened = True, number
            elif after == "" and index + 1 < len(parts):
                doubled = True
            elif not after or after.startswith(dialect.delimiter):
                inside = False
            else:  # text after the closing quote: here the row breaks
                return opened
            before = after
    return opened


# --- delimiter and header --------------------------------------------------------------------------------------------------------


def _dialect(source: Source, delimiter: str | None, after: int) -> _Dialect:
    """Return the dialect that a sample is written in, which begins at the byte `after`."""
    text = source.head[after:_SAMPLE_BYTES].decode("utf-8", "replace").replace("\ufeff", "")
    whole = len(source.head) <= _SAMPLE_BYTES
    sample = [line.removesuffix("\r") + "\n" for line in text.split("\n")]
    if len(sample) > 1:
        sample.pop()  # empty, or cut off by the end of the sample
    suffix = source.path.name.lower().removesuffix(".gz").rpartition(".")[2]
    marks = [DELIMITERS[delimiter]] if delimiter else list(_NAMES)
    found = {mark: _consistent(sample, mark, whole) for mark in marks}
    named = [mark for mark, (columns, _, _) in found.items() if columns > 1]
    fitting = [mark for mark in named if found[mark][1]]
    if suffix == "tsv" and "\t" in named:
        named = fitting = ["\t"]
    choice = fitting or named
    if len(choice) > 1:
        options = " or ".join(f"--set data.delimiter={_NAMES[mark]}" for mark in choice)
        raise UserError("the delimiter of this table is ambiguous", where=f"{source.name}:1", fix=f"name it: {options}")
    if not choice:
        return _Dialect(marks[0] if delimiter else "\t" if suffix == "tsv" else ",")
    return found[choice[0]][2]


def _consistent(sample: Sequence[str], mark: str, whole: bool) -> tuple[int, bool, _Dialect]:
    """Return the number of columns in the header, whether all rows have as many cells, and how cells are quoted."""
    quoted, spaced = _Dialect(mark), _Dialect(mark, spaces=True)
    rows, complete = _split_sample(sample, quoted, whole)
    if _is_even(rows) and complete:
        after = [cell for cells in rows for cell in cells[1:]]
        is_spaced = all(cell.startswith(" ") for cell in after) and any(cell.startswith(' "') for cell in after)
        return len(rows[0]), True, spaced if is_spaced else quoted
    for other in (spaced, _Dialect(mark, csv.QUOTE_NONE)) if mark == "\t" else (spaced,):
        found, complete = _split_sample(sample, other, whole)
        # many programs write tabs without any quoting; in such a file quotes do not enclose cells
        bare = other.quoting != csv.QUOTE_NONE or not any(c[:1] == c[-1:] == '"' for cells in found for c in cells)
        if _is_even(found) and complete and bare:
            return len(found[0]), True, other
    return (len(rows[0]) if rows else 0), False, quoted


def _is_even(rows: Sequence[Sequence[str]]) -> bool:
    return len({len(cells) for cells in rows}) == 1


def _split_sample(sample: Sequence[str], dialect: _Dialect, whole: bool) -> tuple[list[list[str]], bool]:
    """Return the rows of a sample, and whether all of them could be split."""
    found: list[list[str]] = []
    try:
        for cells in itertools.islice(filter(None, dialect.reader(iter(sample))), _SAMPLE_ROWS):
            found.append(cells)
    except csv.Error as e:
        return found, not whole and "unexpected end" in str(e)  # the sample ends inside a quoted cell
    return found, True


_LONGEST_NAME, _MOST_WORDS = 60, 5
_SENTENCE = re.compile(r"[.?!。？！؟।]\s*$|^[-+]?[\d.,]+$|\n")


def _header(cells: Sequence[str], location: str, mark: str) -> list[str]:
    """Return the column names; a column without a name is `column 3`. Raises: UserError for a row that is not a header."""
    names = [cell.strip() for cell in cells]
    if any(len(n) > _LONGEST_NAME or len(n.split()) > _MOST_WORDS or _SENTENCE.search(n) for n in names):
        what = f"the first row must name the columns, but seems to be data: {_shown(names)}"
        example = mark.join(("prompt", "completion", *(f"column{i}" for i in range(3, len(names) + 1)))[: len(names)])
        if len(names) == 1:
            example = "text"
        raise UserError(what, where=location, fix=f"add a first line with their names, such as {example}")
    seen: set[str] = set()
    for name in filter(None, names):
        if name in seen:
            what = f"two columns are named {preview(name)}"
            raise UserError(what, where=location, fix="rename or remove one of them in the first line")
        seen.add(name)
    return [name or f"column {number}" for number, name in enumerate(names, 1)]
