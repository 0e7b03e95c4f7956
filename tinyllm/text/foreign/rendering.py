"""Conversations in the words of a checkpoint's own chat template: the ids that transformers gives, and the loss mask.

`layouts` says how answers are found; the mask ends with the first token there that ends a turn. Control tokens that a user spelled are
encoded as text. A tool, a call or a reasoning that the template does not render is put into the text, as `data.records` does for our
own format; `line` says so.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinyllm.errors import UserError
from tinyllm.text.foreign.layouts import BLOCKS, MARKERS, PREFIXES
from tinyllm.text.foreign.process import TemplateProcess
from tinyllm.text.foreign.worker import FAILED, NO_MASK
from tinyllm.text.messages import Message, Rendered, is_trained, trimmed

if TYPE_CHECKING:
    from tinyllm.text.tokenizer import Tokenizer

_BATCH = 1024  # conversations whose texts are kept at once
_OURS = "--set chat.template=chatml"
_REASONING = ("reasoning_content", "thinking", "reasoning")
_METHODS = {
    BLOCKS: "its generation blocks",
    PREFIXES: "comparison with the text before them",
    MARKERS: "marks around them",
    "": "nothing: its answers cannot be found, so it cannot be trained with",
}


@dataclass(frozen=True)
class ChatFormat:
    """A chat template with a vocabulary."""

    process: TemplateProcess
    description: dict[str, Any]
    """see `trial.Description`"""
    end_of_turn: int | None
    """the control token that follows an answer; None where none does"""

    def line(self, *, trains: bool = True) -> str:
        """Return what is rendered as text and, for training, how answers are found, for a person."""
        names = {"tools": "tools", "calls": "tool calls", "reasoning": "reasoning"}
        as_text = [name for key, name in names.items() if not self.description[key]]
        parts = [f"answers are found by {_METHODS[self.description['method']]}"] if trains else []
        parts += [f"it has no form for {', '.join(as_text)}: they become text"] if as_text else []
        return "; ".join(parts)


_formats: dict[tuple[str, str], ChatFormat] = {}


def chat_format(tokenizer: Tokenizer) -> ChatFormat:
    """Return the format of a vocabulary with a foreign template. It is made once.

    Raises: UserError for a template that cannot be used.
    """
    template = tokenizer.chat_template
    assert template is not None
    key = (template, tokenizer.sha256)
    found = _formats.get(key)
    if found is None or not found.process.usable:
        found = _formats[key] = _made(tokenizer, template)
    return found


def _made(tokenizer: Tokenizer, template: str) -> ChatFormat:
    ids = {
        "bos_token": tokenizer.bos,
        "eos_token": tokenizer.eos,
        "pad_token": tokenizer.pad,
        "unk_token": tokenizer.unk,
    }
    text_of = {i: tokenizer.decode([i], skip_special=False) for i in tokenizer.special_ids}
    names = {
        name: text_of.get(i) or tokenizer.decode([i], skip_special=False) for name, i in ids.items() if i is not None
    }
    process = TemplateProcess(template, names, [text for text in text_of.values() if text])
    description = process.description
    tokens, offsets = tokenizer.encode_template([(description["sample"]["text"], False)])
    after = (i for i, (start, _) in zip(tokens, offsets, strict=True) if start >= description["end"])
    return ChatFormat(process, description, next((i for i in after if i in tokenizer.special_ids), None))


def render_many(
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    *,
    generation_prompt: bool = False,
    name: str = "conversation",
    first: int = 1,
) -> list[Rendered]:
    """Return ids and mask of each conversation; see `chat.render_many`.

    A generation prompt is for the model: then nothing is in the mask.

    Raises: UserError.
    """
    form, found = chat_format(tokenizer), []
    for start in range(0, len(conversations), _BATCH):
        part = conversations[start : start + _BATCH]
        places = [f"{name} {first + start + i:,}" for i in range(len(part))]
        found += _rendered(tokenizer, form, part, places, generation_prompt)
    return found


def _rendered(
    tokenizer: Tokenizer,
    form: ChatFormat,
    conversations: Sequence[Sequence[Message]],
    places: Sequence[str],
    generation_prompt: bool,
) -> list[Rendered]:
    whole = _layouts(form, conversations, places, prompt=generation_prompt, answers=not generation_prompt)
    encoded = _encoded(tokenizer, whole, places)
    if generation_prompt:
        return [Rendered(ids, [False] * len(ids)) for ids, _ in encoded]
    found = []
    for messages, layout, (ids, offsets), place in zip(conversations, whole, encoded, places, strict=True):
        ids, offsets = _split_at_answers(tokenizer, layout, ids, offsets)
        mask = [False] * len(ids)
        ends = {form.end_of_turn, *tokenizer.stop_ids}
        for answer, trained in zip(layout["answers"], _trained(form, messages), strict=True):
            if trained:
                start, stop = _tokens_of(answer, ids, offsets, ends, place)
                mask[start:stop] = [True] * (stop - start)
        found.append(Rendered(ids, mask))
    return found


def completion_ids(
    tokenizer: Tokenizer, prompt: Sequence[Message], completion: Message, *, name: str = "conversation", number: int = 1
) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt up to the beginning of the answer, and of the answer with its end token; see `chat.completion_ids`."""
    form, places = chat_format(tokenizer), [f"{name} {number:,}"]
    (layout,) = _layouts(form, [[*prompt, completion]], places, prompt=False, answers=True)
    ((ids, offsets),) = _encoded(tokenizer, [layout], places)
    ids, offsets = _split_at_answers(tokenizer, layout, ids, offsets)
    ends = {form.end_of_turn, *tokenizer.stop_ids}
    start, stop = _tokens_of(layout["answers"][-1], ids, offsets, ends, places[0])
    return ids[:start], ids[start:stop]


