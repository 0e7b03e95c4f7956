"""The rows of one file, one at a time with their place: documents of plain text, objects of JSON and parquet.

A JSON array streams as well: a window slides over it, so one element, like one line, may take `MAX_ROW`, and the file
any size. Bad rows are yielded as `BadRow` values, not raised, so that a reader may step over them; a JSON array that is
broken in the middle cannot be stepped over and raises. Left out: column types beyond what JSON has.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyllm.data.files import HEAD, MAX_ROW, BadRow, Source, lines, not_utf8, reading, shown
from tinyllm.errors import UserError

END_OF_TEXT = "<|endoftext|>"
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")

Row = tuple[str, "dict[str, Any] | str | BadRow"]  # (place, what stands there)


def rows(source: Source) -> Iterator[Row]:
    """The rows of a source in the layout found: strings for text documents, objects for the rest."""
    return {"text": _documents, "lines": _json_lines, "json": _json_values, "parquet": _parquet}[layout(source)](source)


def layout(source: Source) -> str:
    """`text`, `lines` (a JSON object a line), `json` (an array, or objects over several lines) or `parquet`."""
    suffix = Path(source.path.name.lower().removesuffix(".gz")).suffix
    body = source.head.lstrip()
    if body.startswith(b"PAR1"):
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


def _documents(source: Source) -> Iterator[Row]:
    """Plain text cut into documents; how is said in `source.notes`."""
    heads = [line.strip() for line in source.head.rstrip().split(b"\n")]
    # (characters after which a blank line ends a document, and after which any line end does)
    if END_OF_TEXT.encode() in heads:
        limits, how = (MAX_ROW, MAX_ROW), f"{END_OF_TEXT} lines"
    elif b"" in heads:
        limits, how = (2_000, 8_000), "blank lines, into documents of at least 2,000 characters"
    else:
        limits, how = (2_000, 2_000), "line ends, into documents of at least 2,000 characters"
    source.notes.append(f"plain text split at {how}")
    held: list[str] = []
    size, began = 0, ""
    for place, offset, line in lines(source):
        if isinstance(line, BadRow) or "\0" in line:
            yield place, line if isinstance(line, BadRow) else _nul(line, offset)
            continue
        at_mark, blank = line.strip() == END_OF_TEXT, not line.strip()
        if not at_mark and (held or not blank):
            began = began if held else place
            held.append(line)
            size += len(line) + 1
        if held and (at_mark or size > limits[1] or (blank and size > limits[0])):
            yield began, "\n".join(held).rstrip()
            held, size = [], 0
    if held:
        yield began, "\n".join(held).rstrip()


def _nul(line: str, offset: int) -> BadRow:
    at = offset + len(line[: line.index("\0")].encode())
    return BadRow("not text", f"a NUL byte at byte offset {at}: this is no text file", "give a text file in UTF-8")


class _Refused(ValueError):  # noqa: N818
    """What Python's JSON reader lets through and we do not."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        last = {key: i for i, (key, _) in enumerate(pairs)}
        twice = next(key for i, (key, _) in enumerate(pairs) if last[key] != i)
        raise _Refused(f"the key {shown(twice)} twice in one object")
    return value


def _constant(name: str) -> None:
    raise _Refused(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


@contextmanager
def _json_errors() -> Iterator[None]:
    try:
        yield
    except json.JSONDecodeError as e:
        raise BadRow("not JSON", f"not JSON ({e.msg} at column {e.colno})") from e
    except _Refused as e:
        raise BadRow("not JSON", f"not JSON ({e})") from e
    except UnicodeEncodeError as e:
        raise BadRow("not text", "half of a surrogate pair (\\ud800 to \\udfff), which is no character") from e
    except RecursionError as e:
        raise BadRow("not JSON", "not JSON (nested too deeply)") from e
    except ValueError as e:  # int() refuses more than 4,300 digits
        raise BadRow("not JSON", "not JSON (a number with thousands of digits)") from e


def parse(text: str) -> Any:
    """One JSON value. Raises: BadRow for bad JSON, NaN, repeated keys, lone surrogates, endless nesting or numbers."""
    with _json_errors():
        value = _DECODER.decode(text)
        _check_surrogates(text, value)
    return value


def _check_surrogates(text: str, value: Any) -> None:
    if "\\ud" in text or "\\uD" in text:  # an escape is the only way in: the bytes were valid UTF-8
        json.dumps(value, ensure_ascii=False).encode()


def _json_lines(source: Source) -> Iterator[Row]:
    for place, _, line in lines(source):
        if isinstance(line, BadRow):
            yield place, line
        elif line.strip():
            try:
                yield place, _as_row(parse(line))
            except BadRow as bad:
                yield place, bad


def _as_row(value: Any) -> dict[str, Any] | BadRow:
    if isinstance(value, dict):
        return value
    name = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(value), "a number")
    return BadRow("not an object", f"{name} where an object with named columns was expected")


