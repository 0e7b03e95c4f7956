"""YAML reader and writer with the scalars of version 1.2 and a line number on every value.

PyYAML implements version 1.1, where `no` is false, `0123` is 83, `12:30:45` is 45045, `3e-4` is a string, and the second of two equal
keys silently wins. Its parser is used up to the events; scalars, restrictions and error messages are implemented here. No tag is ever
evaluated, so a document cannot construct Python objects.

Left out: tags, `<<`, timestamps, several documents in one file, and documents large or deep enough to be an attack. Also `ruamel.yaml`:
its 1.2 loader reads 1_000 and 0123 as integers and 2024-01-01 as a date, reports only the first duplicate key, and builds the whole
document before its size is known (1 MB of list items: 14 s and 300 MB, here 1 s and 45 MB).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tinyllm.config.formatting import shorten
from tinyllm.config.problems import Problem

MAX_BYTES = 1 << 20  # of a file
MAX_VALUES = 50_000  # in a document after its aliases are expanded
MAX_DEPTH = 40  # of nested lists and mappings
MAX_DIGITS = 64  # of an integer

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOLEAN = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+"
_FLOAT = (
    r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


@dataclass(frozen=True)
class Node:
    """A value and its line, counted from 1. In a mapping the line is that of the key."""

    value: str | int | float | bool | list[Node] | dict[str, Node] | None
    line: int
    size: int = 1  # number of values in it, itself included
    depth: int = 0  # of the lists and mappings in it

    def child(self, part: str | int) -> Node | None:
        """Return an item of a list or an entry of a mapping, or None if it does not exist."""
        if isinstance(self.value, dict):
            return self.value.get(str(part))
        if isinstance(self.value, list) and isinstance(part, int) and part < len(self.value):
            return self.value[part]
        return None

    def plain(self) -> Any:
        """Return the value without line numbers."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


class _FatalError(Exception):
    """A problem after which the rest of a document cannot be read."""

    def __init__(self, problem: Problem):
        super().__init__(problem.what)
        self.problem = problem


