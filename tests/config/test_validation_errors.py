"""Messages for invalid configurations: all problems at once, each with its line, the value found, the value expected and one fix."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, field_validator, model_validator

from tinyllm.config import Config, load
from tinyllm.errors import USAGE, UserError


class Optim(Config):
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)


class Train(Config):
    steps: int = Field(100, ge=1)
    batch_size: int = 16
    micro_batch_size: int = 16
    compile: bool = False
    clip: float = Field(1.0, gt=0, allow_inf_nan=True)

    @model_validator(mode="after")
    def _fills(self) -> Train:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}")
        return self


class Stage(Config):
    name: str = Field("default", pattern="^[a-z0-9]+$")
    tokenizer: Path | None = None
    limit: int | Literal["auto"] = "auto"
    tiles: Annotated[int, Field(ge=2)] | None = None
    files: tuple[str, ...] = ("world",)
    rewards: dict[str, float] = Field({"gold": 1.0})
    train: Train = Train()
    optim: Optim = Optim()

    @field_validator("files")
    @classmethod
    def _some(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        if not files:
            raise ValueError("there must be a file")
        return files


class Needy(Config):
    steps: int
    rate: float
    train: Train


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def message_of(text: str | None, cls: type[Config] = Stage, **rest: Any) -> str:
    """Return the complete error as users see it."""
    if text is not None:
        Path("a.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(cls, files=[Path("a.yaml")], **rest)
    assert caught.value.code == USAGE
    return str(caught.value)


def test_problems_of_all_sources_are_reported_at_once() -> None:
    text = """\
learning_rate: 3e-4
train:
  batch_sze: 3
  steps: 0
  compile: yes
optim: {optimizer: adamv, learning_rate: .nan}
colour: red
"""
    overrides = [("train.setps", "3", "--set"), ("train.steps", "[1", "--steps")]
    assert message_of(text, environ={"TINYLLM_TRAIN__STEP": "1"}, overrides=overrides) == (
        """\
error: 10 problems in the configuration
  a.yaml:1: unknown key learning_rate; did you mean optim.learning_rate?
  a.yaml:3: unknown key train.batch_sze; did you mean train.batch_size?
  a.yaml:4: train.steps: expected an integer >= 1, found 0
  a.yaml:5: train.compile: expected true or false, found "yes"; did you mean true?
  a.yaml:6: optim.learning_rate: expected a finite number > 0, found nan
  a.yaml:6: optim.optimizer: expected one of adamw, muon, found "adamv"; did you mean adamw?
  a.yaml:7: unknown key colour; valid keys at the top level: name, tokenizer, limit, tiles, files, rewards, train, optim
  env TINYLLM_TRAIN__STEP: unknown key TINYLLM_TRAIN__STEP; did you mean TINYLLM_TRAIN__STEPS?
  --set: unknown key train.setps; did you mean train.steps?
  --steps: train.steps: invalid YAML: unclosed bracket or missing comma
fix: in a.yaml:1 move it to optim.learning_rate"""
    )


GOLDEN = """
train:
  stepss: 1
error: unknown key train.stepss; did you mean train.steps? (a.yaml:2)
fix: write steps instead of stepss

steps: 1
error: unknown key steps; did you mean train.steps? (a.yaml:1)
fix: move it to train.steps

extend: b.yaml
error: unknown key extend; did you mean extends? (a.yaml:1)
fix: write extends instead of extend

train: {xyzzy: 1}
error: unknown key train.xyzzy; valid keys in train: steps, batch_size, micro_batch_size, compile, clip (a.yaml:1)
fix: remove train.xyzzy

train.steps: 2.5
error: train.steps: expected an integer >= 1, found 2.5 (a.yaml:1)
fix: set train.steps to 100 (the default)

train.steps: 1e3
error: train.steps: expected an integer >= 1, found 1000.0; did you mean 1000? (a.yaml:1)
fix: set train.steps to 1000

train.steps: 1_000
error: train.steps: expected an integer >= 1, found "1_000"; did you mean 1000? (a.yaml:1)
fix: set train.steps to 1000

train.steps: '8'
error: train.steps: expected an integer >= 1, found "8"; did you mean 8? (a.yaml:1)
fix: set train.steps to 8

train.steps: true
error: train.steps: expected an integer >= 1, found true (a.yaml:1)
fix: set train.steps to 100 (the default)

train.steps:
error: train.steps: expected an integer >= 1, found null (a.yaml:1)
fix: set train.steps to 100 (the default)

train.compile: 1
error: train.compile: expected true or false, found 1; did you mean true? (a.yaml:1)
fix: set train.compile to true

train.clip: .nan
error: train.clip: expected a finite number > 0, found nan (a.yaml:1)
fix: set train.clip to 1.0 (the default)

