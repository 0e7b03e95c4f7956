"""Golden messages: every mistake is told at once, with its line, what was found and expected, and one thing to do."""

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


def complaint(text: str | None, cls: type[Config] = Stage, **rest: Any) -> str:
    """The whole of what the user sees."""
    if text is not None:
        Path("a.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(cls, files=[Path("a.yaml")], **rest)
    assert caught.value.code == USAGE
    return str(caught.value)


def test_everything_at_once() -> None:
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
    assert complaint(text, environ={"TINYLLM_TRAIN__STEP": "1"}, overrides=overrides) == (
        """\
error: 10 problems in the configuration
  a.yaml:1: unknown key learning_rate; did you mean optim.learning_rate?
  a.yaml:3: unknown key train.batch_sze; did you mean train.batch_size?
  a.yaml:4: train.steps: expected an integer, at least 1, found 0
  a.yaml:5: train.compile: expected true or false, found "yes"; did you mean true?
  a.yaml:6: optim.learning_rate: expected a finite number, more than 0, found nan
  a.yaml:6: optim.optimizer: expected one of adamw, muon, found "adamv"; did you mean adamw?
  a.yaml:7: unknown key colour; the top level has name, tokenizer, limit, tiles, files, rewards, train, optim
  env TINYLLM_TRAIN__STEP: unknown key TINYLLM_TRAIN__STEP; did you mean TINYLLM_TRAIN__STEPS?
  --set: unknown key train.setps; did you mean train.steps?
  --steps: train.steps: not valid YAML: a bracket is never closed, or a comma is missing
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
error: unknown key train.xyzzy; train has steps, batch_size, micro_batch_size, compile, clip (a.yaml:1)
fix: remove train.xyzzy

train.steps: 2.5
error: train.steps: expected an integer, at least 1, found 2.5 (a.yaml:1)
fix: set train.steps to 100, its default

train.steps: 1e3
error: train.steps: expected an integer, at least 1, found 1000.0; did you mean 1000? (a.yaml:1)
fix: set train.steps to 1000

train.steps: 1_000
error: train.steps: expected an integer, at least 1, found "1_000"; did you mean 1000? (a.yaml:1)
fix: set train.steps to 1000

train.steps: '8'
error: train.steps: expected an integer, at least 1, found "8"; did you mean 8? (a.yaml:1)
fix: set train.steps to 8

train.steps: true
error: train.steps: expected an integer, at least 1, found true (a.yaml:1)
fix: set train.steps to 100, its default

train.steps:
error: train.steps: expected an integer, at least 1, found nothing (null) (a.yaml:1)
fix: set train.steps to 100, its default

train.compile: 1
error: train.compile: expected true or false, found 1; did you mean true? (a.yaml:1)
fix: set train.compile to true

train.clip: .nan
error: train.clip: expected a finite number, more than 0, found nan (a.yaml:1)
fix: set train.clip to 1.0, its default

optim.learning_rate: .inf
error: optim.learning_rate: expected a finite number, more than 0, found inf (a.yaml:1)
fix: set optim.learning_rate to 0.001, its default

name: 2024
error: name: expected text, matching "^[a-z0-9]+$", found 2024; did you mean "2024"? (a.yaml:1)
fix: set name to "2024"

tokenizer: [a]
error: tokenizer: expected a path or null, found a list of 1 (a.yaml:1)
fix: set tokenizer to a path or null

limit: fast
error: limit: expected an integer or "auto", found "fast" (a.yaml:1)
fix: set limit to auto, its default

limit: aut
error: limit: expected an integer or "auto", found "aut"; did you mean auto? (a.yaml:1)
fix: set limit to auto

tiles: 1
error: tiles: expected an integer, at least 2 or null, found 1 (a.yaml:1)
fix: set tiles to an integer, at least 2 or null

files: a
error: files: expected a list of text values, found "a"; did you mean [a]? (a.yaml:1)
fix: set files to [a]

files:
- a
- 3
error: files[1]: expected text, found 3; did you mean "3"? (a.yaml:3)
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

optim.betas: [0.9]
error: optim.betas: expected a list of 2 (a number, a number), found a list of 1 (a.yaml:1)
fix: set optim.betas to [0.9, 0.95], its default

optim: 3
error: optim: expected a section with optimizer, learning_rate, betas, found 3 (a.yaml:1)
fix: write the settings of optim below it, indented

train: {steps: 3}
train.steps: 4
error: train.steps is set twice, in lines 1 and 2 (a.yaml:2)
fix: remove one of the two steps

name: a
name: b
error: duplicate key name, in lines 1 and 2 (a.yaml:2)
fix: remove one of the two name

train: {batch_size: 24}
error: train: batch_size 24 is no multiple of micro_batch_size 16 (train.batch_size from a.yaml:1, train.micro_batch_size from default) (a.yaml:1)
fix: change train.batch_size

[1, 2]
error: expected a mapping of settings, found a list of 2 (a.yaml:1)
fix: write `key: value` lines

fast_dev_run: {train.stepz: 1}
error: unknown key train.stepz; did you mean train.steps? (a.yaml:1)
fix: write steps instead of stepz

fast_dev_run: 3
error: fast_dev_run: expected a mapping of settings, found 3 (a.yaml:1)
fix: write `fast_dev_run:` and settings below it

extends: 3
error: extends: expected the path of a YAML file, found 3 (a.yaml:1)
fix: write `extends: base.yaml`

extends: a.yml
error: extends: there is no file a.yml; did you mean a.yaml? (a.yaml:1)
fix: write a.yaml instead of a.yml

extends: a.yaml
error: extends goes in a circle: a.yaml -> a.yaml (a.yaml:1)
fix: remove this line

<<: {name: a}
error: unknown key <<; the top level has name, tokenizer, limit, tiles, files, rewards, train, optim (a.yaml:1)
fix: remove <<
"""  # noqa: E501


@pytest.mark.parametrize("case", GOLDEN.strip().split("\n\n"), ids=lambda case: case.partition("error: ")[0][:30])
def test_one_mistake(case: str) -> None:
    text, error, message = case.partition("error: ")
    assert complaint(text) == error + message


def test_values_that_contradict_name_both_sources() -> None:
    message = complaint("\ntrain: {micro_batch_size: 5}", overrides=[("train.batch_size", "12", "--set")])
    assert "(train.batch_size from --set, train.micro_batch_size from a.yaml:2) (--set)\nfix: change train" in message


def test_a_contradiction_that_a_typo_causes_is_not_told() -> None:
    message = complaint("train: {batch_sze: 10, micro_batch_size: 5}")
    assert message.startswith("error: unknown key train.batch_sze; did you mean train.batch_size? (a.yaml:1)\n")


def test_what_is_missing() -> None:
    assert complaint("train.steps: 3", Needy) == (
        "error: 2 problems in the configuration\n  a.yaml: steps is missing: expected an integer\n"
        "  a.yaml: rate is missing: expected a number\nfix: in a.yaml add steps"
    )
    message = complaint("stepz: 3\nrate: 1", Needy)  # its misspelling is told, so it is not missing as well
    assert message.startswith("error: unknown key stepz; did you mean steps? (a.yaml:1)")
    message = complaint("steps: [\n", Needy)  # nobody knows what the rest of the file says
    assert message.startswith("error: not valid YAML")


def test_sections_that_have_to_be_given_consist_of_their_defaults() -> None:
    Path("a.yaml").write_text("steps: 1\nrate: 2\n")
    assert load(Needy, files=[Path("a.yaml")]).config == Needy(steps=1, rate=2, train=Train())


def test_keys_of_the_rehearsal_are_checked_when_it_is_not_asked_for() -> None:
    text = "fast_dev_run:\n  train: {stepz: 1}\n  optim: 3\n"
    assert complaint(text) == complaint(text, fast=True)
    assert "2 problems" in complaint(text)
    values = "fast_dev_run: {train.steps: 0}"
    Path("a.yaml").write_text(values)
    assert load(Stage, files=[Path("a.yaml")]).config == Stage()
    assert "train.steps: expected an integer, at least 1, found 0 (a.yaml:1)" in complaint(values, fast=True)


def test_a_circle_of_several_files() -> None:
    Path("b").mkdir()
    Path("b/b.yaml").write_text("name: b\nextends: ../c.yaml\n")
    Path("c.yaml").write_text("extends: a.yaml\n")
    message = complaint("extends: b/b.yaml\n")
    assert message.startswith("error: extends goes in a circle: a.yaml -> b/b.yaml -> c.yaml -> a.yaml (c.yaml:1)\n")


def test_problems_of_all_files_are_told() -> None:
    Path("base.yaml").write_text("\nnaem: x\ntrain: {steps: 0}\n")
    message = complaint("extends: base.yaml\noptm: {}\n")
    assert [line.split(":")[0] for line in message.splitlines()[1:-1]] == ["  base.yaml", "  base.yaml", "  a.yaml"]


def test_files_that_are_not_there(tmp_path: Path) -> None:
    Path("a.yml").write_text("")
    assert complaint(None) == (
        "error: there is no file a.yaml; did you mean a.yml? (a.yaml)\nfix: write a.yml instead of a.yaml"
    )
    Path("a.yml").unlink()
    assert complaint(None) == "error: there is no file a.yaml (a.yaml)\nfix: correct the path"
    Path("a.yaml").mkdir()
    assert "this is a directory, not a YAML file (a.yaml)" in complaint(None)
    with pytest.raises(UserError, match="there is no file"):
        load(Stage, files=[Path("a\0b.yaml")])


def test_paths_are_told_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_bytes_that_are_no_text() -> None:
    message = complaint("", environ={"TINYLLM_NAME": os.fsdecode(b"\xff")})
    assert message.startswith("error: name: the value is not UTF-8 (env TINYLLM_NAME)\n")


def test_hostile_text_is_not_echoed() -> None:
    message = complaint('"\\e[2J\\u202e": 1\nname: "\\e]0;x\\a"\ntrain: {"' + "k" * 900 + '": 1}')
    assert "\\x1b[2J\\u202e" in message
    assert message.replace("\n", "").isprintable()
    assert len(message) < 1500


def test_at_most_twenty_problems_are_shown() -> None:
    message = complaint("".join(f"wrong{i}: 1\n" for i in range(30)))
    assert message.count("unknown key") == 20
    assert "error: 30 problems in the configuration\n" in message
    assert "\n  and 10 more\nfix: in a.yaml:1 remove wrong0" in message


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("".join(f"key{i}: 1\n" for i in range(20_000)), "error: 200 problems"),
        ("rewards:\n" + "".join(f"  k{i}: x\n" for i in range(20_000)), "error: 200 problems"),
        ("k" * 10**6 + ": 1", "error: not valid YAML"),
    ],
    ids=["keys", "values", "long"],
)
def test_hostile_files_end_soon(text: str, start: str) -> None:
    message = complaint(text)
    assert message.startswith(start)
    assert len(message) < 6000
