"""The rows of one file, one at a time with their place: documents of plain text, objects of JSON and parquet.

Bad rows are yielded as `BadRow` values, not raised, so that a reader may step over them. Left out: column types beyond what JSON has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tinyllm.data.files import MAX_ROW, BadRow, Source, lines
from tinyllm.data.json_rows import Row, json_lines, json_values, parse
from tinyllm.errors import UserError

END_OF_TEXT = "<|endoftext|>"
TABLES = (".csv", ".tsv")
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")


def rows(source: Source, cut: str = "") -> Iterator[Row]:
    """The rows of a source in the layout found: strings for text documents, objects for the rest.

    Args:
        cut: one of `CUTS`: read the source as plain text, whatever it holds, and cut it so.
    """
    if cut:
        return _documents(source, cut)
    return {"text": _documents, "lines": json_lines, "json": json_values, "parquet": _parquet}[layout(source)](source)


def layout(source: Source) -> str:
    """`text`, `lines` (a JSON object a line), `json` (an array, or objects over several lines) or `parquet`."""
    suffix = Path(source.path.name.lower().removesuffix(".gz")).suffix
    if suffix in TABLES:  # as plain text, its commas and its first line would be learned
        tabs = ", delimiter=chr(9)" if suffix == ".tsv" else ""
        code = f"import csv, json; [print(json.dumps(r)) for r in csv.DictReader(open({str(source.path)!r}){tabs})]"
        fix = f'write its rows as JSON lines: python -c "{code}" > rows.jsonl'
        raise UserError(f"a table of texts ({suffix}) is not read", where=source.name, fix=fix)
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


_WHOLE = (MAX_ROW, MAX_ROW)
# How plain text becomes documents: (characters after which a blank line ends one, and after which any line end does; in words).
CUTS = {
    "marks": (*_WHOLE, f"{END_OF_TEXT} lines"),
    "blocks": (2_000, 8_000, "blank lines, into documents of at least 2,000 characters"),
    "stretches": (2_000, 2_000, "line ends, into documents of at least 2,000 characters"),
    "paragraphs": (0, MAX_ROW, "every blank line"),
    "lines": (0, 0, "every line end"),
    "whole": (*_WHOLE, "its end: one document"),
}


def _cut_of(head: bytes) -> str:
    """The cut that suits a text by its beginning."""
    heads = [line.strip() for line in head.rstrip().split(b"\n")]
    if END_OF_TEXT.encode() in heads:
        return "marks"
    if b"" in heads:
        return "blocks"
    return "lines" if _is_list(heads) else "stretches"


_LIST = 20  # lines that make a list
# Not in scripts that put no space between words, whose lines look like words.
_WORD = re.compile(r"[^\W_\u2e80-\uffff]+(?:[-'.][^\W_\u2e80-\uffff]+)*")


def _is_list(heads: list[bytes]) -> bool:
    """Whether these lines are names or words: one short word a line, so that none goes on in the next."""
    inside = heads[:-1]  # the last may be cut by the end of the head
    return len(inside) >= _LIST and all(
        len(line) <= 40 and _WORD.fullmatch(line.decode("utf-8", "replace")) for line in inside
    )


_CUT = f"documents cut at {MAX_ROW:,} characters"


def _documents(source: Source, cut: str = "") -> Iterator[Row]:
    """Plain text cut into documents; how is said in `source.notes`."""
    if not cut and (cut := _cut_of(source.head)) == "lines":
        source.notes.append("a list, as every line is one word (to join lines: data.format=stretches)")
    after_blank, after_any, how = CUTS[cut]
    source.notes.append(f"plain text split at {how}")
    held: list[str] = []
    size, began = 0, ""
    for place, _, line in lines(source):
        if isinstance(line, BadRow):
            yield place, line
            continue
        at_mark, blank = cut == "marks" and line.strip() == END_OF_TEXT, not line.strip()
        if not at_mark and (held or not blank):
            began = began if held else place
            held.append(line)
            size += len(line) + 1
        if size > MAX_ROW and _CUT not in source.notes:
            source.notes.append(_CUT)
        if held and (at_mark or size > after_any or (blank and size > after_blank)):
            yield began, "\n".join(held).rstrip()
            held, size = [], 0
    if held:
        yield began, "\n".join(held).rstrip()


def _parquet(source: Source) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        fix = "pip install 'tinyllm-lifecycle[parquet]'"
        raise UserError("reading parquet needs pyarrow, which is not installed", where=source.name, fix=fix) from e
    if not source.plain:  # its table of contents stands at the end
        fix = "save it to a file, unpacked, and name that"
        raise UserError("parquet cannot be read packed or from a pipe", where=source.name, fix=fix)
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(source.path).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield f"{source.name}:{number}", row
    # ValueError: a text that is no UTF-8, a date in the year 0
    except (pyarrow.ArrowException, OSError, ValueError) as e:
        what = f"damaged parquet file: {str(e).partition(chr(10))[0][:200]}"
        raise UserError(what, where=f"{source.name}:{number + 1}", fix="fetch the file again") from e
