"""Typos in keys, options and names of the real commands, and invalid values of real settings.

Success rates are printed by `pytest -s tests/config/test_typos.py`.
"""

from __future__ import annotations

import os
import random
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from tinyllm import algorithms, cli
from tinyllm.cli.app import app
from tinyllm.cli.resolve import STAGES
from tinyllm.config import Config, load
from tinyllm.config.base import dotted_keys
from tinyllm.config.formatting import format_value
from tinyllm.config.problems import Source
from tinyllm.config.validation_errors import FILE_KEYS, unknown_key
from tinyllm.errors import USAGE, UserError
from tinyllm.stages import config as stages
from tinyllm.stages.planning import consistency

CLASSES = sorted({stage.config for stage in STAGES.values()}, key=lambda cls: cls.__name__)
REQUIRED_RATE = 0.95
OVERRIDES = ("--no-resume", "--allow-data-change")  # never suggested: tests/cli/test_suggestions.py


def substituted(draw: random.Random, word: str, place: int) -> str:
    return word[:place] + draw.choice(string.ascii_lowercase) + word[place + 1 :]


def dropped(draw: random.Random, word: str, place: int) -> str:
    return word[:place] + word[place + 1 :]


def doubled(draw: random.Random, word: str, place: int) -> str:
    return word[:place] + word[place] + word[place:]


def swapped(draw: random.Random, word: str, place: int) -> str:
    return word[:place] + word[place + 1 : place + 2] + word[place] + word[place + 2 :]


KINDS: tuple[Callable[[random.Random, str, int], str], ...] = (substituted, dropped, doubled, swapped)


def typos(words: list[str], taken: set[str], kind: Callable[..., str], seed: int) -> Iterator[tuple[str, str]]:
    """Yield (word, the word with one typo). Typos that give another known word, or an empty part, are left out."""
    draw = random.Random(seed)
    for word in words:
        wrong = kind(draw, word, draw.choice([i for i, c in enumerate(word) if c not in ".-"]))
        shape = [part for part in wrong.split(".") if part]
        if wrong not in taken and wrong != word and len(shape) == word.count(".") + 1:
            yield word, wrong


class Score:
    """Count of how often the right word was suggested."""

    def __init__(self, what: str):
        self.what, self.right, self.missed = what, 0, list[str]()

    def count(self, word: str, wrong: str, right: bool) -> None:
        self.right += right
        if not right:
            self.missed.append(f"{wrong} for {word}")

    def hold(self, least: int) -> None:
        total = self.right + len(self.missed)
        print(
            f"\n{self.what}: {self.right} of {total} = {self.right / total:.2%}; missed: {', '.join(self.missed[:12])}"
        )
        assert total >= least
        assert self.right / total >= REQUIRED_RATE


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] * (kind in (doubled, dropped))) for kind in KINDS],
    ids=lambda kind: kind.__name__,
)
def test_a_typo_in_any_key_of_any_stage(kind: Callable[..., str]) -> None:
    """Anywhere in the dotted key, including its sections; in a file, with --set and in the environment."""
    sources = (Source("a.yaml", is_file=True), Source("--set"), Source("env", spell=lambda key: f"<{key}>"))
    score = Score(f"a letter {kind.__name__}")
    for seed, cls in enumerate(CLASSES):
        known = list(dotted_keys(cls))
        for word, wrong in typos(known * 3, {*known, *FILE_KEYS}, kind, seed):
            for source in sources:
                problem, near = unknown_key(cls, tuple(wrong.split(".")), source, 1)
                is_suggested = f"did you mean {source.spell(word)}?" in problem.what
                assert is_suggested == (near == word)
                score.count(word, wrong, is_suggested)
    score.hold(1500)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_fix_is_the_edit_that_corrects_the_typo(kind: Callable[..., str], tmp_path: Path) -> None:
    """Through the whole loader, for the keys of one stage."""
    known = [key for key in dotted_keys(stages.SftConfig) if key.startswith("train.")]
    for word, wrong in typos(known, set(dotted_keys(stages.SftConfig)), kind, 7):
        section, _, leaf = wrong.rpartition(".")
        path = tmp_path / "a.yaml"
        path.write_text(f"{section}:\n  {leaf}: 1\n")
        with pytest.raises(UserError) as caught:
            load(stages.SftConfig, files=[path])
        if section == "train" and f"did you mean {word}?" in caught.value.what:
            assert caught.value.fix == f"write {word.rpartition('.')[2]} instead of {leaf}"
            assert caught.value.where.endswith("a.yaml:2")


