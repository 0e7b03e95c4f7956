"""The verbs of `tinyllm data` that are more than a configuration: tokenizer, inspect and download."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyllm.cli import show
from tinyllm.cli.inspected import INSPECTING, inspect
from tinyllm.cli.options import LOOKING, PREPARING, Common, verb
from tinyllm.errors import UserError
from tinyllm.train import progress

if TYPE_CHECKING:
    from rich.table import Table

_PANEL = "Data"
_WIDEST = 24  # characters of a token that are shown


def register(app: typer.Typer) -> None:
    """Add the verbs to `tinyllm data`."""
    verb(app, "tokenizer", PREPARING, _PANEL)(tokenizer)
    verb(app, "inspect", INSPECTING, _PANEL)(inspect)
    verb(app, "download", LOOKING, _PANEL)(download)


# --- tokenizer -------------------------------------------------------------------------------------------------------------------

Texts = Annotated[
    list[str] | None,
    typer.Argument(metavar="[TEXT]...", help="Files, folders, globs, - or world:N; data.train by default."),
]
VocabSize = Annotated[int | None, typer.Option("--vocab-size", help="The most tokens; model.vocab_size.")]
Import = Annotated[
    Path | None,
    typer.Option(
        "--import", help="Convert this one: tokenizer.json, vocab.json with merges.txt, tokenizer.model, or a folder."
    ),
]
Against = Annotated[
    list[Path] | None, typer.Option("--against", help="Compare with this one on the same text; may be repeated.")
]
Report = Annotated[Path | None, typer.Option("--report", help="Measure this one; write nothing.")]
Out = Annotated[Path | None, typer.Option("--out", help="The folder to write to; runs/data/NAME/tokenizer.")]


def tokenizer(
    common: Common,
    text: Texts = None,
    vocab_size: VocabSize = None,
    imported: Import = None,
    report: Report = None,
    against: Against = None,
    out: Out = None,
) -> None:
    """Train a tokenizer on text, or import one, and report how it fits the text."""
    from tinyllm.cli.stages import STAGES, resolve

    progress.Quiet.on = common.quiet
    given = {"--vocab-size": vocab_size, "--import": imported, "--report": report}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise UserError(f"{' and '.join(names)} exclude each other", where=names[1], fix=f"leave out {names[1]}")
    if report and out:
        raise UserError("--report writes nothing", where="--out", fix="leave out --out, or use --import")
    options = {**common.keys(), "model.vocab_size": vocab_size, "tokenizer": imported}
    if text:
        options["data.train"] = json.dumps(text)
    stage = replace(STAGES["data"], module="tokenizer")
    resolved = resolve(stage, common.config, common.set or [], options, os.environ, fast=common.fast_dev_run)
    if common.dry_run:
        show.plan(stage.place, resolved, fast=common.fast_dev_run, as_json=common.json)
        return
    found = stage.function()(resolved.config, against=against or [], out=out, report=report)
    if common.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        _tokenizer_report(found)


def _tokenizer_report(found: dict[str, Any]) -> None:
    """A row a vocabulary, then what only the first is asked for."""
    from rich.console import Console

    rows = {found["name"]: found, **found["against"]}
    Console(soft_wrap=True, highlight=False).print(_compared(rows), markup=False)
    learned = ", which it was trained on" if found["made"] == "trained" and not found["held_out"] else ""
    text = ", ".join(found["text"])
    print(f"measured on {found['documents']:,} documents, {found['bytes']:,} bytes, of {text}{learned}")
    longest = [f"{_shown(token['text'])} ({token['used']:,})" for token in found["longest_tokens"]]
    print(f"longest tokens, with how often each was used: {', '.join(longest)}")
    print(f"control tokens: {', '.join(map(_shown, found['control_tokens']))}")
    if found["inexact_documents"]:
        count = found["inexact_documents"]
        print(f"{count:,} documents are not given back as they were; the first begins {found['first_inexact']!r}")
    if found["folder"]:
        print(f"  {found['folder']}")
        print(f"  next: tinyllm pretrain --set tokenizer={found['folder']}")


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
    str | None, typer.Argument(metavar="[NAME]", help="A set of the table, or OWNER/NAME; none: show the table.")
]
Files = Annotated[
    list[str] | None, typer.Option("--file", help="Only this file, or these: 'data/*.parquet'; may be repeated.")
]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit; the table's, or main.")]
DownloadTo = Annotated[Path | None, typer.Option("--out", help="The folder to write to; runs/data/downloads/NAME.")]


def download(
    common: Common, name: SetName = None, file: Files = None, revision: Revision = None, out: DownloadTo = None
) -> None:
    """Fetch a data set from a Hugging Face hub, checked; without NAME, list the known ones. The only verb that uses the network."""
    progress.Quiet.on = common.quiet
    from tinyllm.stages import download as stage

    if name is None:
        if file or revision or out:
            raise UserError("nothing was named to download", where="NAME", fix="name a set, or leave out the options")
        found = stage.catalogue()
    else:
        found = stage.run(name, patterns=file or [], revision=revision, out=out)
    if common.json:
        print(json.dumps(found, ensure_ascii=False))
    elif name is None:
        _catalogue(found)
    else:
        for row in found["files"]:
            print(f"{row['state']:<10}  {row['bytes']:>14,}  {row['path']}")
        print(f"  {found['folder']}, licence {found['licence'] or 'unknown'}")
        print(f"  next: {found['use']}")


def _catalogue(found: dict[str, Any]) -> None:
    """Two lines a set, which a narrow terminal can show."""
    for row in found["sets"]:
        size = f"{row['bytes'] / 1e6:,.1f} MB" if row["bytes"] is not None else "size unknown"
        version = row["revision"][:7] if row["revision"] else "unpinned"
        print(f"{row['name']:<18} {row['stage']:<19} {size:>12}  {version:<8}  {row['licence']}")
        print(f"    {row['about']}")
    print("\n`tinyllm data download NAME` fetches one; any other data set of the hub is named OWNER/NAME.")
