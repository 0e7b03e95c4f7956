"""Commands and options of other tools, and options that are never suggested."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from typer._click.core import Context
from typer._click.exceptions import NoSuchOption
from typer.main import get_command

from tinyllm import cli
from tinyllm.cli import suggestions
from tinyllm.cli.app import app
from tinyllm.cli.options import OVERRIDES
from tinyllm.cli.synonyms import _BELOW, _ROWS
from tinyllm.config.synonyms import terms
from tinyllm.errors import USAGE

DANGEROUS = re.compile(r"--(no-(?!cuda)|allow|overwrite|force|yes|ignore|skip|unsafe|delete|purge)")


def commands(command: Any = None, way: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    command = command or get_command(app)
    yield way, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*way, name))


def told(line: str, capsys: pytest.CaptureFixture) -> tuple[str, str]:
    assert cli.run(cli.modern(shlex.split(line))) == USAGE
    error, fix = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert fix.startswith("fix: ")
    return error.removeprefix("error: "), fix.removeprefix("fix: ")


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("train", "tinyllm pretrain"),
        ("finetune", "tinyllm sft"),
        ("fine-tune", "tinyllm sft"),
        ("lora", "tinyllm sft --lora"),
        ("qlora", "tinyllm sft --lora"),
        ("dpo", "tinyllm align-offline --algorithm dpo"),
        ("orpo", "tinyllm align-offline --algorithm orpo"),
        ("kto", "tinyllm align-offline --algorithm kto"),
        ("grpo", "tinyllm align-online --algorithm grpo"),
        ("ppo --lr 1e-5", "tinyllm align-online --algorithm ppo"),
        ("DR-GRPO", "tinyllm align-online --algorithm dr_grpo"),
        ("generate", "tinyllm chat -p Hello"),
        ("serve", "tinyllm chat"),
        ("export", "tinyllm runs show RUN"),
        ("download", "tinyllm data download"),
        ("prepare", "tinyllm data prepare"),
        ("tokenize", "tinyllm data prepare"),
        ("inspect", "tinyllm data inspect FILE"),
        ("version", "tinyllm --version"),
        ("help", "tinyllm --help"),
        ("resume", "tinyllm runs"),
        ("list", "tinyllm runs"),
        ("ls", "tinyllm runs"),
        ("runs ls", "tinyllm runs list"),
        ("data tokenize", "tinyllm data prepare"),
    ],
)
def test_a_command_of_another_tool_is_told_the_command_here(
    line: str, command: str, capsys: pytest.CaptureFixture
) -> None:
    assert told(line, capsys)[1] == f"run `{command}`"


def test_every_command_that_is_suggested_exists() -> None:
    known = dict(commands())
    assert set(_BELOW) <= {way[0] for way in known if way}
    lines = [row.command for row in _ROWS]
    lines += [f"tinyllm {group} {name}" for group, names in _BELOW.items() for name in names.values()]
    for line in lines:
        words = [word for word in shlex.split(line)[1:] if not word.isupper()]
        way = tuple(word for word in words if not word.startswith("-") and word[0].islower() and "=" not in word)
        way = next(way[:n] for n in range(len(way), -1, -1) if way[:n] in known)
        options = {o for p in known[way].params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        assert set(words) - set(way) - options <= {"Hello", "dpo", "lora.dora=true", "dpo.variant=ipo"}, line
    taken = [word for row in _ROWS for word in row.words.split()]
    assert len(taken) == len(set(taken))
    assert not {(word,) for word in taken} & set(known), "a command that exists is not explained"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pretrain --lr 1e-4", "--set optim.learning_rate=VALUE"),
        ("pretrain --data x.txt", "--set 'data.train=[VALUE]'"),
        ("eval --data x.txt", "--set 'data.val=[VALUE]'"),
        ("sft --num-train-epochs 3", "--set train.steps=VALUE"),
        ("sft --per_device_train_batch_size=3", "--set train.micro_batch_size=VALUE"),
        ("sft --model x", "--checkpoint"),
        ("sft --output_dir x", "--name"),
        ("sft --target-modules x", "--set 'lora.targets=[VALUE]'"),
        ("sft --use-peft", "--lora"),
        ("align-offline --use-peft", "--lora"),
        ("rm --gpus 2", "--nproc"),
        ("lifecycle --lr 1e-4", "--set optim.learning_rate=VALUE"),
        ("align-offline --algorithm kto --beta 0.3", "--set kto.beta=VALUE"),
        ("align-offline -a orpo --beta 0.3", "--set orpo.weight=VALUE"),
        ("align-offline --config configs/rlhf/offline/simpo/1.4M_simpo.yaml --beta 3", "--set simpo.beta=VALUE"),
        ("align-online --num-generations 3", "--set rollout.group_size=VALUE"),
        ("data inspect --encoding gbk x.txt", "--set data.encoding=VALUE"),
        ("data inspect --sep ';' x.csv", "--set data.delimiter=VALUE"),
        ("data inspect --columns a=b x.csv", "--field"),
        ("sft --dataset_text_field body", "--set data.field=VALUE"),
        ("align-offline --loss ipo", "--set dpo.variant=VALUE"),
        ("chat --message Hello", "--prompt"),
        ("lifecycle --dataset x.txt", "--data"),
    ],
)
def test_an_option_of_another_tool_is_told_the_option_here(line: str, said: str, capsys: pytest.CaptureFixture) -> None:
    error, fix = told(line, capsys)
    assert f"did you mean {said}?" in error
    assert said in fix


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ("align-offline dpo", "write --algorithm dpo"),
        ("sft talks.jsonl", "name data with --set data.train=talks.jsonl"),
        ("sft 'my talks.jsonl'", "name data with --set 'data.train=my talks.jsonl'"),
        ("chat hello", "ask one question with -p, or name a model with --checkpoint"),
    ],
)
def test_an_argument_that_belongs_to_an_option(line: str, fix: str, capsys: pytest.CaptureFixture) -> None:
    assert told(line, capsys)[1] == fix


def test_an_unknown_command(capsys: pytest.CaptureFixture) -> None:
    assert told("runs delete x", capsys) == ("unknown command 'delete'", "`tinyllm runs --help` lists the commands")


def test_files_that_need_no_option(capsys: pytest.CaptureFixture) -> None:
    for option in ("--data", "--file", "--input"):
        error, fix = told(f"data inspect {option} x.csv", capsys)
        assert (error, fix) == (f"unknown option {option}: files are named without an option", f"leave out {option}")


# --- safety overrides --------------------------------------------------------------------------------------------------------------


def overrides(command: Any) -> set[str]:
    marked = [p for p in command.params if vars(p).get("rich_help_panel") == OVERRIDES]
    return {name for p in marked for name in p.secondary_opts or p.opts}


def test_every_option_that_switches_a_check_off_is_marked() -> None:
    marked = set()
    for way, command in commands():
        options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        assert {o for o in options if DANGEROUS.match(o)} == overrides(command), way
        marked |= overrides(command)
    assert len(marked) >= 2


@pytest.mark.parametrize("name", ["pretrain", "lifecycle"])
def test_no_spelling_leads_to_a_safety_override(name: str) -> None:
    command = dict(commands())[name,]
    hidden, context = overrides(command), Context(command, info_name=name)
    assert hidden
    words = ["data", "change", "allow", "allow-data", "no-res", "no-reset", "reset", "restart", "anew", "yes", "force"]
    words += ["fresh", "overwrite", "overwrite-output-dir", "new-data", "start-over", "resume-from", *terms()]
    near = [option[:i] + option[i + 1 :] for option in hidden for i in range(2, len(option))]
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
    for wrong in {*(f"--{word.replace('_', '-')}" for word in words), *near} - known:
        text = suggestions.explained(NoSuchOption(wrong, ctx=context)).replace(wrong, "")
        assert not any(option in text for option in hidden), text
