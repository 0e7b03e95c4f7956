"""All record formats: the records they give, repairs, dropped rows, and the messages of refused ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import malformed
from tinyllm.data.records.formats import COLUMN_ALIASES, FORMATS, KIND_ALIASES, KINDS
from tinyllm.data.records.reader import Reader, read_records
from tinyllm.data.records.types import Pair, Prompt
from tinyllm.data.sources.encodings import ENCODINGS
from tinyllm.errors import UserError
from tinyllm.text.chat import validate_messages


def reader(tmp_path: Path, kind: str, *rows: Any, **options: Any) -> Reader:
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_records([file], kind, **options)


def turns(*texts: str) -> list[dict[str, str]]:
    """Return messages; `u:hi` is a user turn."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": roles[text[0]], "content": text[2:]} for text in texts]


def sharegpt(*texts: str) -> list[dict[str, str]]:
    names = {"s": "system", "u": "human", "a": "gpt", "t": "observation", "f": "function_call"}
    return [{"from": names[text[0]], "value": text[2:]} for text in texts]


CONVERSATIONS = [
    ({"messages": turns("s:be kind", "u:hi", "a:yes")}, ["s:be kind", "u:hi", "a:yes"]),
    ({"messages": sharegpt("u:hi", "a:yes")}, ["u:hi", "a:yes"]),
    ({"conversations": turns("u:hi", "a:yes")}, ["u:hi", "a:yes"]),
    ({"conversations": sharegpt("u:q", "f:{}", "t:4", "a:four")}, ["u:q", "a:{}", "t:4", "a:four"]),
    ({"conversations": sharegpt("u:q", "f:{}", "t:", "a:x")}, ["u:q", "a:{}", "t:", "a:x"]),  # a tool turn may be empty
    ({"conversations": sharegpt("u:q", "f:{}", "t:1", "t:2", "a:x")}, ["u:q", "a:{}", "t:1", "t:2", "a:x"]),
    ({"conversations": sharegpt("u:q", "a:x"), "tools": "[1]"}, ["s:Tools:\n[1]", "u:q", "a:x"]),
    ({"prompt": "q", "completion": "x", "system": "be kind"}, ["s:be kind", "u:q", "a:x"]),
    ({"prompt": turns("u:q"), "completion": turns("a:x")}, ["u:q", "a:x"]),
    ({"instruction": "add", "input": "1 2", "output": "3"}, ["u:add\n\n1 2", "a:3"]),
    (
        {"instruction": "go", "output": "3", "history": [["q", "r"]], "system": "s"},
        ["s:s", "u:q", "a:r", "u:go", "a:3"],
    ),
    ({"instruction": "go", "instances": [{"input": "", "output": "3"}]}, ["u:go", "a:3"]),
    ({"question": "1+1?", "answer": "2\n#### 2"}, ["u:1+1?", "a:2\n#### 2"]),
    ({"messages": [*turns("u:q"), {"role": "assistant", "content": [{"type": "text", "text": "x"}]}]}, ["u:q", "a:x"]),
    (
        {
            "messages": [
                *turns("u:q"),
                {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
            ]
        },
        ["u:q", 'a:{"name": "f"}'],
    ),
    (  # OpenAI: arguments are JSON in a text; also the older form, a text beside the call, arguments that are not JSON
        {
            "messages": [
                *turns("u:q"),
                {
                    "role": "assistant",
                    "content": "wait",
                    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a":1}'}}],
                },
                {"role": "tool", "tool_call_id": "1", "content": "4"},
                {"role": "assistant", "content": None, "function_call": {"name": "g", "arguments": "a=1"}},
                {"role": "function", "name": "g", "content": ""},
                *turns("a:x"),
            ]
        },
        [
            "u:q",
            'a:wait\n{"name": "f", "arguments": {"a":1}}',
            "t:4",
            'a:{"name": "g", "arguments": "a=1"}',
            "t:",
            "a:x",
        ],
    ),
    (  # two calls in one turn
        {
            "messages": [
                *turns("u:q"),
                {"role": "assistant", "tool_calls": [{"name": "f", "arguments": None}, {"name": "g"}]},
            ]
        },
        ["u:q", 'a:{"name": "f"}\n{"name": "g"}'],
    ),
    (
        {"messages": [*turns("u:q"), {"role": "assistant", "content": "x", "reasoning_content": "so\n"}]},
        ["u:q", "a:<think>\nso\n</think>\n\nx"],
    ),
    (  # parquet has null for missing keys
        {
            "messages": [{"role": "user", "content": "q", "tool_calls": None, "weight": None}, *turns("a:x")],
            "images": None,
        },
        ["u:q", "a:x"],
    ),
    ({"messages": [*turns("u:q"), {"role": "assistant", "content": "x", "weight": 1, "train": True}]}, ["u:q", "a:x"]),
    ({"question": "q?", "choices": ["x", "y"], "answer": 1}, ["u:q?\nA. x\nB. y", "a:B"]),
    ({"question": "q?", "choices": ["x", "y"], "answer": "a"}, ["u:q?\nA. x\nB. y", "a:A"]),
    ({"input": "not True is", "target": "False"}, ["u:not True is", "a:False"]),
    *(
        ({"messages": [{"role": "user", "content": "q"}, {"role": role, "content": "x"}]}, ["u:q", "a:x"])
        for role in ("gpt", "bot", "model", "chatgpt", "ai", "function_call", "tool_call")
    ),
    *(
        ({"messages": [*turns("u:q"), {"role": role, "content": "4"}, *turns("a:x")]}, ["u:q", "t:4", "a:x"])
        for role in ("tool", "observation", "function", "function_response", "tool_response", "ipython")
    ),
    ({"messages": [{"role": "developer", "content": "s"}, *turns("u:q", "a:x")]}, ["s:s", "u:q", "a:x"]),
]


@pytest.mark.parametrize(("row", "expected"), CONVERSATIONS)
def test_conversation_formats(tmp_path: Path, row: dict, expected: list[str]) -> None:
    (found,) = reader(tmp_path, "conversations", row)
    # A message that is more than a text is kept beside it, for other templates; see tests/data/test_structure.py.
    assert [{k: v for k, v in m.items() if k not in ("source", "tools")} for m in found.messages] == turns(*expected)
    validate_messages(list(found.messages), "", require_assistant=True)


REPAIRED = [
    (["a:hello", "u:q", "a:x"], ["u:q", "a:x"], "assistant turns before the first user turn left out"),
    (["s:s", "a:hello", "u:q", "a:x"], ["s:s", "u:q", "a:x"], "assistant turns before the first user turn left out"),
    (["u:q", "a:x", "u:more"], ["u:q", "a:x"], "turns after the last answer left out"),
    (["u:q", "u:r", "a:x", "a:y"], ["u:q\n\nr", "a:x\n\ny"], "consecutive turns of one role joined"),
    (["u:q", "a:x", "u: ", "a:y"], ["u:q", "a:x"], "turns from the first empty turn on left out"),
    (["u:q", "a:x", "u:r", "a:"], ["u:q", "a:x"], "turns from the first empty turn on left out"),
]


@pytest.mark.parametrize(("texts", "kept", "what"), REPAIRED)
def test_irregular_conversations_are_repaired_and_counted(
    tmp_path: Path, texts: list[str], kept: list[str], what: str
) -> None:
    odd = reader(
        tmp_path, "conversations", {"conversations": sharegpt("u:1", "a:2")}, {"conversations": sharegpt(*texts)}
    )
    assert list(list(odd)[1].messages) == turns(*kept)
    ((reason, tally),) = odd.report.repaired.items()
    assert reason.startswith(what)
    assert tally.count == 1
    assert tally.locations == [f"{tmp_path / 'x.jsonl'}:2"]


PAIRS = [
    ({"prompt": "q", "chosen": "good", "rejected": "bad", "margin": 2}, ["u:q"], 2.0),
    ({"prompt": turns("s:s", "u:q"), "chosen": turns("a:good"), "rejected": turns("a:bad")}, ["s:s", "u:q"], None),
    ({"prompt": "q", "chosen": turns("u:q", "a:good"), "rejected": turns("u:q", "a:bad")}, ["u:q"], None),
    ({"chosen": turns("u:q", "a:good"), "rejected": turns("u:q", "a:bad")}, ["u:q"], None),
    ({"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}, ["u:q"], None),
    (
        {
            "conversations": sharegpt("s:s", "u:q", "a:r", "u:t"),
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        ["s:s", "u:q", "a:r", "u:t"],
        None,
    ),
    ({"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}, ["u:q"], None),
    ({"question": "q", "answer_matching_behavior": " good", "answer_not_matching_behavior": " bad"}, ["u:q"], None),
    (  # both answers repeat the prompt after a system turn
        {"prompt": "q", "chosen": turns("s:s", "u:q", "a:good"), "rejected": turns("s:s", "u:q", "a:bad")},
        ["s:s", "u:q"],
        None,
    ),
    (
        {"prompt": "q", "system": "s", "tools": [1], "chosen": "good", "rejected": "bad"},
        ["s:s\n\nTools:\n[1]", "u:q"],
        None,
    ),
    ({"instruction": "q", "history": [["a", "b"]], "chosen": "good", "rejected": "bad"}, ["u:a", "a:b", "u:q"], None),
]


def test_a_list_of_rejected_answers_is_a_pair_for_each(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "good", "rejected": ["bad", " ", "good", "worse"], "margin": 1}
    data = reader(tmp_path, "pairs", row)
    assert [(p.chosen[0]["content"], p.rejected[0]["content"], p.margin) for p in data] == [
        ("good", "bad", 1.0),
        ("good", "worse", 1.0),
    ]
    assert {what: tally.count for what, tally in data.report.repaired.items()} == {
        "a rejected answer left out: empty answer": 1,
        "a rejected answer left out: chosen equals rejected": 1,
    }
    unpaired = list(reader(tmp_path, "unpaired", row))
    assert [u.good for u in unpaired] == [True, False, True, False]


def test_answers_of_several_turns_keep_the_first_with_a_note(tmp_path: Path) -> None:
    data = reader(
        tmp_path, "pairs", {"chosen": turns("u:q", "a:1", "u:r", "a:2"), "rejected": turns("u:q", "a:3", "u:r", "a:4")}
    )
    (pair,) = data
    assert (list(pair.chosen), list(pair.rejected)) == (turns("a:1"), turns("a:3"))
    assert list(data.report.repaired) == ["turns after the first answer left out"]


@pytest.mark.parametrize(("row", "prompt", "margin"), PAIRS)
def test_pair_formats(tmp_path: Path, row: dict, prompt: list[str], margin: float | None) -> None:
    (found,) = reader(tmp_path, "pairs", row)
    assert found == Pair(tuple(turns(*prompt)), tuple(turns("a:good")), tuple(turns("a:bad")), margin)


PROMPTS = [
    ({"prompt": "q", "answer": 4, "meta": {"a": 1}}, ["u:q"], {"answer": 4, "meta": {"a": 1}}),
    ({"question": "q", "answer": "x\n#### 4"}, ["u:q"], {"answer": "4", "solution": "x\n#### 4"}),
    ({"prompt": turns("s:s", "u:q"), "answer": "4"}, ["s:s", "u:q"], {"answer": "4"}),
    ({"prompt": "q", "completion": "4"}, ["u:q"], {"answer": "4", "completion": "4"}),
    ({"messages": turns("s:s", "u:q", "a:4", "u:r", "a:5"), "id": 7}, ["s:s", "u:q"], {"answer": "4", "id": 7}),
    ({"messages": turns("u:q", "a:so it is 4"), "answer": "4"}, ["u:q"], {"answer": "4"}),  # the column has precedence
    ({"instruction": "q", "input": "i", "output": "4"}, ["u:q\n\ni"], {"answer": "4"}),
    ({"prompt": "q", "chosen": "c", "rejected": "r"}, ["u:q"], {"chosen": "c", "rejected": "r"}),
    ({"conversations": sharegpt("u:q"), "chosen": 1, "rejected": 2}, ["u:q"], {"chosen": 1, "rejected": 2}),
    (
        {"question": "q", "answer": "4", "solution": "so", "system": "s"},
        ["s:s", "u:q"],
        {"answer": "4", "solution": "so"},
    ),
    ({"question": "q", "answer": "a\n#### 1,234\n"}, ["u:q"], {"answer": "1,234", "solution": "a\n#### 1,234\n"}),
    ({"question": "q", "answer": "a #### 4"}, ["u:q"], {"answer": "a #### 4"}),  # not on a line of its own
    ({"question": "q", "answer": "#### a\nb"}, ["u:q"], {"answer": "#### a\nb"}),  # a headline
    ({"question": "q", "answer": None}, ["u:q"], {}),  # null counts as missing
    (
        {"prompt": "q", "completion": turns("a:so\n#### 4")},
        ["u:q"],
        {"answer": "4", "solution": "so\n#### 4", "completion": turns("a:so\n#### 4")},
    ),
    (
        {"question": "q?", "choices": ["x", "y"], "answer": 1},
        ["u:q?\nA. x\nB. y"],
        {"choices": ["x", "y"], "answer": "B"},
    ),
    ({"input": "q", "target": "4"}, ["u:q"], {"target": "4", "answer": "4"}),
    ({"instruction": "q", "input": "i", "history": [["a", "b"]]}, ["u:a", "a:b", "u:q\n\ni"], {}),
]


@pytest.mark.parametrize(("row", "messages", "columns"), PROMPTS)
def test_prompt_formats(tmp_path: Path, row: dict, messages: list[str], columns: dict) -> None:
    assert list(reader(tmp_path, "prompts", row)) == [Prompt(tuple(turns(*messages)), columns)]


DROPPED = [
    ("documents", {"text": "fine"}, {"text": " \n"}, "empty text"),
    ("conversations", {"prompt": "q", "completion": "x"}, {"prompt": "q", "completion": " "}, "empty answer"),
    ("conversations", {"messages": turns("u:q", "a:x")}, {"messages": turns("u:q")}, "no assistant turn"),
    ("conversations", {"messages": turns("u:q", "a:x")}, {"messages": []}, "no assistant turn"),
    ("conversations", {"messages": turns("u:q", "a:x")}, {"messages": turns("a:x")}, "no user turn"),
    (
        "conversations",
        {"messages": turns("u:q", "a:x")},
        {"messages": turns("a:x", "u:q")},
        "no answer after the first",
    ),
    (
        "pairs",
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "a "},
        "chosen eq",
    ),
    (
        "pairs",
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "", "rejected": "b"},
        "empty ans",
    ),
    (
        "pairs",
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": " ", "chosen": "a", "rejected": "b"},
        "empty pr",
    ),
    ("prompts", {"prompt": "q"}, {"prompt": turns("u:q", "a:x")}, "the prompt does not end with a user turn"),
]


@pytest.mark.parametrize(("kind", "good", "bad", "reason"), DROPPED)
def test_rows_that_cannot_be_trained_on_are_dropped_and_counted(
    tmp_path: Path, kind: str, good: dict, bad: dict, reason: str
) -> None:
    mixed = reader(tmp_path, kind, good, *[bad] * 7)
    assert len(list(mixed)) == 1
    ((found, tally),) = mixed.report.dropped.items()
    assert found.startswith(reason)
    assert tally.count == 7
    assert [location.rpartition(":")[2] for location in tally.locations] == ["2", "3", "4", "5", "6"]  # the first five
    with pytest.raises(UserError, match=f"0 {kind} in .*x.jsonl: all rows were dropped\n +7  {reason}") as no_records:
        list(reader(tmp_path, kind, *[bad] * 7))
    assert no_records.value.code == 2


BAD = [
    ("documents", {"text": None}, "text: expected a text, found None"),
    ("documents", {"text": ["a"]}, "text: expected a text, found ['a']"),
    ("conversations", {"messages": "hi"}, "messages: expected a list of messages, found 'hi'"),
    ("conversations", {"messages": ["hi"]}, "messages[0]: expected an object with role and content, found 'hi'"),
    ("conversations", {"messages": [{"role": "user"}]}, "messages[0]: no 'content'; found: role"),
    (
        "conversations",
        {"messages": [{"role": "user", "content": 3}]},
        "messages[0].content: expected a text, found 3",
    ),
    ("conversations", {"messages": [{"role": "user", "content": None}]}, "messages[0].content: expected a text"),
    (
        "conversations",
        {"messages": [{"role": 3, "content": ""}]},
        "messages[0].role: expected one of system, user, assistant, tool, found 3",
    ),
    (
        "conversations",
        {"messages": [*turns("u:q"), {"role": "asistant", "content": "x"}]},
        "messages[1].role: expected one of system, user, assistant, tool, found 'asistant'; did you mean 'assistant'?",
    ),
    (
        "conversations",
        {"conversations": [{"from": "\x1b[2J", "value": "x"}]},
        "conversations[0].from: expected one of system, user, assistant, tool, found '\\x1b[2J'",
    ),
    ("conversations", {"prompt": 1, "completion": "x"}, "prompt: expected a list of messages, found 1"),
    ("conversations", {"instruction": "a", "output": {}}, "output: expected a text, found {}"),
    (
        "conversations",
        {"instruction": "a", "output": "b", "history": [["q"]]},
        "history: expected a list of [question, answer]",
    ),
    (
        "conversations",
        {"instruction": "a", "instances": [1]},
        "instances: expected a list of objects with input and output",
    ),
    (
        "pairs",
        {"prompt": "q", "chosen": "a", "rejected": None},
        "rejected: expected a list of messages, found None",
    ),
    ("pairs", {"prompt": "q", "chosen": "a", "rejected": "b", "margin": True}, "margin: expected a finite number"),
    ("pairs", {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "1"}, "margin: expected a finite number"),
    (
        "pairs",
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 10**400},
        "margin: expected a finite number",
    ),
    (
        "pairs",
        {"prompt": "q", "chosen": turns("u:r", "a:x"), "rejected": turns("u:r", "a:y")},
        "chosen and rejected are conv",
    ),
    ("conversations", {"messages": turns("u:q", "a:x"), "images": ["x.png"]}, "images: ['x.png']; only text is"),
    (
        "pairs",
        {"prompt": "q", "chosen": "a", "rejected": "b", "image": "x"},
        "image: 'x'; only text is supported",
    ),
    ("prompts", {"prompt": "q", "video": "x"}, "video: 'x'; only text is supported"),
    (
        "conversations",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, *turns("a:x")]},
        "messages[0].content[0]: expected a part of type 'text', found 'image_url'",
    ),
    (
        "conversations",
        {"messages": [*turns("u:q"), {"role": "assistant", "content": [{"type": "text"}]}]},
        "messages[1].content[0]: no 'text'; found: type",
    ),
    (
        "conversations",
        {"messages": [*turns("u:q"), {"role": "assistant", "content": "x", "weight": 0.5}, *turns("u:r", "a:y")]},
        "messages[1].weight: expected 0 or 1, found 0.5",
    ),
    (
        "conversations",
        {"messages": [*turns("u:q"), {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}]},
        "messages[1].tool_calls[0]: expected an object with name and arguments, found {'arguments': '{}'}",
    ),
    (
        "conversations",
        {"messages": [*turns("u:q"), {"role": "assistant", "content": "", "tool_calls": "f"}]},
        "messages[1].tool_calls: expected a list of calls, found 'f'",
    ),
    ("conversations", {"messages": turns("u:q", "a:x"), "tools": 7}, "tools: expected a list of tools or a text"),
    (
        "conversations",
        {"question": "q", "choices": ["a"], "answer": 0},
        "choices: expected a list of two or more texts",
    ),
    (
        "prompts",
        {"question": "q", "choices": ["a", "b"], "answer": 2},
        "answer: expected a number from 0 to 1 or a letter from A",
    ),
    ("prompts", {"question": "q", "choices": ["a"] * 27, "answer": 2}, "choices: at most 26 are supported, found 27"),
    ("pairs", {"chosen": "a", "rejected": "b"}, "no 'prompt', and chosen is a single text; found: chosen, rejected"),
    ("prompts", {"prompt": {"role": "user"}}, "prompt: no 'content'; found: role"),
    ("prompts", {"question": 7}, "question: expected a list of messages, found 7"),
]


@pytest.mark.parametrize(("kind", "row", "what"), BAD)
def test_bad_rows_name_line_path_and_value(tmp_path: Path, kind: str, row: dict, what: str) -> None:
    with pytest.raises(UserError) as error:
        list(reader(tmp_path, kind, row))
    assert error.value.what.startswith(what)
    assert error.value.where == f"{tmp_path / 'x.jsonl'}:1"
    assert error.value.code == 2
    assert error.value.fix


REFUSED = [
    (
        "conversations",
        {"message": turns("u:q", "a:x"), "id": 1},
        "no 'messages' in line 1; found: message, id - did you mean 'message'?",
        "name the column: --set data.field.messages=message",
    ),
    ("documents", {"id": 1, "body": "x y z"}, "no 'text' in line 1; found: id, body", "--set data.field.text=body"),
    (
        "conversations",
        {"prompt": "q", "reply": "x"},
        "no 'completion' in line 1; found: prompt, reply",
        "completion=reply",
    ),
    ("documents", {}, "no 'text' in line 1; found: nothing", "--set data.field.text=COLUMN"),
    (
        "pairs",
        {"question": "q", "good": "a", "bad": "b"},
        "no columns of pairs in line 1; found: question, good, bad",
        "data.field.prompt=COLUMN --set data.field.chosen=COLUMN --set data.field.rejected=COLUMN",
    ),
    (
        "conversations",
        {"ticket_id": "7", "customer": "q", "agent": "a"},
        "no columns of conversations in line 1; found: ticket_id, customer, agent",
        "data.field.prompt=customer --set data.field.completion=agent",
    ),
    (
        "documents",
        {"messages": turns("u:q", "a:x")},
        "expected documents, found conversations (format messages)",
        "sft",
    ),
    (
        "conversations",
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        "expected conversations, found pairs (format preference)",
        "tinyllm rm",
    ),
    (
        "conversations",
        {"conversations": sharegpt("u:q"), "chosen": "a", "rejected": "b"},
        "expected conversations, found pairs (format sharegpt-preference)",
        "tinyllm rm",
    ),
    ("pairs", {"text": "x"}, "expected pairs, found documents (format text)", "tinyllm pretrain"),
    (
        "conversations",
        {"messages": turns("u:q", "a:x"), "label": True},
        "expected conversations, found unpaired preferences (format messages-label)",
        "tinyllm align-offline --algorithm kto",
    ),
    (
        "prompts",
        {"prompt": "q", "completion": "x", "label": False},
        "expected prompts, found unpaired preferences (format prompt-completion-label)",
        "tinyllm align-offline --algorithm kto",
    ),
    ("unpaired", {"prompt": "q", "completion": "x", "label": "yes"}, "label: expected true or false", "skip"),
    (
        "conversations",
        {"instruction": "q", "output": "x", "kto_tag": False},
        "expected conversations, found unpaired preferences (format alpaca-label)",
        "tinyllm align-offline --algorithm kto",
    ),
]


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ({"prompt": "q", "completion": "x", "label": True}, [("q", "x", True)]),
        ({"prompt": turns("u:q"), "completion": turns("a:x"), "label": False}, [("q", "x", False)]),
        ({"messages": turns("u:q", "a:x"), "label": False}, [("q", "x", False)]),
        ({"conversations": sharegpt("u:q", "a:x"), "label": True}, [("q", "x", True)]),
        ({"conversations": sharegpt("u:q", "a:x"), "kto_tag": False}, [("q", "x", False)]),
        ({"instruction": "q", "input": "", "output": "x", "label": True}, [("q", "x", True)]),
        ({"question": "q", "answer": "x", "label": False}, [("q", "x", False)]),
        ({"messages": turns("u:p", "a:y", "u:q", "a:x"), "label": False, "system": "s"}, [("q", "x", False)]),
        ({"prompt": "q", "chosen": "x", "rejected": "y"}, [("q", "x", True), ("q", "y", False)]),
    ],
)
def test_unpaired_formats(tmp_path: Path, row: dict[str, Any], want: list[tuple[str, str, bool]]) -> None:
    found = list(reader(tmp_path, "unpaired", row))
    assert [(j.prompt[-1]["content"], j.completion[0]["content"], j.good) for j in found] == want
    assert {j.completion[0]["role"] for j in found} == {"assistant"}


