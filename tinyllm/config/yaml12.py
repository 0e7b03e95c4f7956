"""YAML with the scalars of version 1.2, and with a line number on every value.

PyYAML reads version 1.1, where `no` is false, `0123` is 83, `12:30:45` is 45045, `3e-4` is text, and the second of two
equal keys wins in silence. Its scanner is kept; what a scalar means, what may be written at all and what is wrong is
decided here. Left out: tags, `<<`, time stamps, several documents in one file, and anything large or deep enough to be
an attack rather than a configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tinyllm.config.hints import shown

MAX_BYTES = 1 << 20  # of a file
MAX_VALUES = 50_000  # in a document once its aliases are written out
MAX_DEPTH = 40  # of lists and mappings in each other
MAX_DIGITS = 64  # of an integer

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOLEAN = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+"
_FLOAT = (
    r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


@dataclass(frozen=True)
class Node:
    """A value and the line it stands on, counted from 1; in a mapping that is its key's line."""

    value: str | int | float | bool | list[Node] | dict[str, Node] | None
    line: int
    size: int = 1  # values in it, itself included
    height: int = 0  # lists and mappings below it

    def child(self, part: str | int) -> Node | None:
        """The item or entry of that name, if there is one."""
        if isinstance(self.value, dict):
            return self.value.get(str(part))
        if isinstance(self.value, list) and isinstance(part, int) and part < len(self.value):
            return self.value[part]
        return None

    def plain(self) -> Any:
        """The value without its lines."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


@dataclass(frozen=True)
class Problem:
    """Something the user should mend. `line` is 0 where lines mean nothing."""

    what: str
    fix: str
    source: str = ""
    line: int = 0

    @property
    def place(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


class _UnreadableError(Exception):
    """The problem after which nothing more of a document can be read."""

    def __init__(self, problem: Problem):
        super().__init__(problem.what)
        self.problem = problem


def read_file(path: Path, source: str) -> tuple[Node | None, list[Problem]]:
    """`parse` a file, called `source` in problems, of which being missing, too large or not text are some."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None, [Problem("there is no such file", "correct the path", source)]
    except IsADirectoryError:
        return None, [Problem("this is a directory, not a YAML file", "name the file in it", source)]
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        return None, [Problem(f"the file cannot be read: {error}", "name a readable file", source)]
    if len(raw) > MAX_BYTES:
        return None, [Problem(f"the file is larger than {MAX_BYTES:,} bytes", "name a configuration file", source)]
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return None, [Problem(f"byte {error.start} is not UTF-8", "save the file as UTF-8", source, line)]
    return parse(text, source)


def parse(text: str, source: str) -> tuple[Node | None, list[Problem]]:
    """The document (a null where it is empty, None where it is broken) and everything that is wrong with it as YAML."""
    reader = _Reader(source)
    try:
        node = reader.document(_events(text, source))
    except _UnreadableError as stop:
        return None, [*reader.problems, stop.problem]
    except yaml.MarkedYAMLError as error:
        return None, [*reader.problems, _syntax(error, text, source)]
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"character U+{ord(text[error.position]):04X} is not allowed in YAML"
        return None, [*reader.problems, Problem(what, "remove that character", source, line)]
    return node, reader.problems


def scalar(text: str) -> str | int | float | bool | None:
    """What a plain (unquoted) scalar means."""
    if text in _NULL:
        return None
    if text in _BOOLEAN:
        return _BOOLEAN[text]
    if re.fullmatch(_INTEGER, text):
        return int(text, 0)
    if re.fullmatch(_FLOAT, text):
        return float(re.sub(r"\.(?=[in])", "", text.lower()))  # Python writes inf and nan without the full stop
    return text


def write(values: Mapping[str, Any]) -> str:
    """A block-style document that this module, and a reader of YAML 1.1, both read back as `values`."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version would take for something other than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """PyYAML folds its version's other line ends (U+0085, U+2028, U+2029) into blanks unless they are escaped."""
    plain = all(c.isprintable() or c == "\n" for c in text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _write_text)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(f"^(?:{_INTEGER})$"), list("-+0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{_FLOAT})$"), list("-+.0123456789"))


def _events(text: str, source: str) -> Iterator[yaml.Event]:
    line = 1
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = event.end_mark.line + 1
            yield event
    except (ValueError, OverflowError) as error:  # chr() of "\UFFFFFFFF"
        what = "an escape sequence names no character"
        raise _UnreadableError(Problem(what, "correct the escape sequence", source, line)) from error