def commands(command: Any = None, way: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    command = command or get_command(app)
    yield way, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*way, name))


def error_output(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    assert cli.run(cli.modern(arguments)) == USAGE
    text = capsys.readouterr().err
    assert [line.partition(":")[0] for line in text.splitlines()] == ["error", "fix"]
    return text


@pytest.mark.slow
def test_a_typo_in_any_option_of_any_command(capsys: pytest.CaptureFixture) -> None:
    score = Score("options")
    for way, command in commands():
        options = [o for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")]
        for kind in KINDS:
            for word, wrong in typos([o for o in options if o not in OVERRIDES], set(options), kind, len(way)):
                text = error_output([*way, wrong, "1"], capsys)
                score.count(word, wrong, f"did you mean {word}?\nfix: write {word} instead of {wrong}\n" in text)
    with capsys.disabled():
        score.hold(500)


def test_a_typo_in_any_command(capsys: pytest.CaptureFixture) -> None:
    score = Score("commands")
    for way, command in commands():
        verbs = list(getattr(command, "commands", {}))
        for kind in KINDS:
            for word, wrong in typos(verbs * 3, set(verbs), kind, len(way)):
                score.count(word, wrong, f"'{word}'" in error_output([*way, wrong], capsys))
    with capsys.disabled():
        score.hold(100)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ("pretrain --sed 3", "--seed"),
        ("pretrain --steps 3", "--set train.steps=VALUE"),
        ("pretrain --lr 1e-3", "--set optim.learning_rate=VALUE"),
        ("sft --learning-rate 1e-3", "--set optim.learning_rate=VALUE"),
        ("sft --batch_size 3", "--set train.batch_size=VALUE"),
        ("align-online --grpo.clip-high 3", "--set grpo.clip_high=VALUE"),
        ("chat --temprature 1", "--set temperature=VALUE"),
    ],
)
def test_a_setting_written_as_an_option_suggests_set(arguments: str, meant: str, capsys: pytest.CaptureFixture) -> None:
    assert f"did you mean {meant}?" in error_output(arguments.split(), capsys)


@pytest.mark.parametrize("family", ["offline", "online"])
def test_a_typo_in_any_algorithm(family: str, capsys: pytest.CaptureFixture) -> None:
    """Some names differ in one letter only, so a typo can be equally near to two; both are suggested then."""
    known, score = algorithms.names(family), Score(f"{family} algorithms")
    for kind in KINDS:
        for word, wrong in typos(known * 3, set(known), kind, 1):
            text = error_output([f"align-{family}", "--algorithm", wrong], capsys)
            near = text.partition("fix: use --algorithm ")[2].strip().split(" or ")
            assert len(near) <= 2
            score.count(word, wrong, word in near)
    with capsys.disabled():
        score.hold(20)


def test_a_typo_in_any_task_of_eval(capsys: pytest.CaptureFixture) -> None:
    tasks = ["bits_per_byte", "choice", "exact_match", "gold", "pass@k"]
    score = Score("tasks")
    for kind in KINDS:
        for word, wrong in typos(tasks * 3, set(tasks), kind, 2):
            text = error_output(["eval", "--task", wrong], capsys)
            score.count(word, wrong, f"did you mean {format_value(word)}?" in text)
    with capsys.disabled():
        score.hold(40)


# --- values ----------------------------------------------------------------------------------------------------------------------

