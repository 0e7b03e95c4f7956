"""Malicious tokenizers, chat templates and adapters are refused with one error and without side effects."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.hostile import (
    Build,
    Payload,
    edited,
    good,
    harmless_or_refused,
    header,
    linked,
    opened,
    raw,
    refusal,
    small,
    sparse,
    tensor,
)
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.model import hub, lora
from tinyllm.model.config import LoRAConfig
from tinyllm.text import chat
from tinyllm.text.foreign import process
from tinyllm.text.tokenizer import Tokenizer


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return good(Path("hostile"))


def pattern(regex: str) -> Build:
    return edited(lambda s: s["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": regex}))


def normalizer(regex: str) -> Build:
    return edited(lambda s: s.update(normalizer={"type": "Replace", "pattern": {"Regex": regex}, "content": "x"}))


TOKENIZERS: dict[str, Build] = {
    "a pattern with exponential backtracking": pattern("(a+)+$"),
    "overlapping alternatives": pattern("(ab|a|b)+$"),
    "a normalizer with exponential backtracking": normalizer(r"(\p{L}+)*\d"),
    "an invalid pattern": pattern("(("),
    "hundreds of megabytes": sparse("tokenizer.json"),
    "a config of hundreds of megabytes": sparse("tokenizer_config.json"),
    "a link out of the folder": linked("tokenizer.json"),
    "a config that is a link out of the folder": linked("tokenizer_config.json"),
    "a list": raw("tokenizer.json", b"[]"),
    "deep nesting": raw("tokenizer.json", b'{"a":' * 100_000),
    "deep nesting in the config": raw("tokenizer_config.json", b"[" * 100_000),
    "an id of one billion": edited(lambda s: s["model"]["vocab"].update(zz=10**9)),
    "an added id of one billion": edited(lambda s: s["added_tokens"][0].update(id=10**9)),
    "two tokens with one id": edited(lambda s: s["model"]["vocab"].update(zz=9)),
    "more tokens than the model": edited(lambda s: s["model"]["vocab"].update({f"zz{i}": 900 + i for i in range(99)})),
    "a lone surrogate": edited(lambda c: c.update(eos_token="\ud800"), "tokenizer_config.json"),
    "an EOS token of three megabytes": raw("tokenizer_config.json", b'{"eos_token": "' + b"x" * 3_000_000 + b'"}'),
    "terminal escape sequences in the EOS token": raw("tokenizer_config.json", b'{"eos_token": "\\u001b[2J"}'),
    "a word-level model": edited(lambda s: s["model"].update(type="WordLevel", unk_token="x", merges=None)),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_hostile_tokenizers(name: str, place: Path, capfd: pytest.CaptureFixture) -> None:
    TOKENIZERS[name](place)
    refusal(lambda: opened(place))
    assert capfd.readouterr().err == ""  # panics in Rust print to stderr


WRONG_VALUES = (None, True, 0, -1, 10**9, 10**30, 1.5, "", "x", "\ud800", [], [1], {}, {"a": 1}, [[["a"]]])


def locations(value: Any, prefix: tuple = ()) -> Iterator[tuple]:
    """Yield the locations of some parts of a JSON value."""
    parts = list(value)[:4] if isinstance(value, dict) else range(len(value[:2])) if isinstance(value, list) else ()
    for part in parts:
        yield (*prefix, part)
        yield from locations(value[part], (*prefix, part))


def replaced(value: Any, location: tuple, other: Any) -> Any:
    copy = json.loads(json.dumps(value))
    target = copy
    for part in location[:-1]:
        target = target[part]
    target[location[-1]] = other
    return copy


FILES: dict[str, Any] = {
    "tokenizer.json": {},
    "tokenizer_config.json": {
        "extra_special_tokens": ["<|pad|>"],
        "model_max_length": 9,
        "chat_template": [{"name": "default", "template": "x"}],
    },
    "special_tokens_map.json": {
        "eos_token": {"content": "<|im_end|>", "lstrip": False},
        "additional_special_tokens": ["a"],
    },
    "generation_config.json": {"eos_token_id": [2, 0], "temperature": 0.5},
}


@pytest.mark.parametrize("name", FILES)
def test_a_tokenizer_with_any_part_replaced_is_refused_or_works(name: str, place: Path) -> None:
    path = place / name
    valid = (json.loads(path.read_text()) if path.is_file() else {}) | FILES[name]
    if name == "special_tokens_map.json":
        (place / "tokenizer_config.json").write_text("{}")
    for location in locations(valid):
        for other in WRONG_VALUES:
            path.write_text(json.dumps(replaced(valid, location, other)))
            with harmless_or_refused():
                tokenizer = Tokenizer.load(place)
                tokenizer.encode("Hi <|im_end|> \u00e9")
                tokenizer.encode_template([("<|im_end|>", False), ("Hi <|im_end|>", True)])
                tokenizer.with_chat_tokens().save(Path("again"), model_max_length=9)
                Tokenizer.load(Path("again"))


def test_a_regex_that_fails_on_a_later_text_is_one_error(place: Path) -> None:
    pattern(r"QWERT(x+x+)+y")(place)
    tokenizer = Tokenizer.load(place)
    with pytest.raises(UserError, match="regex engine gave up") as caught:
        tokenizer.encode("QWERT" + "x" * 60)
    assert caught.value.code == INTEGRITY


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ (10**8)**(10**6) }}",
        "{{ '%999999999d'|format(1) }}",
    ],
    ids=["endless", "class", "huge"],
)
def test_an_untrusted_chat_template_is_rendered_within_limits(
    template: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one error where it is used, and loading and saving do not render it; see also text/test_hostile_templates.py."""
    monkeypatch.setattr(process, "SECONDS", 1.0)
    (place / "chat_template.jinja").write_text(template)
    edited(lambda c: c.update(chat_template=template[:1000]), "tokenizer_config.json")(place)
    began = time.monotonic()
    with harmless_or_refused():
        tokenizer = Tokenizer.load(place)
        tokenizer.save(Path("new"), model_max_length=9)
        with pytest.raises(UserError, match="chat template") as caught:
            chat.render(tokenizer, [{"role": "user", "content": "hi"}], generation_prompt=True)
        assert "chat.template=chatml" in caught.value.fix
    assert time.monotonic() - began < 20


