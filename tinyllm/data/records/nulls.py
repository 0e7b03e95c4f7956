"""Nulls that Arrow adds to the arguments of tool calls, left out again.

A column of Arrow (parquet, `datasets`) gives every call the arguments of all tools, null where a call has no such argument. Trained on,
the model would learn to write them. An argument that is null is left out where its absence can be shown:

- by the schema of the tool: it has no such parameter, or one that is neither required nor may be null;
- without a schema, by the other rows of the file: calls of other tools have the argument and calls of this one never do, or all calls of
  several tools have the same arguments.

All other nulls are kept, since they may have been written. Both are counted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tinyllm.data.records.calls import CALLS, function_of, located_calls
from tinyllm.data.records.types import Note, Row
from tinyllm.data.sources.errors import BadRow
from tinyllm.data.sources.files import Source
from tinyllm.data.sources.json_rows import parse

LEFT_OUT = "null arguments of tool calls left out: not written, but added where tools have different arguments"
KEPT = "null arguments of tool calls kept: neither a schema in tools nor other rows show that they were added"
MAX_ROWS_SURVEYED = 10_000  # of a file
_COMBINED = ("anyOf", "oneOf", "allOf")
_TYPED = ("type", "enum", "const", *_COMBINED, "nullable")


@dataclass
class CallSurvey:
    """The arguments that the calls of a file have, by tool."""

    written: dict[str, set[str]] = field(default_factory=dict)
    """arguments that are not null in some call"""
    shapes: set[frozenset[str]] = field(default_factory=set)
    """the sets of arguments, null or not, that calls have; at most two are kept"""
    _all: set[str] = field(default_factory=set)
    """arguments that are not null in some call of any tool"""

    def add(self, row: Any) -> None:
        for call in _calls(row) if isinstance(row, dict) else ():
            arguments = call["arguments"]
            written = {k for k, v in arguments.items() if v is not None}
            self.written.setdefault(call["name"], set()).update(written)
            self._all |= written
            if len(self.shapes) < 2:
                self.shapes.add(frozenset(arguments))

    def without_added_nulls(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call without the nulls that were added."""
        if len(self.written) > 1 and len(self.shapes) == 1:  # several tools, and all calls have the same arguments
            return _without_nulls(arguments)
        return {k: v for k, v in arguments.items() if v is not None or not self._is_of_others(k, tool)}

    def _is_of_others(self, argument: str, tool: str) -> bool:
        return argument in self._all and argument not in self.written.get(tool, ())


def survey_calls(source: Source, encoding: str, read: Callable[[Source], Iterator[Any]]) -> CallSurvey:
    """Return the arguments of the tool calls in the first rows of a file, which is opened again; nothing of a pipe.

    Args:
        read: source -> rows.
    """
    survey = CallSurvey()
    if not source.is_pipe:
        again = Source(source.path, encoding)
        try:
            for row in islice(read(again), MAX_ROWS_SURVEYED):
                survey.add(row)
        finally:
            again.close()
    return survey


def without_added_nulls(row: Row, survey: Callable[[], CallSurvey], note: Note) -> Row:
    """Return a row without the null arguments that were added.

    Args:
        survey: called if a null is found that no schema explains.
    """
    if not any(_has_null(call["arguments"]) for call in _calls(row)):
        return row
    row, schemas = copy.deepcopy(row), _schemas(row.get("tools"))
    for call in _calls(row):
        arguments, schema = call["arguments"], schemas.get(call["name"])
        if not _has_null(arguments):
            continue
        if schema is not None:
            call["arguments"] = _by_schema(arguments, schema)
        else:
            call["arguments"] = survey().without_added_nulls(call["name"], arguments)
            if _has_null(call["arguments"]):
                note(KEPT)
        if call["arguments"] != arguments:
            note(LEFT_OUT)
    return row


def _calls(row: Row) -> Iterator[dict[str, Any]]:
    """Yield the objects with a name and an object of arguments, in all messages of all columns."""
    for column in row.values():
        for turn in column if isinstance(column, list) else (column,):
            if not isinstance(turn, dict) or not any(turn.get(key) for key in CALLS):
                continue
            with suppress(BadRow):  # which the format reports
                found = [function_of(call) for _, call in located_calls(turn, "")]
                yield from (c for c in found if isinstance(c, dict) and _is_call(c))


def _is_call(call: Mapping[str, Any]) -> bool:
    return isinstance(call.get("name"), str) and isinstance(call.get("arguments"), dict)


def _has_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(inner is None or _has_null(inner) for inner in value.values())
    return isinstance(value, list) and any(map(_has_null, value))


def _without_nulls(value: Any) -> Any:
    """Return a value without the nulls in its objects."""
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}


# --- schemas ---------------------------------------------------------------------------------------------------------------------


def _schemas(tools: Any) -> dict[str, dict[str, Any]]:
    """Return name -> JSON schema of the arguments, of the tools of a row that have one."""
    if isinstance(tools, str):
        try:
            tools = parse(tools)
        except BadRow:
            return {}
    found: dict[str, dict[str, Any]] = {}
    for tool in tools if isinstance(tools, list) else [tools]:
        tool = function_of(tool)
        for key in ("parameters", "input_schema", "inputSchema") if isinstance(tool, dict) else ():
            schema = tool.get(key)
            if isinstance(tool.get("name"), str) and isinstance(schema, dict) and _properties(schema) is not None:
                found[tool["name"]] = schema
    return found


def _properties(schema: Any) -> dict[str, Any] | None:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return properties if isinstance(properties, dict) else None


def _by_schema(value: Any, schema: Any) -> Any:
    """Return arguments without the nulls that their schema does not account for."""
    if isinstance(value, list):
        items = schema.get("items") if isinstance(schema, dict) else None
        return [_by_schema(item, items) for item in value]
    properties = _properties(schema)
    if not isinstance(value, dict) or properties is None:
        return value
    required = schema.get("required") or ()
    return {
        key: _by_schema(inner, properties.get(key))
        for key, inner in value.items()
        if inner is not None or (properties.get(key) is not None and (key in required or _may_be_null(properties[key])))
    }


def _may_be_null(schema: Any) -> bool:
    """Return whether a JSON schema accepts null. One without a type accepts everything."""
    if not isinstance(schema, dict) or not any(schema.get(key) is not None for key in _TYPED):
        return True
    types = schema.get("type")
    if types == "null" or (isinstance(types, list) and "null" in types) or schema.get("nullable") is True:
        return True
    if None in (schema.get("enum") or ()):
        return True
    return any(_may_be_null(one) for key in _COMBINED for one in schema.get(key) or ())
