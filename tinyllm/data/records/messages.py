"""Messages in the notations in use: role and content, or from and value; content parts, tool calls, reasoning.

Tool calls become the assistant's text, one line of JSON each. Reasoning precedes the answer in <think>. A message of more than a text
is kept as the data has it beside that text, for chat templates that render it themselves. Answers that are excluded from training keep
the weight 0. Left out: images and sound, and weights other than 0 and 1; both are refused.
"""

from __future__ import annotations

import difflib
from typing import Any

from tinyllm.data.records.calls import CALLS, call_texts, listed_calls, results_are_out_of_order
from tinyllm.data.records.turns import Note, list_columns, text_of
from tinyllm.data.records.types import Row
from tinyllm.data.sources.errors import BadRow, preview
from tinyllm.text.chat import OTHER_NAMES, ROLES, Message, trimmed

ROLE_NAMES = {role: role for role in ROLES} | OTHER_NAMES
ROLE_NAMES |= {"developer": "system", "chatgpt": "assistant", "ai": "assistant", "ipython": "tool"}
ROLE_NAMES |= {"function_call": "assistant", "tool_call": "assistant"}
ROLE_NAMES |= {"function": "tool", "function_response": "tool", "tool_response": "tool"}
_REASONING = ("reasoning_content", "thinking", "reasoning")  # DeepSeek, Ollama, OpenRouter; vLLM writes two alike
_SWITCHES = (
    "weight",
    "train",
    "loss",
)  # OpenAI's and Mistral's, axolotl's, ms-swift's: whether an answer is trained on
_PARTLY = "train_detail"  # axolotl's: parts of an answer
_MEDIA_PARTS = ("image", "image_url", "audio", "input_audio", "video", "video_url", "file")
_KNOWN_KEYS = {"role", "content", "from", "value", *CALLS, *_REASONING, *_SWITCHES, _PARTLY}


def parse_messages(value: Any, path: str, note: Note) -> list[Message]:
    """Parse a list of messages with `role` and `content`, or `from` and `value`, under any known name of a role.

    Args:
        path: the column, for error messages.

    Raises: BadRow.
    """
    if not isinstance(value, list):
        raise BadRow("wrong type", f"{path}: expected a list of messages, found {preview(value)}")
    messages = [parse_message(turn, f"{path}[{i}]", note) for i, turn in enumerate(value)]
    if results_are_out_of_order(value):
        note("tool results in another order than their calls: the model is not shown tool_call_id")
    return messages


def parse_message(turn: Any, path: str, note: Note) -> Message:
    if not isinstance(turn, dict):
        raise BadRow("wrong type", f"{path}: expected an object with role and content, found {preview(turn)}")
    role_key, text_key = ("from", "value") if "from" in turn or "value" in turn else ("role", "content")
    calls = any(turn.get(key) for key in CALLS)
    for key in (role_key, text_key):
        if key not in turn and not (key == "content" and calls):
            raise BadRow("missing column", f"{path}: no {key!r}; found: {list_columns(turn)}")
    role = ROLE_NAMES.get(turn[role_key]) if isinstance(turn[role_key], str) else None
    if role is None:
        close = difflib.get_close_matches(str(turn[role_key])[:40].lower(), ROLE_NAMES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        what = f"{path}.{role_key}: expected one of {', '.join(ROLES)}, found {preview(turn[role_key])}{hint}"
        raise BadRow("unknown role", what)
    _note_other_keys(turn, note)
    message = Message(role=role, content=_content(turn, text_key, path, note))
    if not _is_trained(turn, role, path, note):
        message["weight"] = 0
    if source := _source(turn, role, text_key):
        message["source"] = (source,)
    return message


def _source(turn: Row, role: str, text_key: str) -> dict[str, Any] | None:
    """Return a message as the data has it, with our name of its role; None where role and content are all of it."""
    content = turn.get(text_key)
    left_out = {"role", "from", text_key, *CALLS, *_SWITCHES, _PARTLY}
    others = {key: value for key, value in turn.items() if value is not None and key not in left_out}
    calls = listed_calls(turn)
    if isinstance(content, str) and not others and not calls:
        return None
    said = {} if content is None else {"content": content}
    return {"role": role, **said, **others} | ({"tool_calls": calls} if calls else {})


def _is_trained(turn: Row, role: str, path: str, note: Note) -> bool:
    """Return False for an answer that is excluded from training. Raises: BadRow for any other weight than 0 and 1."""
    given = {key: turn[key] for key in _SWITCHES if turn.get(key) is not None}
    for key, value in given.items():
        is_switch = isinstance(value, bool) if key != "weight" else isinstance(value, int | float)
        if not is_switch or value not in (0, 1) or (key == "weight" and isinstance(value, bool)):
            allowed = "0 or 1" if key == "weight" else "true or false"
            raise BadRow(
                "turn with a weight", f"{path}.{key}: expected {allowed}, found {preview(value)}", f"write {allowed}"
            )
    if turn.get(_PARTLY):
        what = f"{path}.{_PARTLY}: parts of an answer cannot be excluded from training"
        raise BadRow("turn with a weight", what, f"remove {_PARTLY!r}, or exclude the whole answer by weight: 0")
    if role != "assistant" and any(given.values()):
        note(f"{' and '.join(given)} of turns other than answers left out: only answers are trained on")
    return role != "assistant" or all(given.values())


def _note_other_keys(turn: Row, note: Note) -> None:
    others = sorted(preview(key)[1:-1] for key, value in turn.items() if key not in _KNOWN_KEYS and value is not None)
    if others:
        note(f"keys of messages left out: {', '.join(others[:6])}")


def _content(turn: Row, key: str, path: str, note: Note) -> str:
    value = turn.get(key)
    if isinstance(value, list):
        value = "".join(_part(part, f"{path}.{key}[{i}]") for i, part in enumerate(value))
    calls = call_texts(turn, path, note)
    if value is None and calls:
        value = ""
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{path}.{key}: expected a text, found {preview(value)}")
    reasoning = [text_of(turn, key, f"{path}.") for key in _REASONING if turn.get(key)]
    if reasoning := list(dict.fromkeys(reasoning)):
        note("reasoning placed before its answer, in <think>")
        value = "".join(f"<think>\n{trimmed(text)}\n</think>\n\n" for text in reasoning) + value
    return "\n".join([*([value] if value else []), *calls])


def _part(part: Any, path: str) -> str:
    """Return the text of one part of a content that is a list, as in OpenAI's messages."""
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, dict) else part
        raise BadRow("not text only", f"{path}: expected a part of type 'text', found {preview(kind)}")
    for key in _MEDIA_PARTS:
        if part.get(key):
            raise BadRow("not text only", f"{path}.{key}: {preview(part[key])}; only text is supported")
    if "text" not in part:
        raise BadRow("missing column", f"{path}: no 'text'; found: {list_columns(part)}")
    return text_of(part, "text", f"{path}.")


def column_messages(row: Row, column: str, role: str, note: Note) -> list[Message]:
    """Return the messages of a column that is a text (of `role`), one message or a list of messages."""
    value = row[column]
    if isinstance(value, str):
        return [Message(role=role, content=value)]
    return [parse_message(value, column, note)] if isinstance(value, dict) else parse_messages(value, column, note)
