"""Messages of more than a text: kept as the data has them, beside the text, for chat templates that render them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support import small
from tinyllm.data import tokenization
from tinyllm.data.records.reader import read_records

TOOL = {"type": "function", "function": {"name": "pay", "parameters": {"properties": {"n": {"type": "integer"}}}}}


def messages(tmp_path: Path, *turns: dict[str, Any], kind: str = "conversations", **columns: Any) -> tuple[Any, ...]:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"messages": turns, **columns}), encoding="utf-8")
    (record,) = read_records([path], kind)
    return record.messages


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    return {"id": "1", "type": "function", "index": None, "function": {"name": "pay", "arguments": arguments, **more}}


ASKED = {"role": "user", "content": "q"}
ANSWERED = {"role": "assistant", "content": "a"}


def test_a_text_is_kept_once(tmp_path: Path) -> None:
    assert messages(tmp_path, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}) == (ASKED, ANSWERED)
    assert messages(tmp_path, ASKED | {"name": None}, ANSWERED | {"weight": 1, "tool_calls": []}) == (ASKED, ANSWERED)


def test_calls_are_objects_without_the_nulls_that_were_added(tmp_path: Path) -> None:
    said = {"role": "assistant", "content": None, "tool_calls": [call({"n": 5, "city": None}, strict=None)]}
    result = {"role": "function", "name": "pay", "content": "done", "tool_call_id": "1"}
    found = messages(tmp_path, ASKED, said, result, ANSWERED, tools=[TOOL])
    assert found[0]["tools"] == [TOOL]
    assert found[0]["source"] == ()
    function = {"name": "pay", "arguments": {"n": 5}}
    assert found[2]["source"] == (
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]},
    )
    assert found[2]["content"] == '{"name": "pay", "arguments": {"n": 5}}'
    assert found[3]["source"] == ({"role": "tool", "content": "done", "name": "pay", "tool_call_id": "1"},)


def test_older_notations_of_a_call_become_the_newer_one(tmp_path: Path) -> None:
    old = {"role": "assistant", "content": "wait", "function_call": {"name": "pay", "arguments": '{"n": 1.10}'}}
    flat = {"role": "assistant", "tool_calls": [{"id": "7", "name": "pay", "arguments": {"n": 1}}]}
    found = messages(tmp_path, ASKED, old, {"role": "tool", "content": "r"}, flat)
    function = {"name": "pay", "arguments": '{"n": 1.10}'}
    assert found[1]["source"][0]["tool_calls"] == [{"type": "function", "function": function}]
    second = {"type": "function", "id": "7", "function": {"name": "pay", "arguments": {"n": 1}}}
    assert found[3]["source"] == ({"role": "assistant", "tool_calls": [second]},)


def test_reasoning_and_parts_are_kept(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "q"}, {"type": "text", "text": "?"}]
    found = messages(tmp_path, ASKED | {"content": parts}, ANSWERED | {"reasoning_content": "so"})
    assert [m["source"] for m in found] == [
        ({"role": "user", "content": parts},),
        ({"role": "assistant", "content": "a", "reasoning_content": "so"},),
    ]


def test_turns_that_are_joined_stay_apart_only_where_one_is_more_than_a_text(tmp_path: Path) -> None:
    plain = messages(tmp_path, ASKED, ASKED, ANSWERED, ANSWERED)
    assert plain == (ASKED | {"content": "q\n\nq"}, ANSWERED | {"content": "a\n\na"})
    calling = {"role": "assistant", "content": "", "tool_calls": [call({"n": 1})]}
    found = messages(tmp_path, ASKED, ANSWERED, calling)
    assert found[1]["content"] == 'a\n\n{"name": "pay", "arguments": {"n": 1}}'
    assert [source.get("content") for source in found[1]["source"]] == ["a", ""]


def test_a_system_turn_is_shown_without_the_tools(tmp_path: Path) -> None:
    own = {"role": "developer", "content": "Be brief."}
    found = messages(tmp_path, own, ASKED, ANSWERED, system="Now.", tools=json.dumps([TOOL]))
    assert found[0]["source"] == ({"role": "system", "content": "Be brief.\n\nNow."},)
    assert (found[0]["tools"], found[0]["content"].startswith("Be brief.\n\nNow.\n\nTools:\n[")) == ([TOOL], True)
    words = messages(tmp_path, ASKED, ANSWERED, tools="a hammer")[0]
    assert words == {"role": "system", "content": "Tools:\na hammer"}  # no definitions: a text like any other
    for empty in ("[]", " ", [], None):
        assert messages(tmp_path, ASKED, ANSWERED, tools=empty) == (ASKED, ANSWERED)


def test_prompts_keep_it_and_rewards_see_texts(tmp_path: Path) -> None:
    calling = {"role": "assistant", "content": "", "tool_calls": [call({"n": 1})], "weight": 0}
    found = messages(tmp_path, ASKED, calling, {"role": "tool", "content": "r"}, ANSWERED, kind="prompts", tools=[TOOL])
    assert [("source" in m, "weight" in m) for m in found] == [
        (True, False),
        (False, False),
        (True, False),
        (False, False),
    ]
    (record,) = read_records([tmp_path / "x.jsonl"], "prompts")
    rows, _ = tokenization.prompts([record], small.tokenizer(), tokenization.LengthLimit(4096), "train")
    assert [set(message) for message in rows[0][1]["prompt"]] == [{"role", "content"}] * 4


def test_ids_of_calls_do_not_divide_a_shared_prompt(tmp_path: Path) -> None:
    def talk(number: str, answer: str) -> list[dict[str, Any]]:
        calling = {"role": "assistant", "content": "", "tool_calls": [call({"n": 1}) | {"id": number}]}
        return [ASKED, calling, {"role": "tool", "content": "r"}, {"role": "assistant", "content": answer}]

    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"chosen": talk("1", "yes"), "rejected": talk("2", "no")}), encoding="utf-8")
    (pair,) = read_records([path], "pairs")
    assert (len(pair.prompt), pair.chosen[0]["content"], pair.rejected[0]["content"]) == (3, "yes", "no")