# --- adapters --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(place: Path) -> Path:
    """Return a valid adapter of the valid checkpoint."""
    folder = Path("adapter")
    folder.mkdir()
    small.tokenizer().save(folder, model_max_length=96)
    lora.save(lora.attach(hub.load_causal_lm(place), LoRAConfig(r=2)), LoRAConfig(r=2), folder, "hostile")
    opened(folder)
    return folder


def adapter_config(**changes: Any) -> Build:
    def build(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return build


def own_base(folder: Path) -> None:
    """Make the adapter its own base model."""
    (folder / "config.json").write_text(Path("hostile/config.json").read_text())
    adapter_config(base_model_name_or_path=str(folder))(folder)


def adapter_weights(entries: dict[str, Any], body: bytes = b"") -> Build:
    return lambda folder: (folder / "adapter_model.safetensors").write_bytes(header(entries, body)) and None


def pickled_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps(Payload(folder.parent / "canary")))


def only_a_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"a": Payload(folder.parent / "canary")}, folder / "adapter_model.bin")


def huge_rank(folder: Path) -> None:
    """Set a huge rank that the weights match, with empty tensors."""
    adapter_config(r=10**9)(folder)
    names = load_file(folder / "adapter_model.safetensors")
    shapes = {k: tensor([10**9, 0] if "lora_A" in k else [0, 10**9], 0, 0) for k in names}
    adapter_weights(shapes)(folder)


ADAPTERS: dict[str, Build] = {
    "its own base": own_base,
    "a pickle": pickled_weights,
    "only a pickle": only_a_pickle,
    "a rank of one billion": huge_rank,
    "a list": raw("adapter_config.json", b"[]"),
    "deep nesting": raw("adapter_config.json", b'{"a":' * 100_000),
    "NaN": raw("adapter_config.json", b'{"peft_type": "LORA", "r": 2, "lora_alpha": NaN}'),
    "a link out of the folder": linked("adapter_model.safetensors"),
    "a pattern for target_modules": adapter_config(target_modules=".*"),
    "a million names": adapter_config(target_modules=["q_proj", *(f"x{i}" for i in range(100_000))]),
    "terminal escape sequences in names": adapter_config(target_modules=["\x1b]0;x\x07"]),
    "an activated LoRA": adapter_config(alora_invocation_tokens=[1]),
}
for _key, _values in {
    "base_model_name_or_path": ("/etc", "../../..", "https://example.org/model", "x" * 5000, "a\0b", "", ["a"], 3),
    "r": (0, -1, 3, 10**9, 10**30, "2", True, 2.5, [2], None),
    "lora_alpha": (0, -1, "x", [1], True, None, 10**400),
    "lora_dropout": (-1, 1, 2, "x", [1]),
    "target_modules": (None, [], 3, [3], {}, ["lm_head"], ["w_proj"]),
    "use_dora": (1, "yes"),
    "peft_type": ("IA3", None, ["LORA"]),
}.items():
    for _value in _values:
        ADAPTERS[f"{_key} {_value!r:.30}"] = adapter_config(**{_key: _value})


@pytest.mark.parametrize("name", ADAPTERS)
def test_hostile_adapters(name: str, adapter: Path) -> None:
    ADAPTERS[name](adapter)
    error = refusal(lambda: opened(adapter))
    assert error.where.startswith("adapter")