optim.learning_rate: .inf
error: optim.learning_rate: expected a finite number > 0, found inf (a.yaml:1)
fix: set optim.learning_rate to 0.001 (the default)

name: 2024
error: name: expected a string matching "^[a-z0-9]+$", found 2024; did you mean "2024"? (a.yaml:1)
fix: set name to "2024"

tokenizer: [a]
error: tokenizer: expected a path or null, found a list of 1 item (a.yaml:1)
fix: set tokenizer to a path or null

limit: fast
error: limit: expected an integer or "auto", found "fast" (a.yaml:1)
fix: set limit to auto (the default)

limit: aut
error: limit: expected an integer or "auto", found "aut"; did you mean auto? (a.yaml:1)
fix: set limit to auto

tiles: 1
error: tiles: expected an integer >= 2 or null, found 1 (a.yaml:1)
fix: set tiles to an integer >= 2 or null

files: a
error: files: expected a list of strings, found "a"; did you mean [a]? (a.yaml:1)
fix: set files to [a]

files:
- a
- 3
error: files[1]: expected a string, found 3; did you mean "3"? (a.yaml:3)
fix: set files[1] to "3"

files: []
error: files: there must be a file, found an empty list (a.yaml:1)
fix: change files

rewards:
  a: 1
  b: x
error: rewards.b: expected a number, found "x" (a.yaml:3)
fix: set rewards.b to a number

rewards.b: .nan
error: rewards.b: expected a finite number, found nan (a.yaml:1)
fix: set rewards.b to a finite number

rewards: exact
error: rewards: expected a mapping of names to numbers, found "exact" (a.yaml:1)
fix: set rewards to a mapping of names to numbers, e.g. {gold: 1.0}

optim.betas: [0.9]
error: optim.betas: expected a list of 2 (a number, a number), found a list of 1 item (a.yaml:1)
fix: set optim.betas to [0.9, 0.95] (the default)

optim: 3
error: optim: expected a section with optimizer, learning_rate, betas, found 3 (a.yaml:1)
fix: write the settings of optim indented below it

train: {steps: 3}
train.steps: 4
error: train.steps is set twice, on lines 1 and 2 (a.yaml:2)
fix: remove one of the two steps entries

name: a
name: b
error: duplicate key name, on lines 1 and 2 (a.yaml:2)
fix: remove one of the two name entries

train: {batch_size: 24}
error: train: batch_size 24 is no multiple of micro_batch_size 16 (train.batch_size from a.yaml:1, train.micro_batch_size from default) (a.yaml:1)
fix: change train.batch_size

[1, 2]
error: expected a mapping of settings, found a list of 2 items (a.yaml:1)
fix: write `key: value` lines

fast_dev_run: {train.stepz: 1}
error: unknown key train.stepz; did you mean train.steps? (a.yaml:1)
fix: write steps instead of stepz

fast_dev_run: 3
error: fast_dev_run: expected a mapping of settings, found 3 (a.yaml:1)
fix: write `fast_dev_run:` with settings indented below it

extends: 3
error: extends: expected the path of a YAML file, found 3 (a.yaml:1)
fix: write `extends: base.yaml`

extends: a.yml
error: extends: file a.yml does not exist; did you mean a.yaml? (a.yaml:1)
fix: write a.yaml instead of a.yml

extends: a.yaml
error: circular extends: a.yaml -> a.yaml (a.yaml:1)
fix: remove this line

