"""The rows of one file with their locations: documents from plain text, objects from JSON and parquet.

Bad rows are yielded as `BadRow` values, not raised, so that a reader may skip them. Left out: column types that JSON does not have.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tinyllm.data.sources.errors import BadRow
from tinyllm.data.sources.files import MAX_ROW, Source, lines
from tinyllm.data.sources.json_rows import LocatedRow, json_lines, json_values, parse
from tinyllm.data.sources.sheets import sheet_rows
from tinyllm.data.sources.streams import is_bomb
from tinyllm.data.sources.tables import DELIMITERS, table_rows
from tinyllm.errors import UserError

END_OF_TEXT = "<|endoftext|>"
TABLES = (".csv", ".tsv")
SHEETS = (".xlsx", ".xlsm")
CELLS = ("table", "sheet")  # layouts whose values are all text
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")


def rows(source: Source, text_format: str = "", delimiter: str | None = None) -> Iterator[LocatedRow]:
    """Return the rows of a source: strings for documents of plain text, objects for all other layouts.

    Args:
        text_format: one of `TEXT_FORMATS`: read the source as plain text whatever it holds, and split it this way.
        delimiter: read plain text as a table with this delimiter, one of `tables.DELIMITERS`.
    """
    if text_format:
        return _documents(source, text_format)
    found = layout(source, delimiter)
    if found == "table":
        return table_rows(source, delimiter)
    readers = {"text": _documents, "lines": json_lines, "json": json_values, "parquet": _parquet, "sheet": sheet_rows}
    return readers[found](source)


def layout(source: Source, delimiter: str | None = None) -> str:
    """Return the layout of a source.

    It is `text`, `lines` (one JSON object per line), `json` (an array, or objects over several lines), `table` (delimited text),
    `sheet` (xlsx) or `parquet`.

    Args:
        delimiter: plain text is a table with this delimiter.
    """
    suffix = Path(source.path.name.lower().removesuffix(".gz")).suffix
    body = source.head.lstrip()
    if source.is_sheet:
        return "sheet"
    if body.startswith(b"PAR1") or suffix == ".parquet":
        return "parquet"
    if suffix in (*TABLES, *SHEETS, ".xls", ".ods"):
        if suffix not in TABLES:
            what = f"not a {suffix} file, in spite of its name"
            raise UserError(what, where=source.name, fix="open it in a spreadsheet program and save it as CSV (UTF-8)")
        return "table"
    return _json_layout(body, suffix) or ("table" if delimiter or _names_columns(source) else "text")


def _json_layout(body: bytes, suffix: str) -> str:
    """Return the layout of JSON; empty for other text."""
    if body.startswith(b"["):
        is_array = suffix in JSON_SUFFIXES or body[1:].lstrip()[:1] in (b"{", b"]")
        return "json" if is_array else ""
    if not body.startswith(b"{"):
        return "lines" if suffix in JSON_SUFFIXES else ""
    first, _, rest = body.partition(b"\n")
    try:
        is_object = isinstance(parse(first.decode()), dict)
    except (BadRow, UnicodeDecodeError):
        is_object = False
    if suffix == ".json" and not (is_object and rest.lstrip().startswith(b"{")):
        return "json"
    return "" if suffix in (".txt", ".md") and not is_object else "lines"


_COLUMNS = {
    *("prompt", "completion", "chosen", "rejected", "messages", "question", "answer", "instruction", "input", "output", "response"),
    *("text", "label", "id", "system"),
}  # fmt: skip


def _names_columns(source: Source) -> bool:
    """Return whether the first line of plain text is the header of a table: two or more well-known column names, and nothing else."""
    first = source.head[:200].lstrip().partition(b"\n")[0].decode("utf-8", "replace").strip().lower()
    parted = (first.replace('"', "").split(mark) for mark in DELIMITERS.values())
    return any(len(names) > 1 and {name.strip() for name in names} <= _COLUMNS for names in parted)


class TextFormat(NamedTuple):
    """A way to split plain text into documents."""

    blank_line: int
    """a blank line ends a document of more than this many characters"""
    any_line: int
    """so does any line end, after this many characters"""
    title: str
    """where documents are split, for the report"""


TEXT_FORMATS = {
    "marks": TextFormat(MAX_ROW, MAX_ROW, f"{END_OF_TEXT} lines"),
    "blocks": TextFormat(2_000, 8_000, "blank lines, into documents of at least 2,000 characters"),
    "stretches": TextFormat(2_000, 2_000, "line ends, into documents of at least 2,000 characters"),
    "paragraphs": TextFormat(0, MAX_ROW, "every blank line"),
    "lines": TextFormat(0, 0, "every line end"),
    "whole": TextFormat(MAX_ROW, MAX_ROW, "the end of the file: one document"),
}


def _detect_text_format(head: bytes) -> str:
    """Return the name of the format that suits a text, from its first bytes."""
    heads = [line.strip() for line in head.rstrip().split(b"\n")]
    if END_OF_TEXT.encode() in heads:
        return "marks"
    if b"" in heads:
        return "blocks"
    return "lines" if _is_list(heads) else "stretches"


_LIST_LINES = 20  # fewer lines are no list
# Scripts without spaces between words are excluded: their lines would look like words.
_WORD = re.compile(r"[^\W_\u2e80-\uffff]+(?:[-'.][^\W_\u2e80-\uffff]+)*")


def _is_list(heads: list[bytes]) -> bool:
    """Return whether these lines are names or words: one short word per line, so that no sentence spans two lines."""
    inside = heads[:-1]  # the last one may be cut off by the end of the head
    return len(inside) >= _LIST_LINES and all(
        len(line) <= 40 and _WORD.fullmatch(line.decode("utf-8", "replace")) for line in inside
    )


_MANY_LINES, _SHORT_LINE = (
    20,
    100,
)  # lines of a document, characters of a line: such lines may be documents of their own
_TOO_LONG = f"documents split at {MAX_ROW:,} characters"


def _documents(source: Source, text_format: str = "") -> Iterator[LocatedRow]:
    """Yield the documents of plain text; how it was split goes to `source.notes`."""
    name = text_format or _detect_text_format(source.head)
    if not text_format and name == "lines":
        source.notes.append("a list, since every line is one word (to join lines: data.format=stretches)")
    chosen = TEXT_FORMATS[name]
    source.notes.append(f"plain text split at {chosen.title}")
    held: list[str] = []
    size, began = 0, ""
    written, documents, characters, returns = 0, 0, 0, 0
    for location, _, line in lines(source):
        if isinstance(line, BadRow):
            yield location, line
            continue
        written, characters = written + bool(line.strip()), characters + len(line)
        returns += line.count("\r")
        at_mark, blank = name == "marks" and line.strip() == END_OF_TEXT, not line.strip()
        if not at_mark and (held or not blank):
            began = began if held else location
            held.append(line)
            size += len(line) + 1
        if size > MAX_ROW and _TOO_LONG not in source.notes:
            source.notes.append(_TOO_LONG)
        if held and (at_mark or size > chosen.any_line or (blank and size > chosen.blank_line)):
            documents += 1
            yield began, "\n".join(held).rstrip()
            held, size = [], 0
    if held:
        documents += 1
        yield began, "\n".join(held).rstrip()
    if returns:
        end = "" if returns == 1 else "s"
        source.notes.append(
            f"{returns:,} carriage return{end} within lines kept; as line ends: tr '\\r' '\\n' < FILE > NEW"
        )
    short = written > _MANY_LINES * documents and characters < _SHORT_LINE * written
    if not text_format and name in ("blocks", "stretches") and documents > 1 and short:
        other = "data.format=lines" + " or paragraphs" * (name == "blocks")
        source.notes.append(f"{written:,} lines in {documents:,} documents; if each is a document of its own: {other}")


def _parquet(source: Source) -> Iterator[LocatedRow]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        fix = "pip install 'tinyllm-lifecycle[parquet]'"
        raise UserError("reading parquet needs pyarrow, which is not installed", where=source.name, fix=fix) from e
    if not source.is_plain:  # its table of contents is at the end
        fix = "save it to a file, uncompressed, and name that"
        raise UserError("parquet cannot be read from gzip or from a pipe", where=source.name, fix=fix)
    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(source.path)
        if is_bomb(8 * file.metadata.num_rows, source.path.stat().st_size):  # equal rows take no space
            what = f"{file.metadata.num_rows:,} rows, too many for the size of the file"
            raise UserError(what, where=source.name, fix="leave out repeated rows")
        for batch in file.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield f"{source.name}:{number}", row
    # ValueError: text that is not UTF-8, a date in the year 0
    except (pyarrow.ArrowException, OSError, ValueError) as e:
        what = f"damaged parquet file: {str(e).partition(chr(10))[0][:200]}"
        raise UserError(what, where=f"{source.name}:{number + 1}", fix="download the file again") from e