def _json_values(source: Source) -> Iterator[Row]:
    """The elements of one array, or objects one after another. A single object around one list of rows is opened."""
    window = _Window(source)
    if window.peek() == "[":
        for place, value in _elements(window):
            yield place, _as_row(value)
        return
    first = True
    while window.peek():
        place, value = window.value()
        wrapped = _wrapped(value) if first and not window.peek() else None
        if wrapped is None:
            yield place, _as_row(value)
        else:
            yield from ((f"{place}[{index}]", row) for index, row in enumerate(wrapped))
        first = False


def _elements(window: _Window) -> Iterator[tuple[str, Any]]:
    window.position += 1
    closed = window.peek() == "]"
    while not closed:
        yield window.value()
        closed = window.peek() == "]"
        if not closed and window.peek() != ",":
            raise window.error("Expecting ',' or ']' after an element of the array")
        window.position += not closed
        window.peek()
    window.position += 1
    if window.peek():
        raise window.error("Extra data after the end of the array")


def _wrapped(value: Any) -> list[dict[str, Any]] | None:
    """`{"canary": …, "examples": [{…}, …]}` stands for its one list of objects; a record with such a list does not."""
    of_records = {"messages", "conversations", "prompt", "completion", "chosen", "rejected", "instances", "history"}
    if not isinstance(value, dict) or of_records & set(value):
        return None
    tables = [v for v in value.values() if isinstance(v, list) and v and all(isinstance(row, dict) for row in v)]
    return tables[0] if len(tables) == 1 else None


class _Window:
    """The part of a JSON text being read: grows until one value fits and forgets what is behind."""

    def __init__(self, source: Source):
        self.source = source
        self.text, self.position = "", 0
        self._line, self._counted, self._behind = 1, 0, 0  # the line at text[counted], characters forgotten
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._read, self._at_end = source.start, False

    def _more(self) -> bool:
        """Reads on; False at the end of the file."""
        if self._at_end:
            return False
        size = max(HEAD, len(self.text) - self.position)  # doubling: a long value is tried log(n) times
        with reading(self.source.name):
            data = self.source.bytes.read(size)
        self._at_end = len(data) < size
        line = self._line_at(self.position)
        waiting = len(self._decoder.getstate()[0])
        self._behind += self.position
        self.text, self.position, self._counted = self.text[self.position :], 0, 0
        try:
            self.text += self._decoder.decode(data, final=self._at_end)
        except UnicodeDecodeError as e:
            line += self.text.count("\n") + e.object.count(b"\n", 0, e.start)
            bad = not_utf8(self.source, e.object[e.start], self._read - waiting + e.start)
            raise UserError(bad.detail, where=f"{self.source.name}:{line}", fix=bad.fix) from e
        self._read += len(data)
        return True

    def _line_at(self, position: int) -> int:
        self._line += self.text.count("\n", self._counted, position)
        self._counted = position
        return self._line

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self.position < len(self.text):
                if self.text[self.position] not in " \t\r\n":
                    return self.text[self.position]
                self.position += 1
            if not self._more():
                return ""

    def value(self) -> tuple[str, Any]:
        """(place, value) of the value that begins here. Raises: UserError."""
        while True:
            try:
                with _json_errors():
                    value, end = _DECODER.raw_decode(self.text, self.position)
                    if end == len(self.text) and self._more():  # a number may go on
                        continue
                    _check_surrogates(self.text[self.position : end], value)
            except BadRow as bad:
                if not self._may_go_on(bad.__cause__):
                    raise self._located(bad) from bad
                continue
            place = f"{self.source.name}:{self._line_at(self.position)}"
            self.position = end
            return place, value

    def _may_go_on(self, cause: BaseException | None) -> bool:
        """Whether the value only ended with the window, and more was read."""
        cut = isinstance(cause, json.JSONDecodeError) and (
            cause.pos > len(self.text) - 16 or cause.msg.startswith("Unterminated string")
        )
        return cut and len(self.text) - self.position <= MAX_ROW and self._more()

    def _located(self, bad: BadRow) -> UserError:
        cause = bad.__cause__
        if isinstance(cause, json.JSONDecodeError):
            if len(self.text) - self.position > MAX_ROW:
                return self.error(f"no value that ends within {MAX_ROW:,} characters")
            self.position = cause.pos
            return self.error(cause.msg)
        return UserError(bad.detail, where=f"{self.source.name}:{self._line_at(self.position)}", fix=_MEND)

    def error(self, what: str) -> UserError:
        place = f"{self.source.name}:{self._line_at(self.position)}"
        at = f"at character {self._behind + self.position + 1:,}"
        return UserError(f"not JSON ({what} {at})", where=place, fix=_MEND)


_MEND = "mend the file at this place"


def _parquet(source: Source) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        fix = "pip install 'tinyllm-lifecycle[parquet]'"
        raise UserError("reading parquet needs pyarrow, which is not installed", where=source.name, fix=fix) from e
    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(source.path).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield f"{source.name}:{number}", row
    except (pyarrow.ArrowException, OSError) as e:
        raise UserError(f"damaged parquet file: {e}", where=source.name, fix="fetch the file again") from e
