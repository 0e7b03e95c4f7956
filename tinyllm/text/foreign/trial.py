"""What a foreign chat template renders, found by rendering samples with it once, before it is used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tinyllm.text.foreign.jinja_template import TemplateFailedError
from tinyllm.text.foreign.layouts import MARKERS, PREFIXES, ROOM, Expanded, Layouts, Messages, NoMaskError

_Message = dict[str, Any]
_USER, _SAID, _MORE = "Question7?", "Answer7.", "Reply7."
_ARGUMENTS = '{ "place7":"value7" }'
_CALL = {"id": "call00007", "type": "function", "function": {"name": "name7", "arguments": {"place7": "value7"}}}
_PARAMETERS = {"type": "object", "properties": {"place7": {"type": "string", "description": "d7"}}, "required": []}
_TOOL = {"type": "function", "function": {"name": "name7", "description": "says7", "parameters": _PARAMETERS}}
_ASKED: _Message = {"role": "user", "content": _USER}
_ANSWERED: _Message = {"role": "assistant", "content": _SAID}
_CALLED: _Message = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
_RESULT: _Message = {"role": "tool", "name": "name7", "tool_call_id": "call00007", "content": "result7"}
_SYSTEM: _Message = {"role": "system", "content": "System7."}
_WITH_CALL: list[_Message] = [_ASKED, _CALLED, _RESULT, _ANSWERED]


@dataclass(frozen=True)
class Description:
    """What a template renders, found by rendering samples. `sample` is one exchange, `end` the end of the answer's content in it."""

    method: str
    system: bool
    tools: bool
    calls: bool
    arguments_as_text: bool
    """of a call that has its arguments as JSON in a text, which others would quote once more"""
    reasoning: bool
    parts: bool
    variables: list[str]
    """that it reads and its caller may set"""
    sample: dict[str, Any]
    end: int


def describe(layouts: Layouts) -> Description:
    """Render samples, choose the method that finds answers, and return what the template renders.

    Raises: TemplateFailedError where it does not render one exchange.
    """
    one, two = [_ASKED, _ANSWERED], [_ASKED, _ANSWERED, _ASKED, {"role": "assistant", "content": _MORE}]
    first = layouts.plain.render(one, None, generation_prompt=False, limit=ROOM).text
    _check_codes(layouts, [([_SYSTEM, *one], None), (two, None), (_WITH_CALL, [_TOOL])])
    if not layouts.has_blocks:
        layouts.method = _method(layouts, [one, two])

    def text(messages: Messages, tools: Sequence[Any] | None = None, *, prompt: bool = False) -> str:
        try:
            return layouts.plain.render(messages, tools, generation_prompt=prompt, limit=ROOM).text
        except TemplateFailedError:
            return ""

    parts: _Message = {"role": "user", "content": [{"type": "text", "text": _USER}]}
    thought = {**_ANSWERED, "reasoning_content": "Thought7."}
    with_call = text(_WITH_CALL, [_TOOL])
    as_text: _Message = {"name": "name7", "arguments": _ARGUMENTS}
    call: _Message = {**_CALLED, "tool_calls": [{**_CALL, "function": as_text}]}
    return Description(
        method=layouts.method,
        system=_SYSTEM["content"] in text([_SYSTEM, _ASKED], prompt=True),
        tools=all(word in text(one, [_TOOL]) for word in ("name7", "place7")),
        calls=all(word in with_call for word in ("name7", "value7", "result7")),
        arguments_as_text=_ARGUMENTS in text([_ASKED, call, _RESULT, _ANSWERED], [_TOOL]),
        reasoning="Thought7." in text([_ASKED, thought]),
        parts=text([parts, _ANSWERED]) == first,
        variables=layouts.plain.variables(),
        sample=asdict(layouts.layout(one, None, json.dumps(one), prompt=False, answers=False)),
        end=first.rfind(_SAID) + len(_SAID) if _SAID in first else len(first),
    )


def _check_codes(layouts: Layouts, samples: Sequence[tuple[Messages, list[Any] | None]]) -> None:
    """Give up the codes where the template does something else with them, and note the control tokens that it puts together."""
    for messages, tools in samples:
        for prompt in (False, True):
            try:
                plain = layouts.plain.render(messages, tools, generation_prompt=prompt, limit=ROOM).text
            except TemplateFailedError:
                continue
            try:
                coded = layouts.coded.render(messages, tools, generation_prompt=prompt, limit=ROOM).text
            except TemplateFailedError:
                coded = ""
            expanded = Expanded(coded, layouts.tokens)
            if expanded.text != plain:
                layouts.give_up_codes()
                return
            found = {m[0] for m in layouts.control.finditer(expanded.text) if m.span() not in expanded.spans}
            layouts.built |= found


def _method(layouts: Layouts, samples: Sequence[Messages]) -> str:
    """Return the first method that finds the answers of all samples that the template renders; empty if there is none."""
    for method in (PREFIXES, MARKERS):
        layouts.method, found = method, 0
        for messages in samples:
            try:
                whole = layouts.plain.render(messages, None, generation_prompt=False, limit=ROOM).text
            except TemplateFailedError:
                continue
            try:
                answers = layouts.answers(messages, None, whole, ROOM)
            except NoMaskError:
                break
            if method == PREFIXES and any(answer.first for answer in answers):  # it fell back to markers
                break
            found += 1
        else:
            if found:
                return method
    return ""
