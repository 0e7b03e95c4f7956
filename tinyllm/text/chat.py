"""Chat messages to token ids and a loss mask: the only place where a conversation becomes tokens.

A vocabulary carries its chat template. Our own one is rendered by `chatml` from ids, every other one by `text.foreign` as the Jinja
template that it is. Both keep two promises: no text of a message can produce a control token, and the mask covers what the assistant
says and the token that ends its turn. Left out: truncation (the data room decides).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinyllm.errors import UserError
from tinyllm.text.messages import OTHER_NAMES, ROLES, Message, Rendered, is_trained, trimmed, validate_messages
from tinyllm.text.template import CHAT_TEMPLATE

if TYPE_CHECKING:  # importing the tokenizers library takes time, which checking messages does not need
    from tinyllm.text.tokenizer import Tokenizer

__all__ = [
    "OTHER_NAMES",
    "ROLES",
    "Message",
    "Rendered",
    "completion_ids",
    "is_foreign",
    "is_trained",
    "render",
    "render_many",
    "trimmed",
    "validate_messages",
    "with_system",
]


def is_foreign(tokenizer: Tokenizer) -> bool:
    """Return whether a vocabulary comes with another chat template than ours."""
    return tokenizer.chat_template not in (None, CHAT_TEMPLATE)


def render(tokenizer: Tokenizer, messages: Sequence[Message], *, generation_prompt: bool = False) -> Rendered:
    """Return ids and mask of one conversation that passed `validate_messages`.

    Args:
        generation_prompt: end with the beginning of an answer (ChatML: `<|im_start|>assistant\\n`), so that the model writes it.

    Raises:
        UserError: a tokenizer without chat tokens, a text that it cannot encode, or a conversation that its template refuses.
    """
    return render_many(tokenizer, [messages], generation_prompt=generation_prompt)[0]


def render_many(
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    *,
    generation_prompt: bool = False,
    name: str = "conversation",
    first: int = 1,
) -> list[Rendered]:
    """Return `render` of each conversation, with all texts encoded in one batch.

    Args:
        name, first: what the conversations are, and the number of the first one, for errors.
    """
    if is_foreign(tokenizer):
        from tinyllm.text.foreign import rendering

        return rendering.render_many(
            tokenizer, conversations, generation_prompt=generation_prompt, name=name, first=first
        )
    from tinyllm.text import chatml

    return chatml.render_many(tokenizer, conversations, generation_prompt=generation_prompt)


def completion_ids(
    tokenizer: Tokenizer,
    prompt: Sequence[Message],
    completion: Sequence[Message],
    *,
    name: str = "conversation",
    number: int = 1,
) -> tuple[list[int], list[int]]:
    """Tokenize one exchange, split where the model's answer begins.

    Args:
        prompt: the turns before the answer; may be empty.
        completion: exactly one assistant message.
        name, number: what the exchange is, for errors.

    Returns:
        the ids of the prompt up to and including the beginning of an answer (ChatML: `<|im_start|>assistant\\n`); the ids of the answer
        with its end token.

    Raises:
        UserError: another completion; see also `render`.
    """
    if [message["role"] for message in completion] != ["assistant"]:
        raise UserError(
            f"a completion must be one assistant message, found {len(completion)}: "
            + (", ".join(message["role"] for message in completion) or "none"),
            fix="move the earlier turns into the prompt",
        )
    if is_foreign(tokenizer):
        from tinyllm.text.foreign import rendering

        return rendering.completion_ids(tokenizer, prompt, completion[0], name=name, number=number)
    from tinyllm.text import chatml

    return chatml.completion_ids(tokenizer, prompt, completion)


def with_system(messages: Sequence[Message], system: str) -> tuple[Message, ...]:
    """Return messages with a system prompt in front, unless they begin with one or `system` is empty.

    A system turn that is there for tools only gets it in front of them.
    """
    if not system.strip():
        return tuple(messages)
    first = messages[0] if messages else None
    if first is None or first["role"] != "system":
        return (Message(role="system", content=system), *messages)
    if first.get("tools") and not first.get("source"):
        merged = first.copy()
        merged["content"] = f"{system}\n\n{first['content']}"
        merged["source"] = ({"role": "system", "content": system},)
        return (merged, *messages[1:])
    return tuple(messages)
