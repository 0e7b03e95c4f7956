"""Suggest the command, option or setting that a command line probably meant.

Safety overrides are never suggested. `config.synonyms` has the names of settings in other tools, `synonyms` those of commands.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer._click.exceptions import NoSuchOption, UsageError

from tinyllm.cli.options import OVERRIDES
from tinyllm.cli.synonyms import find_command
from tinyllm.errors import escape_unprintable
from tinyllm.io.shell import set_option

if TYPE_CHECKING:
    from typer._click.core import Command, Context

    from tinyllm.cli.resolve import Stage
    from tinyllm.config.synonyms import Meaning

_ALGORITHMS = {"align-offline": "dpo", "align-online": "grpo"}  # commands with an algorithm, and the default
_STAGES = {  # commands with another name in STAGES; the keys of sft are those of most stages of a lifecycle
    **_ALGORITHMS,
    "prepare": "data",
    "tokenizer": "data",
    "inspect": "data",
    "lifecycle": "sft",
}
_OPTIONS = {  # options of other tools that are options here, in any command that has them
    "--nproc": "num_gpus n_gpus gpus num_processes nproc_per_node devices world_size ranks",
    "--device cpu": "cpu no_cuda use_cpu",
    "--dry-run": "print_config show_config",
    "--fast-dev-run": "debug_run smoke smoke_test tiny",
    "--help": "usage",
    "--prompt": "message question query ask",
}


def explained(error: UsageError, arguments: Sequence[str] = ()) -> str:
    """Return the two lines of an error in the options or arguments of a command."""
    what, fix = _explained(error, arguments)
    return f"error: {escape_unprintable(what)}\nfix: {escape_unprintable(fix)}"


def _explained(error: UsageError, arguments: Sequence[str]) -> tuple[str, str]:
    place = error.ctx.command_path if error.ctx else "tinyllm"
    usual = f"`{place} --help` lists the options"
    if error.ctx is None:
        return error.format_message().rstrip("."), usual
    if isinstance(error, NoSuchOption):
        return _unknown_option(error.ctx, error.option_name, arguments) or (
            f"unknown option {error.option_name}",
            usual,
        )
    if error.message.startswith("No such command"):
        name = error.message.split("'")[1]
        return find_command(error.ctx, name) or (f"unknown command {name!r}", f"`{place} --help` lists the commands")
    if error.message.startswith("Got unexpected extra argument"):
        words = error.message.rpartition("(")[2].rstrip(".").removesuffix(")")
        return f"unexpected argument {words!r}", _extra_argument(error.ctx, words) or usual
    return error.format_message().rstrip("."), usual


# --- options ---------------------------------------------------------------------------------------------------------------------


def _unknown_option(context: Context, written: str, arguments: Sequence[str]) -> tuple[str, str] | None:
    """Return error and fix for an option, if it is known what it stands for."""
    word, command = written.lstrip("-").replace("-", "_"), context.command
    stage = _stage(command.name or "")
    options = list(_options(command))
    other = next((option for option, words in _OPTIONS.items() if word in words.split()), None)
    if other and other.partition(" ")[0] in options:
        return f"unknown option {written}; did you mean {other}?", f"write {other} instead of {written}"
    meaning = _meaning(written, options, stage, _algorithm(command.name or "", arguments))
    if not meaning.key:
        return (f"unknown option {written}: {meaning.remark}", f"leave out {written}") if meaning.remark else None
    if meaning.key in _overrides(command):
        return None
    if meaning.key == "data.train" and any(
        p.param_type_name == "argument" and p.name == "files" for p in command.params
    ):
        return f"unknown option {written}: files are named without an option", f"leave out {written}"
    option = meaning.key if meaning.key in options else _as_option(meaning.key, options, stage)
    what = f"unknown option {written}; did you mean {option}?{f' {meaning.remark}' if meaning.remark else ''}"
    if meaning.convert and "VALUE" in option:
        return what, f"use {option} instead of {written}, with its own kind of value"
    return what, f"write {option} instead of {written}"


def _meaning(written: str, options: list[str], stage: Stage | None, algorithm: str) -> Meaning:
    """Return the option (with dashes) or setting that an unknown option stands for."""
    from tinyllm.config.base import dotted_keys  # settings take a tenth of a second, which other commands do not need
    from tinyllm.config.suggestions import is_typo, suggest
    from tinyllm.config.synonyms import Meaning, find_meaning

    word = written.lstrip("-")
    keys = dotted_keys(stage.config) if stage else ()
    leaves = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]
    names = {option.lstrip("-"): option for option in options}
    near = suggest(word, [*names, *leaves]) or ""
    by_spelling = Meaning(names.get(near, near))
    meaning = find_meaning(word, keys, algorithm) if stage else None
    if near and is_typo(word, near) and not (meaning and meaning.key):  # `--sep` is no typo of `--set`
        return by_spelling
    return meaning or by_spelling


def _as_option(key: str, options: list[str], stage: Stage | None) -> str:
    """Return how a setting is given on the command line: `--seed`, or `--set train.steps=VALUE`."""
    from tinyllm.cli.resolve import OPTIONS
    from tinyllm.config.base import find_field, is_list

    own = "--data" if key == "data.train" else f"--{OPTIONS.get(key, key)}"
    if own in options:
        return own
    if key == "lora":  # a section: one of its settings switches it on
        return "--set lora.r=16"
    found = find_field(stage.config, tuple(key.split("."))) if stage else None
    return f"--set '{key}=[VALUE]'" if found and is_list(found[1]) else f"--set {key}=VALUE"


def _options(command: Command) -> Iterator[str]:
    for parameter in command.params:
        yield from (name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--"))


def _overrides(command: Command) -> set[str]:
    """Return the options of a command that switch a safety check off: of `--resume/--no-resume` the second."""
    marked: list[Any] = [p for p in command.params if vars(p).get("rich_help_panel") == OVERRIDES]
    return {name for p in marked for name in p.secondary_opts or p.opts}


def _stage(command: str) -> Stage | None:
    from tinyllm.cli.resolve import STAGES

    return STAGES.get(_STAGES.get(command, command))


def _algorithm(command: str, arguments: Sequence[str]) -> str:
    """Return the algorithm that a command line names, in its options or in its configuration; or the default."""
    if command not in _ALGORITHMS:
        return ""
    from tinyllm.cli.resolve import algorithm_in_file

    given = [a for argument in arguments for a in (argument.split("=", 1) if argument[:2] == "--" else [argument])]
    values = dict(itertools.pairwise(given))
    named = values.get("--algorithm") or values.get("-a")
    config = values.get("--config") or values.get("-c")
    return named or (algorithm_in_file(Path(config)) if config else "") or _ALGORITHMS[command]


# --- arguments -------------------------------------------------------------------------------------------------------------------


def _extra_argument(context: Context, word: str) -> str:
    """Return the option that an argument was probably meant for, or an empty string."""
    from tinyllm import algorithms

    command = context.command.name or ""
    options, stage = list(_options(context.command)), _stage(command)
    if command in _ALGORITHMS and any(word in algorithms.names(family) for family in algorithms.FAMILIES):
        return f"write --algorithm {word}"
    if command == "chat":
        return "ask one question with -p, or name a model with --checkpoint"
    if "--checkpoint" in options and (Path(word) / "checkpoints").is_dir():
        return "name a run or a checkpoint with --checkpoint"
    return f"name data with {set_option('data.train', word)}" if stage and Path(word).suffix else ""
