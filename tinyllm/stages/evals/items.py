"""Rows of benchmark files as items: choices to tell apart and questions to answer. Light to import: no torch.

Formats are those of the public files: BLiMP's pairs, MMLU's choices, BBH's input and target, GSM8K's question and answer, and every
format of prompts and preference pairs that the other stages read. `FORMATS` is the whole list; a format is chosen once per file, from
its first row. Left out: few-shot examples (a small model gains little, and every example makes rows longer).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Literal

from tinyllm.data import formats
from tinyllm.data.convert import choices_of, lettered, right_choice
from tinyllm.data.files import BadRow, shown
from tinyllm.data.records import Pair, Prompt
from tinyllm.data.turns import listed, text_of
from tinyllm.text.chat import Message

Style = Literal["text", "letters"]
Turns = tuple[Message, ...]


@dataclass(frozen=True)
class Choice:
    """Texts of which one is right."""

    context: str
    """what stands before each of them; empty where whole texts are compared"""
    choices: tuple[str, ...]
    right: int
    turns: Turns = ()
    """the context as a conversation; none where there is no context"""
    place: str = ""
    """file and line"""


@dataclass(frozen=True)
class Question:
    """Something to answer."""

    text: str
    """as plain text, to be continued"""
    turns: Turns
    columns: Mapping[str, Any]
    """`answer`, and whatever else a rule reads"""
    place: str = ""


Item = Choice | Question
Convert = Callable[[dict[str, Any], Style], list[Item]]


@dataclass(frozen=True)
class Format:
    """Rows with the columns `needs`, and without `lacks`, become items by `convert(row, style)`."""

    needs: tuple[str, ...]
    convert: Convert
    lacks: tuple[str, ...] = ()
    says: tuple[str, str] = ("", "")
    """a column, and what must stand in its text"""
    talk: bool = False
    """conversations, not a benchmark's text: a chat model reads them through its template"""

    def fits(self, row: Mapping[str, Any]) -> bool:
        column, words = self.says
        if any(name not in row for name in self.needs) or any(name in row for name in self.lacks):
            return False
        return not words or words in str(row[column])


def _user(text: str) -> Turns:
    return (Message(role="user", content=text),)


def plain(turns: Turns) -> str:
    """A conversation as the text a base model continues."""
    return "\n".join(turn["content"] for turn in turns)


# --- choices ---------------------------------------------------------------------------------------------------------------------


def _sentences(row: dict[str, Any], style: Style) -> list[Item]:
    """BLiMP (arXiv 1912.00582): the acceptable sentence should be the more probable one."""
    return [Choice("", (_said(row, "sentence_good"), _said(row, "sentence_bad")), 0)]


def _multiple_choice(row: dict[str, Any], style: Style) -> list[Item]:
    """MMLU (arXiv 2009.03300). `text` compares the choices themselves (lm-eval's mmlu_continuation), `letters` lists them in the
    question and compares A, B, C … (lm-eval's mmlu)."""
    question, choices, right = _said(row, "question").strip(), choices_of(row), right_choice(row)
    if style == "letters":
        letters = tuple(ascii_uppercase[: len(choices)])
        asked = f"{question}\n{lettered(choices)}"
        return [Choice(f"{asked}\nAnswer:", letters, right, _user(asked))]
    return [Choice(f"Question: {question}\nAnswer:", tuple(choices), right, _user(question))]


_OPTIONS = "Options:"
_LETTERED = re.compile(r"^\s*(\([A-Z]\))", re.MULTILINE)
_DASHED = re.compile(r"^\s*-\s*(.+?)\s*$", re.MULTILINE)


def _options(row: dict[str, Any], style: Style) -> list[Item]:
    """BBH (arXiv 2210.09261): the options stand in the input; what is compared is what stands for them, "(A)" or "Yes"."""
    text, target = _said(row, "input"), _said(row, "target").strip()
    _, marker, listing = text.rpartition(_OPTIONS)
    options = _LETTERED.findall(listing) or _DASHED.findall(listing) if marker else []
    if not options:
        what = "no options in the input, so there is nothing to choose from"
        raise BadRow("no options", what, "score what is written instead: --task exact_match")
    if target not in options:
        raise BadRow("wrong answer", f"target: {shown(target)} is none of the options {', '.join(options)}")
    return [Choice(f"Q: {text}\nA:", tuple(options), options.index(target), _user(text))]


def _preference(convert: Callable[..., list[Any]]) -> Convert:
    """Of two answers, the chosen one should be the more probable."""

    def each(row: dict[str, Any], style: Style) -> list[Item]:
        pairs = [pair for pair in convert(row, _quiet) if isinstance(pair, Pair)]
        sides = [(p.prompt, (p.chosen[0]["content"], p.rejected[0]["content"])) for p in pairs]
        return [Choice(plain(prompt), answers, 0, prompt) for prompt, answers in sides]

    return each


# --- questions -------------------------------------------------------------------------------------------------------------------


def _input_target(row: dict[str, Any], style: Style) -> list[Item]:
    text = _said(row, "input")
    columns = {key: value for key, value in row.items() if key not in ("input", "target")}
    return [Question(f"Q: {text}\nA:", _user(text), columns | {"answer": _said(row, "target")})]


def _prompt(convert: Callable[..., list[Any]], frame: str) -> Convert:
    def each(row: dict[str, Any], style: Style) -> list[Item]:
        prompts = [prompt for prompt in convert(row, _quiet) if isinstance(prompt, Prompt)]
        return [Question(frame.format(plain(p.messages)), p.messages, _answered(p.columns)) for p in prompts]

    return each


def _answered(columns: dict[str, Any]) -> dict[str, Any]:
    if "answer" not in columns:
        what = f"no 'answer' to compare with; beside the prompt there is: {listed(columns)}"
        raise BadRow("missing column", what, "name the column: --set data.field.answer=COLUMN")
    answer = columns["answer"]
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        raise BadRow("wrong type", f"answer: a text or a number was expected, found {shown(answer)}")
    return columns | {"answer": str(answer)}


def _said(row: dict[str, Any], column: str) -> str:
    text = text_of(row, column)
    if not text.strip():
        raise BadRow("empty text", f"{column} is empty")
    return text


def _quiet(note: str) -> None:
    """What a converter mends (turns joined, a system turn moved) does not matter to a score."""


_FRAMES = {"question": "Question: {}\nAnswer:"}  # lm-eval's for GSM8K; a prompt stands as it is

# The first that fits is taken, so the more particular stand first.
FORMATS: dict[str, dict[str, Format]] = {
    "choices": {
        "blimp": Format(("sentence_good", "sentence_bad"), _sentences),
        "mmlu": Format(("question", "choices", "answer"), _multiple_choice),
        "bbh": Format(("input", "target"), _options, ("instruction",), says=("input", _OPTIONS)),
        **{
            name: Format(known.needs, _preference(known.convert), known.lacks, talk=True)
            for name, known in formats.FORMATS["pairs"].items()
        },
    },
    "questions": {
        "bbh": Format(("input", "target"), _input_target, ("instruction",), talk=True),
        **{
            name: Format(
                known.needs,
                _prompt(known.convert, _FRAMES.get(name, "{}")),
                (*known.lacks, "choices"),
                talk=True,
            )
            for name, known in formats.FORMATS["prompts"].items()
        },
    },
}
