"""Malicious checkpoints are refused with one error and without side effects, by the loaders and by whole commands."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.hostile import (
    Build,
    Payload,
    edited,
    good,
    header,
    linked,
    opened,
    piped,
    raw,
    refusal,
    small,
    sparse,
    tensor,
)
from tinyllm.errors import INTEGRITY
from tinyllm.model import hub


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return good(Path("hostile"))


def weights(content: bytes) -> Build:
    return lambda folder: (folder / "model.safetensors").write_bytes(content) and None


def pickled(folder: Path) -> None:
    weights(pickle.dumps(Payload(folder.parent / "canary")))(folder)


def zipped(folder: Path) -> None:
    torch.save({"model.norm.weight": Payload(folder.parent / "canary")}, folder / "model.safetensors")


def index(names: Any) -> Build:
    """Move the weights out of the folder, and write an index that refers to them."""

    def build(folder: Path) -> None:
        (folder.parent / "outside").mkdir()
        (folder / "model.safetensors").rename(folder.parent / "outside" / "model.safetensors")
        content = {"weight_map": names(folder)} if callable(names) else names
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return build


def in_two_files(folder: Path) -> None:
    (folder / "a.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").rename(folder / "b.safetensors")
    names = {"x": "a.safetensors", "y": "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def with_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Build:
    """Change the tensors of valid weights."""

    def build(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors")

    return build


def with_large_metadata(folder: Path) -> None:
    """Write valid tensors with an oversized header."""
    path = folder / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "a": "x" * (11 << 20)})


def with_duplicate_name(folder: Path) -> None:
    """Write valid tensors, with two header entries for the first."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + size])
    first = next(name for name in entries if name != "__metadata__")
    again = json.dumps({first: entries[first]}).encode()[:-1] + b", "
    path.write_bytes(header(again + content[9 : 8 + size], content[8 + size :]))


