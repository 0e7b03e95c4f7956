"""Cells of tables, which are all text, as the values that formats expect: labels, margins, lists of messages as JSON."""

from __future__ import annotations

from typing import Any

from tinyllm.data.records.types import Row
from tinyllm.data.sources.errors import BadRow, preview
from tinyllm.data.sources.json_rows import parse

_LABELS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
_ALWAYS_JSON = ("messages", "conversations", "instances", "choices", "history")
_MAYBE_JSON = ("prompt", "completion", "chosen", "rejected", "tools")  # texts as well
_FIX = "write JSON in this column, or the whole file as JSON lines: in pandas, df.to_json(PATH, orient='records', lines=True)"


def typed(row: Row, kind: str = "") -> Row:
    """Return a row of a table with the types that the formats of `kind` expect.

    Raises: BadRow for a list of messages that is not JSON, such as one written by Python.
    """
    found = {name: _typed(name, value) if isinstance(value, str) else value for name, value in row.items()}
    if kind != "prompts" and isinstance(label := found.get("label"), str):  # of a prompt, a column for its rewards
        found["label"] = _LABELS.get(label.strip().lower(), label)
    answer = found.get("answer")
    if "choices" in found and isinstance(answer, str) and answer.strip().isdecimal():
        found["answer"] = int(answer)
    return found


def _typed(name: str, value: str) -> Any:
    start = value.lstrip()[:1]
    if name == "margin":
        return _number(value)
    if name in _ALWAYS_JSON:
        return _json(name, value) if value.strip() else None if name == "history" else value
    if name in _MAYBE_JSON and start in ("[", "{"):
        looks_listed = (
            '"role"' in value or "'role'" in value or '"from"' in value or "'from'" in value or name == "tools"
        )
        return _json(name, value) if looks_listed else value
    return value


def _number(value: str) -> float | str | None:
    try:
        return float(value) if value.strip() else None
    except ValueError:
        return value


def _json(name: str, value: str) -> Any:
    try:
        return parse(value)
    except BadRow as bad:
        raise BadRow("not JSON", f"{name}: expected a list as JSON, found {preview(value)}", _FIX) from bad
