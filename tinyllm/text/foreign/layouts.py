"""Where a foreign chat template puts what: the text of a conversation, its control tokens, and the spans of its answers.

Control tokens: before compiling, each one that the template spells is replaced by a noncharacter of Unicode, which texts do not contain.
What these become in the rendered text was written by the template; any other control token there was written by a user.

Answers, by the first of these that applies to a template:

- `blocks`: its `{% generation %}` blocks.
- `prefixes`: an answer is what follows the text of the messages before it with the generation prompt. That text must be the beginning of
  the text with the answer, and this of the whole text; checked on every record.
- `markers`: for templates that write a turn differently once others follow (without its reasoning, say). The contents of answers are
  marked; without the marks the text must be the unmarked one. An answer begins where the generation prompt ends, if the text begins with
  it, otherwise at its mark.

Runs in the process of `worker`; `rendering` turns the result into tokens.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tinyllm.text.foreign.jinja_template import Template, TemplateFailedError

BLOCKS, PREFIXES, MARKERS = "blocks", "prefixes", "markers"
# Noncharacters, which Unicode reserves for uses like this one.
_NONCHARACTERS = [chr(c) for c in range(0xFDD0, 0xFDF0)]
_NONCHARACTERS += [chr(plane * 0x10000 + c) for plane in range(1, 17) for c in (0xFFFE, 0xFFFF)]
_OPEN, _CLOSE, *_CODES = _NONCHARACTERS
_MARKS = re.compile(f"[{_OPEN}{_CLOSE}]")
_IN_JSON = re.compile("|".join(re.escape(json.dumps(c)[1:-1]) for c in _NONCHARACTERS))
ROOM = 1 << 20  # characters that a template may add to those of a conversation
_GROWTH = 8  # times that it may repeat them

Messages = Sequence[Mapping[str, Any]]


class NoMaskError(Exception):
    """A conversation whose answers cannot be found in its text."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer in a text, in characters: from `start` to an end token in [after, limit).

    The end token is the last one there, or the first where `first`, because `limit` is beyond the next turn. `after_prompt`: a generation
    prompt ends at `start`. A generation block is [start, limit).
    """

    start: int
    after: int
    limit: int
    first: bool
    after_prompt: bool = True


@dataclass(frozen=True, slots=True)
class Layout:
    """A rendered conversation.

    `controls` is the number of control tokens that the template wrote, `forged` the spans of those that it did not write.
    """

    text: str
    controls: int
    forged: list[tuple[int, int]]
    answers: list[Answer]


class Layouts:
    """The layouts of one template.

    Args:
        names: special tokens by name, as in `jinja_template`.
        control: the texts of all control tokens.

    Raises:
        TemplateFailedError: it cannot be compiled, or renders no conversation.
    """

    def __init__(self, source: str, names: Mapping[str, str], control: Sequence[str]):
        self.plain = Template(source, names)
        self.control = _any_of(control)
        self._in_json = _any_of([json.dumps(token)[1:-1] for token in control])
        self.tokens: dict[str, str] = {}
        self.coded = self.plain
        self._all = frozenset(control)
        self.built: frozenset[str] = self._all
        """control tokens that the template puts together from parts"""
        self._encode_control_tokens(source, names, control)
        self.has_blocks = re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", source) is not None
        self.method = BLOCKS if self.has_blocks else ""

    def _encode_control_tokens(self, source: str, names: Mapping[str, str], control: Sequence[str]) -> None:
        """Compile the template with a noncharacter for each control token, unless this changes what it does."""
        spelled = [token for token in sorted(control, key=len, reverse=True) if token in source]
        spelled += [token for token in names.values() if token in control and token not in spelled]
        codes = dict(zip(spelled, _CODES, strict=False))
        if len(codes) < len(spelled) or any(c in source for c in _NONCHARACTERS):
            return
        for token, code in codes.items():
            source = source.replace(token, code)
        try:
            coded = Template(source, {name: codes.get(token, token) for name, token in names.items()})
        except TemplateFailedError:  # a control token that is spelled like a part of the program
            return
        self.coded, self.tokens, self.built = coded, {code: token for token, code in codes.items()}, frozenset()

    def give_up_codes(self) -> None:
        """Tell control tokens by their text only: the template does something else where they are encoded."""
        self.coded, self.tokens, self.built = self.plain, {}, self._all

    # --- rendering ---------------------------------------------------------------------------------------------------------------

    def layout(
        self, messages: Messages, tools: Sequence[Any] | None, given: str, *, prompt: bool, answers: bool
    ) -> Layout:
        """Return the layout of a conversation.

        Args:
            given: messages and tools as JSON in ASCII.
            prompt: end with the generation prompt.
            answers: find the answers.

        Raises:
            TemplateFailedError: the template refuses the conversation.
            NoMaskError: its answers cannot be found.
        """
        limit = ROOM + _GROWTH * len(given)
        if _IN_JSON.search(given):
            raise TemplateFailedError("a text has a noncharacter (U+FDD0 or another), which no text should have")
        whole = self.coded.render(messages, tools, generation_prompt=prompt, limit=limit)
        expanded = Expanded(whole.text, self.tokens)
        if self._in_json.search(given) and self.coded is not self.plain:
            plain = self.plain.render(messages, tools, generation_prompt=prompt, limit=limit)
            if plain.text != expanded.text:
                raise TemplateFailedError("the text of a message has a control token, and the template depends on it")
        forged = self._forged(expanded, given)
        found: list[Answer] = []
        if answers and self.method == BLOCKS:
            found = _of_blocks(expanded, whole.blocks, messages)
        elif answers:
            found = self.answers(messages, tools, expanded.text, limit)
        return Layout(expanded.text, len(list(self.control.finditer(expanded.text))) - len(forged), forged, found)

    def _forged(self, expanded: Expanded, given: str) -> list[tuple[int, int]]:
        """Return the spans of control tokens that the template did not write."""
        forged = []
        for found in self.control.finditer(expanded.text):
            if found.span() not in expanded.spans:
                if found[0] not in self.built:
                    forged.append(found.span())
                elif json.dumps(found[0])[1:-1] in given:
                    raise TemplateFailedError(
                        f"the text of a message has {found[0]!r}, a control token that the template puts together from parts"
                    )
        return forged

    # --- answers -----------------------------------------------------------------------------------------------------------------

    def _text(self, messages: Messages, tools: Sequence[Any] | None, limit: int, *, prompt: bool) -> str | None:
        """Return the text of the beginning of a conversation, which the template may refuse: then None."""
        try:
            found = self.coded.render(messages, tools, generation_prompt=prompt, limit=limit)
        except TemplateFailedError:
            return None
        return Expanded(found.text, self.tokens).text

    def answers(self, messages: Messages, tools: Sequence[Any] | None, whole: str, limit: int) -> list[Answer]:
        """Return the answers in the order of the assistant's messages, by `method` or, where that fails, by marks.

        Raises: NoMaskError.
        """
        numbers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not numbers:
            return []
        before = [self._text(messages[:i], tools, limit, prompt=True) for i in numbers]
        if self.method != MARKERS and all(text is not None and whole.startswith(text) for text in before):
            last = len(messages) - 1
            through = [
                whole if i == last else self._text(messages[: i + 1], tools, limit, prompt=False) for i in numbers
            ]
            pairs = [(b or "", t or "") for b, t in zip(before, through, strict=True)]
            if all(t.startswith(b) and t and whole.startswith(t) for b, t in pairs):
                return [Answer(len(b), len(b), len(t), first=False) for b, t in pairs]
        starts = {
            i: len(text) if text is not None and whole.startswith(text) else None
            for i, text in zip(numbers, before, strict=True)
        }
        return self._marked_answers(messages, tools, whole, starts, limit)

    def _marked_answers(
        self, messages: Messages, tools: Sequence[Any] | None, whole: str, starts: Mapping[int, int | None], limit: int
    ) -> list[Answer]:
        """Return the answers by marks around their contents, which begin at `starts` where this is known."""
        marked, expected = list(messages), {i: "" for i in starts}
        for i, start in starts.items():
            content = _marked(messages[i].get("content"), begin=start is None)
            if content is not None:
                marked[i], expected[i] = (
                    {**messages[i], "content": content},
                    _CLOSE if start is not None else _OPEN + _CLOSE,
                )
        text = self._text(marked, tools, limit + 2 * len(messages), prompt=False) or ""
        found = [(mark[0], mark.start() - number) for number, mark in enumerate(_MARKS.finditer(text))]
        if _MARKS.sub("", text) != whole or "".join(mark for mark, _ in found) != "".join(expected.values()):
            if None in starts.values():
                raise NoMaskError("the template changes, moves, repeats or leaves out the text of an answer")
            found, expected = [], {i: "" for i in starts}  # the beginnings are exact, and the next end token is the end
        places = iter(place for _, place in found)
        answers = []
        for i, start in starts.items():
            of_marks = [next(places) for _ in expected[i]]
            if start is None and not of_marks:
                raise NoMaskError("an answer without text, whose place in the template's text is not known")
            begin = of_marks[0] if start is None else start
            after = of_marks[-1] if of_marks else begin
            answers.append(Answer(begin, after, len(whole), first=True, after_prompt=start is not None))
        ends = [answer.start for answer in answers[1:]] + [len(whole)]
        if any(not a.start <= a.after <= end for a, end in zip(answers, ends, strict=True)):
            raise NoMaskError("the template moves the text of an answer")
        return [replace(answer, limit=end) for answer, end in zip(answers, ends, strict=True)]


def _of_blocks(expanded: Expanded, blocks: Sequence[tuple[int, int]], messages: Messages) -> list[Answer]:
    count = sum(message["role"] == "assistant" for message in messages)
    if len(blocks) != count:
        raise NoMaskError(f"the template marks {len(blocks)} answers, the conversation has {count}")
    places = [(expanded.place(start), expanded.place(end)) for start, end in blocks]
    return [Answer(start, end, end, first=False, after_prompt=False) for start, end in places]


class Expanded:
    """A rendered text with its control tokens in place of their codes."""

    def __init__(self, coded: str, tokens: Mapping[str, str]):
        self._places: list[int] = []  # of the codes, in the coded text
        self._shifts = [0]  # of what follows the first n codes
        self.spans: set[tuple[int, int]] = set()
        pieces, at = [], 0
        for found in re.finditer(f"[{''.join(tokens)}]", coded) if tokens else ():
            token, shift = tokens[found[0]], self._shifts[-1]
            pieces += [coded[at : found.start()], token]
            self._places.append(found.start())
            self.spans.add((found.start() + shift, found.start() + shift + len(token)))
            self._shifts.append(shift + len(token) - 1)
            at = found.end()
        self.text = "".join([*pieces, coded[at:]])

    def place(self, coded: int) -> int:
        """Return a place in the coded text as one in the text."""
        return coded + self._shifts[bisect_left(self._places, coded)]


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern for any of these texts, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


def _marked(content: Any, *, begin: bool) -> Any:
    """Return a content with marks around its text, inside the white space that a template may strip; None for one without text."""
    if isinstance(content, list):
        texts = [i for i, part in enumerate(content) if isinstance(part, dict) and isinstance(part.get("text"), str)]
        if len(texts) != 1:
            return None
        marked = _marked(content[texts[0]]["text"], begin=begin)
        return marked and [{**part, "text": marked} if i == texts[0] else part for i, part in enumerate(content)]
    if not isinstance(content, str) or not (core := content.strip()):
        return None
    at = content.index(core)
    return content[:at] + _OPEN * begin + core + _CLOSE + content[at + len(core) :]