# --- messages as the template gets them --------------------------------------------------------------------------------------------


def _trained(form: ChatFormat, messages: Sequence[Message]) -> list[bool]:
    """Return for each answer that the template gets whether it is trained on."""
    return [is_trained(m) for m in messages for source in _sources(form, m) if source["role"] == "assistant"]


def _request(form: ChatFormat, messages: Sequence[Message], *, prompt: bool, answers: bool) -> dict[str, Any]:
    tools = messages[0].get("tools") if messages and form.description["tools"] else None
    sources = [source for message in messages for source in _sources(form, message)]
    return {"messages": sources, "tools": tools, "prompt": prompt, "answers": answers}


def _sources(form: ChatFormat, message: Message) -> tuple[dict[str, Any], ...]:
    """Return the messages that the template gets for a message: with the structure that it renders, and the rest as text."""
    renders, as_text = form.description, {"role": message["role"], "content": message["content"]}
    if "source" not in message or (message.get("tools") and not renders["tools"]):
        return (as_text,)
    sources = message["source"]
    if any(source.get("tool_calls") for source in sources) and not renders["calls"]:
        return (as_text,)
    return tuple(_rendered_source(source, renders) for source in sources)


def _rendered_source(source: dict[str, Any], renders: dict[str, Any]) -> dict[str, Any]:
    """Return a message with its reasoning, and the parts of its content, as text where the template does not render them."""
    content = source.get("content")
    if isinstance(content, list) and not renders["parts"]:
        content = "".join(part["text"] for part in content)
    found = source | ({"content": content} if "content" in source else {})
    if source.get("tool_calls") and not renders["arguments_as_text"]:
        found["tool_calls"] = [call | {"function": _with_object(call["function"])} for call in source["tool_calls"]]
    if not renders["reasoning"] and (thoughts := dict.fromkeys(source[key] for key in _REASONING if source.get(key))):
        text = "".join(f"<think>\n{trimmed(thought)}\n</think>\n\n" for thought in thoughts)
        found = {key: value for key, value in found.items() if key not in _REASONING}
        found["content"] = text + (content if isinstance(content, str) else "")
    return found


def _with_object(function: dict[str, Any]) -> dict[str, Any]:
    """Return the function of a call with its arguments as an object, where they are one in JSON."""
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return function
    try:
        found = json.loads(arguments)
    except ValueError:
        return function
    return function | {"arguments": found} if isinstance(found, dict) else function


# --- layouts and tokens ------------------------------------------------------------------------------------------------------------