def test_old_names_of_kinds_are_accepted(tmp_path: Path) -> None:
    assert tuple(FORMATS) == KINDS
    assert KIND_ALIASES == {"judgements": "unpaired"}
    for old, new in KIND_ALIASES.items():
        rows = [row for kind, row in malformed.CASES if kind == new][:1]
        assert list(reader(tmp_path, old, *rows)) == list(reader(tmp_path, new, *rows))
        assert reader(tmp_path, old, *rows).kind == new


def test_labeled_conversation_without_a_last_answer_is_dropped(tmp_path: Path) -> None:
    rows = [{"messages": turns("u:q"), "label": True}, {"messages": turns("u:q", "a:x"), "label": True}]
    data = reader(tmp_path, "unpaired", *rows)
    assert len(list(data)) == 1
    assert list(data.report.dropped) == ["the conversation does not end with an answer"]


@pytest.mark.parametrize(("kind", "row", "what", "fix"), REFUSED)
def test_missing_columns_and_other_kinds_of_data_are_refused(
    tmp_path: Path, kind: str, row: dict, what: str, fix: str
) -> None:
    with pytest.raises(UserError) as error:
        list(reader(tmp_path, kind, row))
    assert error.value.what.startswith(what)
    assert fix in error.value.fix
    assert error.value.where.endswith("x.jsonl:1")


