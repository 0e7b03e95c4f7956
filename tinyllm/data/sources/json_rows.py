"""Objects from JSON lines, JSON arrays and concatenated objects. Stricter than Python's parser.

Arrays are streamed through a window that holds one element, so an element, like a line, may have `MAX_ROW` characters and a
file any size. Bad rows are yielded as `BadRow` values. An array with a syntax error in the middle cannot be read on and raises.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tinyllm.data.sources.errors import BadRow, preview, reading
from tinyllm.data.sources.files import MAX_ROW, Source, lines, not_text, not_utf8
from tinyllm.data.sources.streams import HEAD
from tinyllm.errors import UserError

LocatedRow = tuple[str, "dict[str, Any] | str | BadRow"]  # (file and line, row)


class _Refused(ValueError):  # noqa: N818
    """JSON that Python's parser accepts and this module does not."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        last = {key: i for i, (key, _) in enumerate(pairs)}
        twice = next(key for i, (key, _) in enumerate(pairs) if last[key] != i)
        raise _Refused(f"the key {preview(twice)} twice in one object")
    return value


def _constant(name: str) -> None:
    raise _Refused(f"{name} is not a JSON number")


class SpelledFloat(float):
    """A number whose `repr` differs from its spelling in the data, as 1.10, 1e5 or one with more digits than a float has."""

    spelling: str


def _number(text: str) -> float:
    value = float(text)
    if repr(value) != text:
        value = SpelledFloat(value)
        value.spelling = text
    return value


