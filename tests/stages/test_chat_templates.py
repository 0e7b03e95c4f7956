"""The chat template of a stage: chosen, said, used from training to chat, and written into the checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import foreign_templates as foreign
from tests.support import small
from tinyllm.data.config import RecordConfig
from tinyllm.data.splits import read_split
from tinyllm.errors import RESOURCES, USAGE, UserError
from tinyllm.evals import run as evals
from tinyllm.evals.config import EvalConfig
from tinyllm.model import hub
from tinyllm.model.config import LoRAConfig
from tinyllm.model.transformer import CausalLM, initialise
from tinyllm.stages import align_online, chat, sft
from tinyllm.stages.config import AlignOnlineConfig, ChatConfig, SftConfig
from tinyllm.text.chat import is_foreign, render
from tinyllm.text.chat_format import choose
from tinyllm.text.config import ChatFormatConfig
from tinyllm.text.foreign import template_defaults
from tinyllm.text.template import CHAT_TEMPLATE, PLAIN_TEMPLATE
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.run import Invocation

WRITTEN = Invocation("a: configuration\n")
ROWS = [
    {"messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": "red " * (1 + i % 3)}]}
    for i in range(40)
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def model_from_elsewhere(style: str = "llama3", template: str = "") -> Path:
    """A random model with the tokenizer and the template of another program."""
    folder = foreign.saved(style, Path("elsewhere"), template)
    tokenizer = Tokenizer.load(folder)
    shape = {"vocab_size": tokenizer.vocab_size + 8, "max_position_embeddings": 256}
    model = CausalLM(small.SHAPE.model_copy(update=shape))
    initialise(model, 0)
    hub.save(model, folder, bos=tokenizer.bos, stop=(tokenizer.eos,), pad=None)
    return folder


def base_vocabulary(folder: Path) -> Tokenizer:
    """A vocabulary without chat tokens and without a template, as of a base model."""
    foreign.saved("gemma", folder)
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    names = ("<|im_start|>", "<|im_end|>")
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in names]
    vocab = spec["model"]["vocab"]
    for number, name in enumerate(names):
        vocab[f"unused{number}"] = vocab.pop(name)
    path.write_text(json.dumps(spec), encoding="utf-8")
    return Tokenizer.load(folder)


# --- the decision --------------------------------------------------------------------------------------------------------------------


def test_our_own_checkpoints_are_left_as_they_are_without_a_word() -> None:
    own = small.tokenizer()
    for template in ("auto", "chatml"):
        chosen = choose(ChatFormatConfig(template=template), own, trains=True)
        assert (chosen.tokenizer is own, chosen.line) == (True, "")


def test_the_checkpoints_own_template_is_used_and_said() -> None:
    tokenizer = Tokenizer.load(foreign.saved("gemma", Path("g")))
    chosen = choose(ChatFormatConfig(), tokenizer, trains=True)
    assert chosen.tokenizer.chat_template == foreign.GEMMA
    assert chosen.line == (
        "chat template: the checkpoint's own; answers are found by comparison with the text before them; it has no form for tools, "
        "tool calls, reasoning: they become text"
    )
    assert "answers" not in choose(ChatFormatConfig(), tokenizer, trains=False).line


def test_an_answer_stops_where_the_template_ends_a_turn() -> None:
    tokenizer = Tokenizer.load(foreign.saved("phi3", Path("p")))
    (end,) = (i for i in tokenizer.special_ids if tokenizer.decode([i], skip_special=False) == "<|end|>")
    assert end not in tokenizer.stop_ids
    assert choose(ChatFormatConfig(), tokenizer, trains=False).tokenizer.stop_ids == (end, *tokenizer.stop_ids)


def test_chatml_replaces_a_template_aloud() -> None:
    tokenizer = Tokenizer.load(foreign.saved("llama3", Path("l")))
    chosen = choose(ChatFormatConfig(template="chatml"), tokenizer, trains=True)
    assert chosen.line == "chat template: ChatML instead of the checkpoint's own"
    assert chosen.tokenizer.chat_template == CHAT_TEMPLATE
    assert chosen.tokenizer.stop_ids[0] == chosen.tokenizer.im_end


def test_a_base_model_gets_chat_tokens_only_where_it_is_trained() -> None:
    base = base_vocabulary(Path("base"))
    assert (base.chat_template, base.im_start) == (None, None)
    assert choose(ChatFormatConfig(), base, trains=False).tokenizer is base
    chosen = choose(ChatFormatConfig(), base, trains=True)
    added = chosen.tokenizer.new_ids
    assert added == (base.vocab_size, base.vocab_size + 1)
    assert chosen.line == (
        f"chat template: ChatML, with new tokens <|im_start|> {added[0]}, <|im_end|> {added[1]}; the checkpoint has none "
        "(without new tokens: --set chat.template=plain)"
    )
    plain = choose(ChatFormatConfig(template="plain"), base, trains=True)
    assert (plain.tokenizer.chat_template, plain.tokenizer.new_ids) == (PLAIN_TEMPLATE, ())
    assert plain.line.startswith("chat template: plain text; answers are found by its generation blocks")


def test_plain_text_begins_as_the_texts_of_the_model_do() -> None:
    """SmolLM2-Instruct names `<|im_start|>` as its bos, which only begins turns."""
    base = base_vocabulary(Path("base"))
    other = next(i for i in sorted(base.special_ids) if i != base.document_start)
    for bos, begins in ((other, False), (base.document_start, True)):
        chosen = choose(ChatFormatConfig(template="plain"), replace(base, bos=bos), trains=True).tokenizer
        found = render(chosen, [{"role": "user", "content": "a"}], generation_prompt=True)
        assert (found.ids[0] == bos) == begins
        assert chosen.decode(found.ids).startswith("User:")


def test_a_file_is_used_or_refused() -> None:
    Path("mine.jinja").write_text(foreign.SMOLLM2)
    chosen = choose(ChatFormatConfig(template="mine.jinja"), small.tokenizer(), trains=True)
    assert (chosen.tokenizer.chat_template, is_foreign(chosen.tokenizer)) == (foreign.SMOLLM2, True)
    Path("ours.jinja").write_text(CHAT_TEMPLATE)
    assert (
        choose(ChatFormatConfig(template="ours.jinja"), small.tokenizer(), trains=True).tokenizer is small.tokenizer()
    )
    Path("latin.jinja").write_bytes("é".encode("latin-1"))
    Path("huge.jinja").write_text("x" * 300_000)
    Path("folder.jinja").mkdir()
    for name, what, code in (
        ("none", "no such file", USAGE),
        ("latin", "not UTF-8", USAGE),
        ("huge", "too many", USAGE),
        ("folder", "cannot be read", RESOURCES),
    ):
        with pytest.raises(UserError, match=what) as caught:
            choose(ChatFormatConfig(template=f"{name}.jinja"), small.tokenizer(), trains=True)
        assert (caught.value.where, caught.value.code) == (f"{name}.jinja", code)


def test_a_typo_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'chatml'"):
        ChatFormatConfig(template="chatmI")


def test_a_system_prompt_needs_a_system_turn() -> None:
    tokenizer = Tokenizer.load(foreign.saved("gemma", Path("g")))
    with pytest.raises(UserError, match="no system turn") as caught:
        choose(ChatFormatConfig(system="Be brief."), tokenizer, trains=True)
    assert (caught.value.where, "chat.template=chatml" in caught.value.fix) == ("chat.system", True)


def test_variables_become_defaults_of_the_template() -> None:
    tokenizer = Tokenizer.load(foreign.saved("qwen3", Path("q")))
    question = [{"role": "user", "content": "Hi"}]

    def prompt(words: Tokenizer) -> str:
        return words.decode(render(words, question, generation_prompt=True).ids, skip_special=False)

    off = ChatFormatConfig(variables={"enable_thinking": False})
    chosen = choose(off, tokenizer, trains=True)
    assert prompt(chosen.tokenizer) == prompt(tokenizer) + "<think>\n\n</think>\n\n"
    assert chosen.line.endswith("; enable_thinking = false")
    assert choose(off, chosen.tokenizer, trains=True).tokenizer.chat_template == chosen.tokenizer.chat_template
    back = choose(ChatFormatConfig(variables={"enable_thinking": True}), chosen.tokenizer, trains=True)
    assert prompt(back.tokenizer) == prompt(tokenizer)
    assert back.tokenizer.chat_template is not None
    assert back.tokenizer.chat_template.count("set enable_thinking") == 1
    number = choose(ChatFormatConfig(variables={"enable_thinking": 0}), chosen.tokenizer, trains=True)
    assert number.line.endswith("; enable_thinking = 0")
    inherited = choose(ChatFormatConfig(), chosen.tokenizer, trains=True)
    assert inherited.line.endswith("; enable_thinking = false")
    assert inherited.tokenizer is chosen.tokenizer


def test_a_template_that_needs_a_variable_gets_it_before_it_is_tried() -> None:
    needs = "{%- if style is not defined %}{{ raise_exception('style is needed') }}{% endif %}{{ style[:4] }}"
    Path("mine.jinja").write_text(needs + foreign.SMOLLM2)
    with pytest.raises(UserError, match="style is needed") as caught:
        choose(ChatFormatConfig(template="mine.jinja"), small.tokenizer(), trains=True)
    assert caught.value.where == "chat template"
    given = ChatFormatConfig(template="mine.jinja", variables={"style": "terse"})
    chosen = choose(given, small.tokenizer(), trains=True)
    assert chosen.line.endswith('; style = "terse"')
    text = chosen.tokenizer.decode(
        render(chosen.tokenizer, [{"role": "user", "content": "Hi"}]).ids, skip_special=False
    )
    assert text.startswith("ters<|im_start|>")


def test_values_in_front_of_a_foreign_template_are_shown_shortly_or_left_alone() -> None:
    line = "{{%- if style is not defined %}}{{% set style = {} %}}{{% endif %}}\n"
    for value in ("NaN", "-Infinity", "[1]", "none", "9" * 5000):
        assert template_defaults.split(line.format(value) + "x") == ({}, line.format(value) + "x")
    values, body = template_defaults.split(line.format(json.dumps("y" * 10_000)) + "x")
    assert (len(values["style"]), body) == (10_000, "x")
    assert len(template_defaults.described(values)) < 250


def test_a_value_of_the_wrong_type_is_told_from_a_template_that_fails() -> None:
    Path("mine.jinja").write_text("{%- if depth is defined and depth > 3 %}deep{% endif %}" + foreign.SMOLLM2)
    given = ChatFormatConfig(template="mine.jinja", variables={"depth": "four"})
    with pytest.raises(UserError, match='without depth = "four" it can be used') as caught:
        choose(given, small.tokenizer(), trains=True)
    assert (caught.value.where, caught.value.fix) == ("chat.variables", "correct the value, or leave it out")


def test_a_text_with_quotes_is_a_value_and_the_first_characters_of_a_template_stay() -> None:
    path, said = Path("mine.jinja"), 'say "%}" \\ é\n'
    for opening, shown in (("\n {{ style }}", f"\n {said}"), ("  {% if true %}{{ style }}{% endif %}", said)):
        path.write_text(opening + foreign.SMOLLM2)
        given = ChatFormatConfig(template=str(path), variables={"style": said})
        chosen = choose(given, small.tokenizer(), trains=False)
        text = chosen.tokenizer.decode(
            render(chosen.tokenizer, [{"role": "user", "content": "Hi"}]).ids, skip_special=False
        )
        assert text.startswith(f"{shown}<|im_start|>")


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("style", "{% set style = 'x' %}{{ style }}"),
        ("style", "{# style #}style{{ messages[0].style }}"),
        ("namespace", "{% set ns = namespace(x=1) %}{{ ns.x }}"),
        ("true", "{% if true %}x{% endif %}"),
    ],
)
def test_a_word_of_the_template_that_its_caller_cannot_set_is_no_variable(name: str, use: str) -> None:
    Path("mine.jinja").write_text(use + foreign.SMOLLM2)
    given = ChatFormatConfig(template="mine.jinja", variables={name: "mine"})
    with pytest.raises(UserError, match=f"does not read '{name}'"):
        choose(given, small.tokenizer(), trains=False)


def test_a_variable_that_the_template_does_not_read_is_refused() -> None:
    tokenizer = Tokenizer.load(foreign.saved("qwen3", Path("q")))
    for words, template in ((tokenizer, "auto"), (tokenizer, "chatml"), (small.tokenizer(), "auto")):
        given = ChatFormatConfig(template=template, variables={"enable_thinkin": False})
        with pytest.raises(UserError, match="does not read 'enable_thinkin'") as caught:
            choose(given, words, trains=True)
        assert caught.value.where == "chat.variables"
    with pytest.raises(ValueError, match="'messages' is no variable"):
        ChatFormatConfig(variables={"messages": "x"})


# --- the stages ----------------------------------------------------------------------------------------------------------------------


def test_a_model_from_elsewhere_is_tuned_and_asked_in_its_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    data, parent = small.written(Path("d.jsonl"), ROWS), model_from_elsewhere()
    config = SftConfig(parent=parent, device="cpu", chat=ChatFormatConfig(system="Be brief."), **small.common(data))
    found = sft.run(config, WRITTEN)
    err = capsys.readouterr().err
    assert err.count("chat template: the checkpoint's own; answers are found by comparison") == 1
    assert found["moved"]["to"] < found["moved"]["from"]
    checkpoint = Path(found["checkpoint"])
    assert (checkpoint / "chat_template.jinja").read_text(encoding="utf-8") == foreign.LLAMA3
    tuned = Tokenizer.load(checkpoint)
    messages = [{"role": "system", "content": "Be brief."}, ROWS[0]["messages"][0]]
    prompt = tuned.decode(render(tuned, messages, generation_prompt=True).ids, skip_special=False)
    assert prompt.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    asked = ChatConfig(parent=checkpoint, device="cpu", max_new_tokens=2, temperature=0.0, system="Be brief.")
    answered = chat.run(asked, WRITTEN, ["What is 7?"], stream=False)
    assert answered["exchanges"][0]["answer"].startswith(" red"[1:])
    assert "(chat)" in capsys.readouterr().err


def test_rollouts_and_eval_use_it_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    parent = model_from_elsewhere("smollm2")
    data = small.written(Path("q.jsonl"), [{"prompt": f"What is {i}?", "answer": "red"} for i in range(40)])
    common = small.common(data, steps=1, batch_size=4, eval_every=1, save_every=1)
    common["data"] |= {"max_length": 128}
    config = AlignOnlineConfig(parent=parent, device="cpu", rewards={"contains_answer": 1.0}, **common)
    config = config.model_copy(
        update={"rollout": config.rollout.model_copy(update={"group_size": 2, "max_new_tokens": 4})}
    )
    align_online.run(config, WRITTEN)
    assert capsys.readouterr().err.count("chat template: the checkpoint's own") == 1
    data_of = EvalConfig().data.model_copy(update={"val": (str(data),)})
    evaluated = evals.run(
        EvalConfig(parent=parent, device="cpu", task=("exact_match",), data=data_of, max_new_tokens=2), WRITTEN
    )
    assert evaluated["configs"]["exact_match"]["chat_template"] in (True, False)
    assert "chat template: the checkpoint's own" in capsys.readouterr().err


def test_chat_samples_as_the_checkpoint_says_where_nothing_is_set(capsys: pytest.CaptureFixture[str]) -> None:
    folder = model_from_elsewhere("smollm2")
    path = folder / "generation_config.json"
    own = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.05, "do_sample": True}
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | own), encoding="utf-8")
    config, line = chat.with_own_sampling(ChatConfig(top_k=5), folder)
    assert (config.temperature, config.top_k, config.top_p, config.repetition_penalty) == (0.6, 5, 0.9, 1.05)
    assert line == "sampling as generation_config.json says: temperature 0.6, top_p 0.9, repetition_penalty 1.05"
    path.write_text(json.dumps(own | {"do_sample": False}), encoding="utf-8")
    assert chat.with_own_sampling(ChatConfig(), folder)[0].temperature == 0.0
    path.write_text(json.dumps({"temperature": -1.0}), encoding="utf-8")
    with pytest.raises(UserError, match="temperature"):
        chat.with_own_sampling(ChatConfig(), folder)
    assert chat.with_own_sampling(ChatConfig(), Path("nowhere")) == (ChatConfig(), "")


def test_a_system_prompt_stands_in_front_of_tools_and_changes_no_split() -> None:
    rows = [{**row, "tools": [foreign.TOOL]} if i % 2 else row for i, row in enumerate(ROWS)]
    data = RecordConfig(train=(str(small.written(Path("d.jsonl"), rows)),))
    plain, given = (read_split(data, "conversations", 0, system=system) for system in ("", "Be brief."))
    assert plain.facts == given.facts
    for one, other in zip(plain.train, given.train, strict=True):
        first, rest = other.messages[0], other.messages[1:]
        listed = one.messages[0]["role"] == "system"
        assert (first["role"], rest) == ("system", one.messages[listed:])
        assert first["content"] == "Be brief." + (f"\n\n{one.messages[0]['content']}" if listed else "")
        assert first.get("source", ({"role": "system", "content": "Be brief."},))[0]["content"] == "Be brief."


@pytest.mark.parametrize("with_lora", [False, True])
def test_a_base_model_becomes_a_chat_model(with_lora: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows of its new tokens are trained, also under LoRA, and what is written is a chat model of its own."""
    folder = Path("base")
    base = base_vocabulary(folder)
    assert (base.chat_template, base.has_chat_tokens) == (None, False)
    model = CausalLM(small.SHAPE.model_copy(update={"vocab_size": base.vocab_size, "max_position_embeddings": 128}))
    initialise(model, 0)
    hub.save(model, folder, bos=base.bos, stop=(base.eos,), pad=None)
    data = small.written(Path("d.jsonl"), ROWS)
    lora = LoRAConfig(r=4) if with_lora else None
    found = sft.run(SftConfig(parent=folder, device="cpu", lora=lora, **small.common(data)), WRITTEN)
    assert "chat template: ChatML, with new tokens <|im_start|>" in capsys.readouterr().err
    checkpoint = Path(found["checkpoint"])
    tuned, tokenizer = hub.load_causal_lm(checkpoint), Tokenizer.load(checkpoint)
    new = slice(base.vocab_size, tokenizer.vocab_size)
    assert (tokenizer.chat_template, new.stop - new.start) == (CHAT_TEMPLATE, 2)
    before = hub.load_causal_lm(next(Path(found["run"]).glob("base/*"))) if with_lora else None
    rows = tuned.model.embed_tokens.weight[new]
    assert rows.std(0).max() > 0
    if before is not None:  # of the old rows none changed, and both new ones did
        changed = (tuned.model.embed_tokens.weight != before.model.embed_tokens.weight).any(1)
        assert changed.nonzero().flatten().tolist() == list(range(new.start, new.stop))
    assert found["moved"]["to"] < found["moved"]["from"]
    capsys.readouterr()
    chat.run(ChatConfig(parent=checkpoint, device="cpu", max_new_tokens=1), WRITTEN, ["What is 7?"], stream=False)
    assert "(chat)" in capsys.readouterr().err
