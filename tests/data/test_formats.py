"""Every accepted record format to its normal form; what is mended, dropped, and refused with which words."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import malformed

from tinyllm.data.formats import ALIASES, FORMATS
from tinyllm.data.records import Pair, Prompt, Reader, read
from tinyllm.data.streams import ENCODINGS
from tinyllm.errors import UserError
from tinyllm.text.chat import validate_messages


def reader(tmp_path: Path, kind: str, *rows: Any, **options: Any) -> Reader:
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read([file], kind, **options)


def turns(*spoken: str) -> list[dict[str, str]]:
    """`u:hi` is a user turn."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": roles[said[0]], "content": said[2:]} for said in spoken]


def sharegpt(*spoken: str) -> list[dict[str, str]]:
    names = {"s": "system", "u": "human", "a": "gpt", "t": "observation", "f": "function_call"}
    return [{"from": names[said[0]], "value": said[2:]} for said in spoken]


CONVERSATIONS = [
    ({"messages": turns("s:be kind", "u:hi", "a:yes")}, ["s:be kind", "u:hi", "a:yes"]),
    ({"messages": sharegpt("u:hi", "a:yes")}, ["u:hi", "a:yes"]),
    ({"conversations": turns("u:hi", "a:yes")}, ["u:hi", "a:yes"]),
    ({"conversations": sharegpt("u:q", "f:{}", "t:4", "a:four")}, ["u:q", "a:{}", "t:4", "a:four"]),
    ({"conversations": sharegpt("u:q", "f:{}", "t:", "a:x")}, ["u:q", "a:{}", "t:", "a:x"]),  # a tool may say nothing
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
    (  # OpenAI's: arguments are JSON inside a text; the older form; a text beside the call; what is no JSON stays
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
            'a:wait\n{"name": "f", "arguments": {"a": 1}}',
            "t:4",
            'a:{"name": "g", "arguments": "a=1"}',
            "t:",
            "a:x",
        ],
    ),
    (  # two calls at once
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
    (  # what parquet writes where a key is not there
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
    assert list(found.messages) == turns(*expected)
    validate_messages(list(found.messages), "", require_assistant=True)


MENDED = [
    (["a:hello", "u:q", "a:x"], ["u:q", "a:x"], "assistant turns before the first user turn left out"),
    (["s:s", "a:hello", "u:q", "a:x"], ["s:s", "u:q", "a:x"], "assistant turns before the first user turn left out"),
    (["u:q", "a:x", "u:more"], ["u:q", "a:x"], "turns after the last answer left out"),
    (["u:q", "u:r", "a:x", "a:y"], ["u:q\n\nr", "a:x\n\ny"], "turns of one role in a row joined"),
    (["u:q", "a:x", "u: ", "a:y"], ["u:q", "a:x"], "turns from an empty one on left out"),
    (["u:q", "a:x", "u:r", "a:"], ["u:q", "a:x"], "turns from an empty one on left out"),
]


@pytest.mark.parametrize(("said", "kept", "what"), MENDED)
def test_odd_conversations_are_mended_and_counted(tmp_path: Path, said: list[str], kept: list[str], what: str) -> None:
    odd = reader(
        tmp_path, "conversations", {"conversations": sharegpt("u:1", "a:2")}, {"conversations": sharegpt(*said)}
    )
    assert list(list(odd)[1].messages) == turns(*kept)
    ((reason, tally),) = odd.report.mended.items()
    assert reason.startswith(what)
    assert tally.count == 1
    assert tally.places == [f"{tmp_path / 'x.jsonl'}:2"]


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
    (  # the prompt again in front of both, behind a system turn
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
    assert {what: tally.count for what, tally in data.report.mended.items()} == {
        "a rejected answer left out: empty answer": 1,
        "a rejected answer left out: chosen equals rejected": 1,
    }
    judged = list(reader(tmp_path, "judgements", row))
    assert [j.good for j in judged] == [True, False, True, False]


def test_of_longer_answers_the_first_turn_is_kept_aloud(tmp_path: Path) -> None:
    data = reader(
        tmp_path, "pairs", {"chosen": turns("u:q", "a:1", "u:r", "a:2"), "rejected": turns("u:q", "a:3", "u:r", "a:4")}
    )
    (pair,) = data
    assert (list(pair.chosen), list(pair.rejected)) == (turns("a:1"), turns("a:3"))
    assert list(data.report.mended) == ["turns after the first answer left out"]


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
    ({"messages": turns("u:q", "a:so it is 4"), "answer": "4"}, ["u:q"], {"answer": "4"}),  # its own answer stays
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
    ({"question": "q", "answer": None}, ["u:q"], {}),  # null is none
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
def test_rows_that_cannot_train_are_dropped_and_counted(
    tmp_path: Path, kind: str, good: dict, bad: dict, reason: str
) -> None:
    mixed = reader(tmp_path, kind, good, *[bad] * 7)
    assert len(list(mixed)) == 1
    ((found, tally),) = mixed.report.dropped.items()
    assert found.startswith(reason)
    assert tally.count == 7
    assert [place.rpartition(":")[2] for place in tally.places] == ["2", "3", "4", "5", "6"]  # the first five
    with pytest.raises(UserError, match=f"0 {kind} in .*x.jsonl: all rows were dropped\n +7  {reason}") as none_left:
        list(reader(tmp_path, kind, *[bad] * 7))
    assert none_left.value.code == 2


BAD = [
    ("documents", {"text": None}, "text: a text was expected, found None"),
    ("documents", {"text": ["a"]}, "text: a text was expected, found ['a']"),
    ("conversations", {"messages": "hi"}, "messages: a list of messages was expected, found 'hi'"),
    ("conversations", {"messages": ["hi"]}, "messages[0]: an object with role and content was expected, found 'hi'"),
    ("conversations", {"messages": [{"role": "user"}]}, "messages[0]: no 'content'; found: role"),
    (
        "conversations",
        {"messages": [{"role": "user", "content": 3}]},
        "messages[0].content: a text was expected, found 3",
    ),
    ("conversations", {"messages": [{"role": "user", "content": None}]}, "messages[0].content: a text was expected"),
    (
        "conversations",
        {"messages": [{"role": 3, "content": ""}]},
        "messages[0].role: 3 is none of system, user, assist",
    ),
    (
        "conversations",
        {"messages": [*turns("u:q"), {"role": "asistant", "content": "x"}]},
        "messages[1].role: 'asistant' is none of system, user, assistant, tool; did you mean 'assistant'?",
    ),
    (
        "conversations",
        {"conversations": [{"from": "\x1b[2J", "value": "x"}]},
        "conversations[0].from: '\\x1b[2J' is none",
    ),
    ("conversations", {"prompt": 1, "completion": "x"}, "prompt: a list of messages was expected, found 1"),
    ("conversations", {"instruction": "a", "output": {}}, "output: a text was expected, found {}"),
    ("conversations", {"instruction": "a", "output": "b", "history": [["q"]]}, "history: a list of [question, answer]"),
    ("conversations", {"instruction": "a", "instances": [1]}, "instances: a list of input and output was expected"),
    (
        "pairs",
        {"prompt": "q", "chosen": "a", "rejected": None},
        "rejected: a list of messages was expected, found None",
    ),
    ("pairs", {"prompt": "q", "chosen": "a", "rejected": "b", "margin": True}, "margin: a finite number was expected"),
    ("pairs", {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "1"}, "margin: a finite number was expected"),
    (
        "pairs",
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 10**400},
        "margin: a finite number was expected",
    ),
    (
        "pairs",
        {"prompt": "q", "chosen": turns("u:r", "a:x"), "rejected": turns("u:r", "a:y")},
        "chosen and rejected are conv",
    ),
    ("conversations", {"messages": turns("u:q", "a:x"), "images": ["x.png"]}, "images: ['x.png']; only text can be"),
    (
        "pairs",
        {"prompt": "q", "chosen": "a", "rejected": "b", "image": "x"},
        "image: 'x'; only text can be learned from",
    ),
    ("prompts", {"prompt": "q", "video": "x"}, "video: 'x'; only text can be learned from"),
    (
        "conversations",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, *turns("a:x")]},
        "messages[0].content[0]: a part with type 'text' was expected, found 'image_url'",
    ),
    (
        "conversations",
        {"messages": [*turns("u:q"), {"role": "assistant", "content": [{"type": "text"}]}]},
        "messages[1].content[0]: no 'text'; found: type",
    ),
    (
        "conversations",
        {"messages": [*turns("u:q"), {"role": "assistant", "content": "x", "weight": 0}, *turns("u:r", "a:y")]},
        "messages[1].weight: 0; a turn that is not learned from, or less, is not supported",
    ),
    (
        "conversations",
        {"messages": [*turns("u:q"), {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}]},
        "messages[1].tool_calls[0]: an object with name and arguments was expected, found {'arguments': '{}'}",
    ),
    (
        "conversations",
        {"messages": [*turns("u:q"), {"role": "assistant", "content": "", "tool_calls": "f"}]},
        "messages[1].tool_calls: a list of calls was expected, found 'f'",
    ),
    ("conversations", {"messages": turns("u:q", "a:x"), "tools": 7}, "tools: a list of tools or a text was expected"),
    ("conversations", {"question": "q", "choices": ["a"], "answer": 0}, "choices: a list of two or more texts"),
    (
        "prompts",
        {"question": "q", "choices": ["a", "b"], "answer": 2},
        "answer: a number from 0 to 1 or a letter from A",
    ),
    ("prompts", {"question": "q", "choices": ["a"] * 27, "answer": 2}, "27 choices; there are letters for 26"),
    ("pairs", {"chosen": "a", "rejected": "b"}, "no 'prompt', and chosen is a text alone; found: chosen, rejected"),
    ("prompts", {"prompt": {"role": "user"}}, "prompt: no 'content'; found: role"),
    ("prompts", {"question": 7}, "question: a list of messages was expected, found 7"),
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
        "documents",
        {"messages": turns("u:q", "a:x")},
        "these are conversations (format messages), and documents were",
        "sft",
    ),
    (
        "conversations",
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        "these are pairs (format preference)",
        "tinyllm rm",
    ),
    (
        "conversations",
        {"conversations": sharegpt("u:q"), "chosen": "a", "rejected": "b"},
        "these are pairs (format sharegpt-preference)",
        "tinyllm rm",
    ),
    ("pairs", {"text": "x"}, "these are documents (format text), and pairs were asked for", "tinyllm pretrain"),
    (
        "conversations",
        {"messages": turns("u:q", "a:x"), "label": True},
        "these are judgements (format messages-label)",
        "tinyllm align-offline --algorithm kto",
    ),
    (
        "prompts",
        {"prompt": "q", "completion": "x", "label": False},
        "these are judgements (format prompt-completion-label)",
        "tinyllm align-offline --algorithm kto",
    ),
    ("judgements", {"prompt": "q", "completion": "x", "label": "yes"}, "label: true or false was expected", "skip"),
    (
        "conversations",
        {"instruction": "q", "output": "x", "kto_tag": False},
        "these are judgements (format alpaca-label)",
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
def test_judgements(tmp_path: Path, row: dict[str, Any], want: list[tuple[str, str, bool]]) -> None:
    found = list(reader(tmp_path, "judgements", row))
    assert [(j.prompt[-1]["content"], j.completion[0]["content"], j.good) for j in found] == want
    assert {j.completion[0]["role"] for j in found} == {"assistant"}


def test_a_judged_conversation_that_ends_with_a_question_is_dropped(tmp_path: Path) -> None:
    rows = [{"messages": turns("u:q"), "label": True}, {"messages": turns("u:q", "a:x"), "label": True}]
    data = reader(tmp_path, "judgements", *rows)
    assert len(list(data)) == 1
    assert list(data.report.dropped) == ["the conversation does not end with an answer"]


@pytest.mark.parametrize(("kind", "row", "what", "fix"), REFUSED)
def test_missing_columns_and_other_kinds_of_data(tmp_path: Path, kind: str, row: dict, what: str, fix: str) -> None:
    with pytest.raises(UserError) as error:
        list(reader(tmp_path, kind, row))
    assert error.value.what.startswith(what)
    assert fix in error.value.fix
    assert error.value.where.endswith("x.jsonl:1")


def test_a_format_holds_for_the_whole_file(tmp_path: Path) -> None:
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
    with pytest.raises(UserError, match=r"no 'bdy' .asked for as text.; found: body") as error:
        list(reader(tmp_path, "documents", {"body": "x"}, field={"text": "bdy"}))
    assert error.value.fix == "name it: --set data.field.text=body"
    with pytest.raises(UserError, match="'alpacca' is no format of conversations") as error:
        reader(tmp_path, "conversations", {}, format="alpacca")
    assert error.value.fix == "did you mean 'alpaca'?"
    with pytest.raises(UserError, match="'txt' is no column of documents") as error:
        reader(tmp_path, "documents", {}, field={"txt": "body"})
    assert error.value.fix == "did you mean 'text'?"
    with pytest.raises(UserError, match="'documnets' is no kind of data"):
        read(["x"], "documnets")


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    row = {
        "messages": [*turns("u:q"), {"role": "assistant", "content": "x", "name": "Bo", "id": 1}],
        "id": 7,
        "score": 0.5,
        "nil": None,
    }
    data = reader(tmp_path, "conversations", row, row | {"weight": 2})
    assert len(list(data)) == 2
    assert data.report.files[0].left_out == ["id", "score", "weight"]
    assert data.report.mended["keys of turns left out: id, name"].count == 2
    assert data.report.lines() == [
        f"{tmp_path / 'x.jsonl'}: 2 conversations, format messages (without the columns id, score, weight)",
        f"mended 2: keys of turns left out: id, name ({tmp_path / 'x.jsonl'}:1, {tmp_path / 'x.jsonl'}:2)",
    ]
    prompts = reader(tmp_path, "prompts", {"prompt": "q", "id": 7})
    assert next(iter(prompts)).columns == {"id": 7}  # all columns are for the rewards
    assert prompts.report.files[0].left_out == []


VALUES = {"system": "S", "tools": "T", "input": "I", "history": [["h", "i"]], "margin": 3}


@pytest.mark.parametrize("kind", ["documents", "conversations", "pairs", "judgements"])
def test_formats_read_the_columns_that_they_say_and_no_others(kind: str) -> None:
    """So that what is told to be left out is left out, and nothing else is."""
    rows = [
        {ALIASES.get(name, name): v for name, v in row.items()} for of, row in malformed.CASES if of in (kind, "pairs")
    ]
    tried = set()
    for row in rows:
        for name, known in [(name, known) for name, known in FORMATS[kind].items() if known.fits(row)][:1]:
            for column in {*VALUES, "other"} - set(known.needs):
                without = {key: value for key, value in row.items() if key != column}
                more = without | {column: VALUES.get(column, "x")}
                plain, told = (known.convert(r, lambda note: None) for r in (without, more))
                assert (plain != told) == (column in known.may), (name, column)
                tried.add(name)
    assert len(tried) == {"documents": 1, "conversations": 8, "pairs": 5, "judgements": 9}[kind]


GOLDEN = [  # twenty bad rows as line 2 of a file: everything that is printed
    ({"message": turns("u:q", "a:x"), "id": 1}, "no 'messages' in line 2; found: message, id - did you mean 'message'?",
     "name the column: --set data.field.messages=message"),
    ({"id": 1}, "no 'messages' in line 2; found: id", "name the column: --set data.field.messages=COLUMN"),
    ({"messages": None}, "messages: a list of messages was expected, found None", ""),
    ({"messages": "hi"}, "messages: a list of messages was expected, found 'hi'", ""),
    ({"messages": 7}, "messages: a list of messages was expected, found 7", ""),
    ({"messages": {"role": "user"}}, "messages: a list of messages was expected, found {'role': 'user'}", ""),
    ({"messages": [None]}, "messages[0]: an object with role and content was expected, found None", ""),
    ({"messages": [["user", "q"]]}, "messages[0]: an object with role and content was expected, found ['user', 'q']", ""),
    ({"messages": [{"content": "q"}]}, "messages[0]: no 'role'; found: content", ""),
    ({"messages": [{"role": "user"}]}, "messages[0]: no 'content'; found: role", ""),
    ({"messages": [{"role": "user", "contents": "q"}]}, "messages[0]: no 'content'; found: role, contents", ""),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content: a text was expected, found None", ""),
    ({"messages": [{"role": "user", "content": 3.5}]}, "messages[0].content: a text was expected, found 3.5", ""),
    ({"messages": [*turns("u:q"), {"role": "assistant", "content": ["x"]}]},
     "messages[1].content[0]: a part with type 'text' was expected, found 'x'", ""),
    ({"messages": [*turns("u:q"), {"role": "assistant", "content": {"text": "x"}}]},
     "messages[1].content: a text was expected, found {'text': 'x'}", ""),
    ({"messages": [*turns("u:q"), {"role": "asistant", "content": "x"}]},
     "messages[1].role: 'asistant' is none of system, user, assistant, tool; did you mean 'assistant'?", ""),
    ({"messages": [{"role": "User", "content": "q"}]},
     "messages[0].role: 'User' is none of system, user, assistant, tool; did you mean 'user'?", ""),
    ({"messages": [{"role": None, "content": "q"}]}, "messages[0].role: None is none of system, user, assistant, tool", ""),
    ({"messages": turns("u:q", "a:x"), "system": 1}, "system: a text was expected, found 1", ""),
    ({"messages": [{"from": "human", "content": "q"}]}, "messages[0]: no 'value'; found: from, content", ""),
]  # fmt: skip


@pytest.mark.parametrize(("row", "what", "fix"), GOLDEN, ids=range(len(GOLDEN)))
def test_bad_rows_in_full(tmp_path: Path, row: dict, what: str, fix: str) -> None:
    with pytest.raises(UserError) as error:
        list(reader(tmp_path, "conversations", {"messages": turns("u:q", "a:x")}, row))
    skip = "mend it, or leave bad rows out: --set data.on_bad_line=skip"
    assert str(error.value) == f"error: {what} ({tmp_path / 'x.jsonl'}:2)\nfix: {fix or skip}"
    skipping = reader(tmp_path, "conversations", {"messages": turns("u:q", "a:x")}, row, on_bad_line="skip")
    assert len(list(skipping)) == 1
    assert skipping.report.lines()[1].endswith(f" ({tmp_path / 'x.jsonl'}:2)")


def test_the_documentation_has_every_format_and_encoding() -> None:
    text = (
        (Path(__file__).resolve().parents[2] / "docs" / "data.md")
        .read_text(encoding="utf-8")
        .partition("## Formats")[2]
    )
    for kind, formats in FORMATS.items():
        for name, known in formats.items():
            told = f"`{name}`" in text or (kind == "judgements" and f"`{name.removesuffix('-label')}`" in text)
            assert told, (kind, name)
            assert all(f"`{column}`" in text for column in known.columns), (kind, name)
    assert all(f"`{encoding}`" in text or encoding.endswith(("-le", "-be", "-8")) for encoding in ENCODINGS)
