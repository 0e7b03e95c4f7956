"""The files of tokenizers from elsewhere are written as they came, and transformers reads the same tokenizer from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.support import foreign_tokenizers, small
from tests.support.foreign_tokenizers import loaded, texts_for
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.model import hub, lora
from tinyllm.model.config import LoRAConfig
from tinyllm.model.transformer import CausalLM
from tinyllm.stages.checkpoint_files import CheckpointFiles
from tinyllm.text import own_files
from tinyllm.text.template import CHAT_TEMPLATE
from tinyllm.text.tokenizer import Tokenizer

FUZZ = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
KINDS = list(foreign_tokenizers.KINDS)
MODEL_FILES = ("config.json", "generation_config.json")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def save(tokenizer: Tokenizer, folder: Path) -> Path:
    """Save a tokenizer, and beside it the two files that the model's `save` writes."""
    tokenizer.save(folder, model_max_length=77)
    shape = small.SHAPE.model_copy(update={"vocab_size": tokenizer.vocab_size})
    options: Any = {"bos": tokenizer.bos, "stop": tokenizer.stop_ids, "pad": tokenizer.pad}
    hub.save(CausalLM(shape), folder, original=tokenizer.special, **options)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_written_as_they_came(kind: str, folder_of: Callable, tmp_path: Path) -> None:
    folder, tokenizer = folder_of(kind), loaded(folder_of(kind))
    once = save(tokenizer, tmp_path / "once")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        if (folder / name).is_file():
            before, after = (json.loads((where / name).read_text(encoding="utf-8")) for where in (folder, once))
            assert after == before
            assert list(after) == list(before)
    before, after = contents(folder), contents(once)
    templates = {name: text for name, text in before.items() if name.endswith(".jinja")}
    assert {name: text for name, text in after.items() if name.endswith(".jinja")} == templates
    again = Tokenizer.load(once)
    assert again.sha256 == tokenizer.sha256
    assert (again.special_ids, again.stop_ids, again.chat_template) == (
        tokenizer.special_ids,
        tokenizer.stop_ids,
        tokenizer.chat_template,
    )
    assert contents(save(again, tmp_path / "twice")) == after | {
        "model.safetensors": contents(tmp_path / "twice")["model.safetensors"]  # of another model
    }


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_the_same_tokenizer_from_what_is_saved(
    kind: str, folder_of: Callable, theirs_of: Callable, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    before, ours = theirs_of(kind), loaded(folder_of(kind))
    ours.save(tmp_path, model_max_length=77)
    for name in MODEL_FILES:
        if (folder_of(kind) / name).is_file():
            (tmp_path / name).write_bytes((folder_of(kind) / name).read_bytes())
    auto = transformers.PreTrainedTokenizerFast if kind == "smollm2" else transformers.AutoTokenizer
    after = auto.from_pretrained(tmp_path)
    assert type(after) is type(before)
    assert after.special_tokens_map == before.special_tokens_map
    assert after.chat_template == before.chat_template
    assert after.model_max_length == before.model_max_length
    assert after.get_vocab() == before.get_vocab()
    assert after.backend_tokenizer.to_str() == before.backend_tokenizer.to_str()

    @FUZZ
    @given(text=texts_for(ours, control=True))
    def check(text: str) -> None:
        for special in (False, True):
            assert after.encode(text, add_special_tokens=special) == before.encode(text, add_special_tokens=special)

    check()


def test_ids_and_generation_settings_are_written_as_they_came(folder_of: Callable, tmp_path: Path) -> None:
    saved = save(loaded(folder_of("llama3")), tmp_path / "llama3")
    generation = json.loads((saved / "generation_config.json").read_text())
    assert generation == json.loads((folder_of("llama3") / "generation_config.json").read_text())
    saved = save(loaded(folder_of("olmo2")), tmp_path / "olmo2")
    config = json.loads((saved / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"], "bos_token_id" in config) == (332, 333, False)


def test_flags_of_tokenizer_config_override_those_of_tokenizer_json(tmp_path: Path) -> None:
    folder = foreign_tokenizers.write("flags", tmp_path / "x")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    right = Tokenizer.load(folder)._whole.token_to_id("<right>")
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": False}
    assert len(Tokenizer.load(folder).encode("<right>  a")) < len(Tokenizer.load(folder).encode("a  a"))
    config["added_tokens_decoder"] = {str(right): {"content": "<right>", **flags}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert len(Tokenizer.load(folder).encode("<right>  a")) == len(Tokenizer.load(folder).encode("a  a"))
    for wrong in ({"9999": {"content": "<new>", **flags}}, {str(right): "x"}, {"x": {}}, {"1": {"content": "<y>"}}):
        config["added_tokens_decoder"] = wrong
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match="added") as caught:
            Tokenizer.load(folder)
        assert caught.value.code == INTEGRITY


def test_truncation_and_padding_are_kept_but_not_applied(tmp_path: Path) -> None:
    folder = foreign_tokenizers.write("phi3", tmp_path / "x")
    plain = Tokenizer.load(folder)
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(spec | {"truncation": truncation}), encoding="utf-8")
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("a b c d e f") == plain.encode("a b c d e f")
    assert tokenizer.sha256 == plain.sha256
    tokenizer.save(tmp_path / "y", model_max_length=8)
    assert json.loads((tmp_path / "y" / "tokenizer.json").read_text(encoding="utf-8"))["truncation"] == truncation
    assert Tokenizer.load(tmp_path / "y").encode("a b c d e f") == plain.encode("a b c d e f")


# --- templates and chat tokens ---------------------------------------------------------------------------------------------------


def test_the_template_of_a_file_wins_over_that_of_the_config(tmp_path: Path) -> None:
    folder = foreign_tokenizers.write("llama3", tmp_path / "x")
    assert Tokenizer.load(folder).chat_template == foreign_tokenizers.TEMPLATE
    (folder / "chat_template.jinja").write_text("file")
    assert Tokenizer.load(folder).chat_template == "file"
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for value in (3, ["x"], [{"name": "default"}], {"default": 1}):
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": value}))
        with pytest.raises(UserError, match="is not a template") as caught:
            Tokenizer.load(folder)
        assert caught.value.code == INTEGRITY
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": None}))
    assert Tokenizer.load(folder).chat_template is None


def test_a_base_model_gets_chat_tokens_and_a_template(folder_of: Callable, tmp_path: Path) -> None:
    base = loaded(folder_of("gpt2"))
    assert (base.has_chat_tokens, base.chat_template, base.new_ids) == (False, None, ())
    chat = base.with_chat_tokens()
    assert chat.new_ids == (331, 332) == (chat.im_start, chat.im_end)  # no padding token, which masks do not need
    assert (chat.vocab_size, chat.eos, chat.endoftext, chat.pad) == (333, 330, 330, None)
    chat = chat.with_chat_template(CHAT_TEMPLATE, end_of_turn=chat.im_end)
    assert (chat.stop_ids, chat.eos, chat.new_ids) == ((332, 330), 330, (331, 332))
    again = Tokenizer.load(save(chat, tmp_path / "chat"))
    assert (again.stop_ids, again.chat_template, again.has_chat_tokens) == ((332, 330), CHAT_TEMPLATE, True)
    assert (again.sha256, again.new_ids) == (chat.sha256, ())
    generation = json.loads((tmp_path / "chat" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [332, 330]
    plain = base.with_chat_template("{{ messages[0]['content'] }}")  # of text only, without new tokens
    assert (plain.vocab_size, plain.stop_ids) == (331, (330,))
    assert Tokenizer.load(save(plain, tmp_path / "plain")).chat_template == "{{ messages[0]['content'] }}"


def test_a_new_template_replaces_all_that_there_were(folder_of: Callable, tmp_path: Path) -> None:
    for kind in ("mistral", "smollm2"):
        save(loaded(folder_of(kind)).with_chat_template("new"), tmp_path / kind)
        assert [name for name in contents(tmp_path / kind) if name.endswith(".jinja")] == ["chat_template.jinja"]
        config = json.loads((tmp_path / kind / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert config["chat_template"] == (tmp_path / kind / "chat_template.jinja").read_text() == "new"


def test_our_own_vocabulary_keeps_its_files_until_it_gets_another_template(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "own", model_max_length=64)
    own = Tokenizer.load(tmp_path / "own")
    assert (own.files, own.special, own.chat_template) == (None, None, CHAT_TEMPLATE)
    own.save(tmp_path / "again", model_max_length=64)
    assert contents(tmp_path / "again") == contents(tmp_path / "own")
    assert own.with_chat_template(CHAT_TEMPLATE, end_of_turn=own.im_end) is own
    other = own.with_chat_template("other")
    saved = save(other, tmp_path / "other")
    assert json.loads((saved / "tokenizer_config.json").read_text())["model_max_length"] == 77
    again = Tokenizer.load(saved)
    assert (again.chat_template, again.stop_ids, again.pad) == ("other", (2, 0), 3)
    assert again.sha256 == own.sha256


def test_checkpoints_with_an_earlier_template_of_ours_are_our_own(trained: Tokenizer, tmp_path: Path) -> None:
    assert hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest() == own_files.OWN_TEMPLATES[-1]
    trained.save(tmp_path / "own", model_max_length=64)
    earlier = "an earlier one"
    (tmp_path / "own" / "chat_template.jinja").write_text(earlier)
    assert Tokenizer.load(tmp_path / "own").chat_template == earlier
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_files, "OWN_TEMPLATES", (hashlib.sha256(earlier.encode()).hexdigest(),))
        again = Tokenizer.load(tmp_path / "own")
    assert (again.files, again.chat_template) == (None, CHAT_TEMPLATE)


def test_a_vocabulary_for_a_new_model_has_our_files(folder_of: Callable, tmp_path: Path) -> None:
    new = loaded(folder_of("smollm2")).for_new_model()
    assert (new.bos, new.eos, new.endoftext, new.pad, new.document_start) == (None, 0, 0, 330, 0)
    assert (new.files, new.chat_template, new.stop_ids) == (None, CHAT_TEMPLATE, (2, 0))
    new.save(tmp_path, model_max_length=8)
    assert Tokenizer.load(tmp_path).sha256 == new.sha256
    assert Tokenizer.load(tmp_path).files is None


def test_an_adapter_keeps_the_generation_settings_beside_its_tokenizer(
    folder_of: Callable, trained: Tokenizer, tmp_path: Path
) -> None:
    for name, tokenizer in (("llama3", loaded(folder_of("llama3"))), ("own", trained)):
        shape = small.SHAPE.model_copy(update={"vocab_size": tokenizer.vocab_size})
        settings = LoRAConfig(r=2)
        (tmp_path / name).mkdir()
        CheckpointFiles(lora.attach(CausalLM(shape), settings), tokenizer, adapter=settings, base="base").write(
            tmp_path / name
        )
        assert Tokenizer.load(tmp_path / name).stop_ids == tokenizer.stop_ids
    generation = json.loads((tmp_path / "llama3" / "generation_config.json").read_text())
    assert generation == json.loads((folder_of("llama3") / "generation_config.json").read_text())
    assert not (tmp_path / "own" / "generation_config.json").exists()
