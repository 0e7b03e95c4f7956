"""The command `tinyllm data inspect`: choose the stage whose data are inspected, run the inspection, print the report."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyllm import console
from tinyllm.cli.options import Common
from tinyllm.cli.printing import inspect as printing
from tinyllm.data.records.formats import KIND_ALIASES, KINDS, TITLES
from tinyllm.errors import USAGE, UserError, escape_unprintable

if TYPE_CHECKING:
    from tinyllm.cli.resolve import Stage

INSPECTING = ("config", "set", "seed", "checkpoint", "json", "quiet", "debug")
_STAGE_OF = {"documents": "pretrain", "conversations": "sft", "pairs": "dpo", "unpaired": "kto", "prompts": "grpo"}

Files = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FILE]...", help="Files, folders, globs, - or world:N. Default: data.train."),
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
    from tinyllm.cli.resolve import resolve

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
    stage = _stage(common.config, kind, files or [])
    options = {"seed": common.seed, "data.max_length": max_length, "data.format": format}
    if files:
        options["data.train"] = json.dumps(files)
    sets = [*(common.set or []), *(f"data.field.{pair}" for pair in field or [])]
    config = resolve(stage, common.config, sets, options, os.environ, fast=False).config
    from tinyllm.diagnostics import inspect as survey
    from tinyllm.diagnostics.inspect.tokenizer import vocabulary
    from tinyllm.stages.config import data_kind

    reads = data_kind(config)
    assert reads is not None, "only stages that train are inspected"
    if kind not in (None, reads):
        what = f"`tinyllm {stage.place}` with this configuration reads {TITLES[reads]}"
        raise UserError(what, where="--kind", fix=f"leave out --kind, or name a configuration for {kind}")
    known = vocabulary(config, stage.place, tokenizer, common.checkpoint)
    found = survey.run(config, reads, stage.place, known, shown=records)
    if html:
        from tinyllm.diagnostics.inspect.page import write

        write(found, html)
    if common.json:
        print(json.dumps(found))  # in ASCII: what a terminal would act on is written out
    else:
        from rich.console import Console

        printing.show(found, Console(soft_wrap=True, highlight=False))
        if html:
            print(f"\n  {escape_unprintable(str(html))}")
    if found["refused"]:
        raise typer.Exit(USAGE)


# --- which stage -----------------------------------------------------------------------------------------------------------------


def _stage(config: Path | None, kind: str | None, files: list[str]) -> Stage:
    """Return the stage that the configuration's name says it is for, or that reads this kind of data."""
    from tinyllm.cli.resolve import STAGES

    if kind is not None and kind not in _STAGE_OF:
        raise UserError(f"unknown kind of data {kind!r}", where="--kind", fix=f"use one of {', '.join(_STAGE_OF)}")
    if config is not None and (named := _named(config)):
        return named
    if config is not None and kind is None:
        what = "the stage cannot be determined from the name of this configuration"
        raise UserError(what, where=str(config), fix=f"add --kind {' or '.join(_STAGE_OF)}")
    return STAGES[_STAGE_OF[kind or _kind_of_files(files)]]


def _named(config: Path) -> Stage | None:
    """Return the stage named in the path: `my_sft.yaml`, `configs/rlhf/rm/x.yaml`."""
    from tinyllm import algorithms
    from tinyllm.cli.resolve import STAGES, stage_of

    known = {name: STAGES[name] for name in ("pretrain", "sft", "rm")}
    known |= {name: stage_of(name, "dpo") for name in algorithms.names("offline")}
    known |= {name: stage_of(name, "grpo") for name in algorithms.names("online")}
    for part in (config.stem, *reversed(config.parts[:-1])):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in known:
                return known[word]
    return None


def _kind_of_files(files: list[str]) -> str:
    from tinyllm.data.config import is_world
    from tinyllm.data.records.detect import guess_kind

    fix = f"add --kind {' or '.join(_STAGE_OF)}"
    if not files:
        raise UserError(
            "no data to inspect", where="FILE", fix="name a file, or --config, or --kind for the bundled world"
        )
    if files[0] == "-" or is_world(files[0]):
        raise UserError(f"the kind of data in {files[0]!r} cannot be determined", where="--kind", fix=fix)
    try:
        return guess_kind(files[0])
    except UserError as error:
        if "prompts=" not in error.fix:  # the fix that lifecycle suggests
            raise
        raise UserError(error.what, where=error.where, fix=fix) from None
