"""The records that stages read, as frozen dataclasses, and functions that return parts of any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tinyllm.text import chat
from tinyllm.text.chat import Message

Messages = tuple[Message, ...]
Row = dict[str, Any]  # column: value
Note = Callable[[str], None]  # is told of every repair


@dataclass(frozen=True)
class Document:
    text: str
    place: str = field(default="", compare=False)
    """file and line; as in all records below"""


@dataclass(frozen=True)
class Conversation:
    """Messages that start with a user turn (after any system turn) and end with an assistant turn.

    Roles alternate, except for consecutive tool turns.
    """

    messages: Messages
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class Pair:
    """A preference pair: two answers, each one assistant message, to a prompt that does not end with an assistant turn."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    margin: float | None = None
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class UnpairedPreference:
    """A labeled answer: one assistant message to a prompt that does not end with an assistant turn, and its label."""

    prompt: Messages
    completion: Messages
    good: bool
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class Prompt:
    """A prompt for the policy, and all other columns of its row for the rewards."""

    messages: Messages
    columns: Row = field(default_factory=dict)
    place: str = field(default="", compare=False)
    plain: bool = field(default=False, compare=False)
    """the row gives it as a text, not as messages"""


Record = Document | Conversation | Pair | UnpairedPreference | Prompt


def prompt_of(record: Record) -> Messages:
    """Return the messages before the (last) answer."""
    if isinstance(record, Document):
        return ({"role": "user", "content": record.text},)
    if isinstance(record, Conversation):
        return record.messages[:-1]
    return record.messages if isinstance(record, Prompt) else record.prompt


def opening_of(record: Record) -> Messages:
    """Return the messages that decide the split of a record.

    Of a conversation these are the messages before its first answer: conversations that share the messages before any answer
    share these as well.
    """
    if not isinstance(record, Conversation):
        return prompt_of(record)
    first = next(i for i, message in enumerate(record.messages) if message["role"] == "assistant")
    return record.messages[:first]


def with_system(record: Record, system: str) -> Record:
    """Return a record with a system prompt in front, unless it has one."""
    if isinstance(record, Document):
        return record
    if isinstance(record, Conversation | Prompt):
        return replace(record, messages=chat.with_system(record.messages, system))
    return replace(record, prompt=chat.with_system(record.prompt, system))


def messages_of(record: Record) -> Messages:
    """Return all messages of a record, in order."""
    if isinstance(record, Pair):
        return (*record.prompt, *record.chosen, *record.rejected)
    if isinstance(record, UnpairedPreference):
        return (*record.prompt, *record.completion)
    return record.messages if isinstance(record, Conversation | Prompt) else prompt_of(record)
