"""Formats of prompts. All other columns of a row are kept for the rewards."""

from __future__ import annotations

from functools import partial
from typing import Any

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
from tinyllm.data.records.formats.format import Format
from tinyllm.data.records.formats.pairs import implicit_preference
from tinyllm.data.records.messages import column_messages, parse_messages
from tinyllm.data.records.turns import Note, as_prompt, drop_leading_answers, refuse_media, with_system
from tinyllm.data.records.types import Prompt, Record, Row
from tinyllm.text.chat import Message, is_trained

_OTHER_ANSWERS = ("completion", "output", "response")  # names of the answer, if there is no `answer`


def prompt(messages: list[Message], row: Row, note: Note, *, used: tuple[str, ...]) -> list[Record]:
    """Return the prompt `messages`, with all columns of `row` that are neither `used` nor null."""
    refuse_media(row)
    others = {key: value for key, value in row.items() if key not in (*used, *CONTEXT)}
    columns = {key: value for key, value in others.items() if value is not None}
    if not any(key in columns for key in ("answer", *ANSWERS)):
        found = [columns[name] for name in _OTHER_ANSWERS if isinstance(columns.get(name), str)]
        columns |= {"answer": found[0]} if len(found) == 1 else {}
    if final := _final_answer(columns.get("answer")):
        note("answer set to the text after ####; the full answer is the column solution")
        columns = {"solution": columns["answer"], **columns, "answer": final}
    turns = as_prompt(with_system(row, messages, note), note)
    plain = bool(used) and isinstance(row.get(used[0]), str) and sum(m["role"] == "user" for m in turns) == 1
    return [Prompt(turns, columns, plain=plain)]


def _final_answer(answer: Any) -> str:
    """Return the text after `####` in the last line (GSM8K, arXiv 2110.14168); empty where there is none."""
    if not isinstance(answer, str):
        return ""
    _, mark, last = f"\n{answer.rstrip()}".rpartition("\n####")
    return "" if not mark or "\n" in last else last.strip()


def prompt_completion(row: Row, note: Note) -> list[Record]:
    completion = row.get("completion")
    if isinstance(completion, list | dict):
        messages = column_messages(row, "completion", "assistant", note)
        completion = next((m["content"] for m in messages if m["role"] == "assistant"), None)
    if isinstance(completion, str):
        row = {"answer": completion} | row
    return prompt(column_messages(row, "prompt", "user", note), row, note, used=("prompt",))


def one_column(column: str, row: Row, note: Note) -> list[Record]:
    return prompt(column_messages(row, column, "user", note), row, note, used=(column,))


def multiple_choice(row: Row, note: Note) -> list[Record]:
    return prompt(choice_prompt(row), row | {"answer": right_letter(row)}, note, used=("question",))


def input_target(row: Row, note: Note) -> list[Record]:
    """BIG-bench's `input` and `target` (arXiv 2206.04615)."""
    return prompt(column_messages(row, "input", "user", note), {"answer": row["target"]} | row, note, used=("input",))


def first_question(column: str, row: Row, note: Note) -> list[Record]:
    """Return the turns before the first answer that is not excluded from training; that answer becomes the column `answer`."""
    turns = drop_leading_answers(parse_messages(row[column], column, note), note)
    at = next((i for i, m in enumerate(turns) if is_trained(m)), len(turns))
    answer = {"answer": turns[at]["content"]} if at < len(turns) else {}
    if at + 1 < len(turns):
        note("turns after the first answer left out")
    return prompt(turns[:at], answer | row, note, used=(column,))


def sharegpt_preference(row: Row, note: Note) -> list[Record]:
    return prompt(parse_messages(row["conversations"], "conversations", note), row, note, used=("conversations",))


def alpaca(row: Row, note: Note) -> list[Record]:
    answer = {"answer": row["output"]} if isinstance(row.get("output"), str) else {}
    used = ("instruction", "input", "output", "history")
    return prompt(alpaca_prompt(row), answer | row, note, used=used)


def shared_prompt(row: Row, note: Note) -> list[Record]:
    return prompt(implicit_preference(row, note)[0], row, note, used=())


_ANSWER = ("answer", *CONTEXT)
# The first format that fits is used, so specific ones come first.
FORMATS = {
    "prompt": Format(("prompt",), prompt_completion, optional=(*_ANSWER, "completion")),
    "multiple-choice": Format(("question", "choices", "answer"), multiple_choice, optional=CONTEXT),
    "question": Format(("question",), partial(one_column, "question"), optional=_ANSWER),
    "query": Format(("query",), partial(one_column, "query"), optional=_ANSWER),
    "messages": Format(("messages",), partial(first_question, "messages"), optional=_ANSWER),
    "sharegpt-preference": Format(("conversations", *ANSWERS), sharegpt_preference, optional=_ANSWER),
    "sharegpt": Format(("conversations",), partial(first_question, "conversations"), optional=_ANSWER),
    "seed-tasks": Format(SEED_TASKS, partial(seed_tasks, alpaca), optional=_ANSWER),
    "alpaca": Format(("instruction",), alpaca, optional=("output", "answer", *ALPACA)),
    "input-target": Format(("input", "target"), input_target, optional=_ANSWER),
    "implicit-preference": Format(ANSWERS, shared_prompt, optional=_ANSWER),
}
WITH_SHORT_ANSWER = ("multiple-choice", "question", "input-target")  # prompts, although they fit conversations as well
