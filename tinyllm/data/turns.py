"""The normal forms of a record, and the turns of a conversation: read, merged, and cut to what can train.

What a row lacks is a `BadRow`; a row that is sound but cannot train (an empty answer, `chosen` equal to `rejected`) is
`Dropped`; what was mended or left out on the way is told to `note`.

Left out: images and sound, turns that are shown but not learned from. Tool calls become the assistant's text, as JSON.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tinyllm.data.files import BadRow, shown
from tinyllm.data.json_rows import parse
from tinyllm.text.chat import OTHER_NAMES, ROLES, Message

ROLE_NAMES = {role: role for role in ROLES} | OTHER_NAMES
ROLE_NAMES |= {"developer": "system", "chatgpt": "assistant", "ai": "assistant", "ipython": "tool"}
ROLE_NAMES |= {"function_call": "assistant", "tool_call": "assistant"}
ROLE_NAMES |= {"function": "tool", "function_response": "tool", "tool_response": "tool"}

Messages = tuple[Message, ...]
Data = dict[str, Any]
Note = Callable[[str], None]


class Dropped(Exception):  # noqa: N818 (no error: counted)
    """A sound row that cannot train; `reason` is shared by all rows dropped for it."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Document:
    text: str


@dataclass(frozen=True)
class Conversation:
    """Starts with a user (after any system) and ends with an assistant; only tools have two turns in a row."""

    messages: Messages


@dataclass(frozen=True)
class Pair:
    """Two answers, each one assistant message, to a prompt that does not end with one."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    margin: float | None = None


@dataclass(frozen=True)
class Judgement:
    """One answer, an assistant message, to a prompt that does not end with one; and whether it is a good one."""

    prompt: Messages
    completion: Messages
    good: bool


@dataclass(frozen=True)
class Prompt:
    """What the policy answers, and every other column of the row for the reward."""

    messages: Messages
    columns: Data = field(default_factory=dict)


Record = Document | Conversation | Pair | Judgement | Prompt


# --- values of a row -------------------------------------------------------------------------------------------------------------


def listed(columns: Mapping[str, Any]) -> str:
    """Column names for an error message."""
    names = [name if name.isprintable() and len(name) < 40 else shown(name) for name in columns]
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "") or "nothing"


def text_of(row: Mapping[str, Any], column: str, path: str = "") -> str:
    value = row[column]
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{path}{column}: a text was expected, found {shown(value)}")
    return value


def optional_text(row: Mapping[str, Any], column: str) -> str:
    return "" if row.get(column) is None else text_of(row, column)


def number_of(row: Mapping[str, Any], column: str) -> float | None:
    value = row.get(column)
    if value is None:
        return None
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        pass
    raise BadRow("wrong type", f"{column}: a finite number was expected, found {shown(value)}")


MEDIA = ("image", "images", "audio", "audios", "video", "videos")


def refuse_media(row: Mapping[str, Any]) -> None:
    """Raises: BadRow where a conversation is about something that cannot be seen here."""
    for column in MEDIA:
        if row.get(column):
            raise BadRow("not text alone", f"{column}: {shown(row[column])}; only text can be learned from")


# --- turns -----------------------------------------------------------------------------------------------------------------------

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


def with_system(row: Data, messages: list[Message], note: Note) -> list[Message]:
    """The columns `system` and `tools` become the system turn: nobody learns to call tools that were never shown."""
    parts = [optional_text(row, "system")]
    if tools := row.get("tools"):
        if not isinstance(tools, str | list | dict):
            raise BadRow("wrong type", f"tools: a list of tools or a text was expected, found {shown(tools)}")
        parts.append("Tools:\n" + (tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)))
        note("the column tools put into the system turn")
    if messages and messages[0]["role"] == "system":
        parts, messages = [messages[0]["content"], *parts], messages[1:]
    content = "\n\n".join(part for part in parts if part.strip())
    return [Message(role="system", content=content), *messages] if content else messages


def _merged(messages: list[Message], note: Note) -> list[Message]:
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"] != "tool":
            merged[-1] = Message(role=message["role"], content=f"{merged[-1]['content']}\n\n{message['content']}")
            note("turns of one role in a row joined by a blank line")
        else:
            merged.append(message)
    return merged


def opened(messages: list[Message], note: Note) -> list[Message]:
    """From the first user turn on; system turns stay, unless they are empty."""
    first = next((i for i, m in enumerate(messages) if m["role"] == "user"), None)
    if first is None:
        raise Dropped("no user turn")
    if any(m["role"] != "system" for m in messages[:first]):
        note("assistant turns before the first user turn left out")
    kept = [m for m in messages[:first] if m["role"] == "system"] + messages[first:]
    return [m for m in kept if m["role"] != "system" or m["content"].strip()]


# --- records ---------------------------------------------------------------------------------------------------------------------


def as_conversation(messages: list[Message], note: Note) -> Conversation:
    if not any(m["role"] == "assistant" for m in messages):
        raise Dropped("no assistant turn")
    if not any(m["role"] == "assistant" and m["content"].strip() for m in messages):
        raise Dropped("empty answer")
    messages = opened(messages, note)
    empty = next((i for i, m in enumerate(messages) if _is_empty(m)), len(messages))
    kept = _merged(messages[:empty], note)
    last = max((i for i, m in enumerate(kept) if m["role"] == "assistant"), default=None)
    if last is None:
        raise Dropped("no answer after the first user turn")
    if empty < len(messages):
        note("turns from an empty one on left out")
    elif last + 1 < len(kept):
        note("turns after the last answer left out")
    return Conversation(tuple(kept[: last + 1]))


def _is_empty(message: Message) -> bool:
    return message["role"] != "tool" and not message["content"].strip()


def as_prompt(messages: list[Message], note: Note) -> Messages:
    messages = _merged(opened(messages, note), note)
    if any(_is_empty(m) for m in messages):
        raise Dropped("empty prompt")
    if messages[-1]["role"] not in ("user", "tool"):
        raise Dropped("the prompt does not end with a user turn")
    return tuple(messages)


def as_answer(messages: list[Message], note: Note) -> Messages:
    messages = _merged(messages, note)
    if not messages or not any(m["content"].strip() for m in messages):
        raise Dropped("empty answer")
    if messages[0]["role"] != "assistant":
        raise Dropped("the answer does not start with an assistant turn")
    if len(messages) > 1:
        note("turns after the first answer left out")
    if _is_empty(messages[0]):
        raise Dropped("empty answer")
    return (messages[0],)


def as_pair(
    row: Data, prompt: list[Message], chosen: list[Message], rejected: list[Message], note: Note
) -> list[Record]:
    asked = as_prompt(with_system(row, prompt, note), note)
    good, bad = as_answer(chosen, note), as_answer(rejected, note)
    if good[0]["content"].strip() == bad[0]["content"].strip():
        raise Dropped("chosen equals rejected")
    return [Pair(asked, good, bad, number_of(row, "margin"))]


def as_judgement(row: Data, messages: list[Message], note: Note) -> list[Record]:
    """A conversation whose last answer is judged."""
    good = row["label"]
    if not isinstance(good, bool):
        raise BadRow("wrong type", f"label: true or false was expected, found {shown(good)}")
    if not messages or messages[-1]["role"] != "assistant":
        raise Dropped("the conversation does not end with an answer")
    return [Judgement(as_prompt(messages[:-1], note), as_answer(messages[-1:], note), good)]
