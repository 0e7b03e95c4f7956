"""Messages of a conversation, checked, and their tokens: what all chat formats share.

Left out: images and sound (content is text).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from tinyllm.errors import UserError

ROLES = ("system", "user", "assistant", "tool")
OTHER_NAMES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "observation": "tool"}


class Message(TypedDict):
    """One turn of a conversation; `role` is one of `ROLES`."""

    role: str
    content: str
    weight: NotRequired[int]
    """0 for an answer that is read but not trained on; absent in all other messages"""
    source: NotRequired[tuple[dict[str, Any], ...]]
    """the message as its data has it, where `content` is made of more than a text (calls, reasoning, parts, tools): several messages
    for turns that were joined, none for a system turn that the data does not have"""
    tools: NotRequired[list[Any]]
    """of a system message: the definitions of tools that its content lists"""


@dataclass(frozen=True, slots=True)
class Rendered:
    """One conversation as tokens: `ids` and, of the same length, `mask`, True on the assistant's content and its `<|im_end|>`.

    Answers of weight 0 are not in the mask.
    """

    ids: list[int]
    mask: list[bool]


def is_trained(message: Message) -> bool:
    """Return whether the loss covers a message: an answer whose weight is not 0."""
    return message["role"] == "assistant" and message.get("weight", 1) != 0


def trimmed(text: str) -> str:
    """Return a text without blank lines in front and white space behind. The indentation of its first line is kept."""
    text = text.rstrip()
    blank = text[: len(text) - len(text.lstrip())].replace("\r", "\n")
    return text[blank.rfind("\n") + 1 :]


def validate_messages(messages: object, where: str, *, require_assistant: bool = False, path: str = "messages") -> None:
    """Refuse anything but a list of {"role", "content"} with known roles and text as content.

    Args:
        messages: a value read from a file or a request.
        where: its file and line; may be empty.
        require_assistant: refuse a conversation without an assistant turn, which has nothing to train on.
        path: the name of the field, for the JSON path in errors such as `messages[2].role`.

    Raises:
        UserError: the first fault, with its location and the values allowed there.
    """
    where = f"{where}, {path}" if where else path
    if not isinstance(messages, list):
        raise UserError(f"expected a list of messages, found {_kind(messages)}", where=where, fix=_EXAMPLE)
    if not messages:
        raise UserError("the conversation has no messages", where=where, fix="remove this row")
    for i, message in enumerate(messages):
        _check_message(message, f"{where}[{i}]")
        if i and message["role"] == messages[i - 1]["role"] != "tool":
            raise UserError(
                f"two {message['role']} messages in a row", where=f"{where}[{i}].role", fix="join them into one message"
            )
    if require_assistant and all(message["role"] != "assistant" for message in messages):
        raise UserError("no assistant message to learn from", where=where, fix="add the assistant's answer")


_EXAMPLE = 'write it as [{"role": "user", "content": "…"}]'


def _check_message(message: object, where: str) -> None:
    if not isinstance(message, dict):
        raise UserError(f"expected an object with role and content, found {_kind(message)}", where=where, fix=_EXAMPLE)
    for key in ("role", "content"):
        if key not in message:
            found = ", ".join(map(str, message)) or "nothing"
            raise UserError(
                f"no {key!r}; found: {found}{_suggestion(key, message)}", where=where, fix=f"name the field {key!r}"
            )
        if not isinstance(message[key], str):
            raise UserError(
                f"{key} must be a string, found {_kind(message[key])}",
                where=f"{where}.{key}",
                fix=f"write {key} as a string",
            )
    role, content = message["role"], message["content"]
    if role not in ROLES:
        near = [OTHER_NAMES[role]] if role in OTHER_NAMES else difflib.get_close_matches(role.lower(), ROLES, 1)
        hint = f" - did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown role {role!r}{hint}", where=f"{where}.role", fix=f"use one of: {', '.join(ROLES)}")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"lone surrogate at character {error.start}, which is not valid text",
            where=f"{where}.content",
            fix="remove that character",
        ) from error


def _suggestion(key: str, message: dict[Any, Any]) -> str:
    """Return ` - did you mean 'from'?` where another key of the message is a known or near spelling of `key`, else ""."""
    names = {"role": ["from", "speaker"], "content": ["value", "text"]}[key]
    others = [str(name) for name in message if name not in ("role", "content")]
    near = [name for name in others if name.lower() in names] or difflib.get_close_matches(key, others, 1)
    return f" - did you mean {near[0]!r}?" if near else ""


def _kind(value: object) -> str:
    """Return the JSON name of a value's type."""
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else kinds.get(type(value), type(value).__name__)