class _Reader:
    """Builds nodes from PyYAML's events, which come one at a time, so that a hostile document is left unread."""

    def __init__(self, source: str):
        self.source = source
        self.problems: list[Problem] = []
        self.anchors: dict[str, Node] = {}
        self.values = 0

    def document(self, events: Iterator[yaml.Event]) -> Node:
        self.events = events
        node: Node | None = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if node is not None:
                    raise self._unreadable(event, "a second document begins here", "remove the `---` line")
                node = self._node(next(events), 0)
        return node or Node(None, 1)

    def _node(self, event: yaml.Event, depth: int) -> Node:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        if event.tag not in (None, "!"):
            self._report(event, f"the tag {shown(event.tag)} is not allowed", "remove the tag")
        if depth > MAX_DEPTH:
            raise self._unreadable(
                event, f"lists and mappings are nested more than {MAX_DEPTH} deep", "nest less deeply"
            )
        self._count(event, 1)
        if isinstance(event, yaml.ScalarEvent):
            node = Node(self._scalar(event), line)
        elif isinstance(event, yaml.SequenceStartEvent):
            children: list[Node] = []
            while not isinstance(item := next(self.events), yaml.SequenceEndEvent):
                children.append(self._node(item, depth + 1))
            node = _around(children, children, line)
        else:
            mapping = self._mapping(depth)
            node = _around(mapping, list(mapping.values()), line)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _mapping(self, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(key := next(self.events), yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent):
                raise self._unreadable(key, "a key is not plain text", "write the key as one word before a colon")
            line = key.start_mark.line + 1
            if lone_surrogate(key.value):
                self._report(key, "a key is not valid Unicode", "remove the escape sequence")
            child = self._node(next(self.events), depth + 1)
            if key.value in entries:
                first = entries[key.value].line
                lines = f"in lines {first} and {line}" if first != line else f"twice in line {line}"
                self._report(
                    key, f"duplicate key {shown(key.value)}, {lines}", f"remove one of the two {shown(key.value)}"
                )
            else:
                entries[key.value] = replace(child, line=line)
        return entries

    def _scalar(self, event: yaml.ScalarEvent) -> str | int | float | bool | None:
        text = event.value
        if lone_surrogate(text):
            self._report(event, "the text is not valid Unicode", "remove the escape sequence")
        elif event.style is not None:
            return text
        elif len(text) > MAX_DIGITS and re.fullmatch(_INTEGER, text):
            self._report(event, f"the number has {len(text)} digits", f"write at most {MAX_DIGITS}")
        else:
            return scalar(text)
        return None

    def _alias(self, event: yaml.AliasEvent, depth: int) -> Node:
        if event.anchor not in self.anchors:
            name = shown(event.anchor)
            raise self._unreadable(event, f"*{name} stands before or inside its &{name}", "write the value out")
        node = self.anchors[event.anchor]
        if depth + node.height > MAX_DEPTH:
            raise self._unreadable(
                event, f"lists and mappings are nested more than {MAX_DEPTH} deep", "nest less deeply"
            )
        self._count(event, node.size)
        return node

    def _count(self, event: yaml.Event, values: int) -> None:
        self.values += values
        if self.values > MAX_VALUES:
            raise self._unreadable(event, f"more than {MAX_VALUES:,} values (aliases written out)", "use fewer aliases")

    def _report(self, event: yaml.Event, what: str, fix: str) -> None:
        self.problems.append(Problem(what, fix, self.source, event.start_mark.line + 1))

    def _unreadable(self, event: yaml.Event, what: str, fix: str) -> _UnreadableError:
        return _UnreadableError(Problem(what, fix, self.source, event.start_mark.line + 1))


def _around(value: list[Node] | dict[str, Node], children: list[Node], line: int) -> Node:
    size = 1 + sum(child.size for child in children)
    return Node(value, line, size, 1 + max((child.height for child in children), default=0))


def lone_surrogate(text: str) -> bool:
    """Whether text holds half a character, which is also how Python hands over bytes that are not UTF-8."""
    return any("\ud800" <= character <= "\udfff" for character in text)


_SYNTAX = {  # part of PyYAML's message: what it means, and what to do
    r"'\t'": ("a tab stands where YAML wants spaces", "replace the tab by spaces"),
    "expected <block end>": ("the indentation does not match the lines above", "line the key up with its neighbours"),
    "could not find expected ':'": ("a key without a colon", "write `key: value`"),
    "cannot start any token": ("the value begins with a character that YAML reserves", "put quotes around the value"),
    "found unexpected end of stream": ("a quote is never closed", "close the quote"),
    "expected ',' or": ("a bracket is never closed, or a comma is missing", "close the bracket"),
}


def _syntax(error: yaml.MarkedYAMLError, text: str, source: str) -> Problem:
    """PyYAML's complaint in the user's words, at the line where the construct it could not finish begins."""
    problem = error.problem or error.context or "cannot be read"
    unfinished = error.context_mark if "expected" in problem and "block" not in problem else None
    mark = unfinished or error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 0
    if "mapping values are not allowed" in problem:
        before = text.splitlines()[mark.line][: mark.column]
        if re.search(r":\s", before):
            return Problem("not valid YAML: a second ': ' in one line", "put quotes around the value", source, line)
        return Problem(
            "not valid YAML: this line belongs to the text above it", "line its key up with the others", source, line
        )
    for part, (what, fix) in _SYNTAX.items():
        if part in problem:
            return Problem(f"not valid YAML: {what}", fix, source, line)
    return Problem(f"not valid YAML: {shown(problem, 200)}", "correct this line", source, line)
