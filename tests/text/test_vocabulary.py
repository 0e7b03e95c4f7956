"""Vocabulary files: writing, reading back, and refusals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers

from tinyllm.errors import INTEGRITY, USAGE, UserError
from tinyllm.text.special_tokens import ENDOFTEXT, IM_END, PAD
from tinyllm.text.tokenizer import Tokenizer

KINDS = ["trained", "sentencepiece", "stories"]


def test_merges_that_spell_a_control_token_are_not_used(sentencepiece: Tokenizer, sentencepiece_spec: dict):
    plain = tokenizers.Tokenizer.from_str(json.dumps(sentencepiece_spec | {"added_tokens": [], "truncation": None}))
    assert 2 in plain.encode("x</s>").ids  # the library's result, with or without added tokens
    assert sentencepiece.endoftext == 2
    assert 2 not in sentencepiece.encode("x</s>")
    assert "<tool>" in {sentencepiece.decode([i], skip_special=False) for i in sentencepiece.special_ids}


def test_imported_vocabulary_encodes_the_golden_text(shared: Path):
    stories = Tokenizer.load(shared / "models" / "stories260k" / "hf")
    golden = json.loads((shared / "models" / "stories260k" / "golden.json").read_text())
    assert stories.encode(golden["text"]) == golden["greedy_from_bos_199"][1:]
    assert stories.decode(golden["greedy_from_bos_199"]) == golden["text"]
    ids = (stories.bos, stories.endoftext, stories.im_start, stories.im_end, stories.pad)
    assert ids == (1, 2, None, None, None)
    assert (stories.vocab_size, stories.stop_ids, stories.has_chat_tokens) == (512, (2,), False)


def test_chat_tokens_are_added_once_after_the_vocabulary(stories: Tokenizer, trained: Tokenizer):
    chat = stories.with_chat_tokens()
    assert (chat.im_start, chat.im_end, chat.pad, chat.vocab_size) == (512, 513, 514, 515)
    assert (chat.bos, chat.endoftext, chat.stop_ids) == (1, 2, (513, 2))
    assert chat.encode("a <|im_end|>") == stories.encode("a <|im_end|>")
    assert chat.with_chat_tokens() is chat
    assert trained.with_chat_tokens() is trained
    assert stories.im_start is None


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_round_trip(kind: str, request: pytest.FixtureRequest, tmp_path: Path):
    before = request.getfixturevalue(kind).with_chat_tokens()
    before.save(tmp_path / "new" / "folder", model_max_length=128)
    after = Tokenizer.load(tmp_path / "new" / "folder")
    for field in dataclasses.fields(Tokenizer):
        if field.name not in ("_whole", "_text", "new_ids"):  # once loaded, no row is new
            assert getattr(after, field.name) == getattr(before, field.name), field.name
    text = "Hi 小猫 <|im_end|></s>\n"
    assert after.encode(text) == before.encode(text)
    assert Tokenizer.load(tmp_path / "new" / "folder" / "tokenizer.json").sha256 == before.sha256


def test_saved_files_have_the_entries_other_programs_read(trained: Tokenizer, stories: Tokenizer, tmp_path: Path):
    trained.save(tmp_path, model_max_length=256)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    template = config.pop("chat_template")
    assert (tmp_path / "chat_template.jinja").read_text() == template
    assert config.pop("added_tokens_decoder")["3"] == {
        "content": PAD,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    assert config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": ENDOFTEXT,
        "pad_token": PAD,
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
    }
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    assert spec["normalizer"] is None
    assert spec["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] is False
    stories.save(tmp_path / "plain", model_max_length=512)
    assert sorted(file.name for file in (tmp_path / "plain").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_truncation_padding_and_dropout_of_a_file_are_ignored(
    sentencepiece_spec: dict, load_spec: Callable[..., Tokenizer]
):
    assert sentencepiece_spec["truncation"]["max_length"] == 3
    padding = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}
    tokenizer = load_spec(
        sentencepiece_spec | {"padding": padding, "model": sentencepiece_spec["model"] | {"dropout": 0.5}}
    )
    assert {tuple(tokenizer.encode("Hi Hi Hi Hi Hi")) for _ in range(20)} == {tuple(tokenizer.encode("Hi")) * 5}


def test_end_and_padding_tokens_come_from_the_config(sentencepiece_spec: dict, load_spec: Callable[..., Tokenizer]):
    assert load_spec(sentencepiece_spec).endoftext == 2  # known by its name
    assert load_spec(sentencepiece_spec, {"eos_token": "<s>"}).endoftext == 1
    assert load_spec(sentencepiece_spec, {"eos_token": None, "pad_token": {"content": "<unk>"}}).pad == 0
    shared_with_end = load_spec(sentencepiece_spec, {"eos_token": "</s>", "pad_token": "</s>"})
    assert shared_with_end.pad == shared_with_end.with_chat_tokens().pad == 2
    assert shared_with_end.for_new_model().pad == shared_with_end.vocab_size + 2


def test_control_tokens_are_flagged_special_whatever_the_file_says(
    sentencepiece_spec: dict, load_spec: Callable[..., Tokenizer]
):
    spec = json.loads(json.dumps(sentencepiece_spec))
    spec["added_tokens"][-1] |= {"content": IM_END, "special": False}
    del spec["added_tokens"][2]  # the end token is then an ordinary entry of the vocabulary
    tokenizer = load_spec(spec, {"eos_token": "</s>"})
    assert tokenizer.special_ids == {0, 1, 2, tokenizer.vocab_size - 1}
    assert tokenizer.decode([tokenizer.im_end, 2, *tokenizer.encode("</s><|im_end|>")]) == "</s><|im_end|>"


def test_end_of_text_is_kept_where_the_config_names_the_end_of_turn(trained: Tokenizer, tmp_path: Path):
    trained.save(tmp_path, model_max_length=8)
    swapped = {"eos_token": IM_END, "pad_token": ENDOFTEXT}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(swapped))
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.endoftext, loaded.eos, loaded.im_end, loaded.pad) == (0, 2, 2, 0)
    assert loaded.stop_ids == (2, 0)


def broken_specs() -> dict[str, Callable[[dict], None]]:
    def other_model(spec: dict) -> None:
        spec["model"] = {"type": "WordLevel", "vocab": {"a": 0, "</s>": 1}, "unk_token": "a"}
        spec["added_tokens"] = []

    return {
        "id": lambda spec: spec["added_tokens"][-1].update(id=9000),
        "merge": lambda spec: spec["model"]["merges"].append(["H", "nowhere"]),
        "model": lambda spec: spec.pop("model"),
        "alias": lambda spec: spec["model"]["vocab"].update({"H": 2}),
        "kind": other_model,
        "bytes": lambda spec: spec["model"].update(byte_fallback=False),
        "byte": lambda spec: spec["added_tokens"][-1].update(content="<0x41>", id=3 + 0x41),
    }


@pytest.mark.parametrize(
    ("fault", "what", "code"),
    [
        ("id", "cannot have id 9000", INTEGRITY),
        ("merge", "not a valid tokenizer", INTEGRITY),
        ("model", "not a valid tokenizer", INTEGRITY),
        ("alias", "two tokens share one id", INTEGRITY),
        ("kind", "WordLevel", USAGE),
        ("bytes", "every byte", USAGE),
        ("byte", "every byte", USAGE),
    ],
)
def test_inconsistent_vocabularies_are_refused(
    fault: str, what: str, code: int, sentencepiece_spec: dict, load_spec: Callable[..., Tokenizer]
):
    spec = json.loads(json.dumps(sentencepiece_spec))
    broken_specs()[fault](spec)
    with pytest.raises(UserError, match=what) as caught:
        load_spec(spec, {"eos_token": "</s>"})
    assert caught.value.code == code
    assert "tokenizer.json" in caught.value.where
    assert caught.value.fix


def test_missing_or_damaged_files_are_refused(trained: Tokenizer, tmp_path: Path):
    with pytest.raises(UserError, match="no tokenizer found") as missing:
        Tokenizer.load(tmp_path)
    assert missing.value.code == USAGE
    trained.save(tmp_path, model_max_length=8)
    whole = (tmp_path / "tokenizer.json").read_bytes()
    deep = b"[" * 100_000
    for damaged in (b"", whole[: len(whole) // 2], b"[]", b"\xff\xfe\x00", deep, b"{}", b'{"model": NaN}'):
        (tmp_path / "tokenizer.json").write_bytes(damaged)
        with pytest.raises(UserError) as caught:
            Tokenizer.load(tmp_path)
        assert caught.value.code == INTEGRITY
    (tmp_path / "tokenizer.json").write_bytes(whole)
    for config in ('{"eos_token": "<nowhere>"}', '{"pad_token": 3}', "{"):
        (tmp_path / "tokenizer_config.json").write_text(config)
        with pytest.raises(UserError, match=r"tokenizer_config\.json") as caught:
            Tokenizer.load(tmp_path)
        assert caught.value.code == INTEGRITY