WEIGHTS: dict[str, Build] = {
    "a pickle": pickled,
    "a zip file of torch.save": zipped,
    "an empty file": weights(b""),
    "a header of a terabyte": weights(header(b"{}", size=1 << 40)),
    "a header of eleven megabytes": with_large_metadata,
    "a header that is not JSON": weights(header(b'{"a"')),
    "a deeply nested header": weights(header(b'{"__metadata__":' + b"[" * 100_000)),
    "negative offsets": weights(header({"a": tensor([2], -4, 4)}, b"12345678")),
    "a negative size": weights(header({"a": tensor([-2], 0, 8)}, b"12345678")),
    "overlapping tensors": weights(header({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, b"x" * 12)),
    "two tensors at one offset": weights(header({"a": tensor([2], 0, 8), "b": tensor([2], 0, 8)}, b"x" * 8)),
    "a tensor beyond the file": weights(header({"a": tensor([1 << 40], 0, 1 << 42)}, b"x" * 8)),
    "a size that overflows": weights(header({"a": tensor([1 << 33, 1 << 33], 0, 8)}, b"x" * 8)),
    "bytes without a tensor": weights(header({"a": tensor([1], 0, 4)}, b"x" * 12)),
    "duplicate tensor name": with_duplicate_name,
    "terminal escape sequences in names": weights(header({"\x1b[2J\u202e" + "x" * 5000: tensor([1], 0, 4)}, b"1234")),
    "an empty tensor": weights(header({"model.embed_tokens.weight": tensor([10**9, 0], 0, 0)})),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "a tensor in two files": in_two_files,
    "an index with a path out of the folder": index(lambda _: {"a": "../outside/model.safetensors"}),
    "an index with an absolute path": index(lambda f: {"a": str((f.parent / "outside/model.safetensors").resolve())}),
    "an index of pickles": index(lambda _: {"a": "pytorch_model.bin"}),
    "an index with a list for a name": index(lambda _: {"a": ["b"]}),
    "an index that is a list": index([]),
    "a link out of the folder": linked("model.safetensors"),
    "a link to a device": linked("model.safetensors", target="/dev/zero"),
    "a circular link": linked("model.safetensors", target="model.safetensors"),
    "a pipe": piped("model.safetensors"),
    "integer weights": with_tensors(lambda t: t.update({"model.norm.weight": torch.ones(16, dtype=torch.int64)})),
    "float8 weights": with_tensors(lambda t: t.update({"model.norm.weight": torch.ones(16).to(torch.float8_e4m3fn)})),
    "one tensor missing": with_tensors(lambda t: t.pop("model.norm.weight")),
    "one extra tensor": with_tensors(lambda t: t.update({"model.layers.0.hook": torch.ones(1)})),
    "one tensor with a wrong shape": with_tensors(lambda t: t.update({"model.norm.weight": torch.ones(17)})),
    "nan weights": with_tensors(lambda t: t["model.norm.weight"].fill_(float("nan"))),
    "infinite weights": with_tensors(lambda t: t["model.norm.weight"].fill_(float("inf"))),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_hostile_weights(name: str, place: Path) -> None:
    WEIGHTS[name](place)
    error = refusal(lambda: opened(place), codes=(INTEGRITY,))
    assert error.where.startswith("hostile")


def config(**changes: Any) -> Build:
    def build(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return build


def config_text(change: str) -> Build:
    """Insert text that a JSON writer would not write."""

    def build(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(path.read_text().replace("{", "{" + change, 1))

    return build


CONFIGS: dict[str, Build] = {
    "a list": raw("config.json", b"[]"),
    "an empty file": raw("config.json", b""),
    "half an object": raw("config.json", b'{"model_type": "qwen3", "hidden_s'),
    "not UTF-8": raw("config.json", b"\xff\xfe\xfa{}"),
    "deep nesting": raw("config.json", b'{"a":' * 100_000),
    "five megabytes": config(padding="x" * 5_000_000),
    "hundreds of megabytes": sparse("config.json"),
    "a link out of the folder": linked("config.json"),
    "NaN": config_text('"rms_norm_eps": NaN,'),
    "a duplicate key": config_text('"hidden_size": 16,'),
    "a number too large": config_text('"rope_theta": 1e999,'),
    "five thousand digits": config_text(f'"x": {"9" * 5000},'),
    "remote code": config(auto_map={"AutoModelForCausalLM": "modeling.Model"}, architectures=["Model"]),
    "an unsupported model type": config(model_type="gpt_neox"),
    "a model type that is a list": config(model_type=["qwen3"]),
    "terminal escape sequences in the model type": config(model_type="\x1b]0;x\x07" + "y" * 9999),
    "rope_parameters that are a list": config(rope_parameters=[1]),
    "an unsupported rope type": config(rope_scaling={"type": "yarn"}, rope_parameters=None),
    "an unsupported layer type": config(layer_types=["sliding_attention"]),
    "a string for a boolean": config(tie_word_embeddings="false"),
}
HUGE = (0, -1, 10**9, 10**30)
for _key in ("hidden_size", "vocab_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
    for _value in (*HUGE, True, "16", 16.5, [16], {}, None):
        CONFIGS[f"{_key} {_value!r}"] = config(**{_key: _value})
for _key in ("head_dim", "num_key_value_heads", "max_position_embeddings"):
    for _value in (*HUGE, True, "16", [16]):
        CONFIGS[f"{_key} {_value!r}"] = config(**{_key: _value})
for _key in ("rms_norm_eps", "rope_theta"):
    for _value in (-1.0, True, "1", [1.0]):
        CONFIGS[f"{_key} {_value!r}"] = config(**{_key: _value})


@pytest.mark.parametrize("name", CONFIGS)
def test_hostile_config(name: str, place: Path) -> None:
    CONFIGS[name](place)
    error = refusal(lambda: opened(place))
    assert error.where.startswith("hostile")


def test_control_characters_in_a_path_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = good(Path("hostile\x1b[2J\u202e"))
    (folder / "model.safetensors").unlink()
    error = refusal(lambda: opened(folder))
    assert error.where == "hostile\\x1b[2J\\u202e/model.safetensors"


def test_unknown_keys_of_config_json_are_ignored(place: Path) -> None:
    """transformers writes dozens of them."""
    want = hub.load_causal_lm(place).model.embed_tokens.weight
    config(transformers_version="9", __class__="os.system", unknown={"a": [1]}, architectures=7)(place)
    assert torch.equal(hub.load_causal_lm(place).model.embed_tokens.weight, want)


# --- whole commands --------------------------------------------------------------------------------------------------------------


def failed_command(*arguments: str) -> tuple[int, str]:
    """Run a command that must fail with one error and no traceback; return its exit code and stderr."""
    environment = {**os.environ, "NO_COLOR": "1", "RUST_BACKTRACE": "1"}
    command = [sys.executable, "-m", "tinyllm", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    assert [line.partition(":")[0] for line in done.stderr.splitlines()].count("error") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "backtrace" not in done.stderr
    assert not list(Path().rglob("canary"))
    return done.returncode, done.stderr


COMMANDS: dict[str, tuple[tuple[str, ...], Build, int, str]] = {
    "chat with a pickle": (("chat", "-p", "hi"), pickled, INTEGRITY, "hostile/model.safetensors"),
    "eval of a huge model": (
        ("eval",),
        config(hidden_size=10**9),
        INTEGRITY,
        "hidden_size: weights 16, config.json 1000000000",
    ),
    "sft with a regex bomb": (
        ("sft",),
        edited(lambda s: s["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "(a+)+$"})),
        INTEGRITY,
        "hostile/tokenizer.json",
    ),
    "dry run of a huge model": (("sft", "--dry-run"), config(hidden_size="x"), INTEGRITY, "hostile/config.json"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_fails_with_one_error_that_names_the_file(name: str, place: Path) -> None:
    arguments, build, code, words = COMMANDS[name]
    build(place)
    small.written(Path("data.jsonl"), [{"prompt": "a", "completion": "b"}] * 9)
    data = ("--set", "data.train=[data.jsonl]") if arguments[0] == "sft" else ()
    found, text = failed_command(*arguments, "--checkpoint", "hostile", *data)
    assert found == code
    assert words in text
