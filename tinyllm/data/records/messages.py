"""Messages in the notations in use: role and content, or from and value; content parts, tool calls, reasoning.

Tool calls become the assistant's text, one line of JSON each. Reasoning precedes the answer in <think>. Left out: images and
sound, and turns excluded from training; both are refused.
"""

from __future__ import annotations

import difflib
import json
from contextlib import suppress
from typing import Any

from tinyllm.data.records.turns import Note, list_columns, text_of
from tinyllm.data.records.types import Row
from tinyllm.data.sources.errors import BadRow, preview
from tinyllm.data.sources.json_rows import parse
from tinyllm.text.chat import OTHER_NAMES, ROLES, Message

ROLE_NAMES = {role: role for role in ROLES} | OTHER_NAMES
ROLE_NAMES |= {"developer": "system", "chatgpt": "assistant", "ai": "assistant", "ipython": "tool"}
ROLE_NAMES |= {"function_call": "assistant", "tool_call": "assistant"}
ROLE_NAMES |= {"function": "tool", "function_response": "tool", "tool_response": "tool"}
_CALLS = ("tool_calls", "function_call")
_REASONING = ("reasoning_content", "reasoning", "thinking")  # DeepSeek, OpenRouter, Ollama
_TRAINED = {"weight": 1, "train": True}  # OpenAI's and axolotl's switch: the value of a turn that is trained on
_KNOWN_KEYS = {"role", "content", "from", "value", *_CALLS, *_REASONING, *_TRAINED}


def parse_messages(value: Any, path: str, note: Note) -> list[Message]:
    """Parse a list of messages with `role` and `content`, or `from` and `value`, under any known name of a role.

    Args:
        path: the column, for error messages.

    Raises: BadRow.
    """
    if not isinstance(value, list):
        raise BadRow("wrong type", f"{path}: expected a list of messages, found {preview(value)}")
    return [parse_message(turn, f"{path}[{i}]", note) for i, turn in enumerate(value)]


def parse_message(turn: Any, path: str, note: Note) -> Message:
    if not isinstance(turn, dict):
        raise BadRow("wrong type", f"{path}: expected an object with role and content, found {preview(turn)}")
    role_key, text_key = ("from", "value") if "from" in turn or "value" in turn else ("role", "content")
    calls = any(turn.get(key) for key in _CALLS)
    for key in (role_key, text_key):
        if key not in turn and not (key == "content" and calls):
            raise BadRow("missing column", f"{path}: no {key!r}; found: {list_columns(turn)}")
    role = ROLE_NAMES.get(turn[role_key]) if isinstance(turn[role_key], str) else None
    if role is None:
        close = difflib.get_close_matches(str(turn[role_key])[:40].lower(), ROLE_NAMES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        what = f"{path}.{role_key}: expected one of {', '.join(ROLES)}, found {preview(turn[role_key])}{hint}"
        raise BadRow("unknown role", what)
    _check_keys(turn, path, note)
    return Message(role=role, content=_content(turn, text_key, path, note))


def _check_keys(turn: Row, path: str, note: Note) -> None:
    """Raise BadRow for a turn excluded from training; note keys that are not read."""
    for key, trained in _TRAINED.items():
        if turn.get(key) is not None and turn[key] != trained:
            what = (
                f"{path}.{key}: {preview(turn[key])}; turns with a weight, or excluded from training, are not supported"
            )
            raise BadRow("turn with a weight", what, f"cut the conversation there, or remove {key!r}")
    others = sorted(preview(key)[1:-1] for key, value in turn.items() if key not in _KNOWN_KEYS and value is not None)
    if others:
        note(f"keys of messages left out: {', '.join(others[:6])}")


def _content(turn: Row, key: str, path: str, note: Note) -> str:
    value = turn.get(key)
    if isinstance(value, list):
        value = "".join(_part(part, f"{path}.{key}[{i}]") for i, part in enumerate(value))
    calls = _calls(turn, path)
    if value is None and calls:
        value = ""
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{path}.{key}: expected a text, found {preview(value)}")
    reasoning = [text_of(turn, key, f"{path}.") for key in _REASONING if turn.get(key)]
    if reasoning:
        note("reasoning placed before its answer, in <think>")
        value = "".join(f"<think>\n{text.strip()}\n</think>\n\n" for text in reasoning) + value
    return "\n".join([*([value] if value else []), *calls])


def _part(part: Any, path: str) -> str:
    """Return the text of one part of a content that is a list, as in OpenAI's messages."""
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, dict) else part
        raise BadRow("not text only", f"{path}: expected a part of type 'text', found {preview(kind)}")
    if "text" not in part:
        raise BadRow("missing column", f"{path}: no 'text'; found: {list_columns(part)}")
    return text_of(part, "text", f"{path}.")


def _calls(turn: Row, path: str) -> list[str]:
    """Return the tool calls, one line of JSON each: `{"name": …, "arguments": {…}}`."""
    calls = turn.get("tool_calls") or []
    if not isinstance(calls, list):
        raise BadRow("wrong type", f"{path}.tool_calls: expected a list of calls, found {preview(calls)}")
    located = [(f"{path}.tool_calls[{i}]", call) for i, call in enumerate(calls)]
    if turn.get("function_call"):
        located.append((f"{path}.function_call", turn["function_call"]))
    return [_call(call, location) for location, call in located]


def _call(call: Any, path: str) -> str:
    call = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise BadRow("wrong type", f"{path}: expected an object with name and arguments, found {preview(call)}")
    fields = {key: value for key, value in call.items() if value is not None}
    if isinstance(fields.get("arguments"), str):  # OpenAI writes JSON as a text; text that is not JSON stays as it is
        with suppress(BadRow):
            fields["arguments"] = parse(fields["arguments"])
    return json.dumps(fields, ensure_ascii=False)


def column_messages(row: Row, column: str, role: str, note: Note) -> list[Message]:
    """Return the messages of a column that is a text (of `role`), one message or a list of messages."""
    value = row[column]
    if isinstance(value, str):
        return [Message(role=role, content=value)]
    return [parse_message(value, column, note)] if isinstance(value, dict) else parse_messages(value, column, note)
