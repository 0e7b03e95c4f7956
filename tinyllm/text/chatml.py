"""ChatML, this program's own chat format, built from ids.

`<|im_start|>role\\ncontent<|im_end|>\\n`, the content without blank lines in front and white space behind. Ids are joined segment by
segment, structure by id and text by `Tokenizer.encode`, so that no text can produce a control token. The mask is built in the same
pass. `text.template` holds the same layout in Jinja for other programs.

Left out: tool-call objects, which `data.records` turns into content first, a default system prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinyllm.errors import UserError
from tinyllm.text.messages import ROLES, Message, Rendered, is_trained, trimmed

if TYPE_CHECKING:  # importing the tokenizers library takes time, which checking messages does not need
    from tinyllm.text.tokenizer import Tokenizer


def render_many(
    tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]], *, generation_prompt: bool = False
) -> list[Rendered]:
    """Return ids and mask of each conversation, with all texts encoded in one batch.

    Args:
        generation_prompt: end with `<|im_start|>assistant\\n`, so that the model writes the next turn.

    Raises:
        UserError: a tokenizer without chat tokens, or a lone surrogate in a text.
    """
    if tokenizer.im_start is None or tokenizer.im_end is None:
        raise UserError(
            "this tokenizer has no chat tokens <|im_start|> and <|im_end|>",
            fix="fine-tune the model with `tinyllm sft`, which adds them, or use plain text: --set chat.template=plain",
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
    """Return the ids of a prompt up to and including `<|im_start|>assistant\\n`, and of one answer with its `<|im_end|>`."""
    before = render_many(tokenizer, [prompt], generation_prompt=True)[0].ids
    answer = Message(role="assistant", content=completion[0]["content"])
    whole = render_many(tokenizer, [[*prompt, answer]])[0]
    length = sum(whole.mask[len(before) :])
    return before, whole.ids[len(before) : len(before) + length]
