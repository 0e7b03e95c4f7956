"""Turns (parsed by `messages`) to records: consecutive turns joined, and everything that cannot be trained on removed.

A row that lacks something raises `BadRow`. A valid row that cannot be trained on (an empty answer, `chosen` equal to `rejected`)
raises `Dropped`. Every repair is passed to `note`.

Left out: images and sound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tinyllm.data.records.calls import listed_tools, tools_text
from tinyllm.data.records.types import Conversation, Messages, Note, Pair, Record, Row, UnpairedPreference
from tinyllm.data.sources.errors import BadRow, preview
from tinyllm.text.chat import Message, is_trained, trimmed


class Dropped(Exception):  # noqa: N818 (not an error: counted)
    """A valid row that cannot be trained on; `reason` is shared by all rows dropped for it."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


# --- values of a row -------------------------------------------------------------------------------------------------------------


def list_columns(columns: Mapping[str, Any]) -> str:
    """Return the column names for an error message."""
    names = [name if name.isprintable() and len(name) < 40 else preview(name) for name in columns]
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "") or "nothing"


def text_of(row: Mapping[str, Any], column: str, path: str = "") -> str:
    """Return a column that holds text; `path` precedes its name in the error. Raises: BadRow."""
    value = row[column]
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{path}{column}: expected a text, found {preview(value)}")
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
    except OverflowError:  # an integer of hundreds of digits
        pass
    raise BadRow("wrong type", f"{column}: expected a finite number, found {preview(value)}")


MEDIA = ("image", "images", "audio", "audios", "video", "videos")


def refuse_media(row: Mapping[str, Any]) -> None:
    """Raises: BadRow for a row with images, sound or video."""
    for column in MEDIA:
        if row.get(column):
            raise BadRow("not text only", f"{column}: {preview(row[column])}; only text is supported")


# --- turns ---------------------------------------------------------------------------------------------------------------------


def with_system(row: Row, messages: list[Message], note: Note) -> list[Message]:
    """Return the messages with the columns `system` and `tools` in the system turn."""
    parts = [optional_text(row, "system")]
    own, others = (messages[0], messages[1:]) if messages and messages[0]["role"] == "system" else (None, messages)
    if own is not None:
        parts.insert(0, own["content"])
    said = "\n\n".join(part for part in parts if part.strip())
    tools = tools_text(row, note)
    if tools:
        note("column tools added to the system turn")
    content = "\n\n".join(part for part in (said, tools and f"Tools:\n{tools}") if part)
    if not content:
        return others
    system = Message(role="system", content=content)
    if own is not None and "source" in own and said == own["content"]:
        system["source"] = own["source"]
    if tools and (listed := listed_tools(row)):
        system["tools"] = listed
        system.setdefault("source", ({"role": "system", "content": said},) if said else ())
    return [system, *others]


def _sources(message: Message) -> tuple[dict[str, Any], ...]:
    """Return a message as the data has it."""
    return message.get("source", ({"role": message["role"], "content": message["content"]},))


def _merge_consecutive(messages: list[Message], note: Note) -> list[Message]:
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"] != "tool":
            if is_trained(merged[-1]) != is_trained(message):
                what = "two assistant turns in a row, of which one is excluded from training, cannot be joined"
                raise BadRow("turn with a weight", what, "give both the same weight, or put a user turn between them")
            before = merged[-1]
            merged[-1] = before | message | {"content": f"{before['content']}\n\n{message['content']}"}
            if "source" in before or "source" in message:
                merged[-1]["source"] = (*_sources(before), *_sources(message))
            note("consecutive turns of one role joined by a blank line")
        else:
            merged.append(message)
    return merged


def drop_leading_answers(messages: list[Message], note: Note) -> list[Message]:
    """Return the messages from the first user turn on, after all system turns that are not empty."""
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
    if not any(map(is_trained, messages)):
        raise Dropped("every answer is excluded from training")
    messages = drop_leading_answers(messages, note)
    empty = next((i for i, m in enumerate(messages) if _is_empty(m)), len(messages))
    kept = _merge_consecutive(messages[:empty], note)
    last = max((i for i, m in enumerate(kept) if m["role"] == "assistant"), default=None)
    if last is None:
        raise Dropped("no answer after the first user turn")
    if empty < len(messages):
        note("turns from the first empty turn on left out")
    elif last + 1 < len(kept):
        note("turns after the last answer left out")
    return Conversation(tuple(kept[: last + 1]))


def _is_empty(message: Message) -> bool:
    return message["role"] != "tool" and not message["content"].strip()


def as_prompt(messages: list[Message], note: Note) -> Messages:
    messages = _merge_consecutive(drop_leading_answers(messages, note), note)
    if any(_is_empty(m) for m in messages):
        raise Dropped("empty prompt")
    if messages[-1]["role"] not in ("user", "tool"):
        raise Dropped("the prompt does not end with a user turn")
    return tuple(_unweighted(message) for message in messages)


def _unweighted(message: Message) -> Message:
    """Return a turn of a prompt, which is never trained on."""
    found = message.copy()
    found.pop("weight", None)
    return found


def as_answer(messages: list[Message], note: Note) -> Messages:
    messages = _merge_consecutive(messages, note)
    if not messages or not any(m["content"].strip() for m in messages):
        raise Dropped("empty answer")
    if messages[0]["role"] != "assistant":
        raise Dropped("the answer does not start with an assistant turn")
    if len(messages) > 1:
        note("turns after the first answer left out")
    if _is_empty(messages[0]):
        raise Dropped("empty answer")
    if not is_trained(messages[0]):
        raise Dropped("the answer is excluded from training")
    return (messages[0],)


def as_pair(
    row: Row, prompt: list[Message], chosen: list[Message], rejected: list[Message], note: Note
) -> list[Record]:
    question = as_prompt(with_system(row, prompt, note), note)
    good, bad = as_answer(chosen, note), as_answer(rejected, note)
    if trimmed(good[0]["content"]) == trimmed(bad[0]["content"]):
        raise Dropped("chosen equals rejected")
    return [Pair(question, good, bad, number_of(row, "margin"))]


def as_unpaired(row: Row, messages: list[Message], note: Note) -> list[Record]:
    """Return the last answer of a conversation with the label of the row."""
    good = row["label"]
    if not isinstance(good, bool):
        raise BadRow("wrong type", f"label: expected true or false, found {preview(good)}")
    if not messages or messages[-1]["role"] != "assistant":
        raise Dropped("the conversation does not end with an answer")
    return [UnpairedPreference(as_prompt(messages[:-1], note), as_answer(messages[-1:], note), good)]
