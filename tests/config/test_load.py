"""Precedence of sources, origins of values, and round trips through `to_yaml`."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from tinyllm.config import Config, Resolved, dump, flatten, load, parse_set
from tinyllm.errors import UserError


class Optim(Config):
    learning_rate: float = Field(1e-3, gt=0)
    """at its peak"""
    betas: tuple[float, float] = (0.9, 0.95)


class Train(Config):
    steps: int = Field(100, ge=1)
    batch_size: int = 16
    compile: bool = False
    clip: float = Field(1.0, allow_inf_nan=True)


class Lora(Config):
    r: int = 8
    targets: tuple[str, ...] = ("q_proj",)


class Data(Config):
    files: tuple[str, ...] = ("world",)
    length: int = 256


class Stage(Config):
    name: str = "default"
    seed: int = 0
    tokenizer: Path | None = None
    limit: int | Literal["auto"] = "auto"
    rewards: dict[str, float] = Field({"gold": 1.0})
    extra: Any = None
    data: Data = Data(length=64)  # not the class's own default
    train: Train = Train()
    optim: Optim = Optim()
    lora: Lora | None = None


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def read(text: str = "", **rest: Any) -> Resolved[Stage]:
    return load(Stage, files=[write("a.yaml", text)], **rest)


BASE = "train: {steps: 2}\n"
FAST = "fast_dev_run: {train.steps: 9}\n"
CHILD = "extends: base.yaml\n\ntrain:\n  steps: 3\nfast_dev_run:\n  train.steps: 4\n"
ENVIRON = {"TINYLLM_TRAIN__STEPS": "5", "HOME": "/", "TINYLLM_HOME": "x", "TINYLLM_DEBUG": "1"}
SETS = [("train.steps", "6", "--set"), ("train.steps", "7", "--steps")]


@pytest.mark.parametrize(
    ("base", "child", "fast", "environ", "overrides", "steps", "origin"),
    [
        ("", "", True, {}, [], 100, "default"),
        (BASE, "extends: base.yaml\n", True, {}, [], 2, "base.yaml:1"),
        (BASE, CHILD, False, {}, [], 3, "a.yaml:4"),
        (BASE, CHILD, True, {}, [], 4, "a.yaml:6"),
        (BASE + FAST, "extends: base.yaml\ntrain: {steps: 3}\n", True, {}, [], 9, "base.yaml:2"),
        (BASE + FAST, CHILD, True, {}, [], 4, "a.yaml:6"),
        (BASE, CHILD, True, ENVIRON, [], 5, "env TINYLLM_TRAIN__STEPS"),
        (BASE, CHILD, True, ENVIRON, SETS[:1], 6, "--set"),
        (BASE, CHILD, True, ENVIRON, SETS, 7, "--steps"),
    ],
)  # fmt: skip
def test_the_last_source_wins(base, child, fast, environ, overrides, steps, origin) -> None:
    write("base.yaml", base)
    resolved = read(child, fast=fast, environ=environ, overrides=overrides)
    assert (resolved.config.train.steps, resolved.origins["train.steps"]) == (steps, origin)
    assert resolved.config.train.batch_size == 16
    assert resolved.origins["train.batch_size"] == "default"


def test_extends_is_relative_to_the_file_that_contains_it() -> None:
    write("deep/base.yaml", "extends: ../root.yaml\nseed: 1\n")
    write("root.yaml", "seed: 2\nname: root\n")
    resolved = read("extends: deep/base.yaml\n")
    assert (resolved.config.seed, resolved.config.name) == (1, "root")
    assert resolved.origins["name"] == "root.yaml:2"
    assert resolved.changed() == {"name": "root", "seed": 1}


def test_later_files_win() -> None:
    files = [write("a.yaml", "seed: 1\nname: a\n"), write("b.yaml", "seed: 2\n")]
    resolved = load(Stage, files=files)
    assert (resolved.config.seed, resolved.config.name) == (2, "a")
    assert resolved.origins["seed"] == "b.yaml:1"


def test_every_value_has_an_origin() -> None:
    resolved = read("lora: {r: 4}\n")
    assert list(resolved.origins) == list(flatten(resolved.config))
    assert "lora.targets" in resolved.origins
    assert list(read().origins)[-1] == "lora"


def test_sections_are_merged_and_everything_else_is_replaced() -> None:
    write("base.yaml", "data: {files: [a, b], length: 8}\nrewards: {gold: 1, b.py:f: 2}\n")
    resolved = read("extends: base.yaml\ndata: {files: [c]}\nrewards: {exact: 1}\n")
    assert resolved.config.data == Data(files=("c",), length=8)
    assert resolved.config.rewards == {"exact": 1.0}


def test_one_key_of_a_section_leaves_the_sections_own_defaults() -> None:
    assert read("data: {files: [x]}\n").config.data.length == 64


def test_one_entry_of_a_free_mapping_can_be_set() -> None:
    sets = [("rewards.dir/b.py:f", "0.5", "--set"), ("rewards.gold", "2", "--set")]
    resolved = read("rewards: {gold: 1, other: 3}\n", overrides=sets)
    assert resolved.config.rewards == {"gold": 2.0, "other": 3.0, "dir/b.py:f": 0.5}
    assert resolved.origins["rewards"] == "a.yaml:1 + --set"


@pytest.mark.parametrize(
    ("text", "sets", "lora"),
    [
        ("lora:\n", [], None),
        ("lora: {}\n", [], Lora()),
        ("lora: {r: 4}\n", [], Lora(r=4)),
        ("lora: {r: 4}\n", [("lora", "null")], None),
        ("lora: {r: 4}\n", [("lora", "null"), ("lora.targets", "[v_proj]")], Lora(targets=("v_proj",))),
        ("", [("lora.r", "2")], Lora(r=2)),
        ("lora: {r: 4}\n", [("lora", "{}")], Lora(r=4)),
    ],
)
def test_a_section_that_may_be_none(text: str, sets: list[tuple[str, str]], lora: Lora | None) -> None:
    assert read(text, overrides=[(*pair, "--set") for pair in sets]).config.lora == lora


def test_a_replaced_value_is_not_an_origin() -> None:
    sets = [("lora", "null", "--set"), ("lora", "{}", "--set")]
    assert read("lora: {r: 4}\n", overrides=sets).origins["lora.r"] == "default"
    sets = [("rewards.gold", "2", "--one"), ("rewards", "{a: 1}", "--two")]
    assert read(overrides=sets).origins["rewards"] == "--two"


def test_an_empty_section_changes_nothing() -> None:
    assert read("train:\n  # steps: 3\n").config.train == Train()


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "\ufeff", "fast_dev_run:\n"])
def test_an_empty_file_means_all_defaults(text: str) -> None:
    assert read(text).config == Stage()
    assert read(text).changed() == {}


def test_dotted_keys_in_files() -> None:
    assert read("train.steps: 3\n").config.train.steps == 3


@pytest.mark.parametrize(
    ("key", "raw", "value"),
    [
        ("name", "2024", "2024"),  # a text field takes what was typed
        ("name", "you: #1 [", "you: #1 ["),
        ("name", '"quoted"', "quoted"),
        ("name", '"a" or "b"', '"a" or "b"'),
        ("name", "null", "null"),
        ("tokenizer", "null", None),
        ("tokenizer", "", None),
        ("tokenizer", "a/b.json", Path("a/b.json")),
        ("limit", "12", 12),
        ("limit", "auto", "auto"),
        ("extra", "[1, {a: no}]", [1, {"a": "no"}]),
    ],
)
def test_values_from_the_command_line_and_the_environment(key: str, raw: str, value: Any) -> None:
    assert getattr(read(overrides=[(key, raw, "--set")]).config, key) == value
    assert getattr(read(environ={f"TINYLLM_{key.upper()}": raw}).config, key) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train.clip: 3e-4", 3e-4), ("train.clip: 2", 2.0), ("train.clip: .inf", math.inf),
        ("train.clip: -1E+3", -1000.0),
        ("extra: yes", "yes"), ("extra: on", "on"), ("extra: 0123", "0123"), ("extra: 12:30:45", "12:30:45"),
        ("extra: 2024-01-01", "2024-01-01"), ("extra: true", True), ("extra: 0o17", 15), ("extra: 1_000", "1_000"),
        ("extra: {on: off}", {"on": "off"}), ("data.files: [a, b]", ("a", "b")), ("tokenizer: x", Path("x")),
    ],
)  # fmt: skip
def test_values_from_yaml(text: str, value: Any) -> None:
    config: Any = read(text).config
    for part in text.partition(":")[0].split("."):
        config = getattr(config, part)
    assert config == value
    assert type(config) is type(value)


def test_parse_set() -> None:
    assert parse_set(" a.b =c=d ") == ("a.b", "c=d ")
    for text in ("train.steps", "=3", ""):
        with pytest.raises(UserError, match="KEY=VALUE") as caught:
            parse_set(text)
        assert caught.value.where == "--set"
    assert "--set train.steps=VALUE" in caught.value.fix


@pytest.mark.parametrize(
    "values",
    [
        {"seed": True},
        {"seed": "1"},
        {"name": 1},
        {"seeed": 1},
        {"train": {"clip": "x"}},
        {"optim": {"learning_rate": math.nan}},
    ],
)
def test_settings_made_in_python_are_strict_too(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Stage(**values)


def test_settings_are_frozen_documented_and_compared_by_value() -> None:
    with pytest.raises(ValidationError):
        Stage().seed = 1
    assert Optim.model_fields["learning_rate"].description == "at its peak"
    assert Stage.model_validate_json('{"data": {"files": ["a"]}, "tokenizer": "x", "seed": 1}').data.files == ("a",)
    assert dump(Stage(tokenizer=Path("x")))["tokenizer"] == "x"
    assert flatten(Stage())["optim.betas"] == [0.9, 0.95]


TRICKY = ["on", "No", "~", "", "null", "0123", "1e3", "1.", "12:30:45", "0x1F", "- a", "a: b", "#x"]
TRICKY += ["\t", " x ", "é\n\n", "=", "<<", "*a", "!t", "\x85", "\u2028", "\ufeff", "\x1b"]


@given(
    text=st.one_of(st.sampled_from(TRICKY), st.text()),
    number=st.floats(allow_nan=False),
    seed=st.integers(-(10**18), 10**18),
    rewards=st.dictionaries(st.one_of(st.sampled_from(TRICKY), st.text()), st.floats(-9, 9), max_size=3),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_to_yaml_round_trip(text: str, number: float, seed: int, rewards: dict[str, float]) -> None:
    rest = {"train": Train(clip=number), "lora": Lora(targets=(text, "x")), "extra": [text, None]}
    config = Stage(name=text, seed=seed, rewards=rewards, **rest)
    again = read(Resolved(config, {}).to_yaml())
    assert again.config == config
    assert "default" not in again.origins.values()


def test_to_yaml_is_self_contained() -> None:
    write("base.yaml", "name: base\n")
    resolved = read("extends: base.yaml\nfast_dev_run: {seed: 3}\n", fast=True)
    text = resolved.to_yaml()
    assert text.startswith("name: base\nseed: 3\ntokenizer: null\n")
    assert "extends" not in text
    Path("base.yaml").unlink()
    assert read(text).config == resolved.config


def test_torch_is_not_imported() -> None:
    code = "import tinyllm.config, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
