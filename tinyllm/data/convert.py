"""One row of a format to records: what `formats` lists. Every function takes `(row, note)`, told to `note` what it mends or leaves out.

Raises, all of them: BadRow for a row that is not of the format; Dropped for one that cannot train.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from string import ascii_uppercase
from typing import Any

from tinyllm.data.files import BadRow, shown
from tinyllm.data.messages import side_of, turns_of
from tinyllm.data.turns import (
    Data,
    Document,
    Dropped,
    Judgement,
    Note,
    Pair,
    Prompt,
    Record,
    as_conversation,
    as_judgement,
    as_pair,
    as_prompt,
    listed,
    opened,
    optional_text,
    refuse_media,
    text_of,
    with_system,
)
from tinyllm.text.chat import Message

Turns = Callable[[Data, Note], list[Message]]
Convert = Callable[[Data, Note], list[Record]]
PERSONA = ("question", "answer_matching_behavior", "answer_not_matching_behavior")


def document(row: Data, note: Note) -> list[Record]:
    text = text_of(row, "text")
    if not text.strip():
        raise Dropped("empty text")
    return [Document(text)]


# --- the turns of a row ----------------------------------------------------------------------------------------------------------


def listed_turns(column: str, row: Data, note: Note) -> list[Message]:
    return turns_of(row[column], column, note)


def two_sides(asked: str, answered: str, row: Data, note: Note) -> list[Message]:
    return side_of(row, asked, "user", note) + side_of(row, answered, "assistant", note)


def _alpaca_question(row: Data, note: Note) -> list[Message]:
    asked = [part for part in (text_of(row, "instruction"), optional_text(row, "input")) if part.strip()]
    turns: list[Message] = []
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise BadRow("wrong type", f"history: a list of [question, answer] was expected, found {shown(history)}")
    for i, (question, answer) in enumerate(history):
        said = {"question": question, "answer": answer}
        turns.append(Message(role="user", content=text_of(said, "question", f"history[{i}].")))
        turns.append(Message(role="assistant", content=text_of(said, "answer", f"history[{i}].")))
    return [*turns, Message(role="user", content="\n\n".join(asked))]


def alpaca(row: Data, note: Note) -> list[Message]:
    return [*_alpaca_question(row, note), Message(role="assistant", content=text_of(row, "output"))]


def _asked_choice(row: Data, note: Note) -> list[Message]:
    question = text_of(row, "question").strip()
    if not question:
        raise Dropped("empty prompt")
    return [Message(role="user", content=f"{question}\n{lettered(choices_of(row))}")]


def multiple_choice(row: Data, note: Note) -> list[Message]:
    return [*_asked_choice(row, note), Message(role="assistant", content=_letter(row))]


def choices_of(row: Data) -> list[str]:
    """The column `choices`. Raises: BadRow unless it is two to 26 texts."""
    choices = row["choices"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise BadRow("wrong type", f"choices: a list of two or more texts was expected, found {shown(choices)}")
    if len(choices) > len(ascii_uppercase):
        what = f"{len(choices)} choices; there are letters for {len(ascii_uppercase)}"
        raise BadRow("too many choices", what)
    return choices


def lettered(choices: list[str]) -> str:
    """A line for each choice, `A. …`, as MMLU (arXiv 2009.03300) is asked."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False))


def right_choice(row: Data) -> int:
    """The right choice's number, which the column `answer` gives as a number from 0 or as a letter."""
    answer, count = row["answer"], len(choices_of(row))
    letters = ascii_uppercase[:count]
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip().upper() in letters:
        return letters.index(answer.strip().upper())
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < count:
        return answer
    what = f"answer: a number from 0 to {count - 1} or a letter from A to {letters[-1]} was expected, found {shown(answer)}"
    raise BadRow("wrong answer", what, f"write one of 0 to {count - 1}")


def _letter(row: Data) -> str:
    return ascii_uppercase[right_choice(row)]


# --- conversations and judgements ------------------------------------------------------------------------------------------------