<<: {name: a}
error: unknown key <<; valid keys at the top level: name, tokenizer, limit, tiles, files, rewards, train, optim (a.yaml:1)
fix: remove <<
"""  # noqa: E501


@pytest.mark.parametrize("case", GOLDEN.strip().split("\n\n"), ids=lambda case: case.partition("error: ")[0][:30])
def test_message_of_one_mistake(case: str) -> None:
    text, error, message = case.partition("error: ")
    assert message_of(text) == error + message


def test_a_contradiction_names_the_sources_of_both_values() -> None:
    message = message_of("\ntrain: {micro_batch_size: 5}", overrides=[("train.batch_size", "12", "--set")])
    assert "(train.batch_size from --set, train.micro_batch_size from a.yaml:2) (--set)\nfix: change train" in message


def test_a_contradiction_caused_by_a_typo_is_not_reported() -> None:
    message = message_of("train: {batch_sze: 10, micro_batch_size: 5}")
    assert message.startswith("error: unknown key train.batch_sze; did you mean train.batch_size? (a.yaml:1)\n")


def test_missing_keys_are_reported_unless_another_problem_explains_them() -> None:
    assert message_of("train.steps: 3", Needy) == (
        "error: 2 problems in the configuration\n  a.yaml: missing key steps: expected an integer\n"
        "  a.yaml: missing key rate: expected a number\nfix: in a.yaml add steps"
    )
    message = message_of("stepz: 3\nrate: 1", Needy)  # reported as a typo, so not as missing
    assert message.startswith("error: unknown key stepz; did you mean steps? (a.yaml:1)")
    message = message_of("steps: [\n", Needy)  # the rest of the file is unknown
    assert message.startswith("error: invalid YAML")


def test_a_required_section_has_its_default_values() -> None:
    Path("a.yaml").write_text("steps: 1\nrate: 2\n")
    assert load(Needy, files=[Path("a.yaml")]).config == Needy(steps=1, rate=2, train=Train())


def test_keys_of_fast_dev_run_are_checked_in_every_run() -> None:
    text = "fast_dev_run:\n  train: {stepz: 1}\n  optim: 3\n"
    assert message_of(text) == message_of(text, fast=True)
    assert "2 problems" in message_of(text)
    values = "fast_dev_run: {train.steps: 0}"
    Path("a.yaml").write_text(values)
    assert load(Stage, files=[Path("a.yaml")]).config == Stage()
    assert "train.steps: expected an integer >= 1, found 0 (a.yaml:1)" in message_of(values, fast=True)


def test_circular_extends_over_several_files() -> None:
    Path("b").mkdir()
    Path("b/b.yaml").write_text("name: b\nextends: ../c.yaml\n")
    Path("c.yaml").write_text("extends: a.yaml\n")
    message = message_of("extends: b/b.yaml\n")
    assert message.startswith("error: circular extends: a.yaml -> b/b.yaml -> c.yaml -> a.yaml (c.yaml:1)\n")


def test_problems_of_all_files_are_reported() -> None:
    Path("base.yaml").write_text("\nnaem: x\ntrain: {steps: 0}\n")
    message = message_of("extends: base.yaml\noptm: {}\n")
    assert [line.split(":")[0] for line in message.splitlines()[1:-1]] == ["  base.yaml", "  base.yaml", "  a.yaml"]


def test_missing_files(tmp_path: Path) -> None:
    Path("a.yml").write_text("")
    assert message_of(None) == (
        "error: file a.yaml does not exist; did you mean a.yml? (a.yaml)\nfix: write a.yml instead of a.yaml"
    )
    Path("a.yml").unlink()
    assert message_of(None) == "error: file a.yaml does not exist (a.yaml)\nfix: correct the path"
    Path("a.yaml").mkdir()
    assert "expected a YAML file, found a directory (a.yaml)" in message_of(None)
    with pytest.raises(UserError, match="does not exist"):
        load(Stage, files=[Path("a\0b.yaml")])


def test_paths_below_the_working_directory_are_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "x.yaml"
    path.parent.mkdir()
    path.write_text("name: A")
    for folder, shown in ((tmp_path, "deep/x.yaml:1"), (path.parent, "x.yaml:1")):
        monkeypatch.chdir(folder)
        with pytest.raises(UserError) as caught:
            load(Stage, files=[path])
        assert caught.value.where == shown
    (tmp_path / "aside").mkdir()
    monkeypatch.chdir(tmp_path / "aside")
    with pytest.raises(UserError) as caught:
        load(Stage, files=[path])
    assert caught.value.where == f"{path}:1"


def test_an_environment_variable_that_is_not_utf8() -> None:
    message = message_of("", environ={"TINYLLM_NAME": os.fsdecode(b"\xff")})
    assert message.startswith("error: name: value is not valid UTF-8 (env TINYLLM_NAME)\n")


def test_control_characters_are_escaped_and_long_names_cut() -> None:
    message = message_of('"\\e[2J\\u202e": 1\nname: "\\e]0;x\\a"\ntrain: {"' + "k" * 900 + '": 1}')
    assert "\\x1b[2J\\u202e" in message
    assert message.replace("\n", "").isprintable()
    assert len(message) < 1500


def test_at_most_twenty_problems_are_shown() -> None:
    message = message_of("".join(f"wrong{i}: 1\n" for i in range(30)))
    assert message.count("unknown key") == 20
    assert "error: 30 problems in the configuration\n" in message
    assert "\n  and 10 more\nfix: in a.yaml:1 remove wrong0" in message


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("".join(f"key{i}: 1\n" for i in range(20_000)), "error: 200 problems"),
        ("rewards:\n" + "".join(f"  k{i}: x\n" for i in range(20_000)), "error: 200 problems"),
        ("k" * 10**6 + ": 1", "error: invalid YAML"),
    ],
    ids=["keys", "values", "long"],
)
def test_files_with_very_many_problems_are_refused_quickly(text: str, start: str) -> None:
    message = message_of(text)
    assert message.startswith(start)
    assert len(message) < 6000
