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
from tinyllm.errors import UserError

END_OF_TEXT = "<|endoftext|>"
TABLES = (".csv", ".tsv")
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")


def rows(source: Source, text_format: str = "") -> Iterator[LocatedRow]:
    """Return the rows of a source: strings for documents of plain text, objects for all other layouts.

    Args:
        text_format: one of `TEXT_FORMATS`: read the source as plain text whatever it holds, and split it this way.
    """
    if text_format:
        return _documents(source, text_format)
    return {"text": _documents, "lines": json_lines, "json": json_values, "parquet": _parquet}[layout(source)](source)


def layout(source: Source) -> str:
    """Return `text`, `lines` (one JSON object per line), `json` (an array, or objects over several lines) or `parquet`."""
    suffix = Path(source.path.name.lower().removesuffix(".gz")).suffix
    if suffix in TABLES:  # as plain text, its commas and its header would be learned
        tabs = ", delimiter=chr(9)" if suffix == ".tsv" else ""
        code = f"import csv, json; [print(json.dumps(r)) for r in csv.DictReader(open({str(source.path)!r}){tabs})]"
        fix = f'write its rows as JSON lines: python -c "{code}" > rows.jsonl'
        raise UserError(f"{suffix} tables are not supported", where=source.name, fix=fix)
    body = source.head.lstrip()
    if body.startswith(b"PAR1") or suffix == ".parquet":
        return "parquet"
    if body.startswith(b"["):
        is_array = suffix in JSON_SUFFIXES or body[1:].lstrip()[:1] in (b"{", b"]")
        return "json" if is_array else "text"
    if not body.startswith(b"{"):
        return "lines" if suffix in JSON_SUFFIXES else "text"
    first, _, rest = body.partition(b"\n")
    try:
        is_object = isinstance(parse(first.decode()), dict)
    except (BadRow, UnicodeDecodeError):
        is_object = False
    if suffix == ".json" and not (is_object and rest.lstrip().startswith(b"{")):
        return "json"
    return "text" if suffix in (".txt", ".md") and not is_object else "lines"


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
    for location, _, line in lines(source):
        if isinstance(line, BadRow):
            yield location, line
            continue
        at_mark, blank = name == "marks" and line.strip() == END_OF_TEXT, not line.strip()
        if not at_mark and (held or not blank):
            began = began if held else location
            held.append(line)
            size += len(line) + 1
        if size > MAX_ROW and _TOO_LONG not in source.notes:
            source.notes.append(_TOO_LONG)
        if held and (at_mark or size > chosen.any_line or (blank and size > chosen.blank_line)):
            yield began, "\n".join(held).rstrip()
            held, size = [], 0
    if held:
        yield began, "\n".join(held).rstrip()


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
        for batch in pyarrow.parquet.ParquetFile(source.path).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield f"{source.name}:{number}", row
    # ValueError: text that is not UTF-8, a date in the year 0
    except (pyarrow.ArrowException, OSError, ValueError) as e:
        what = f"damaged parquet file: {str(e).partition(chr(10))[0][:200]}"
        raise UserError(what, where=f"{source.name}:{number + 1}", fix="download the file again") from e
