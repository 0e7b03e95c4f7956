"""Formats of preference pairs. Each is a format of `unpaired` as well."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from tinyllm.data.records.formats.columns import ALPACA, ANSWERS, CONTEXT, alpaca_prompt, convert_each
from tinyllm.data.records.formats.format import Format
from tinyllm.data.records.messages import column_messages, parse_messages
from tinyllm.data.records.turns import Dropped, Note, as_pair, list_columns, refuse_media, text_of
from tinyllm.data.records.types import Record, Row
from tinyllm.data.sources.errors import BadRow
from tinyllm.text.chat import Message

PairMessages = tuple[list[Message], list[Message], list[Message]]  # prompt, chosen, rejected
_PROMPTS = ("question", "query", "input")  # other names of the prompt; `instruction` is Alpaca's
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
_PERSONA = ("answer_matching_behavior", "answer_not_matching_behavior")


def pair(messages: Callable[[Row, Note], PairMessages], row: Row, note: Note) -> list[Record]:
    """Return one pair, or a pair for each rejected answer where `rejected` is a list of texts."""
    refuse_media(row)
    rejected = row.get("rejected")
    if isinstance(rejected, list) and rejected and all(isinstance(text, str) for text in rejected):
        rows = [row | {"rejected": text} for text in rejected]
        return convert_each(partial(pair, messages), rows, note, "a rejected answer")
    return as_pair(row, *messages(row, note), note)


def _answers(row: Row, note: Note) -> tuple[list[Message], list[Message]]:
    return column_messages(row, "chosen", "assistant", note), column_messages(row, "rejected", "assistant", note)


def preference(row: Row, note: Note) -> PairMessages:
    prompt = column_messages(row, "prompt", "user", note)
    chosen, rejected = _answers(row, note)
    if not chosen or not rejected or chosen[0]["role"] == "assistant":
        return prompt, chosen, rejected
    # many data sets repeat the prompt at the beginning of both answers, sometimes after a system turn
    shared, chosen, rejected = split_shared_prompt(chosen, rejected)
    if list(map(_said, shared[len(shared) - len(prompt) :])) != list(map(_said, prompt)):
        what = "chosen and rejected are conversations, but the turns they share do not end with the prompt"
        raise BadRow("two prompts", what, "rename the column prompt, or keep only the answers in chosen and rejected")
    return shared, chosen, rejected


def alpaca_preference(row: Row, note: Note) -> PairMessages:
    return alpaca_prompt(row), *_answers(row, note)


def sharegpt_preference(row: Row, note: Note) -> PairMessages:
    return parse_messages(row["conversations"], "conversations", note), *_answers(row, note)


def persona(row: Row, note: Note) -> PairMessages:
    """Model-written evaluations (arXiv 2212.09251)."""
    chosen, rejected = ([Message(role="assistant", content=text_of(row, column).strip())] for column in _PERSONA)
    return column_messages(row, "question", "user", note), chosen, rejected


def implicit_preference(row: Row, note: Note) -> PairMessages:
    return split_shared_prompt(_transcript(row, "chosen", note), _transcript(row, "rejected", note))


def named_preference(prompt: str, row: Row, note: Note) -> PairMessages:
    """Return a pair with the prompt in the column `prompt`, unless both answers are whole conversations."""
    if all(isinstance(row[side], str) and not _SPEAKER.match(row[side]) for side in ANSWERS):
        return preference(row | {"prompt": row[prompt]}, note)
    note(f"the prompt read from chosen and rejected, not from {prompt}")
    return implicit_preference(row, note)


def _transcript(row: Row, column: str, note: Note) -> list[Message]:
    """Return messages, or the turns of a text `\\n\\nHuman: …\\n\\nAssistant: …` (arXiv 2204.05862)."""
    if not isinstance(row[column], str):
        return parse_messages(row[column], column, note)
    before, *parts = _SPEAKER.split(row[column])
    if not parts or before.strip():
        raise BadRow("missing column", f"no 'prompt', and {column} is a single text; found: {list_columns(row)}")
    return [
        Message(role="user" if speaker == "Human" else "assistant", content=content)
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _said(message: Message) -> tuple[Any, ...]:
    """Return what makes two turns equal: not the ids of calls, or other keys that only some templates render."""
    return message["role"], message["content"], message.get("weight")


def split_shared_prompt(chosen: list[Message], rejected: list[Message]) -> PairMessages:
    """Return (the turns both begin with, the rest of chosen, the rest of rejected)."""
    if list(map(_said, chosen)) == list(map(_said, rejected)):
        raise Dropped("chosen equals rejected")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and _said(chosen[shared]) == _said(rejected[shared]):
        shared += 1
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _pairs(
    needs: tuple[str, ...], messages: Callable[[Row, Note], PairMessages], optional: tuple[str, ...] = CONTEXT
) -> Format:
    return Format(needs, partial(pair, messages), optional=(*optional, "margin"))


# The first format that fits is used, so specific ones come first.
FORMATS = {
    "persona": _pairs(("question", *_PERSONA), persona),
    "sharegpt-preference": _pairs(("conversations", *ANSWERS), sharegpt_preference),
    "preference": _pairs(("prompt", *ANSWERS), preference),
    "alpaca-preference": _pairs(("instruction", *ANSWERS), alpaca_preference, ALPACA),
    **{f"{name}-preference": _pairs((name, *ANSWERS), partial(named_preference, name)) for name in _PROMPTS},
    "implicit-preference": _pairs(ANSWERS, implicit_preference),
}
