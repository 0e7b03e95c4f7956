"""Records of any accepted format to five normal forms: documents, conversations, pairs, judgements, prompts.

`FORMATS` is the whole list: which columns a format needs and what turns one row into records. A format is chosen once
per file, from its first row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tinyllm.data.files import BadRow, shown
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
    side_of,
    text_of,
    turns_of,
    with_system,
)
from tinyllm.text.chat import Message

KINDS = ("documents", "conversations", "pairs", "judgements", "prompts")


@dataclass(frozen=True)
class Format:
    """Rows with the columns `needs`, and without `lacks`, become records by `convert(row, note)`."""

    needs: tuple[str, ...]
    convert: Callable[[Data, Note], list[Record]]
    lacks: tuple[str, ...] = ()

    def fits(self, row: Mapping[str, Any]) -> bool:
        return all(column in row for column in self.needs) and not any(column in row for column in self.lacks)


def _document(row: Data, note: Note) -> list[Record]:
    text = text_of(row, "text")
    if not text.strip():
        raise Dropped("empty text")
    return [Document(text)]


def _all_turns(row: Data, note: Note) -> list[Message]:
    column = "messages" if "messages" in row else "conversations"
    return with_system(row, turns_of(row[column], column), note)


def _prompt_completion(row: Data, note: Note) -> list[Message]:
    return with_system(row, side_of(row, "prompt", "user") + side_of(row, "completion", "assistant"), note)


def _question_answer(row: Data, note: Note) -> list[Message]:
    return with_system(row, side_of(row, "question", "user") + side_of(row, "answer", "assistant"), note)


def _alpaca_question(row: Data) -> list[Message]:
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


def _alpaca(row: Data, note: Note) -> list[Message]:
    answer = Message(role="assistant", content=text_of(row, "output"))
    return with_system(row, [*_alpaca_question(row), answer], note)


def _talk(all_turns: Callable[[Data, Note], list[Message]]) -> Callable[[Data, Note], list[Record]]:
    return lambda row, note: [as_conversation(all_turns(row, note), note)]


def _seed_tasks(convert: Callable[[Data, Note], list[Record]]) -> Callable[[Data, Note], list[Record]]:
    def each(row: Data, note: Note) -> list[Record]:
        instances = row["instances"]
        if not isinstance(instances, list) or not all(isinstance(i, dict) and "output" in i for i in instances):
            raise BadRow("wrong type", f"instances: a list of input and output was expected, found {shown(instances)}")
        rest = {key: value for key, value in row.items() if key != "instances"}
        found: list[Record] = []
        for instance in instances:
            try:
                found += convert(rest | instance, note)
            except Dropped as drop:
                note(f"an instance left out: {drop.reason}")
        if not found:
            raise Dropped("no instance that can train")
        return found

    return each


def _choice(row: Data) -> tuple[list[Message], list[Message]]:
    return side_of(row, "chosen", "assistant"), side_of(row, "rejected", "assistant")


def _preference(row: Data, note: Note) -> list[Record]:
    prompt = side_of(row, "prompt", "user")
    chosen, rejected = _choice(row)
    # Some data sets give the prompt and repeat it in front of both answers.
    if chosen[: len(prompt)] == prompt == rejected[: len(prompt)]:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return as_pair(row, prompt, chosen, rejected, note)


def _alpaca_preference(row: Data, note: Note) -> list[Record]:
    return as_pair(row, _alpaca_question(row), *_choice(row), note)


def _sharegpt_preference(row: Data, note: Note) -> list[Record]:
    prompt = turns_of(row["conversations"], "conversations")
    return as_pair(row, prompt, *_choice(row), note)


def _persona(row: Data, note: Note) -> list[Record]:
    chosen, rejected = ([Message(role="assistant", content=text_of(row, side).strip())] for side in _PERSONA[1:])
    return as_pair(row, side_of(row, "question", "user"), chosen, rejected, note)


def _transcript(row: Data, column: str) -> list[Message]:
    """Messages, or a text of the form `\\n\\nHuman: …\\n\\nAssistant: …`."""
    if not isinstance(row[column], str):
        return turns_of(row[column], column)
    before, *parts = re.split(r"(?:^|\n\n)(Human|Assistant): ?", row[column])
    if not parts or before.strip():
        raise BadRow("missing column", f"no 'prompt', and {column} is a text alone; found: {listed(row)}")
    return [
        Message(role="user" if who == "Human" else "assistant", content=said)
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _shared(row: Data) -> tuple[list[Message], list[Message], list[Message]]:
    """(what both begin with, the rest of chosen, the rest of rejected)."""
    chosen, rejected = _transcript(row, "chosen"), _transcript(row, "rejected")
    if chosen == rejected:
        raise Dropped("chosen equals rejected")
    at = 0
    while at < min(len(chosen), len(rejected)) and chosen[at] == rejected[at]:
        at += 1
    return chosen[:at], chosen[at:], rejected[at:]


def _implicit_preference(row: Data, note: Note) -> list[Record]:
    return as_pair(row, *_shared(row), note)


def _labelled_turns(row: Data, note: Note) -> list[Record]:
    """A conversation whose last answer is judged."""
    column = "messages" if "messages" in row else "conversations"
    turns = turns_of(row[column], column)
    if turns and turns[-1]["role"] == "assistant":
        return as_judgement(row, turns[:-1], turns[-1:], note)
    raise Dropped("the conversation does not end with an answer")


def _labelled_completion(row: Data, note: Note) -> list[Record]:
    return as_judgement(row, side_of(row, "prompt", "user"), side_of(row, "completion", "assistant"), note)


def _both_judged(convert: Callable[[Data, Note], list[Record]]) -> Callable[[Data, Note], list[Record]]:
    """Of a pair, the chosen answer is a good one and the rejected one a bad one."""

    def each(row: Data, note: Note) -> list[Record]:
        pairs = [pair for pair in convert(row, note) if isinstance(pair, Pair)]
        return [Judgement(p.prompt, side, side is p.chosen) for p in pairs for side in (p.chosen, p.rejected)]

    return each


def _asked(messages: list[Message], row: Data, note: Note, *, used: tuple[str, ...]) -> list[Record]:
    columns = {key: value for key, value in row.items() if key not in (*used, "system", "tools")}
    return [Prompt(as_prompt(with_system(row, messages, note), note), columns)]


def _prompt_rows(row: Data, note: Note) -> list[Record]:
    if isinstance(row.get("completion"), str):
        row = {"answer": row["completion"]} | row
    return _asked(side_of(row, "prompt", "user"), row, note, used=("prompt",))


def _question_rows(row: Data, note: Note) -> list[Record]:
    return _asked(side_of(row, "question", "user"), row, note, used=("question",))


def _first_question(row: Data, note: Note) -> list[Record]:
    """The turns up to the first answer; that answer is the column `answer`."""
    column = "messages" if "messages" in row else "conversations"
    turns = opened(turns_of(row[column], column), note)
    at = next((i for i, m in enumerate(turns) if m["role"] == "assistant"), len(turns))
    answer = {"answer": turns[at]["content"]} if at < len(turns) else {}
    return _asked(turns[:at], answer | row, note, used=(column,))


def _before_the_choice(row: Data, note: Note) -> list[Record]:
    return _asked(turns_of(row["conversations"], "conversations"), row, note, used=("conversations",))


def _instruction_rows(row: Data, note: Note) -> list[Record]:
    answer = {"answer": row["output"]} if isinstance(row.get("output"), str) else {}
    return _asked(_alpaca_question(row), answer | row, note, used=("instruction", "input", "output", "history"))


def _shared_prompt(row: Data, note: Note) -> list[Record]:
    return _asked(_shared(row)[0], row, note, used=())


_PERSONA = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
_CHOICE = ("chosen", "rejected")

# The first that fits is taken, so the more particular stand first.
FORMATS: dict[str, dict[str, Format]] = {
    "documents": {"text": Format(("text",), _document)},
    "conversations": {
        "messages": Format(("messages",), _talk(_all_turns)),
        "sharegpt": Format(("conversations",), _talk(_all_turns), lacks=_CHOICE),
        "prompt-completion": Format(("prompt", "completion"), _talk(_prompt_completion)),
        "alpaca": Format(("instruction", "output"), _talk(_alpaca)),
        "seed-tasks": Format(("instruction", "instances"), _seed_tasks(_talk(_alpaca))),
        "question-answer": Format(("question", "answer"), _talk(_question_answer)),
    },
    "pairs": {
        "persona": Format(_PERSONA, _persona),
        "sharegpt-preference": Format(("conversations", *_CHOICE), _sharegpt_preference),
        "preference": Format(("prompt", *_CHOICE), _preference),
        "alpaca-preference": Format(("instruction", *_CHOICE), _alpaca_preference),
        "implicit-preference": Format(_CHOICE, _implicit_preference),
    },
    "judgements": {
        "prompt-completion-label": Format(("prompt", "completion", "label"), _labelled_completion),
        "messages-label": Format(("messages", "label"), _labelled_turns),
        "sharegpt-label": Format(("conversations", "label"), _labelled_turns),
    },
    "prompts": {
        "prompt": Format(("prompt",), _prompt_rows),
        "question": Format(("question",), _question_rows),
        "messages": Format(("messages",), _first_question),
        "sharegpt-preference": Format(("conversations", *_CHOICE), _before_the_choice),
        "sharegpt": Format(("conversations",), _first_question),
        "seed-tasks": Format(("instruction", "instances"), _seed_tasks(_instruction_rows)),
        "alpaca": Format(("instruction",), _instruction_rows),
        "implicit-preference": Format(_CHOICE, _shared_prompt),
    },
}
FORMATS["judgements"] |= {
    name: Format(known.needs, _both_judged(known.convert), known.lacks) for name, known in FORMATS["pairs"].items()
}
