"""One turn of a conversation, as the formats in use write it: role and content, or from and value; parts, calls of tools, reasoning.

Calls of tools become the assistant's text, a line of JSON each; reasoning stands in front of the answer in <think>. Left out: images
and sound, and turns that are shown but not learned from; both are refused, not read as something else.
"""

from __future__ import annotations

import difflib
import json
from contextlib import suppress
from typing import Any

from tinyllm.data.files import BadRow, shown
from tinyllm.data.json_rows import parse
from tinyllm.data.turns import Data, Note, listed, text_of
from tinyllm.text.chat import OTHER_NAMES, ROLES, Message

ROLE_NAMES = {role: role for role in ROLES} | OTHER_NAMES
ROLE_NAMES |= {"developer": "system", "chatgpt": "assistant", "ai": "assistant", "ipython": "tool"}
ROLE_NAMES |= {"function_call": "assistant", "tool_call": "assistant"}
ROLE_NAMES |= {"function": "tool", "function_response": "tool", "tool_response": "tool"}
_CALLS = ("tool_calls", "function_call")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # as DeepSeek, OpenRouter and Ollama call them
_LEARNED = {
    "weight": 1,
    "train": True,
}  # OpenAI's and axolotl's switch for a turn that is not learned from: the value for "learn it"
_READ = {"role", "content", "from", "value", *_CALLS, *_THOUGHTS, *_LEARNED}


def turns_of(value: Any, path: str, note: Note) -> list[Message]:
    """Messages with `role` and `content`, or `from` and `value`, and any known name of a role."""
    if not isinstance(value, list):
        raise BadRow("wrong type", f"{path}: a list of messages was expected, found {shown(value)}")
    return [turn_of(turn, f"{path}[{i}]", note) for i, turn in enumerate(value)]


def turn_of(turn: Any, path: str, note: Note) -> Message:
    if not isinstance(turn, dict):
        raise BadRow("wrong type", f"{path}: an object with role and content was expected, found {shown(turn)}")
    role_key, text_key = ("from", "value") if "from" in turn or "value" in turn else ("role", "content")
    calls = any(turn.get(key) for key in _CALLS)
    for key in (role_key, text_key):
        if key not in turn and not (key == "content" and calls):
            raise BadRow("missing column", f"{path}: no {key!r}; found: {listed(turn)}")
    role = ROLE_NAMES.get(turn[role_key]) if isinstance(turn[role_key], str) else None
    if role is None:
        close = difflib.get_close_matches(str(turn[role_key])[:40].lower(), ROLE_NAMES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        what = f"{path}.{role_key}: {shown(turn[role_key])} is none of {', '.join(ROLES)}{hint}"
        raise BadRow("unknown role", what)
    _check_keys(turn, path, note)
    return Message(role=role, content=_content(turn, text_key, path, note))


def _check_keys(turn: Data, path: str, note: Note) -> None:
    """Raises: BadRow for a turn that others would not learn from; notes what is not read."""
    for key, learn in _LEARNED.items():
        if turn.get(key) is not None and turn[key] != learn:
            what = f"{path}.{key}: {shown(turn[key])}; a turn that is not learned from, or less, is not supported"
            raise BadRow("turn with a weight", what, f"cut the conversation there, or remove {key!r}")
    others = sorted(shown(key)[1:-1] for key, value in turn.items() if key not in _READ and value is not None)
    if others:
        note(f"keys of turns left out: {', '.join(others[:6])}")


def _content(turn: Data, key: str, path: str, note: Note) -> str:
    value = turn.get(key)
    if isinstance(value, list):
        value = "".join(_part(part, f"{path}.{key}[{i}]") for i, part in enumerate(value))
    calls = _calls(turn, path)
    if value is None and calls:
        value = ""
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{path}.{key}: a text was expected, found {shown(value)}")
    thoughts = [text_of(turn, key, f"{path}.") for key in _THOUGHTS if turn.get(key)]
    if thoughts:
        note("reasoning put in front of its answer, in <think>")
        value = "".join(f"<think>\n{thought.strip()}\n</think>\n\n" for thought in thoughts) + value
    return "\n".join([*([value] if value else []), *calls])


def _part(part: Any, path: str) -> str:
    """The text of one part of a content that is a list, as in OpenAI's messages."""
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, dict) else part
        raise BadRow("not text alone", f"{path}: a part with type 'text' was expected, found {shown(kind)}")
    if "text" not in part:
        raise BadRow("missing column", f"{path}: no 'text'; found: {listed(part)}")
    return text_of(part, "text", f"{path}.")


def _calls(turn: Data, path: str) -> list[str]:
    """Calls of tools as one line of JSON each, `{"name": …, "arguments": {…}}`."""
    calls = turn.get("tool_calls") or []
    if not isinstance(calls, list):
        raise BadRow("wrong type", f"{path}.tool_calls: a list of calls was expected, found {shown(calls)}")
    places = [(f"{path}.tool_calls[{i}]", call) for i, call in enumerate(calls)]
    if turn.get("function_call"):
        places.append((f"{path}.function_call", turn["function_call"]))
    return [_call(call, place) for place, call in places]


def _call(call: Any, path: str) -> str:
    call = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise BadRow("wrong type", f"{path}: an object with name and arguments was expected, found {shown(call)}")
    said = {key: value for key, value in call.items() if value is not None}
    if isinstance(
        said.get("arguments"), str
    ):  # OpenAI's are JSON inside a text; where it is none, it stays what the model wrote
        with suppress(BadRow):
            said["arguments"] = parse(said["arguments"])
    return json.dumps(said, ensure_ascii=False)


def side_of(row: Data, column: str, role: str, note: Note) -> list[Message]:
    """A column that is a text, one message or a list of messages."""
    value = row[column]
    if isinstance(value, str):
        return [Message(role=role, content=value)]
    return [turn_of(value, column, note)] if isinstance(value, dict) else turns_of(value, column, note)
