"""The normal forms of a record, and its turns (`messages` reads them) merged and cut to what can train.

What a row lacks is a `BadRow`; a row that is sound but cannot train (an empty answer, `chosen` equal to `rejected`) is
`Dropped`; what was mended or left out on the way is told to `note`.

Left out: images and sound.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tinyllm.data.files import BadRow, shown
from tinyllm.text.chat import Message

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


# --- turns ---------------------------------------------------------------------------------------------------------------------


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
