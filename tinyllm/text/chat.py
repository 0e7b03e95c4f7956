"""Chat messages to token ids and a loss mask: the only place where a conversation becomes tokens.

ChatML: `<|im_start|>role\\ncontent<|im_end|>\\n`, the content without blank lines in front and white space behind. Ids are joined
segment by segment, structure by id and text by `Tokenizer.encode`, so that no text can produce a control token. The mask is built in
the same pass. `text.template` holds the same layout in Jinja for other programs.

Left out: tool-call objects, which `data.records` turns into content first, images (content is a string), truncation (the data room
decides), a default system prompt.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from tinyllm.errors import UserError

if TYPE_CHECKING:  # importing the tokenizers library takes time, which checking messages does not need
    from tinyllm.text.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
OTHER_NAMES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "observation": "tool"}


class Message(TypedDict):
    """One turn of a conversation; `role` is one of `ROLES`."""

    role: str
    content: str
    weight: NotRequired[int]
    """0 for an answer that is read but not trained on; absent in all other messages"""


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


def render(tokenizer: Tokenizer, messages: Sequence[Message], *, generation_prompt: bool = False) -> Rendered:
    """Return ids and mask of one conversation that passed `validate_messages`.

    Args:
        generation_prompt: end with `<|im_start|>assistant\\n`, so that the model writes the next turn.

    Raises:
        UserError: a tokenizer without chat tokens, or a lone surrogate in a text.
    """
    return render_many(tokenizer, [messages], generation_prompt=generation_prompt)[0]


def render_many(
    tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]], *, generation_prompt: bool = False
) -> list[Rendered]:
    """Return `render` of each conversation, with all texts encoded in one batch."""
    if tokenizer.im_start is None or tokenizer.im_end is None:
        raise UserError(
            "this tokenizer has no chat tokens <|im_start|> and <|im_end|>: a model with it cannot be trained on conversations yet",
            fix="train it on text with `tinyllm pretrain`, or start from a checkpoint that has chat tokens",
        )
    heads = dict(zip(ROLES, tokenizer.encode_batch([f"{role}\n" for role in ROLES]), strict=True))
    newline = tokenizer.encode("\n")
    # Encoded with the role in front: a sentencepiece-style vocabulary puts a space before a text encoded on its own.
    texts = [f"{m['role']}\n{trimmed(m['content'])}" for messages in conversations for m in messages]
    encoded = iter(tokenizer.encode_batch(texts))
    rendered = []
    for messages in conversations:
        ids: list[int] = []
        mask: list[bool] = []
        for message in messages:
            head, body = heads[message["role"]], next(encoded)
            # An imported vocabulary may merge the line break with the text; a turn must still start as its generation prompt does.
            split = body[: len(head)] == head
            content = body[len(head) :] if split else tokenizer.encode(trimmed(message["content"]))
            ids += [tokenizer.im_start, *head, *content, tokenizer.im_end, *newline]
            mask += [False] * (1 + len(head))
            mask += [is_trained(message)] * (len(content) + 1)
            mask += [False] * len(newline)
        if generation_prompt:
            ids += [tokenizer.im_start, *heads["assistant"]]
            mask += [False] * (1 + len(heads["assistant"]))
        rendered.append(Rendered(ids, mask))
    return rendered


def completion_ids(
    tokenizer: Tokenizer, prompt: Sequence[Message], completion: Sequence[Message]
) -> tuple[list[int], list[int]]:
    """Tokenize one exchange, split where the model's answer begins.

    Args:
        prompt: the turns before the answer; may be empty.
        completion: exactly one assistant message.

    Returns:
        the ids of the prompt up to and including `<|im_start|>assistant\\n`; the ids of the answer with its `<|im_end|>`.

    Raises:
        UserError: another completion; see also `render`.
    """
    if [message["role"] for message in completion] != ["assistant"]:
        raise UserError(
            f"a completion must be one assistant message, found {len(completion)}: "
            + (", ".join(message["role"] for message in completion) or "none"),
            fix="move the earlier turns into the prompt",
        )
    before = render(tokenizer, prompt, generation_prompt=True).ids
    answer = Message(role="assistant", content=completion[0]["content"])
    whole = render(tokenizer, [*prompt, answer])
    length = sum(whole.mask[len(before) :])
    return before, whole.ids[len(before) : len(before) + length]


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