def read_file(path: Path, source: str) -> tuple[Node | None, list[Problem]]:
    """Read a file like `parse`. `source` is its name in messages."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None, [Problem("file does not exist", "correct the path", source)]
    except IsADirectoryError:
        return None, [Problem("expected a YAML file, found a directory", "pass the path of a file", source)]
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        return None, [Problem(f"file cannot be read: {error}", "pass the path of a readable file", source)]
    if len(raw) > MAX_BYTES:
        return None, [Problem(f"file is larger than {MAX_BYTES:,} bytes", "pass a configuration file", source)]
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return None, [Problem(f"byte {error.start} is not valid UTF-8", "save the file as UTF-8", source, line)]
    return parse(text, source)


def parse(text: str, source: str) -> tuple[Node | None, list[Problem]]:
    """Parse a document.

    Returns:
        The document (a null if it is empty, None if it cannot be read), and all problems in it.
    """
    parser = _Parser(source)
    try:
        node = parser.document(_events(text, source))
    except _FatalError as error:
        return None, [*parser.problems, error.problem]
    except yaml.MarkedYAMLError as error:
        return None, [*parser.problems, _syntax_problem(error, text, source)]
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"character U+{ord(text[error.position]):04X} is not allowed in YAML"
        return None, [*parser.problems, Problem(what, "remove the character", source, line)]
    return node, parser.problems


def parse_scalar(text: str) -> str | int | float | bool | None:
    """Return the value of a plain (unquoted) scalar."""
    if text in _NULL:
        return None
    if text in _BOOLEAN:
        return _BOOLEAN[text]
    if re.fullmatch(_INTEGER, text):
        return int(text, 0)
    if re.fullmatch(_FLOAT, text):
        return float(re.sub(r"\.(?=[in])", "", text.lower()))  # Python has no dot in inf and nan
    return text


def write(values: Mapping[str, Any]) -> str:
    """Return a block-style document that both this module and a YAML 1.1 reader read back as `values`."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Quotes strings that either version would read as another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """Escape the other line breaks of YAML 1.1 (U+0085, U+2028, U+2029), which PyYAML would fold into spaces."""
    is_plain = all(c.isprintable() or c == "\n" for c in text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


_Dumper.add_representer(str, _represent_str)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(f"^(?:{_INTEGER})$"), list("-+0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{_FLOAT})$"), list("-+.0123456789"))


def _events(text: str, source: str) -> Iterator[yaml.Event]:
    line = 1
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = event.end_mark.line + 1
            yield event
    except (ValueError, OverflowError) as error:  # chr() of "\UFFFFFFFF"
        what = "escape sequence is not a Unicode character"
        raise _FatalError(Problem(what, "correct the escape sequence", source, line)) from error


class _Parser:
    """Builds nodes from PyYAML's events. Events are read one at a time, so a hostile document is refused early."""

    def __init__(self, source: str):
        self.source = source
        self.problems: list[Problem] = []
        self.anchors: dict[str, Node] = {}
        self.num_values = 0

    def document(self, events: Iterator[yaml.Event]) -> Node:
        self.events = events
        node: Node | None = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if node is not None:
                    raise self._fatal(event, "second document in one file", "remove the `---` line")
                node = self._node(next(events), 0)
        return node or Node(None, 1)

    def _node(self, event: yaml.Event, depth: int) -> Node:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        if event.tag not in (None, "!"):
            self._report(event, f"tag {shorten(event.tag)} is not allowed", "remove the tag")
        self._check_depth(event, depth)
        self._count(event, 1)
        if isinstance(event, yaml.ScalarEvent):
            node = Node(self._scalar(event), line)
        elif isinstance(event, yaml.SequenceStartEvent):
            children: list[Node] = []
            while not isinstance(item := next(self.events), yaml.SequenceEndEvent):
                children.append(self._node(item, depth + 1))
            node = _parent(children, children, line)
        else:
            mapping = self._mapping(depth)
            node = _parent(mapping, list(mapping.values()), line)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _mapping(self, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(key := next(self.events), yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent):
                raise self._fatal(key, "mapping key is not a scalar", "write the key as one word before a colon")
            line = key.start_mark.line + 1
            if has_surrogate(key.value):
                self._report(key, "key is not valid Unicode", "remove the escape sequence")
            child = self._node(next(self.events), depth + 1)
            if key.value in entries:
                first, name = entries[key.value].line, shorten(key.value)
                lines = f"on lines {first} and {line}" if first != line else f"twice on line {line}"
                self._report(key, f"duplicate key {name}, {lines}", f"remove one of the two {name} entries")
            else:
                entries[key.value] = replace(child, line=line)
        return entries

    def _scalar(self, event: yaml.ScalarEvent) -> str | int | float | bool | None:
        text = event.value
        if has_surrogate(text):
            self._report(event, "string is not valid Unicode", "remove the escape sequence")
        elif event.style is not None:
            return text
        elif len(text) > MAX_DIGITS and re.fullmatch(_INTEGER, text):
            self._report(event, f"integer has {len(text)} digits", f"use at most {MAX_DIGITS} digits")
        else:
            return parse_scalar(text)
        return None

    def _alias(self, event: yaml.AliasEvent, depth: int) -> Node:
        if event.anchor not in self.anchors:
            name = shorten(event.anchor)
            raise self._fatal(event, f"alias *{name} is used before or inside its anchor &{name}", "repeat the value")
        node = self.anchors[event.anchor]
        self._check_depth(event, depth + node.depth)
        self._count(event, node.size)
        return node

    def _check_depth(self, event: yaml.Event, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise self._fatal(event, f"lists and mappings are nested more than {MAX_DEPTH} deep", "nest less deeply")

    def _count(self, event: yaml.Event, values: int) -> None:
        self.num_values += values
        if self.num_values > MAX_VALUES:
            raise self._fatal(event, f"more than {MAX_VALUES:,} values (aliases expanded)", "use fewer aliases")

    def _report(self, event: yaml.Event, what: str, fix: str) -> None:
        self.problems.append(Problem(what, fix, self.source, event.start_mark.line + 1))

    def _fatal(self, event: yaml.Event, what: str, fix: str) -> _FatalError:
        return _FatalError(Problem(what, fix, self.source, event.start_mark.line + 1))


def _parent(value: list[Node] | dict[str, Node], children: list[Node], line: int) -> Node:
    size = 1 + sum(child.size for child in children)
    return Node(value, line, size, 1 + max((child.depth for child in children), default=0))


def has_surrogate(text: str) -> bool:
    """Return whether text contains a lone surrogate, which is also how Python represents bytes that are not UTF-8."""
    return any("\ud800" <= character <= "\udfff" for character in text)


_SYNTAX = {  # part of PyYAML's message: (what, fix)
    r"'\t'": ("tab where YAML requires spaces", "replace the tab with spaces"),
    "expected <block end>": ("indentation does not match the lines above", "align the key with its neighbors"),
    "could not find expected ':'": ("missing colon after a key", "write `key: value`"),
    "cannot start any token": ("value starts with a character reserved by YAML", "put quotes around the value"),
    "found unexpected end of stream": ("unclosed quote", "close the quote"),
    "expected ',' or": ("unclosed bracket or missing comma", "close the bracket"),
}


def _syntax_problem(error: yaml.MarkedYAMLError, text: str, source: str) -> Problem:
    """Translate PyYAML's message and locate it where the unfinished construct starts."""
    message = error.problem or error.context or "cannot be read"
    unfinished = error.context_mark if "expected" in message and "block" not in message else None
    mark = unfinished or error.problem_mark or error.context_mark
    what, fix = shorten(message, 200), "correct this line"
    if "mapping values are not allowed" in message:
        if re.search(r":\s", text.splitlines()[mark.line][: mark.column]):
            what, fix = "second ': ' on one line", "put quotes around the value"
        else:
            what, fix = "line continues the value above it", "align its key with the others"
    else:
        what, fix = next((found for part, found in _SYNTAX.items() if part in message), (what, fix))
    return Problem(f"invalid YAML: {what}", fix, source, mark.line + 1 if mark else 0)