def talk(turns: Turns, row: Data, note: Note) -> list[Record]:
    refuse_media(row)
    return [as_conversation(with_system(row, turns(row, note), note), note)]


def labelled(turns: Turns, row: Data, note: Note) -> list[Record]:
    refuse_media(row)
    return as_judgement(row, with_system(row, turns(row, note), note), note)


def both_judged(convert: Convert, row: Data, note: Note) -> list[Record]:
    """Of a pair, the chosen answer is a good one and the rejected one a bad one."""
    pairs = [pair for pair in convert(row, note) if isinstance(pair, Pair)]
    return [Judgement(p.prompt, side, side is p.chosen) for p in pairs for side in (p.chosen, p.rejected)]


def _several(convert: Convert, rows: Iterable[Data], note: Note, what: str) -> list[Record]:
    """The records of several rows that one row stands for; of those that cannot train, some may be missing."""
    found: list[Record] = []
    for row in rows:
        try:
            found += convert(row, note)
        except Dropped as drop:
            note(f"{what} left out: {drop.reason}")
            reason = drop.reason
    if not found:
        raise Dropped(reason)
    return found


def seed_tasks(convert: Convert, row: Data, note: Note) -> list[Record]:
    instances = row["instances"]
    if not isinstance(instances, list) or not all(isinstance(i, dict) and "output" in i for i in instances):
        raise BadRow("wrong type", f"instances: a list of input and output was expected, found {shown(instances)}")
    if not instances:
        raise Dropped("no instances")
    rest = {key: value for key, value in row.items() if key != "instances"}
    return _several(convert, [rest | instance for instance in instances], note, "an instance")


# --- pairs -----------------------------------------------------------------------------------------------------------------------

Sides = tuple[list[Message], list[Message], list[Message]]  # the prompt, the chosen answer, the rejected one


def pair(sides: Callable[[Data, Note], Sides], row: Data, note: Note) -> list[Record]:
    """One pair; or of a chosen answer with a list of rejected ones, a pair for each of these."""
    refuse_media(row)
    rejected = row.get("rejected")
    if isinstance(rejected, list) and rejected and all(isinstance(text, str) for text in rejected):
        rows = [row | {"rejected": text} for text in rejected]
        return _several(partial(pair, sides), rows, note, "a rejected answer")
    return as_pair(row, *sides(row, note), note)


def _choice(row: Data, note: Note) -> tuple[list[Message], list[Message]]:
    return side_of(row, "chosen", "assistant", note), side_of(row, "rejected", "assistant", note)


def preference(row: Data, note: Note) -> Sides:
    prompt = side_of(row, "prompt", "user", note)
    chosen, rejected = _choice(row, note)
    if not chosen or not rejected or chosen[0]["role"] == "assistant":
        return prompt, chosen, rejected
    # Many data sets give the prompt, and repeat it in front of both answers, with a system turn perhaps.
    before, chosen, rejected = _parted(chosen, rejected)
    if before[len(before) - len(prompt) :] != prompt:
        what = "chosen and rejected are conversations, and what both begin with does not end with the prompt"
        raise BadRow("two prompts", what, "leave out one of them: rename the column prompt, or keep only the answers")
    return before, chosen, rejected


def alpaca_preference(row: Data, note: Note) -> Sides:
    return _alpaca_question(row, note), *_choice(row, note)


def sharegpt_preference(row: Data, note: Note) -> Sides:
    return listed_turns("conversations", row, note), *_choice(row, note)


def persona(row: Data, note: Note) -> Sides:
    chosen, rejected = ([Message(role="assistant", content=text_of(row, side).strip())] for side in PERSONA[1:])
    return side_of(row, "question", "user", note), chosen, rejected