def test_format_of_the_first_row_applies_to_the_whole_file(tmp_path: Path) -> None:
    rows = [{"messages": turns("u:q", "a:x")}, {"prompt": "q", "completion": "x"}]
    with pytest.raises(UserError, match="no 'messages' in line 2; found: prompt, completion"):
        list(reader(tmp_path, "conversations", *rows))
    skipping = reader(tmp_path, "conversations", *rows, on_bad_line="skip")
    assert len(list(skipping)) == 1
    assert skipping.report.dropped["missing column"].count == 1


def test_field_and_format_options(tmp_path: Path) -> None:
    (named,) = reader(tmp_path, "documents", {"body": "x", "text": "not this"}, field={"text": "body"})
    assert named.text == "x"
    (asked,) = reader(tmp_path, "prompts", {"input": "q", "target": "4"}, field={"prompt": "input"})
    assert asked == Prompt(tuple(turns("u:q")), {"target": "4"})
    kto = {"messages": turns("u:q", "a:x"), "label": True}
    assert len(list(reader(tmp_path, "conversations", kto, format="messages"))) == 1
    with pytest.raises(UserError, match=r"no 'bdy' .given for text.; found: body") as error:
        list(reader(tmp_path, "documents", {"body": "x"}, field={"text": "bdy"}))
    assert error.value.fix == "name an existing column: --set data.field.text=body"
    with pytest.raises(UserError, match="'alpacca' is not a format of conversations") as error:
        reader(tmp_path, "conversations", {}, format="alpacca")
    assert error.value.fix == "did you mean 'alpaca'?"
    with pytest.raises(UserError, match="'txt' is not a column of documents") as error:
        reader(tmp_path, "documents", {}, field={"txt": "body"})
    assert error.value.fix == "did you mean 'text'?"
    with pytest.raises(UserError, match="'documnets' is not a kind of data"):
        read_records(["x"], "documnets")


