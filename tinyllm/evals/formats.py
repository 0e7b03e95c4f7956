"""Rows of benchmark files as items: multiple choice and questions. Light to import: no torch.

Formats are those of the public files: BLiMP's pairs, MMLU's choices, BBH's input and target, GSM8K's question and answer, and every
format of prompts and preference pairs that the training stages read. `FORMATS` lists them; a format is chosen once per file, from its
first row. Left out: few-shot examples (a small model gains little, and every example makes rows longer).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Literal

from tinyllm.data.records import formats
from tinyllm.data.records.formats.columns import choices_of, lettered, right_choice
from tinyllm.data.records.turns import list_columns, text_of
from tinyllm.data.records.types import Pair, Prompt
from tinyllm.data.sources.errors import BadRow, preview
from tinyllm.rollout import answers
from tinyllm.text.chat import Message

Style = Literal["text", "letters"]
Turns = tuple[Message, ...]


@dataclass(frozen=True)
class Choice:
    """Multiple choice."""

    context: str
    """text before each choice; empty if whole texts are compared"""
    choices: tuple[str, ...]
    correct: int
    """index of the correct choice"""
    turns: Turns = ()
    """the context as a conversation; empty if there is no context"""
    place: str = ""
    """file and line"""


@dataclass(frozen=True)
class Question:
    """A question with a reference answer."""

    text: str
    """as plain text to continue"""
    turns: Turns
    """as a conversation"""
    columns: Mapping[str, Any]
    """`answer`, and what else a reward rule reads"""
    place: str = ""
    plain: bool = False
    """the row gives it as a text, not as messages"""


Item = Choice | Question
Convert = Callable[[dict[str, Any], Style], list[Item]]


@dataclass(frozen=True)
class Format:
    """A row format: rows with the columns `needs` and without `lacks` become items by `convert(row, style)`."""

    needs: tuple[str, ...]
    convert: Convert
    lacks: tuple[str, ...] = ()
    contains: tuple[str, str] = ("", "")
    """a column, and a string that its text must contain"""
    conversational: bool = False
    """conversations, which a chat model reads through its template, not a benchmark's text"""

    def fits(self, row: Mapping[str, Any]) -> bool:
        column, marker = self.contains
        if any(name not in row for name in self.needs) or any(name in row for name in self.lacks):
            return False
        return not marker or marker in str(row[column])


def _user(text: str) -> Turns:
    return (Message(role="user", content=text),)


def as_text(turns: Turns) -> str:
    """Return a conversation as text for a base model to continue."""
    return "\n".join(turn["content"] for turn in turns)


# --- choices ---------------------------------------------------------------------------------------------------------------------


def _sentences(row: dict[str, Any], style: Style) -> list[Item]:
    """BLiMP (arXiv 1912.00582): the acceptable sentence should have the higher log-likelihood."""
    return [Choice("", (_nonempty(row, "sentence_good"), _nonempty(row, "sentence_bad")), 0)]


def _multiple_choice(row: dict[str, Any], style: Style) -> list[Item]:
    """MMLU (arXiv 2009.03300).

    `text` compares the choices themselves (lm-eval's mmlu_continuation); `letters` lists them in the question and compares A, B, C …
    (lm-eval's mmlu).
    """
    question, choices, correct = _nonempty(row, "question").strip(), choices_of(row), right_choice(row)
    if style == "letters":
        letters = tuple(ascii_uppercase[: len(choices)])
        listed_question = f"{question}\n{lettered(choices)}"
        return [Choice(f"{listed_question}\nAnswer:", letters, correct, _user(listed_question))]
    return [Choice(f"Question: {question}\nAnswer:", tuple(choices), correct, _user(question))]


_OPTIONS = "Options:"
_LETTERED = re.compile(r"^\s*(\([A-Z]\))", re.MULTILINE)
_DASHED = re.compile(r"^\s*-\s*(.+?)\s*$", re.MULTILINE)