def _layouts(
    form: ChatFormat, conversations: Sequence[Sequence[Message]], places: Sequence[str], *, prompt: bool, answers: bool
) -> list[dict[str, Any]]:
    """Return the layout of each conversation. Raises: UserError for the first one that the template refuses."""
    if answers and not form.description["method"]:
        what = "the chat template does not tell the answers from the rest of its text, so there is no loss mask"
        raise UserError(what, where="chat.template", fix=f"train with this program's template: {_OURS}")
    requests = (_request(form, messages, prompt=prompt, answers=answers) for messages in conversations)
    found = []
    for place, messages, layout in zip(places, conversations, form.process.layouts(requests), strict=True):
        if reason := layout.get(FAILED):
            what = f"the chat template refuses a conversation ({_opening(messages)}): {reason}"
            raise UserError(what, where=place, fix=f"change it, or use this program's template: {_OURS}")
        if reason := layout.get(NO_MASK):
            what = f"no loss mask for a conversation ({_opening(messages)}): {reason}"
            raise UserError(what, where=place, fix=f"change it, or use this program's template: {_OURS}")
        found.append(layout)
    return found


def _opening(messages: Sequence[Message]) -> str:
    """Return the beginning of a conversation's first user turn, by which a person finds it."""
    text = next((m["content"] for m in messages if m["role"] == "user"), "")
    first = " ".join(text.split())
    return repr(first if len(first) <= 60 else f"{first[:59]}…")


def _encoded(
    tokenizer: Tokenizer, layouts: Sequence[dict[str, Any]], places: Sequence[str]
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    found = tokenizer.encode_templates([_segments(layout["text"], layout["forged"]) for layout in layouts])
    for (ids, _), layout, place in zip(found, layouts, places, strict=True):
        if sum(i in tokenizer.special_ids for i in ids) > layout["controls"]:
            what = "the text of a message becomes a control token by the tokenizer's normalization"
            raise UserError(what, where=place, fix="remove it from the text")
    return found


def _segments(text: str, forged: Iterable[Sequence[int]]) -> list[tuple[str, bool]]:
    """Return a text in parts, each with True where it is a control token that the template did not write."""
    parts, at = [], 0
    for start, stop in forged:
        parts += [(text[at:start], False), (text[start:stop], True)]
        at = stop
    return [*parts, (text[at:], False)]


def _split_at_answers(
    tokenizer: Tokenizer, layout: dict[str, Any], ids: list[int], offsets: list[tuple[int, int]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return ids and offsets in which no token reaches across the beginning of an answer, since in a prompt none does."""
    crossed = []
    for answer in layout["answers"]:
        start = answer["start"]
        at = bisect_left(offsets, (start, 0))
        if answer["after_prompt"] and at and offsets[at - 1][0] < start < offsets[at - 1][1]:
            crossed.append(start)
    if not crossed or tokenizer.leading_space:  # which would put a space in front of each part
        return ids, offsets
    found_ids, found_offsets = [], []
    for start, stop in zip([0, *crossed], [*crossed, len(layout["text"])], strict=True):
        forged = [(a - start, b - start) for a, b in layout["forged"] if start <= a and b <= stop]
        part, places = tokenizer.encode_template(_segments(layout["text"][start:stop], forged))
        found_ids += part
        found_offsets += [(a + start, b + start) for a, b in places]
    return found_ids, found_offsets


def _tokens_of(
    answer: dict[str, Any], ids: Sequence[int], offsets: Sequence[tuple[int, int]], ends: set[int | None], place: str
) -> tuple[int, int]:
    """Return the range of an answer's tokens, the one that ends its turn included."""
    start, stop = bisect_left(offsets, (answer["start"], 0)), bisect_left(offsets, (answer["limit"], 0))
    if not answer["after_prompt"] and start and offsets[start - 1][1] > answer["start"]:
        start -= 1  # a token with a space in front
    if answer["after"] == answer["limit"] and not answer["first"]:  # a generation block
        return start, stop
    candidates = range(bisect_left(offsets, (answer["after"], 0)), stop)
    in_order = candidates if answer["first"] else reversed(candidates)
    found = next((i for i in in_order if ids[i] in ends), None)
    if found is None:
        what = "no token ends an answer: the model would never learn to stop"
        raise UserError(what, where=place, fix=f"use this program's template: {_OURS}")
    return start, found + 1


def close_all() -> None:
    """End the processes of all templates."""
    for form in _formats.values():
        form.process.close()
    _formats.clear()