def test_ignored_columns_and_message_keys_are_reported(tmp_path: Path) -> None:
    row = {
        "messages": [*turns("u:q"), {"role": "assistant", "content": "x", "name": "Bo", "id": 1}],
        "id": 7,
        "score": 0.5,
        "nil": None,
    }
    data = reader(tmp_path, "conversations", row, row | {"weight": 2})
    assert len(list(data)) == 2
    assert data.report.files[0].ignored == ["id", "score", "weight"]
    assert data.report.repaired["keys of messages left out: id, name"].count == 2
    assert data.report.lines() == [
        f"{tmp_path / 'x.jsonl'}: 2 conversations, format messages (without the columns id, score, weight)",
        f"repaired 2: keys of messages left out: id, name ({tmp_path / 'x.jsonl'}:1, {tmp_path / 'x.jsonl'}:2)",
    ]
    prompts = reader(tmp_path, "prompts", {"prompt": "q", "id": 7})
    assert next(iter(prompts)).columns == {"id": 7}  # prompts keep all columns, for the rewards
    assert prompts.report.files[0].ignored == []


VALUES = {"system": "S", "tools": "T", "input": "I", "history": [["h", "i"]], "margin": 3}


@pytest.mark.parametrize("kind", ["documents", "conversations", "pairs", "unpaired"])
def test_formats_read_exactly_their_declared_columns(kind: str) -> None:
    """So exactly the columns reported as ignored are ignored."""
    rows = [
        {COLUMN_ALIASES.get(name, name): v for name, v in row.items()}
        for of, row in malformed.CASES
        if of in (kind, "pairs")
    ]
    formats = set()
    for row in rows:
        for name, known in [(name, known) for name, known in FORMATS[kind].items() if known.fits(row)][:1]:
            for column in {*VALUES, "other"} - set(known.needs):
                without = {key: value for key, value in row.items() if key != column}
                more = without | {column: VALUES.get(column, "x")}
                plain, changed = (known.convert(r, lambda note: None) for r in (without, more))
                assert (plain != changed) == (column in known.optional), (name, column)
                formats.add(name)
    assert len(formats) == {"documents": 1, "conversations": 8, "pairs": 5, "unpaired": 9}[kind]


