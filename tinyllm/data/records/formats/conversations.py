"""Formats of conversations: a function for the turns of a row, and a row of `TURNS`.

Each format of `TURNS` with a column `label` is a format of `unpaired` as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tinyllm.data.records.formats.columns import (
    ALPACA,
    ANSWERS,
    CONTEXT,
    SEED_TASKS,
    alpaca_prompt,
    choice_prompt,
    right_letter,
    seed_tasks,
)
from tinyllm.data.records.formats.format import Format, Turns
from tinyllm.data.records.messages import column_messages, parse_messages
from tinyllm.data.records.turns import Note, as_conversation, refuse_media, text_of, with_system
from tinyllm.data.records.types import Record, Row
from tinyllm.text.chat import Message


def listed_turns(column: str, row: Row, note: Note) -> list[Message]:
    return parse_messages(row[column], column, note)


def two_columns(prompt: str, answer: str, row: Row, note: Note) -> list[Message]:
    return column_messages(row, prompt, "user", note) + column_messages(row, answer, "assistant", note)


def alpaca(answer: str, row: Row, note: Note) -> list[Message]:
    return [*alpaca_prompt(row), Message(role="assistant", content=text_of(row, answer))]


def multiple_choice(row: Row, note: Note) -> list[Message]:
    return [*choice_prompt(row), Message(role="assistant", content=right_letter(row))]


def conversation(turns: Turns, row: Row, note: Note) -> list[Record]:
    refuse_media(row)
    return [as_conversation(with_system(row, turns(row, note), note), note)]


@dataclass(frozen=True)
class TurnsFormat:
    """The columns of a conversation format, as in `Format`, and the function that returns the turns of a row."""

    needs: tuple[str, ...]
    turns: Turns
    lacks: tuple[str, ...] = ()
    optional: tuple[str, ...] = CONTEXT


# Columns in use for a prompt and for its answer. A row has exactly one of each, or its format is not told by them.
_PROMPTS = ("prompt", "question", "instruction", "query", "input")
_RESPONSES = ("completion", "answer", "output", "response", "target")


def _two_column_formats() -> dict[str, TurnsFormat]:
    """Return a format for each pair of a prompt's and an answer's name, such as `prompt-answer`."""
    found = {}
    for prompt in _PROMPTS:
        for answer in _RESPONSES:
            others = {*_PROMPTS, *_RESPONSES, *ANSWERS} - {prompt, answer}
            made = TurnsFormat((prompt, answer), partial(two_columns, prompt, answer), tuple(sorted(others)))
            if prompt == "instruction":  # Alpaca's columns, with another name for the output
                others -= {"input"}
                made = TurnsFormat((prompt, answer), partial(alpaca, answer), tuple(sorted(others)), ALPACA)
            found[f"{prompt}-{answer}"] = made
    return found


# The first format that fits is used, so specific ones come first.
TURNS = {
    "messages": TurnsFormat(("messages",), partial(listed_turns, "messages")),
    "sharegpt": TurnsFormat(("conversations",), partial(listed_turns, "conversations"), lacks=ANSWERS),
    "prompt-completion": TurnsFormat(("prompt", "completion"), partial(two_columns, "prompt", "completion")),
    "alpaca": TurnsFormat(("instruction", "output"), partial(alpaca, "output"), optional=ALPACA),
    "multiple-choice": TurnsFormat(("question", "choices", "answer"), multiple_choice),
    "question-answer": TurnsFormat(("question", "answer"), partial(two_columns, "question", "answer")),
    "input-target": TurnsFormat(("input", "target"), partial(two_columns, "input", "target"), lacks=("instruction",)),
}
TURNS |= {
    name: f for name, f in _two_column_formats().items() if all(f.needs != known.needs for known in TURNS.values())
}
FORMATS = {name: Format(f.needs, partial(conversation, f.turns), f.lacks, f.optional) for name, f in TURNS.items()}
FORMATS["seed-tasks"] = Format(
    SEED_TASKS, partial(seed_tasks, FORMATS["alpaca"].convert), optional=("history", *CONTEXT)
)
