"""The accepted formats of records, and what they become: documents, conversations, pairs, judgements, prompts.

`FORMATS` is the whole list: which columns a format needs, which it reads besides, and what turns one row into records
(`convert`). A format is chosen once per file, from its first row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tinyllm.data import convert
from tinyllm.data.convert import Convert, Turns
from tinyllm.data.rows import CUTS

KINDS = ("documents", "conversations", "pairs", "judgements", "prompts")
ALIASES = {"kto_tag": "label"}  # LLaMA-Factory's name for it


@dataclass(frozen=True)
class Format:
    """Rows with the columns `needs`, and without `lacks`, become records by `convert(row, note)`."""

    needs: tuple[str, ...]
    convert: Convert
    lacks: tuple[str, ...] = ()
    may: tuple[str, ...] = ()
    """columns that are read where they are there; the names of all others are told"""

    @property
    def columns(self) -> tuple[str, ...]:
        return self.needs + self.may

    def fits(self, row: Mapping[str, Any]) -> bool:
        return all(column in row for column in self.needs) and not any(column in row for column in self.lacks)


_CHOICE = ("chosen", "rejected")
_CONTEXT = ("system", "tools")
_ALPACA = ("input", "history", *_CONTEXT)
_ANSWER = ("answer", *_CONTEXT)

_CONVERSATIONS: dict[str, tuple[tuple[str, ...], Turns, tuple[str, ...], tuple[str, ...]]] = {
    # name: needs, turns, lacks, may
    "messages": (("messages",), partial(convert.listed_turns, "messages"), (), _CONTEXT),
    "sharegpt": (("conversations",), partial(convert.listed_turns, "conversations"), _CHOICE, _CONTEXT),
    "prompt-completion": (("prompt", "completion"), partial(convert.two_sides, "prompt", "completion"), (), _CONTEXT),
    "alpaca": (("instruction", "output"), convert.alpaca, (), _ALPACA),
    "multiple-choice": (("question", "choices", "answer"), convert.multiple_choice, (), _CONTEXT),
    "question-answer": (("question", "answer"), partial(convert.two_sides, "question", "answer"), (), _CONTEXT),
    "input-target": (("input", "target"), partial(convert.two_sides, "input", "target"), ("instruction",), _CONTEXT),
}
_SEED_TASKS = ("instruction", "instances")


def _preferences(
    needs: tuple[str, ...], sides: Callable[..., convert.Sides], may: tuple[str, ...] = _CONTEXT
) -> Format:
    return Format(needs, partial(convert.pair, sides), may=(*may, "margin"))


# The first that fits is taken, so the more particular stand first.
FORMATS: dict[str, dict[str, Format]] = {
    "documents": {name: Format(("text",), convert.document) for name in ("text", *CUTS)},
    "conversations": {
        name: Format(needs, partial(convert.talk, turns), lacks, may)
        for name, (needs, turns, lacks, may) in _CONVERSATIONS.items()
    },
    "pairs": {
        "persona": _preferences(convert.PERSONA, convert.persona),
        "sharegpt-preference": _preferences(("conversations", *_CHOICE), convert.sharegpt_preference),
        "preference": _preferences(("prompt", *_CHOICE), convert.preference),
        "alpaca-preference": _preferences(("instruction", *_CHOICE), convert.alpaca_preference, _ALPACA),
        "implicit-preference": _preferences(_CHOICE, convert.implicit_preference),
    },
    "judgements": {
        f"{name}-label": Format((*needs, "label"), partial(convert.labelled, turns), lacks, may)
        for name, (needs, turns, lacks, may) in _CONVERSATIONS.items()
    },
    "prompts": {
        "prompt": Format(("prompt",), convert.prompt_rows, may=(*_ANSWER, "completion")),
        "multiple-choice": Format(("question", "choices", "answer"), convert.choice_rows, may=_CONTEXT),
        "question": Format(("question",), convert.question_rows, may=_ANSWER),
        "messages": Format(("messages",), partial(convert.first_question, "messages"), may=_ANSWER),
        "sharegpt-preference": Format(("conversations", *_CHOICE), convert.before_the_choice, may=_ANSWER),
        "sharegpt": Format(("conversations",), partial(convert.first_question, "conversations"), may=_ANSWER),
        "seed-tasks": Format(_SEED_TASKS, partial(convert.seed_tasks, convert.instruction_rows), may=_ANSWER),
        "alpaca": Format(("instruction",), convert.instruction_rows, may=("output", "answer", *_ALPACA)),
        "input-target": Format(("input", "target"), convert.input_rows, may=_ANSWER),
        "implicit-preference": Format(_CHOICE, convert.shared_prompt, may=_ANSWER),
    },
}
FORMATS["conversations"]["seed-tasks"] = Format(
    _SEED_TASKS, partial(convert.seed_tasks, FORMATS["conversations"]["alpaca"].convert), may=("history", *_CONTEXT)
)
FORMATS["judgements"] |= {
    name: Format(known.needs, partial(convert.both_judged, known.convert), known.lacks, known.may[:-1])  # no margin
    for name, known in FORMATS["pairs"].items()
}