def _transcript(row: Data, column: str, note: Note) -> list[Message]:
    """Messages, or a text of the form `\\n\\nHuman: …\\n\\nAssistant: …` (arXiv 2204.05862)."""
    if not isinstance(row[column], str):
        return turns_of(row[column], column, note)
    before, *parts = re.split(r"(?:^|\n\n)(Human|Assistant): ?", row[column])
    if not parts or before.strip():
        raise BadRow("missing column", f"no 'prompt', and {column} is a text alone; found: {listed(row)}")
    return [
        Message(role="user" if who == "Human" else "assistant", content=said)
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _parted(chosen: list[Message], rejected: list[Message]) -> Sides:
    """(what both begin with, the rest of chosen, the rest of rejected)."""
    if chosen == rejected:
        raise Dropped("chosen equals rejected")
    at = 0
    while at < min(len(chosen), len(rejected)) and chosen[at] == rejected[at]:
        at += 1
    return chosen[:at], chosen[at:], rejected[at:]


def implicit_preference(row: Data, note: Note) -> Sides:
    return _parted(_transcript(row, "chosen", note), _transcript(row, "rejected", note))


# --- prompts ---------------------------------------------------------------------------------------------------------------------


def _asked(messages: list[Message], row: Data, note: Note, *, used: tuple[str, ...]) -> list[Record]:
    refuse_media(row)
    others = {key: value for key, value in row.items() if key not in (*used, "system", "tools")}
    columns = {key: value for key, value in others.items() if value is not None}  # an answer of null is none
    if final := _final_answer(columns.get("answer")):
        note("the answer is what stands behind ####; the whole is the column solution")
        columns = {"solution": columns["answer"], **columns, "answer": final}
    return [Prompt(as_prompt(with_system(row, messages, note), note), columns)]


def _final_answer(answer: Any) -> str:
    """The number on the last line of a worked solution, `#### 72` (GSM8K, arXiv 2110.14168); empty where there is none."""
    if not isinstance(answer, str):
        return ""
    _, mark, last = f"\n{answer.rstrip()}".rpartition("\n####")
    return "" if not mark or "\n" in last else last.strip()


def prompt_rows(row: Data, note: Note) -> list[Record]:
    completion = row.get("completion")
    if isinstance(completion, list | dict):
        said = side_of(row, "completion", "assistant", note)
        completion = next((m["content"] for m in said if m["role"] == "assistant"), None)
    if isinstance(completion, str):
        row = {"answer": completion} | row
    return _asked(side_of(row, "prompt", "user", note), row, note, used=("prompt",))


def question_rows(row: Data, note: Note) -> list[Record]:
    return _asked(side_of(row, "question", "user", note), row, note, used=("question",))


def choice_rows(row: Data, note: Note) -> list[Record]:
    return _asked(_asked_choice(row, note), row | {"answer": _letter(row)}, note, used=("question",))


def input_rows(row: Data, note: Note) -> list[Record]:
    """BIG-bench's `input` and `target` (arXiv 2206.04615)."""
    return _asked(side_of(row, "input", "user", note), {"answer": row["target"]} | row, note, used=("input",))


def first_question(column: str, row: Data, note: Note) -> list[Record]:
    """The turns up to the first answer; that answer is the column `answer`."""
    turns = opened(listed_turns(column, row, note), note)
    at = next((i for i, m in enumerate(turns) if m["role"] == "assistant"), len(turns))
    answer = {"answer": turns[at]["content"]} if at < len(turns) else {}
    if at + 1 < len(turns):
        note("turns after the first answer left out")
    return _asked(turns[:at], answer | row, note, used=(column,))


def before_the_choice(row: Data, note: Note) -> list[Record]:
    return _asked(listed_turns("conversations", row, note), row, note, used=("conversations",))


def instruction_rows(row: Data, note: Note) -> list[Record]:
    answer = {"answer": row["output"]} if isinstance(row.get("output"), str) else {}
    used = ("instruction", "input", "output", "history")
    return _asked(_alpaca_question(row, note), answer | row, note, used=used)


def shared_prompt(row: Data, note: Note) -> list[Record]:
    return _asked(implicit_preference(row, note)[0], row, note, used=())
