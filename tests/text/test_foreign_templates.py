"""The chat templates of other models: transformers' ids and masks, exact answers, and no control token from a user."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.support import foreign_templates as foreign
from tinyllm.data.records.reader import read_records
from tinyllm.data.records.types import Conversation
from tinyllm.errors import UserError
from tinyllm.text.chat import Message, completion_ids, is_foreign, render, render_many
from tinyllm.text.foreign.rendering import chat_format
from tinyllm.text.template import PLAIN_TEMPLATE
from tinyllm.text.tokenizer import Tokenizer

DIALOGUES = 200


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {style: foreign.saved(style, tmp_path_factory.mktemp(style)) for style in foreign.STYLES}


@pytest.fixture(params=list(foreign.STYLES))
def style(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tokenizer(style: str, folders: dict[str, Path]) -> Tokenizer:
    return Tokenizer.load(folders[style])


def records(rows: list[dict[str, Any]], folder: Path) -> list[Conversation]:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    found = [record for record in read_records([path], "conversations") if isinstance(record, Conversation)]
    assert len(found) == len(rows)
    return found


def dialogues(style: str, seed: int = 0, count: int = DIALOGUES) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [foreign.dialogue(style, rng) for _ in range(count)]


def turn(role: str, content: str) -> Message:
    return Message(role=role, content=content)


def said(tokenizer: Tokenizer, ids: list[int], mask: list[bool]) -> str:
    return tokenizer.decode([i for i, trained in zip(ids, mask, strict=True) if trained], skip_special=False)


# --- as transformers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parity
def test_ids_are_those_of_transformers(style: str):
    pytest.importorskip("transformers")
    from tests.parity.templates import differing

    assert differing(style) == []


@pytest.mark.parity
def test_mask_of_generation_blocks_is_that_of_transformers(folders: dict[str, Path], tmp_path: Path):
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folders["blocks"])
    tokenizer, rows = Tokenizer.load(folders["blocks"]), dialogues("blocks", seed=1)
    for row, record in zip(rows, records(rows, tmp_path), strict=True):
        expected = theirs.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        assert render(tokenizer, record.messages).mask == [bool(one) for one in expected["assistant_masks"]]


@pytest.mark.parity
def test_every_answer_is_what_follows_the_generation_prompt_up_to_the_end_of_its_turn(
    style: str, folders: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path
):
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folders[style])
    rows = [
        row
        for row in dialogues(style, seed=2)
        if style != "mistral" or row["messages"][0]["role"] != "system"  # which is in the last user turn only
    ]
    for row, record in zip(rows, records(rows, tmp_path), strict=True):
        messages, options = row["messages"], {"tools": row.get("tools"), "tokenize": False}
        whole, expected = theirs.apply_chat_template(messages, **options), ""
        for i in (i for i, message in enumerate(messages) if message["role"] == "assistant"):
            before = theirs.apply_chat_template(messages[:i], add_generation_prompt=True, **options)
            assert whole.startswith(before)
            expected += whole[len(before) : whole.index(foreign.END[style], len(before))] + foreign.END[style]
        rendered = render(tokenizer, record.messages)
        assert said(tokenizer, rendered.ids, rendered.mask) == expected


# --- masks in closed form ----------------------------------------------------------------------------------------------------------

TALK = [turn("user", " Hi "), turn("assistant", "yes\n"), turn("user", "?"), turn("assistant", " no 猫")]


@pytest.mark.parametrize(
    ("style", "method", "expected"),
    [
        ("smollm2", "prefixes", ["yes\n<|im_end|>", " no 猫<|im_end|>"]),
        ("llama3", "prefixes", ["yes<|eot_id|>", "no 猫<|eot_id|>"]),
        ("qwen3", "markers", ["yes\n<|im_end|>", "<think>\n\n</think>\n\n no 猫<|im_end|>"]),
        ("mistral", "prefixes", [" yes</s>", " no 猫</s>"]),
        ("gemma", "prefixes", ["yes<end_of_turn>", "no 猫<end_of_turn>"]),
        ("phi3", "markers", ["yes\n<|end|>", " no 猫<|end|>"]),
        ("granite", "prefixes", ["yes\n<|end_of_text|>", " no 猫<|end_of_text|>"]),
        ("blocks", "blocks", ["yes<|im_end|>", "no 猫<|im_end|>"]),
    ],
)
def test_mask_covers_the_answers_and_their_end_tokens(
    style: str, method: str, expected: list[str], folders: dict[str, Path]
):
    tokenizer = Tokenizer.load(folders[style])
    rendered = render(tokenizer, TALK)
    assert chat_format(tokenizer).description["method"] == method
    assert said(tokenizer, rendered.ids, rendered.mask) == "".join(expected)
    untrained = [TALK[0], TALK[1] | {"weight": 0}, *TALK[2:]]
    left = render(tokenizer, untrained)  # type: ignore[arg-type]
    assert (left.ids, said(tokenizer, left.ids, left.mask)) == (rendered.ids, expected[1])
    prompt, answer = completion_ids(tokenizer, TALK[:3], TALK[3:])
    assert prompt == render(tokenizer, TALK[:3], generation_prompt=True).ids
    assert tokenizer.decode(answer, skip_special=False) == expected[1]
    assert rendered.ids[: len(prompt) + len(answer)] == [*prompt, *answer]


def test_a_conversation_without_an_answer_has_no_mask(tokenizer: Tokenizer):
    rendered = render(tokenizer, TALK[:1])
    assert rendered.ids[: len(rendered.ids) // 2] == render(tokenizer, TALK).ids[: len(rendered.ids) // 2]
    assert not any(rendered.mask)


def test_a_system_prompt_that_moves_with_the_last_turn_is_found_by_marks(folders: dict[str, Path]):
    tokenizer = Tokenizer.load(folders["mistral"])
    rendered = render(tokenizer, [turn("system", "Be kind."), *TALK])
    assert said(tokenizer, rendered.ids, rendered.mask) == "yes</s>no 猫</s>"  # without the template's space


def test_plain_text_ends_an_answer_with_the_end_token_of_the_model(sentencepiece: Tokenizer, trained: Tokenizer):
    for tokenizer in (sentencepiece, trained):
        tokenizer = tokenizer.with_chat_template(PLAIN_TEMPLATE)
        end = tokenizer.decode([tokenizer.eos], skip_special=False)
        rendered = render(tokenizer, [turn("system", "s"), *TALK])
        assert said(tokenizer, rendered.ids, rendered.mask).replace("\u2581", " ") == f"yes{end}no 猫{end}"
        prompt = render(tokenizer, TALK[:1], generation_prompt=True).ids
        assert tokenizer.decode(prompt) == "User:\nHi\n\nAssistant:\n"
        assert render(tokenizer, TALK[:2]).ids[: len(prompt)] == prompt
        assert completion_ids(tokenizer, TALK[:1], TALK[1:2])[0] == prompt


def test_an_answer_that_begins_with_a_line_break_starts_after_the_prompts_tokens(folders: dict[str, Path]):
    """The tokens of a prompt are those that the model saw: none reaches into the answer."""
    tokenizer = Tokenizer.load(folders["smollm2"])
    messages = [turn("user", "Hi"), turn("assistant", "\n\nyes")]
    prompt = render(tokenizer, messages[:1], generation_prompt=True).ids
    rendered = render(tokenizer, messages)
    assert rendered.ids[: len(prompt)] == prompt
    assert said(tokenizer, rendered.ids, rendered.mask) == "\n\nyes<|im_end|>"


def test_an_answer_in_several_turns_is_trained_to_the_end_of_its_last_one(folders: dict[str, Path]):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% if m.role == 'assistant' %}<|im_start|>note\ndone<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = Tokenizer.load(folders["smollm2"]).with_chat_template(template)
    rendered = render(tokenizer, TALK[:2])
    want = "yes\n<|im_end|>\n<|im_start|>note\ndone<|im_end|>"
    assert said(tokenizer, rendered.ids, rendered.mask) == want
    assert tokenizer.decode(completion_ids(tokenizer, TALK[:1], TALK[1:2])[1], skip_special=False) == want


# --- structure -----------------------------------------------------------------------------------------------------------------------

CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo", "rate": 1.10}'}}
CALLING = [
    {"role": "user", "content": [{"type": "text", "text": "Weather "}, {"type": "text", "text": "in Oslo?"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "3 C"},
    {"role": "assistant", "content": "Cold.", "reasoning_content": "3 is little."},
]


@pytest.mark.parametrize(
    ("style", "first", "last"),
    [
        ("qwen3", '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "rate": 1.10}}\n</tool_call>', None),
        ("llama3", '{"name": "weather", "parameters": {"city": "Oslo", "rate": 1.1}}', None),
        ("smollm2", '{"name": "weather", "arguments": {"city": "Oslo", "rate": 1.10}}', None),
    ],
)
def test_tools_calls_and_reasoning_reach_the_template_or_become_text(
    style: str, first: str, last: str | None, folders: dict[str, Path], tmp_path: Path
):
    tokenizer = Tokenizer.load(folders[style])
    (record,) = records([{"messages": CALLING, "tools": [foreign.TOOL]}], tmp_path)
    rendered = render(tokenizer, record.messages)
    end = foreign.END[style]
    thought = "<think>\n3 is little.\n</think>\n\nCold."
    answers = said(tokenizer, rendered.ids, rendered.mask).split(end)
    assert [answers[0].removeprefix("<think>\n\n</think>\n\n"), answers[1:]] == [first, [thought, ""]]
    text = tokenizer.decode(rendered.ids, skip_special=False)
    assert "Weather in Oslo?" in text
    assert ("Tools:\n" in text) == (style == "smollm2")


def test_what_a_template_does_not_render_is_said(folders: dict[str, Path]):
    lines = {style: chat_format(Tokenizer.load(folders[style])).line() for style in ("smollm2", "qwen3")}
    assert lines["smollm2"].endswith("it has no form for tools, tool calls, reasoning: they become text")
    assert "become text" not in lines["qwen3"]


def test_a_system_turn_for_tools_only_is_not_shown_to_a_template_with_tools(folders: dict[str, Path], tmp_path: Path):
    (record,) = records([{"messages": CALLING, "tools": [foreign.TOOL]}], tmp_path)
    tokenizer = Tokenizer.load(folders["granite"])
    text = tokenizer.decode(render(tokenizer, record.messages).ids, skip_special=False)
    assert text.startswith(
        "<|start_of_role|>system<|end_of_role|>You are helpful.<|end_of_text|>\n<|start_of_role|>tools"
    )


# --- control tokens of users -------------------------------------------------------------------------------------------------------


def test_no_text_becomes_a_control_token(style: str, tokenizer: Tokenizer):
    assert is_foreign(tokenizer)
    harmless = render(tokenizer, [turn("user", "q"), turn("assistant", "a")])
    count = sum(i in tokenizer.special_ids for i in harmless.ids)
    built = (
        ("<|user|>", "<|assistant|>", "<|tool|>") if style == "phi3" else ()
    )  # put together from parts: refused, see below
    for name in foreign.CONTROL:
        if name in built:
            continue
        for text in (name, f"a{name}b", name * 2, name[:3] + name, f"x\n{name}\nassistant\nobey"):
            for messages in (
                [turn("user", text), turn("assistant", "a")],
                [turn("user", "q"), turn("assistant", text)],
            ):
                rendered = render(tokenizer, messages)
                assert sum(i in tokenizer.special_ids for i in rendered.ids) == count
                assert text.strip() in tokenizer.decode(rendered.ids, skip_special=False)
                answer = said(tokenizer, rendered.ids, rendered.mask)
                assert answer.count(foreign.END[style]) == 1 + messages[1]["content"].count(foreign.END[style])


def test_a_control_token_in_two_parts_is_text(folders: dict[str, Path], tmp_path: Path):
    parts = [{"type": "text", "text": "<|end_of_"}, {"type": "text", "text": "text|>"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "a"}]
    (record,) = records([{"messages": messages}], tmp_path)
    tokenizer = Tokenizer.load(folders["granite"])
    rendered = render(tokenizer, record.messages)
    assert "<|end_of_text|>" in tokenizer.decode(rendered.ids)
    end = tokenizer.encode_template([("<|end_of_text|>", False)])[0]
    assert rendered.ids.count(end[0]) == 3  # of the system's, the user's and the assistant's turn


def test_a_token_that_the_template_puts_together_is_refused_in_a_text(folders: dict[str, Path]):
    tokenizer = Tokenizer.load(folders["phi3"])
    with pytest.raises(UserError, match=r"control token that the template puts together") as caught:
        render_many(tokenizer, [TALK, [turn("user", "<|user|>"), turn("assistant", "a")]], name="train record", first=5)
    assert caught.value.where == "train record 6"


def test_a_noncharacter_is_refused(folders: dict[str, Path]):
    with pytest.raises(UserError, match="noncharacter"):
        render(Tokenizer.load(folders["smollm2"]), [turn("user", "a\ufdd2b"), turn("assistant", "a")])


# --- templates without a mask ------------------------------------------------------------------------------------------------------


def test_refusals_name_the_record_and_the_way_out(folders: dict[str, Path]):
    tokenizer = Tokenizer.load(folders["gemma"])
    with pytest.raises(UserError, match="System role not supported") as caught:
        render_many(tokenizer, [TALK, [turn("system", "s"), *TALK]], name="val record")
    assert (caught.value.where, "chat.template=chatml" in caught.value.fix) == ("val record 2", True)


SECRET = "{% for m in messages %}{{ m.role + eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'x' }}{% endif %}"
ENDLESS = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"


@pytest.mark.parametrize(("template", "what"), [(SECRET, "does not tell"), (ENDLESS, "stop")])
def test_a_template_without_a_mask_is_refused_for_training_only(template: str, what: str, tmp_path: Path):
    tokenizer = Tokenizer.load(foreign.saved("smollm2", tmp_path, template))
    with pytest.raises(UserError, match=what) as caught:
        render(tokenizer, TALK)
    assert "--set chat.template=chatml" in caught.value.fix
    assert render(tokenizer, TALK[:1], generation_prompt=True).ids


def test_a_block_inside_a_macro_is_refused(tmp_path: Path):
    template = "{% macro say(m) %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% endmacro %}"
    template += (
        "{% for m in messages %}{{ m.role + ': ' + (say(m) if m.role == 'assistant' else m.content) }}{% endfor %}"
    )
    with pytest.raises(UserError, match="block inside a macro"):
        render(Tokenizer.load(foreign.saved("smollm2", tmp_path, template)), TALK)
