"""Tools, tool calls, results and reasoning: the text that is trained on, nulls that Arrow added, and the exported template's ids."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.reading import refused
from tinyllm.data.records.nulls import KEPT, LEFT_OUT
from tinyllm.data.records.reader import Reader, read_records
from tinyllm.text.chat import render
from tinyllm.text.tokenizer import Tokenizer


def reader(tmp_path: Path, *rows: dict[str, Any] | str, **options: Any) -> Reader:
    file = tmp_path / "x.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines), encoding="utf-8")
    return read_records([file], "conversations", **options)


def calling(name: str, arguments: Any, tools: Any = None) -> dict[str, Any]:
    """Return a row with one tool call."""
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    return {"messages": [{"role": "user", "content": "q"}, answer]} | ({"tools": tools} if tools is not None else {})


def answers(found: Reader) -> list[str]:
    return [record.messages[-1]["content"] for record in found]


# --- numbers ---------------------------------------------------------------------------------------------------------------------

NUMBERS = (
    '{"amount": 1.10, "iban": 12345678901234567890, "rate": 0.1000000000000000055, "e": 1e5, "E": 1E+400, "z": -0.0}'
)


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize("arguments", [json.dumps(NUMBERS), NUMBERS])
def test_numbers_of_arguments_are_spelled_as_written(tmp_path: Path, arguments: str, suffix: str) -> None:
    row = json.dumps(calling("pay", "HERE")).replace('"HERE"', arguments)
    file = tmp_path / f"x{suffix}"
    file.write_text(f"[\n{row}\n]" if suffix == ".json" else row)
    assert answers(read_records([file], "conversations")) == [f'{{"name": "pay", "arguments": {NUMBERS}}}']


def test_numbers_of_tools_are_spelled_as_written(tmp_path: Path) -> None:
    tool = '[{"name": "pay", "parameters": {"minimum": 1.0, "maximum": 1e3, "n": 7, "ü": [true, null]}}]'
    row = json.dumps(calling("pay", {}, tools="HERE")).replace('"HERE"', tool)
    (found,) = reader(tmp_path, row)
    assert found.messages[0]["content"] == "Tools:\n" + tool.replace(", null", "")


def test_a_number_that_is_not_spelled_again_keeps_its_value(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1.50}')
    (pair,) = read_records([file], "pairs")
    assert (pair.margin, type(pair.margin)) == (1.5, float)


# --- arguments -------------------------------------------------------------------------------------------------------------------


def test_arguments_that_are_text(tmp_path: Path) -> None:
    rows = [calling("f", text) for text in ('{"a":1}', ' {\n "a": 1\n}\n', "a=1", "", "[1]")]
    found = reader(tmp_path, *rows)
    texts = ['{"a":1}', '{  "a": 1 }', '"a=1"', '""', "[1]"]
    assert answers(found) == [f'{{"name": "f", "arguments": {text}}}' for text in texts]
    quoted = found.report.repaired["tool-call arguments that are not JSON kept as a quoted text"]
    assert (quoted.count, quoted.locations) == (2, [f"{tmp_path / 'x.jsonl'}:{line}" for line in (3, 4)])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"a": 1', "not JSON (Expecting ',' delimiter"),
        ('{"a": 1, "a": 2}', "the key 'a' twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ("{'a': 1}", "not JSON"),
    ],
)
def test_broken_arguments_are_refused(tmp_path: Path, text: str, what: str) -> None:
    list_of = reader(tmp_path, calling("f", text))
    error = refused(list_of.paths[0], "conversations")
    assert what in error.what
    assert error.what.startswith("messages[1].tool_calls[0].arguments: ")
    assert error.where.endswith("x.jsonl:1")


def test_the_name_comes_first_and_ids_are_left_out(tmp_path: Path) -> None:
    flat = {"id": "call_1", "type": "function", "index": 0, "arguments": {"a": 1}, "name": "f", "parameters": {"b": 2}}
    answer = {"role": "assistant", "tool_calls": [flat]}
    found = reader(tmp_path, {"messages": [{"role": "user", "content": "q"}, answer]})
    assert answers(found) == ['{"name": "f", "arguments": {"a": 1}, "parameters": {"b": 2}}']


def test_a_part_with_an_image_beside_its_text_is_refused(tmp_path: Path) -> None:
    part = {"type": "text", "text": "look", "image_url": {"url": "x"}}
    found = reader(tmp_path, {"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "a"}]})
    assert "messages[0].content[0].image_url" in refused(found.paths[0], "conversations").what


def test_results_in_another_order_than_their_calls_are_said(tmp_path: Path) -> None:
    calls = [{"id": name, "function": {"name": name}} for name in "ab"]
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    results = [{"role": "tool", "content": name, "tool_call_id": name} for name in "ab"]
    last = {"role": "assistant", "content": "done"}
    for order, said in ((results, 0), (results[::-1], 1), (results[:1], 0)):
        found = reader(tmp_path, {"messages": [*talk, *order, last]})
        assert [m["content"] for m in next(iter(found)).messages[2:-1]] == [one["content"] for one in order]
        assert sum("another order" in what for what in found.report.repaired) == said


# --- nulls -----------------------------------------------------------------------------------------------------------------------

OSLO = {"city": "Oslo", "amount": None, "currency": None}
PAY = {"city": None, "amount": 5.0, "currency": "EUR"}


def schema(**properties: Any) -> list[dict[str, Any]]:
    parameters = {"type": "object", "properties": properties, "required": ["must"]}
    return [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]


def test_nulls_of_other_tools_are_left_out(tmp_path: Path) -> None:
    found = reader(tmp_path, calling("weather", OSLO), calling("pay", PAY), calling("weather", {"city": None}))
    assert answers(found) == [
        '{"name": "weather", "arguments": {"city": "Oslo"}}',
        '{"name": "pay", "arguments": {"amount": 5.0, "currency": "EUR"}}',
        '{"name": "weather", "arguments": {"city": null}}',  # weather has a city elsewhere: it may have been written
    ]
    assert (found.report.repaired[LEFT_OUT].count, found.report.repaired[KEPT].count) == (2, 1)


def test_all_nulls_are_left_out_where_all_calls_of_several_tools_have_one_shape(tmp_path: Path) -> None:
    rows = [calling("weather", OSLO), calling("weather", OSLO | {"city": None}), calling("pay", PAY)]
    found = reader(tmp_path, *rows)
    assert answers(found)[1] == '{"name": "weather", "arguments": {}}'
    assert LEFT_OUT in found.report.repaired
    assert KEPT not in found.report.repaired


def test_nulls_of_one_tool_are_kept_and_said(tmp_path: Path) -> None:
    found = reader(tmp_path, calling("f", {"a": None}), calling("f", {"a": 1}))
    assert answers(found) == ['{"name": "f", "arguments": {"a": null}}', '{"name": "f", "arguments": {"a": 1}}']
    assert list(found.report.repaired) == [KEPT]
    assert any(KEPT in line for line in found.report.lines())


def test_the_schema_decides_which_nulls_were_written(tmp_path: Path) -> None:
    tools = schema(
        plain={"type": "string"},
        null={"type": ["string", "null"]},
        either={"anyOf": [{"type": "string"}, {"type": "null"}]},
        listed={"enum": ["a", None]},
        free={},
        must={"type": "string"},
        gone=None,
        inner={"type": "object", "properties": {"x": {"type": "string"}}},
    )
    names = ("plain", "null", "either", "listed", "free", "must", "gone", "unknown")
    arguments = dict.fromkeys(names) | {"inner": {"x": None, "y": 1}}
    for given in (tools, json.dumps(tools)):
        found = reader(tmp_path, calling("weather", arguments, given))
        (text,) = answers(found)
        kept = {"null": None, "either": None, "listed": None, "free": None, "must": None, "inner": {"y": 1}}
        assert json.loads(text)["arguments"] == kept
        assert LEFT_OUT in found.report.repaired
        assert KEPT not in found.report.repaired


def test_nulls_in_a_text_were_written(tmp_path: Path) -> None:
    found = reader(tmp_path, calling("weather", json.dumps(OSLO)), calling("pay", PAY))
    assert answers(found)[0] == f'{{"name": "weather", "arguments": {json.dumps(OSLO)}}}'


def test_a_parquet_file_gives_the_texts_of_its_json(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [calling("weather", {"city": "Oslo", "at": {"h": 1}}), calling("pay", {"amount": 5.5, "at": {"d": "x"}})]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    found = read_records([tmp_path / "x.parquet"], "conversations")
    assert [*map(json.loads, answers(found))] == [*map(json.loads, answers(reader(tmp_path, *rows)))]
    assert found.report.repaired[LEFT_OUT].count == 2


# --- tools -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tools", ["", " ", "\n", "[]", " [ ] ", "{}", "null", None, [], {}, [None], "[null]"])
def test_blank_tools_make_no_system_turn(tmp_path: Path, tools: Any) -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": tools}
    found = reader(tmp_path, row)
    assert [m["role"] for m in next(iter(found)).messages] == ["user", "assistant"]
    assert "column tools added to the system turn" not in found.report.repaired


def test_nulls_of_tool_definitions_are_left_out(tmp_path: Path) -> None:
    tools = schema(city={"type": "string", "default": None, "enum": None}, amount=None)
    (found,) = reader(tmp_path, calling("weather", {"city": "Oslo"}, tools))
    expected = schema(city={"type": "string", "default": None, "enum": None})
    assert found.messages[0]["content"] == "Tools:\n" + json.dumps(expected)


# --- the exported template -------------------------------------------------------------------------------------------------------

TOOLS = schema(city={"type": "string"}, ü={"type": "number", "minimum": 0.5})
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich & <b>", "n": 5}}}
TEXT_CALL = {"id": "2", "type": "function", "function": {"name": "pay", "arguments": '{"amount":1.10}'}}
CONVERSATIONS = [
    [
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL, TEXT_CALL]},
        {"role": "tool", "content": "3 C", "name": "weather", "tool_call_id": "1"},
        {"role": "tool", "content": "", "tool_call_id": "2"},
        {"role": "assistant", "content": "3 degrees."},
    ],
    [
        {"role": "system", "content": " \n  Be brief.  "},
        {"role": "user", "content": [{"type": "text", "text": "2+2"}, {"type": "text", "text": "?"}]},
        {
            "role": "assistant",
            "reasoning_content": "\n add ",
            "reasoning": "\n add ",
            "content": "4",
            "tool_calls": [CALL],
        },
    ],
    [
        {"role": "developer", "content": "S"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "\n    return 1 \n", "weight": 0},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "wait \n", "function_call": {"name": "f", "arguments": "a=1"}},
        {"role": "function", "name": "f", "content": "4"},
        {"role": "assistant", "content": "<think>\nAdd.\n</think>\n\n4", "weight": 1},
    ],
]


@pytest.mark.parity
@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_exported_template_gives_the_ids_and_mask_of_training(
    tmp_path: Path, messages: list[dict[str, Any]], tools: Any
) -> None:
    transformers = pytest.importorskip("transformers")
    (found,) = reader(tmp_path, {"messages": messages, "tools": tools})
    tokenizer = Tokenizer.train([json.dumps([messages, tools]), "user\nassistant\nsystem\ntool\n"], 400)
    tokenizer.save(tmp_path / "saved", model_max_length=10**6)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    exported = theirs.apply_chat_template(messages, tools=tools, **options)
    ours = render(tokenizer, found.messages)
    assert tokenizer.decode(exported["input_ids"], skip_special=False) == tokenizer.decode(ours.ids, skip_special=False)
    assert exported["input_ids"] == ours.ids
    assert [bool(said) for said in exported["assistant_masks"]] == ours.mask


@pytest.mark.parity
@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None},
        {"role": "assistant"},
        {"role": "user", "content": [{"type": "image", "url": "x"}]},
        {"role": "user", "content": {"text": "x"}},
        {"role": "assistant", "content": "a", "reasoning": {"steps": 1}},
        {"role": "critic", "content": "x"},
    ],
)
def test_exported_template_refuses_what_it_cannot_render(tmp_path: Path, message: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    jinja2 = pytest.importorskip("jinja2")
    Tokenizer.train(["user\nassistant\n"], 300).save(tmp_path, model_max_length=100)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(jinja2.exceptions.TemplateError):
        theirs.apply_chat_template([{"role": "user", "content": "q"}, message], tokenize=False)


def test_arguments_nested_too_deeply_are_a_bad_row(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"a": 1}
    for _ in range(400):  # which json can read
        arguments = {"a": arguments}
    call = {"function": {"name": "f", "arguments": arguments}}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n")
    error = refused(path, "conversations")
    assert (error.what, error.where) == ("lists or objects nested too deeply", f"{path}:1")


def test_nulls_of_many_tools_are_judged_in_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with path.open("w") as file:
        for i in range(10_000):
            calls = [{"function": {"name": f"f{i}", "arguments": {f"x{i}": 1, "y": None}}}]
            turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": calls}]
            file.write(json.dumps({"messages": turns}) + "\n")
    started = time.process_time()
    assert len(list(read_records([path], "conversations"))) == 10_000
    assert time.process_time() - started < 20
