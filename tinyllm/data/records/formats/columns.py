"""Columns that formats of several kinds share: Alpaca's instruction, multiple choice, rows with several records."""

from __future__ import annotations

from collections.abc import Iterable
from string import ascii_uppercase

from tinyllm.data.records.formats.format import Convert
from tinyllm.data.records.turns import Dropped, Note, optional_text, text_of
from tinyllm.data.records.types import Record, Row
from tinyllm.data.sources.errors import BadRow, preview
from tinyllm.text.chat import Message

CONTEXT = ("system", "tools")
ALPACA = ("input", "history", *CONTEXT)
ANSWERS = ("chosen", "rejected")
SEED_TASKS = ("instruction", "instances")


def alpaca_prompt(row: Row) -> list[Message]:
    """Return the turns of `history`, and `instruction` with `input` as the last user turn."""
    asked = [part for part in (text_of(row, "instruction"), optional_text(row, "input")) if part.strip()]
    turns: list[Message] = []
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise BadRow("wrong type", f"history: expected a list of [question, answer], found {preview(history)}")
    for i, (question, answer) in enumerate(history):
        columns = {"question": question, "answer": answer}
        turns.append(Message(role="user", content=text_of(columns, "question", f"history[{i}].")))
        turns.append(Message(role="assistant", content=text_of(columns, "answer", f"history[{i}].")))
    return [*turns, Message(role="user", content="\n\n".join(asked))]


# --- multiple choice -------------------------------------------------------------------------------------------------------------


def choice_prompt(row: Row) -> list[Message]:
    """Return the question with its choices as one user turn."""
    question = text_of(row, "question").strip()
    if not question:
        raise Dropped("empty prompt")
    return [Message(role="user", content=f"{question}\n{lettered(choices_of(row))}")]


def choices_of(row: Row) -> list[str]:
    """Return the column `choices`. Raises: BadRow unless it has 2 to 26 texts."""
    choices = row["choices"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise BadRow("wrong type", f"choices: expected a list of two or more texts, found {preview(choices)}")
    if len(choices) > len(ascii_uppercase):
        raise BadRow("too many choices", f"choices: at most {len(ascii_uppercase)} are supported, found {len(choices)}")
    return choices


def lettered(choices: list[str]) -> str:
    """Return one line for each choice, `A. …`, as in MMLU (arXiv 2009.03300)."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False))


def right_choice(row: Row) -> int:
    """Return the index of the right choice; the column `answer` gives it as a number from 0 or as a letter."""
    answer, count = row["answer"], len(choices_of(row))
    letters = ascii_uppercase[:count]
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip().upper() in letters:
        return letters.index(answer.strip().upper())
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < count:
        return answer
    what = (
        f"answer: expected a number from 0 to {count - 1} or a letter from A to {letters[-1]}, found {preview(answer)}"
    )
    raise BadRow("wrong answer", what, f"write one of 0 to {count - 1}")


def right_letter(row: Row) -> str:
    return ascii_uppercase[right_choice(row)]


# --- rows with several records ---------------------------------------------------------------------------------------------------


def convert_each(convert: Convert, rows: Iterable[Row], note: Note, what: str) -> list[Record]:
    """Return the records of all `rows`. Some may be dropped; `what` names one of them in the report.

    Raises: Dropped where all of them are.
    """
    records: list[Record] = []
    reason = ""
    for row in rows:
        try:
            records += convert(row, note)
        except Dropped as dropped:
            reason = dropped.reason
            note(f"{what} left out: {reason}")
    if not records:
        raise Dropped(reason)
    return records


def seed_tasks(convert: Convert, row: Row, note: Note) -> list[Record]:
    """Return the records of a task with a list of `instances` (Self-Instruct, arXiv 2212.10560)."""
    instances = row["instances"]
    if not isinstance(instances, list) or not all(isinstance(i, dict) and "output" in i for i in instances):
        what = f"instances: expected a list of objects with input and output, found {preview(instances)}"
        raise BadRow("wrong type", what)
    if not instances:
        raise Dropped("no instances")
    task = {key: value for key, value in row.items() if key != "instances"}
    return convert_each(convert, [task | instance for instance in instances], note, "an instance")
