"""The command `tinyllm data inspect`: choose the stage whose data are inspected, run the inspection, print the report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyllm import console
from tinyllm.cli.options import Common
from tinyllm.cli.printing import inspect as printing
from tinyllm.cli.printing.text import prints_on_stderr
from tinyllm.data.records.formats import KIND_ALIASES, KINDS, TITLES
from tinyllm.errors import USAGE, UserError, escape_unprintable
from tinyllm.io import strict_json

if TYPE_CHECKING:
    from tinyllm.cli.resolve import Stage
    from tinyllm.data.config import DataConfig

INSPECTING = ("config", "set", "seed", "checkpoint", "base", "json", "quiet", "debug")
_STAGE_OF = {"documents": "pretrain", "conversations": "sft", "pairs": "dpo", "unpaired": "kto", "prompts": "grpo"}

Files = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FILE]...",
        help="Files, folders, globs, - or world:N. Without: data.train of --config or of the stage of --kind.",
    ),
]
Kind = Annotated[
    str | None,
    typer.Option("--kind", help=f"{', '.join(KINDS[:-1])} or {KINDS[-1]}. Default: detected."),
]
TokenizerFolder = Annotated[
    Path | None, typer.Option("--tokenizer", help="Folder of the tokenizer to count tokens with.")
]
MaxLength = Annotated[
    int | None, typer.Option("--max-length", help="Maximum record length in tokens (data.max_length).")
]
Format = Annotated[str | None, typer.Option("--format", help="Record format (data.format), if detection is wrong.")]
Field = Annotated[
    list[str] | None, typer.Option("--field", help="EXPECTED=COLUMN: the column of the file to use. Repeatable.")
]
Html = Annotated[Path | None, typer.Option("--html", help="Also write the report as an HTML page.")]
Records = Annotated[int, typer.Option("--records", min=0, help="Number of records shown token by token.")]


def inspect(
    common: Common,
    files: Files = None,
    kind: Kind = None,
    tokenizer: TokenizerFolder = None,
    max_length: MaxLength = None,
    format: Format = None,
    field: Field = None,
    html: Html = None,
    records: Records = 3,
) -> None:
    """Show the data as a stage reads them: counts, lengths, loss masks, problems. Exit 2 if the stage would stop."""
    from tinyllm.cli.resolve import reading_options, resolve

    console.Quiet.on = common.quiet
    if tokenizer and common.checkpoint:
        raise UserError(
            "--tokenizer and --checkpoint cannot be combined: a checkpoint has its own tokenizer",
            where="--tokenizer",
            fix="leave out one of them",
        )
    if html and not html.parent.is_dir():
        raise UserError(f"no such folder: {html.parent}", where="--html", fix="create it, or choose another path")
    kind = KIND_ALIASES.get(kind, kind) if kind else None
    sets = [*(common.set or []), *map(_field_set, field or [])]
    reading = reading_options(sets, os.environ, format)
    stage = _stage(common.config, kind, files or [], reading)
    options = {"seed": common.seed, "data.max_length": max_length, "data.format": format, "base": common.base}
    options["parent"] = common.checkpoint  # its settings are those that fit the model, as in training
    if files:
        options["data.train"] = strict_json.dumps(files)
    config = resolve(stage, common.config, sets, options, os.environ, fast=False).config
    from tinyllm.diagnostics import inspect as survey
    from tinyllm.diagnostics.inspect.tokenizer import vocabulary
    from tinyllm.stages.config import data_kind

    reads = data_kind(config)
    assert reads is not None, "only stages that train are inspected"
    if files and kind is None and common.config is None:
        _say_other_kind(reads, files[0], reading)
    if kind not in (None, reads):
        what = f"`tinyllm {stage.place}` with this configuration reads {TITLES[reads]}"
        raise UserError(what, where="--kind", fix=f"leave out --kind, or name a configuration for {kind}")
    known = vocabulary(config, stage.place, tokenizer, common.checkpoint)
    with prints_on_stderr(common.json):  # rewards are tried
        found = survey.run(config, reads, stage.place, known, shown=records)
    if html:
        from tinyllm.diagnostics.inspect.page import write

        write(found, html)
    if common.json:
        print(strict_json.dumps(found))  # in ASCII: what a terminal would act on is written out
    else:
        from rich.console import Console

        printing.show(found, Console(soft_wrap=True, highlight=False))
        if html:
            print(f"\n  {escape_unprintable(str(html))}")
    if found["refused"]:
        raise typer.Exit(USAGE)


def _field_set(pair: str) -> str:
    """Return `prompt=My column` as a setting; --set reads YAML, where some names would not be texts."""
    name, equals, column = pair.partition("=")
    if not equals or not name.strip() or not column:
        raise UserError(f"expected EXPECTED=COLUMN, found {pair!r}", where="--field", fix="write --field prompt=COLUMN")
    return f"data.field.{name.strip()}={strict_json.dumps(column)}"


# --- which stage -----------------------------------------------------------------------------------------------------------------


def _stage(config: Path | None, kind: str | None, files: list[str], data: DataConfig) -> Stage:
    """Return the stage that the configuration's name says it is for, or that reads this kind of data."""
    from tinyllm.cli.resolve import STAGES, stage_in_path

    if kind is not None and kind not in _STAGE_OF:
        raise UserError(f"unknown kind of data {kind!r}", where="--kind", fix=f"use one of {', '.join(_STAGE_OF)}")
    if config is not None and (named := stage_in_path(config)):
        return named
    if config is not None and kind is None:
        what = "the stage cannot be determined from the name of this configuration"
        raise UserError(what, where=str(config), fix=f"add --kind {' or '.join(_STAGE_OF)}")
    return STAGES[_STAGE_OF[kind or _kind_of_files(files, data)]]


def _say_other_kind(kind: str, path: str, data: DataConfig) -> None:
    """Say that questions with short answers, which were taken for prompts, can be read as conversations."""
    from tinyllm.data.records.detect import fits_kind

    if kind == "prompts" and fits_kind(path, "conversations", data):
        console.say("note: for `tinyllm sft` these are conversations: add --kind conversations to see them so")


def _kind_of_files(files: list[str], data: DataConfig) -> str:
    from tinyllm.data.config import is_world
    from tinyllm.data.records.detect import UnknownKind, field_options, guess_kind

    fix = f"add --kind {' or '.join(_STAGE_OF)}"
    if not files:
        raise UserError(
            "no data to inspect", where="FILE", fix="name a file, or --config, or --kind for the bundled world"
        )
    if files[0] == "-" or is_world(files[0]):
        raise UserError(f"the kind of data in {files[0]!r} cannot be determined", where="--kind", fix=fix)
    try:
        return guess_kind(files[0], data)
    except UnknownKind as error:
        for kind in ("documents", "unpaired", "conversations"):
            options = field_options(kind, error.row, "--field ")
            if "COLUMN" not in options:
                raise UserError(error.what, where=error.where, fix=f"name the columns: {options}") from None
        options = field_options("conversations", error.row, "--field ")
        raise UserError(error.what, where=error.where, fix=f"name the columns, as in {options}") from None