def to_json(value: Any) -> str:
    """Return a parsed value as JSON on one line, as `json.dumps` does, with numbers spelled as in the data.

    Raises: TypeError, ValueError for a value that JSON does not have.
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_json(str(key))}: {to_json(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_json, value)) + "]"
    return value.spelling if isinstance(value, SpelledFloat) else json.dumps(value, ensure_ascii=False, allow_nan=False)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_constant=_constant)


@contextmanager
def _json_errors() -> Iterator[None]:
    try:
        yield
    except json.JSONDecodeError as e:
        raise BadRow("not JSON", f"not JSON ({e.msg} at column {e.colno})") from e
    except _Refused as e:
        raise BadRow("not JSON", f"not JSON ({e})") from e
    except UnicodeEncodeError as e:
        raise BadRow("not text", "half of a surrogate pair (\\ud800 to \\udfff), which is not a character") from e
    except RecursionError as e:
        raise BadRow("not JSON", "not JSON (nested too deeply)") from e
    except ValueError as e:  # int() refuses more than 4,300 digits
        raise BadRow("not JSON", "not JSON (a number with thousands of digits)") from e


def parse(text: str) -> Any:
    """Parse one JSON value. Raises: BadRow for bad JSON, NaN, repeated keys, lone surrogates, extreme nesting or numbers."""
    with _json_errors():
        value = _DECODER.decode(text)
        _check_surrogates(text, value)
    return value


def _check_surrogates(text: str, value: Any) -> None:
    if "\\ud" in text or "\\uD" in text:  # only an escape can produce one: the bytes were valid UTF-8
        json.dumps(value, ensure_ascii=False).encode()


def json_lines(source: Source) -> Iterator[LocatedRow]:
    """Yield the object of every line that is not empty."""
    for location, _, line in lines(source):
        if isinstance(line, BadRow):
            yield location, line
        elif line := line.lstrip("\ufeff").strip():  # concatenated files have a byte order mark inside
            try:
                yield location, _as_row(parse(line))
            except BadRow as bad:
                yield location, bad


def _as_row(value: Any) -> dict[str, Any] | BadRow:
    if isinstance(value, dict):
        return value
    name = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(value), "a number")
    return BadRow("not an object", f"expected an object with named columns, found {name}")


def json_values(source: Source) -> Iterator[LocatedRow]:
    """Yield the elements of one array, or concatenated objects. Of a single object with one list of rows, yield the rows."""
    window = _Window(source)
    if window.peek() == "[":
        for location, value in _elements(window):
            yield location, _as_row(value)
        return
    first = True
    while window.peek():
        location, value = window.value()
        wrapped = _wrapped(value, source) if first and not window.peek() else None
        if wrapped is None:
            yield location, _as_row(value)
        else:
            others = [preview(name) for name in value if name != wrapped]
            source.notes.append(f"the rows of {wrapped!r}" + (f", without {', '.join(others[:8])}" if others else ""))
            yield from ((f"{location}, {wrapped}[{index}]", row) for index, row in enumerate(value[wrapped]))
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


_RECORD_COLUMNS = {
    "messages",
    "conversations",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "instances",
    "history",
    "tools",
}


def _wrapped(value: Any, source: Source) -> str | None:
    """Return the key of the only list of objects in `{"canary": …, "examples": [{…}, …]}`; None if `value` is a record.

    Raises: UserError for several such lists.
    """
    if not isinstance(value, dict) or _RECORD_COLUMNS & set(value):
        return None
    tables = [k for k, v in value.items() if isinstance(v, list) and v and all(isinstance(row, dict) for row in v)]
    if len(tables) > 1:
        what = f"one object with several lists of rows: {', '.join(preview(name) for name in tables[:8])}"
        raise UserError(what, where=source.name, fix="save each list to its own file")
    return tables[0] if tables else None


_VISIBLE = re.compile(r"[^ \t\r\n]")


class _Window:
    """The part of a JSON text that is being parsed: grows until it holds one value, and drops what was read."""

    def __init__(self, source: Source):
        self.source = source
        self.text, self.position = "", 0
        self._line, self._counted, self._behind = 1, 0, 0  # the line at text[counted], characters dropped
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._bytes_read, self._at_end = source.start, False

    def _more(self) -> bool:
        """Read more text. Return False at the end of the file."""
        if self._at_end:
            return False
        size = max(HEAD, len(self.text) - self.position)  # doubling: a long value is parsed log(n) times
        with reading(self.source.name):
            data = self.source.stream.read(size)
        self._at_end = len(data) < size
        line = self._line_at(self.position)
        waiting = len(self._decoder.getstate()[0])
        self._behind += self.position
        self.text, self.position, self._counted = self.text[self.position :], 0, 0
        try:
            more = self._decoder.decode(data, final=self._at_end)
        except UnicodeDecodeError as e:
            line += self.text.count("\n") + e.object.count(b"\n", 0, e.start)
            bad = not_utf8(self.source, e.object[e.start], self._bytes_read - waiting + e.start, can_skip=False)
            raise UserError(bad.detail, where=f"{self.source.name}:{line}", fix=bad.fix) from e
        if b"\0" in data:
            line += self.text.count("\n") + data.count(b"\n", 0, data.index(b"\0"))
            bad = not_text(self.source, self._bytes_read + data.index(b"\0"), can_skip=False)
            raise UserError(bad.detail, where=f"{self.source.name}:{line}", fix=bad.fix)
        self.text += more
        self._bytes_read += len(data)
        return True

    def _line_at(self, position: int) -> int:
        self._line += self.text.count("\n", self._counted, position)
        self._counted = position
        return self._line

    def peek(self) -> str:
        """Return the next character that is not white space; empty at the end."""
        while True:
            found = _VISIBLE.search(self.text, self.position)
            self.position = found.start() if found else len(self.text)
            if found:
                return found[0]
            if not self._more():
                return ""

    def value(self) -> tuple[str, Any]:
        """Return (location, value) of the value that begins here. Raises: UserError."""
        while True:
            try:
                with _json_errors():
                    value, end = _DECODER.raw_decode(self.text, self.position)
                    if end == len(self.text) and self._more():  # a number may continue
                        continue
                    _check_surrogates(self.text[self.position : end], value)
            except BadRow as bad:
                if not self._was_cut_off(bad.__cause__):
                    raise self._with_location(bad) from bad
                continue
            location = f"{self.source.name}:{self._line_at(self.position)}"
            self.position = end
            return location, value

    def _was_cut_off(self, cause: BaseException | None) -> bool:
        """Return whether parsing failed only at the end of the window, and more text could be read."""
        cut = isinstance(cause, json.JSONDecodeError) and (
            cause.pos > len(self.text) - 16 or cause.msg.startswith("Unterminated string")
        )
        return cut and len(self.text) - self.position <= MAX_ROW and self._more()

    def _with_location(self, bad: BadRow) -> UserError:
        cause = bad.__cause__
        if isinstance(cause, json.JSONDecodeError):
            if len(self.text) - self.position > MAX_ROW:
                return self.error(f"no value ends within {MAX_ROW:,} characters")
            self.position = cause.pos
            return self.error(cause.msg)
        return UserError(bad.detail, where=f"{self.source.name}:{self._line_at(self.position)}", fix=_FIX)

    def error(self, what: str) -> UserError:
        location = f"{self.source.name}:{self._line_at(self.position)}"
        at = f"at character {self._behind + self.position + 1:,}"
        return UserError(f"not JSON ({what} {at})", where=location, fix=_FIX)


_FIX = "fix the file at this location"