def _options(row: dict[str, Any], style: Style) -> list[Item]:
    """BBH (arXiv 2210.09261): the options are listed in the input; their labels are compared, "(A)" or "Yes"."""
    text, target = _nonempty(row, "input"), _nonempty(row, "target").strip()
    _, marker, listing = text.rpartition(_OPTIONS)
    options = _LETTERED.findall(listing) or _DASHED.findall(listing) if marker else []
    if not options:
        what = "no options in the input, so there are no choices"
        raise BadRow("no options", what, "score generated answers instead: --task exact_match")
    if target not in options:
        raise BadRow("wrong answer", f"target: {preview(target)} is none of the options {', '.join(options)}")
    return [Choice(f"Q: {text}\nA:", tuple(options), options.index(target), _user(text))]


def _preference(convert: Callable[..., list[Any]]) -> Convert:
    """The chosen answer should have the higher log-likelihood."""

    def each(row: dict[str, Any], style: Style) -> list[Item]:
        pairs = [pair for pair in convert(row, _quiet) if isinstance(pair, Pair)]
        sides = [(p.prompt, (p.chosen[0]["content"], p.rejected[0]["content"])) for p in pairs]
        return [Choice(as_text(prompt), answers, 0, prompt) for prompt, answers in sides]

    return each


# --- questions -------------------------------------------------------------------------------------------------------------------


def _input_target(row: dict[str, Any], style: Style) -> list[Item]:
    text = _nonempty(row, "input")
    columns = {key: value for key, value in row.items() if key not in ("input", "target")}
    return [Question(f"Q: {text}\nA:", _user(text), _answered(columns | {"answer": row["target"]}), plain=True)]


def _prompt(convert: Callable[..., list[Any]], frame: str) -> Convert:
    def each(row: dict[str, Any], style: Style) -> list[Item]:
        prompts = [prompt for prompt in convert(row, _quiet) if isinstance(prompt, Prompt)]
        return [
            Question(frame.format(as_text(p.messages)), p.messages, _answered(p.columns), plain=p.plain)
            for p in prompts
        ]

    return each


def _answered(columns: dict[str, Any]) -> dict[str, Any]:
    if "answer" not in columns:
        what = f"no 'answer' to compare with; other columns: {list_columns(columns)}"
        raise BadRow("missing column", what, "name the column: --set data.field.answer=COLUMN")
    answer = columns["answer"]
    if problem := answers.unusable(answer):
        raise BadRow("unusable answer", f"answer: {problem}, found {preview(answer)}")
    return columns | {"answer": [str(one) for one in answer] if isinstance(answer, list) else str(answer)}


def _nonempty(row: dict[str, Any], column: str) -> str:
    text = text_of(row, column)
    if not text.strip():
        raise BadRow("empty text", f"{column} is empty")
    return text


def _quiet(note: str) -> None:
    """Ignore what a converter repairs (joined turns, a moved system turn): it does not change a score."""


_FRAMES = {"question": "Question: {}\nAnswer:"}  # lm-eval's for GSM8K; a prompt is used unchanged

# the first that fits is used, so specific formats come first
FORMATS: dict[str, dict[str, Format]] = {
    "choices": {
        "blimp": Format(("sentence_good", "sentence_bad"), _sentences),
        "mmlu": Format(("question", "choices", "answer"), _multiple_choice),
        "bbh": Format(("input", "target"), _options, ("instruction",), contains=("input", _OPTIONS)),
        **{
            name: Format(known.needs, _preference(known.convert), known.lacks, conversational=True)
            for name, known in formats.FORMATS["pairs"].items()
        },
    },
    "questions": {
        "bbh": Format(("input", "target"), _input_target, ("instruction",), conversational=True),
        **{
            name: Format(
                known.needs,
                _prompt(known.convert, _FRAMES.get(name, "{}")),
                (*known.lacks, "choices"),
                conversational=True,
            )
            for name, known in formats.FORMATS["prompts"].items()
        },
    },
}
