"""Tools and tool calls as text: one line of JSON for each call, with numbers spelled as in the data.

`text.template` renders the same text in Jinja for other programs.
"""

from __future__ import annotations

from typing import Any

from tinyllm.data.records.types import Note, Row
from tinyllm.data.sources.errors import BadRow, preview
from tinyllm.data.sources.json_rows import parse, to_json

CALLS = ("tool_calls", "function_call")
_STRUCTURE = ("id", "type", "index")  # of a call without the object `function`
_MAY_BE_NULL = ("default", "const", "enum", "example", "examples")  # values of a JSON schema, not parts of it


def call_texts(turn: Row, path: str, note: Note) -> list[str]:
    """Return the tool calls of a message, one line of JSON each: `{"name": …, "arguments": {…}}`.

    Raises: BadRow.
    """
    return [_call_text(call, location, note) for location, call in located_calls(turn, path)]


def located_calls(turn: Row, path: str) -> list[tuple[str, Any]]:
    """Return (JSON path, call) of every call of a message. Raises: BadRow where `tool_calls` is not a list."""
    calls = turn.get("tool_calls") or []
    if not isinstance(calls, list):
        raise BadRow("wrong type", f"{path}.tool_calls: expected a list of calls, found {preview(calls)}")
    located = [(f"{path}.tool_calls[{i}]", call) for i, call in enumerate(calls)]
    if turn.get("function_call"):
        located.append((f"{path}.function_call", turn["function_call"]))
    return located


def listed_calls(turn: Row) -> list[dict[str, Any]]:
    """Return the calls of a message as objects in the list `tool_calls`, without entries that are null; see `call_texts` for their text."""
    found = []
    for _, call in located_calls(turn, ""):
        function = {key: value for key, value in function_of(call).items() if value is not None}
        if function_of(call) is call:  # without the object `function`
            outer = {key: function.pop(key) for key in _STRUCTURE if key in function}
        else:
            outer = {key: value for key, value in call.items() if value is not None and key != "function"}
        found.append({"type": "function", **outer, "function": function})
    return found


def results_are_out_of_order(turns: list[Row]) -> bool:
    """Return whether results name, by `tool_call_id`, the calls before them in another order."""
    calls: list[Any] = []
    for turn in turns:
        if listed := turn.get("tool_calls"):
            calls = [call.get("id") if isinstance(call, dict) else None for call in listed]
        elif (named := turn.get("tool_call_id")) is not None and named in calls:
            if calls.index(named) != 0:
                return True
            calls = calls[1:]
    return False


def function_of(call: Any) -> Any:
    """Return the object with name and arguments: the call itself, or its `function`."""
    return call["function"] if isinstance(call, dict) and isinstance(call.get("function"), dict) else call


def _call_text(call: Any, path: str, note: Note) -> str:
    fields = function_of(call)
    if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
        raise BadRow("wrong type", f"{path}: expected an object with name and arguments, found {preview(fields)}")
    left_out = () if fields is not call else _STRUCTURE
    kept = {key: value for key, value in fields.items() if value is not None and key not in ("name", *left_out)}
    texts = [f'"name": {json_text(fields["name"], path)}']
    for key, value in kept.items():
        location = f"{path}.{key}"
        text = _arguments(value, location, note) if key == "arguments" else json_text(value, location)
        texts.append(f"{json_text(key, path)}: {text}")
    return "{" + ", ".join(texts) + "}"


def _arguments(value: Any, path: str, note: Note) -> str:
    """Return arguments as JSON. OpenAI writes JSON as a text, which goes through as it is, on one line."""
    if not isinstance(value, str):
        return json_text(value, path)
    text = value.strip()
    if text[:1] not in ("{", "["):
        note("tool-call arguments that are not JSON kept as a quoted text")
        return json_text(value, path)
    try:
        parse(text)
    except BadRow as bad:
        raise BadRow("not JSON", f"{path}: {bad.detail}", "write the arguments as JSON, or as an object") from bad
    return text.replace("\r", " ").replace("\n", " ")


def json_text(value: Any, path: str) -> str:
    """Return a value as JSON. Raises: BadRow for one that JSON does not have, as a date from a parquet file."""
    try:
        return to_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        what = f"{path}: {preview(value)} cannot be written as JSON"
        raise BadRow("wrong type", what, "store it as a text or as a number") from error


# --- tools -----------------------------------------------------------------------------------------------------------------------


def tools_text(row: Row, note: Note) -> str:
    """Return the column `tools` as text; empty where it names no tool. Raises: BadRow."""
    tools = row.get("tools")
    if tools is None or (isinstance(tools, str) and not _names_tools(tools)):
        return ""
    if isinstance(tools, str):
        return tools
    if not isinstance(tools, list | dict):
        raise BadRow("wrong type", f"tools: expected a list of tools or a text, found {preview(tools)}")
    written = without_nulls(tools)
    if written != tools:
        note("nulls left out of tools")
    return json_text(written, "tools") if written else ""


def listed_tools(row: Row) -> list[dict[str, Any]] | None:
    """Return the column `tools` as a list of definitions; None where it is empty, or a text that is not JSON."""
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = parse(tools) if tools.strip() else None
        except BadRow:
            return None
    tools = without_nulls([tools] if isinstance(tools, dict) else tools)
    return tools if isinstance(tools, list) and tools and all(isinstance(tool, dict) for tool in tools) else None


def _names_tools(text: str) -> bool:
    """Return whether a text is more than white space or an empty JSON value, as `[]`."""
    if len(text.strip()) > len("[null]") + 8:
        return True
    try:
        return bool(without_nulls(parse(text))) if text.strip() else False
    except BadRow:
        return True


def without_nulls(tools: Any) -> Any:
    """Return a definition without null entries, which have no meaning in it. Arrow adds them, where tools differ."""
    if isinstance(tools, list):
        return [without_nulls(item) for item in tools if item is not None]
    if not isinstance(tools, dict):
        return tools
    return {
        key: value if key in _MAY_BE_NULL else without_nulls(value)
        for key, value in tools.items()
        if value is not None or key in _MAY_BE_NULL
    }