GOLDEN = """
optim: {learning_rate: .nan}
error: optim.learning_rate: expected a finite number > 0, found nan (a.yaml:1)
fix: set optim.learning_rate to 0.001 (the default)

optim: {learning_rate: "1e-3"}
error: optim.learning_rate: expected a number > 0, found "1e-3"; did you mean 0.001? (a.yaml:1)
fix: set optim.learning_rate to 0.001

optim: {learning_rate: 0}
error: optim.learning_rate: expected a number > 0, found 0 (a.yaml:1)
fix: set optim.learning_rate to 0.001 (the default)

optim: {min_lr_ratio: 1.5}
error: optim.min_lr_ratio: expected a number >= 0 and <= 1, found 1.5 (a.yaml:1)
fix: set optim.min_lr_ratio to 0.1 (the default)

optim: {schedule: cosin}
error: optim.schedule: expected one of cosine, wsd, constant, found "cosin"; did you mean cosine? (a.yaml:1)
fix: set optim.schedule to cosine

train:
  steps: true
error: train.steps: expected an integer >= 1, found true (a.yaml:2)
fix: set train.steps to 1000 (the default)

train:
  keep: 1.0
error: train.keep: expected an integer >= 1, found 1.0; did you mean 1? (a.yaml:2)
fix: set train.keep to 1

train:
  steps: 5
  steps: 6
error: duplicate key steps, on lines 2 and 3 (a.yaml:3)
fix: remove one of the two steps entries

train:
	steps: 5
error: invalid YAML: tab where YAML requires spaces (a.yaml:2)
fix: replace the tab with spaces

train: {batch_size: 24, micro_batch_size: 16}
error: train: batch_size 24 must be a multiple of micro_batch_size 16; 12 would fit (train.batch_size from a.yaml:1, train.micro_batch_size from a.yaml:1) (a.yaml:1)
fix: change train.batch_size

model: {num_attention_heads: 6, num_key_value_heads: 4}
error: model: num_attention_heads 6 must be a multiple of num_key_value_heads 4; the largest that fits is 3 (model.num_attention_heads from a.yaml:1, model.num_key_value_heads from a.yaml:1) (a.yaml:1)
fix: change model.num_attention_heads

model: {head_dim: 33}
error: model: head_dim 33 must be even, for example 34: rotary embeddings rotate pairs (model.head_dim from a.yaml:1) (a.yaml:1)
fix: change model.head_dim

model: {num_key_value_heads: 0}
error: model.num_key_value_heads: expected an integer >= 1, found 0 (a.yaml:1)
fix: set model.num_key_value_heads to 2 (the default)

data: {max_length: 1024}
error: data.max_length 1024 is more than model.max_position_embeddings 512 (data.max_length from a.yaml:1, model.max_position_embeddings from default) (a.yaml:1)
fix: change data.max_length
"""  # noqa: E501


@pytest.mark.parametrize("case", GOLDEN.strip().split("\n\n"), ids=lambda case: case.partition("error: ")[0][:40])
def test_message_of_one_invalid_value_of_a_real_stage(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text, error, message = case.partition("error: ")
    Path("a.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load(stages.PretrainConfig, files=[Path("a.yaml")])
    assert str(caught.value) == error + message
    assert caught.value.code == USAGE


@pytest.mark.parametrize(
    "text", ["optim: {learning_rate: 1e-3}", "optim: {learning_rate: 1E-3}", "optim: {learning_rate: .001}"]
)
def test_spellings_of_one_thousandth(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert load(stages.PretrainConfig, files=[tmp_path / "a.yaml"]).config.optim.learning_rate == 1e-3


# --- settings and options against each other -------------------------------------------------------------------------------------


def test_a_batch_size_not_divisible_by_the_ranks_is_refused_before_they_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["pretrain", "--nproc", "3", "--set", "train.batch_size=16", "--set", "train.micro_batch_size=8"]
    assert error_output(arguments, capsys) == (
        "error: train.batch_size 16 is not divisible by 3 ranks (--nproc)\n"
        "fix: add --set train.batch_size=24, or use --nproc 2\n"
    )
    assert not os.listdir(tmp_path)


def test_a_warmup_longer_than_the_run_is_only_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A short trial of a long recipe is legitimate."""
    monkeypatch.chdir(tmp_path)
    sets = ["--set", "optim.warmup_steps=20", "--set", "train.steps=7"]
    assert cli.run(["pretrain", "--dry-run", *sets]) == 0
    assert capsys.readouterr().err == (
        "warning: optim.warmup_steps 20 is more than train.steps 7: the learning rate never reaches its peak; set it to 7 or less\n"
    )


@pytest.mark.parametrize("key", STAGES)
def test_shipped_configurations_have_no_contradictions(key: str) -> None:
    from tinyllm.cli.resolve import resolve

    for fast in (False, True):
        config: Config = resolve(STAGES[key], None, [], {}, {}, fast=fast).config
        consistency.check_ranks(config, 2)
        assert consistency.warnings(config) == []