FULL_MESSAGES = [  # twenty bad rows, as line 2 of a file, with their complete messages
    ({"message": turns("u:q", "a:x"), "id": 1}, "no 'messages' in line 2; found: message, id - did you mean 'message'?",
     "name the column: --set data.field.messages=message"),
    ({"id": 1}, "no 'messages' in line 2; found: id", "name the column: --set data.field.messages=COLUMN"),
    ({"messages": None}, "messages: expected a list of messages, found None", ""),
    ({"messages": "hi"}, "messages: expected a list of messages, found 'hi'", ""),
    ({"messages": 7}, "messages: expected a list of messages, found 7", ""),
    ({"messages": {"role": "user"}}, "messages: expected a list of messages, found {'role': 'user'}", ""),
    ({"messages": [None]}, "messages[0]: expected an object with role and content, found None", ""),
    ({"messages": [["user", "q"]]}, "messages[0]: expected an object with role and content, found ['user', 'q']", ""),
    ({"messages": [{"content": "q"}]}, "messages[0]: no 'role'; found: content", ""),
    ({"messages": [{"role": "user"}]}, "messages[0]: no 'content'; found: role", ""),
    ({"messages": [{"role": "user", "contents": "q"}]}, "messages[0]: no 'content'; found: role, contents", ""),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content: expected a text, found None", ""),
    ({"messages": [{"role": "user", "content": 3.5}]}, "messages[0].content: expected a text, found 3.5", ""),
    ({"messages": [*turns("u:q"), {"role": "assistant", "content": ["x"]}]},
     "messages[1].content[0]: expected a part of type 'text', found 'x'", ""),
    ({"messages": [*turns("u:q"), {"role": "assistant", "content": {"text": "x"}}]},
     "messages[1].content: expected a text, found {'text': 'x'}", ""),
    ({"messages": [*turns("u:q"), {"role": "asistant", "content": "x"}]},
     "messages[1].role: expected one of system, user, assistant, tool, found 'asistant'; did you mean 'assistant'?", ""),
    ({"messages": [{"role": "User", "content": "q"}]},
     "messages[0].role: expected one of system, user, assistant, tool, found 'User'; did you mean 'user'?", ""),
    ({"messages": [{"role": None, "content": "q"}]}, "messages[0].role: expected one of system, user, assistant, tool, found None", ""),
    ({"messages": turns("u:q", "a:x"), "system": 1}, "system: expected a text, found 1", ""),
    ({"messages": [{"from": "human", "content": "q"}]}, "messages[0]: no 'value'; found: from, content", ""),
]  # fmt: skip


