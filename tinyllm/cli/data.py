"""The commands of `tinyllm data`: prepare, tokenizer, inspect and download."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyllm import console, signals
from tinyllm.cli.data_inspect import INSPECTING, inspect
from tinyllm.cli.options import LOOKING, PREPARING, Common, command
from tinyllm.cli.printing import results
from tinyllm.cli.printing.text import json_object, line
from tinyllm.cli.run_stage import run_stage
from tinyllm.errors import UserError
from tinyllm.io import strict_json
from tinyllm.io.shell import set_option

if TYPE_CHECKING:
    from rich.table import Table

_PANEL = "Data"
_WIDEST = 24  # characters of a token that are shown


data_app = typer.Typer(help="Prepare, inspect and download training data.", no_args_is_help=True)


@command(data_app, "prepare", PREPARING, _PANEL)
def prepare(common: Common) -> None:
    """Train a tokenizer and write token shards. Optional: `pretrain` does the same if there are none."""
    with signals.continued_by("the same command continues"):
        run_stage("data", common, function="prepare")


command(data_app, "inspect", INSPECTING, _PANEL)(inspect)

# --- tokenizer -------------------------------------------------------------------------------------------------------------------

Texts = Annotated[
    list[str] | None,
    typer.Argument(metavar="[TEXT]...", help="Files, folders, globs, - or world:N. Default: data.train."),
]
VocabSize = Annotated[int | None, typer.Option("--vocab-size", help="Maximum vocabulary size (model.vocab_size).")]
Import = Annotated[
    Path | None,
    typer.Option(
        "--import", help="Convert a tokenizer: tokenizer.json, vocab.json and merges.txt, tokenizer.model, or a folder."
    ),
]
Against = Annotated[
    list[Path] | None, typer.Option("--against", help="Compare with another tokenizer on the same text. Repeatable.")
]
Report = Annotated[Path | None, typer.Option("--report", help="Measure an existing tokenizer; write nothing.")]
Out = Annotated[Path | None, typer.Option("--out", help="Output folder. Default: runs/data/NAME/tokenizer.")]


@command(data_app, "tokenizer", tuple(name for name in PREPARING if name not in ("checkpoint", "base")), _PANEL)
def tokenizer(
    common: Common,
    text: Texts = None,
    vocab_size: VocabSize = None,
    imported: Import = None,
    report: Report = None,
    against: Against = None,
    out: Out = None,
) -> None:
    """Train or import a tokenizer, and report how well it compresses the text."""
    from tinyllm.cli.resolve import STAGES, resolve

    console.Quiet.on = common.quiet
    given = {"--vocab-size": vocab_size, "--import": imported, "--report": report}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise UserError(f"{' and '.join(names)} cannot be combined", where=names[1], fix=f"leave out {names[1]}")
    if report and out:
        raise UserError("--report writes no files", where="--out", fix="leave out --out, or use --import")
    options = {**common.keys(), "model.vocab_size": vocab_size, "tokenizer": imported}
    if text:
        options["data.train"] = strict_json.dumps(text)
    stage = replace(STAGES["data"], module="stages.tokenizer")
    resolved = resolve(stage, common.config, common.set or [], options, os.environ, fast=common.fast_dev_run)
    if common.dry_run:
        results.plan(stage.place, resolved, fast=common.fast_dev_run, as_json=common.json)
        return
    found = stage.function()(resolved.config, against=against or [], out=out, report=report)
    if common.json:
        json_object(found)
    else:
        _tokenizer_report(found)


def _tokenizer_report(found: dict[str, Any]) -> None:
    """Print one row per tokenizer, then details of the first."""
    from rich.console import Console

    rows = {found["name"]: found, **found["against"]}
    Console(soft_wrap=True, highlight=False).print(_compared(rows), markup=False)
    learned = " (its training text)" if found["made"] == "trained" and not found["held_out"] else ""
    text = ", ".join(found["text"])
    line(f"measured on {found['documents']:,} documents, {found['bytes']:,} bytes of {text}{learned}")
    longest = [f"{_shown(token['text'])} ({token['used']:,})" for token in found["longest_tokens"]]
    line(f"longest tokens (times used): {', '.join(longest)}")
    line(f"control tokens: {', '.join(map(_shown, found['control_tokens']))}")
    if found["inexact_documents"]:
        count = found["inexact_documents"]
        line(f"{count:,} documents do not decode to the original text; the first begins {found['first_inexact']!r}")
    if found["folder"]:
        line(f"  {found['folder']}")
        line(f"  next: tinyllm pretrain {set_option('tokenizer', found['folder'])}")


def _compared(rows: dict[str, dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("tokenizer")
    for column in ("vocabulary", "bytes/token", "tokens/document", "unused", "exact"):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        exact = 1 - row["inexact_documents"] / max(1, row["documents"])
        table.add_row(
            name,
            f"{row['vocab_size']:,}",
            f"{row['bytes_per_token']:.3f}",
            f"{row['tokens_per_document']:,.1f}",
            f"{row['unused_share']:.1%}",
            f"{exact:.2%}" if exact < 1 else "100%",
        )
    return table


def _shown(token: str) -> str:
    token = token if len(token) <= _WIDEST else token[: _WIDEST - 1] + "…"
    return repr(token)[1:-1] if token.isprintable() and " " not in token else repr(token)


# --- download --------------------------------------------------------------------------------------------------------------------

SetName = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="A listed dataset, or OWNER/NAME. Without it: show the list.")
]
Files = Annotated[
    list[str] | None, typer.Option("--file", help="Only matching files, e.g. 'data/*.parquet'. Repeatable.")
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit. Default: the listed one, or main.")
]
DownloadTo = Annotated[Path | None, typer.Option("--out", help="Output folder. Default: runs/data/downloads/NAME.")]


@command(data_app, "download", LOOKING, _PANEL)
def download(
    common: Common, name: SetName = None, file: Files = None, revision: Revision = None, out: DownloadTo = None
) -> None:
    """Download a dataset from a Hugging Face hub and verify it; without NAME, list known datasets. Uses the network."""
    console.Quiet.on = common.quiet
    from tinyllm.stages import download as stage

    if name is None:
        if file or revision or out:
            raise UserError("no dataset was named", where="NAME", fix="name a dataset, or leave out the options")
        found = stage.catalogue()
    else:
        with signals.continued_by("the same command resumes the download"):
            found = stage.run(name, patterns=file or [], revision=revision, out=out)
    if common.json:
        json_object(found)
    elif name is None:
        _catalogue(found)
    else:
        for row in found["files"]:
            line(f"{row['state']:<10}  {row['bytes']:>14,}  {row['path']}")
        line(f"  {found['folder']}, licence {found['licence'] or 'unknown'}")
        line(f"  next: {found['use']}")


def _catalogue(found: dict[str, Any]) -> None:
    """Print two lines per dataset, which fit a narrow terminal."""
    for row in found["sets"]:
        size = f"{row['bytes'] / 1e6:,.1f} MB" if row["bytes"] is not None else "size unknown"
        version = row["revision"][:7] if row["revision"] else "unpinned"
        line(f"{row['name']:<18} {row['stage']:<19} {size:>12}  {version:<8}  {row['licence']}")
        line(f"    {row['about']}")
    print("\n`tinyllm data download NAME` downloads one; name any other dataset of the hub as OWNER/NAME.")