@pytest.mark.parametrize(("row", "what", "fix"), FULL_MESSAGES, ids=range(len(FULL_MESSAGES)))
def test_full_messages_of_bad_rows(tmp_path: Path, row: dict, what: str, fix: str) -> None:
    with pytest.raises(UserError) as error:
        list(reader(tmp_path, "conversations", {"messages": turns("u:q", "a:x")}, row))
    skip = "fix it, or skip bad rows: --set data.on_bad_line=skip"
    assert str(error.value) == f"error: {what} ({tmp_path / 'x.jsonl'}:2)\nfix: {fix or skip}"
    skipping = reader(tmp_path, "conversations", {"messages": turns("u:q", "a:x")}, row, on_bad_line="skip")
    assert len(list(skipping)) == 1
    assert skipping.report.lines()[1].endswith(f" ({tmp_path / 'x.jsonl'}:2)")


def test_documentation_lists_every_format_and_encoding() -> None:
    text = (
        (Path(__file__).resolve().parents[2] / "docs" / "data.md")
        .read_text(encoding="utf-8")
        .partition("## Formats")[2]
    )
    for kind, formats in FORMATS.items():
        for name, known in formats.items():
            listed = f"`{name}`" in text or (kind == "unpaired" and f"`{name.removesuffix('-label')}`" in text)
            assert listed, (kind, name)
            assert all(f"`{column}`" in text for column in known.columns), (kind, name)
    assert all(f"`{encoding}`" in text or encoding.endswith(("-le", "-be", "-8")) for encoding in ENCODINGS)
