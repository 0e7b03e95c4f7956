"""The commands of `tinyllm runs`: list, show, verify and lineage."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tinyllm import console
from tinyllm.cli.options import LOOKING, Common, Debug, Json, Quiet, command
from tinyllm.cli.printing import runs as text
from tinyllm.errors import INTEGRITY, UserError

runs_app = typer.Typer(help="List, show and verify runs and their lineage. Without a subcommand: `runs list`.")
_PANEL = "Runs"
All = Annotated[bool, typer.Option("--all", help="Include fast-dev-runs and runs that were moved aside.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A path, or a name shown by `runs list`.")]


@runs_app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    everything: All = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Without a subcommand: `runs list`, with its options."""
    given = {"--all": everything, "--json": as_json, "--quiet": quiet, "--debug": debug}
    if context.invoked_subcommand is None:
        list_(Common(json=as_json, quiet=quiet, debug=debug), everything=everything)
    elif before := [option for option, on in given.items() if on]:
        command = f"{context.command_path} {context.invoked_subcommand}"
        message = f"{' '.join(before)} belongs behind {context.invoked_subcommand}"
        raise UserError(message, where=before[0], fix=f"write `{command} {' '.join(before)}`")


@command(runs_app, "list", LOOKING, _PANEL)
def list_(
    common: Common,
    path: Annotated[
        Path | None, typer.Argument(help="Only runs below this folder, or of this name. Default: runs/.")
    ] = None,
    everything: All = False,
) -> None:
    """List runs: stage, status, steps, main figure before and after, time, size. Newest last."""
    console.Quiet.on = common.quiet
    from tinyllm.diagnostics.runs.listing import list_runs

    found = list_runs(path, everything=everything)
    if common.json:
        text.as_json(found)
    else:
        text.listed(found)


@command(runs_app, "show", LOOKING, _PANEL)
def show(common: Common, run: Run) -> None:
    """Show one run: command, settings, versions, parent, data, checkpoints, figures."""
    console.Quiet.on = common.quiet
    from tinyllm.diagnostics.runs.listing import show_run

    found = show_run(run)
    found["changed_settings"] = text.changed(found)
    if common.json:
        text.as_json(found)
    else:
        text.shown(found)


@command(runs_app, "verify", LOOKING, _PANEL)
def verify(
    common: Common,
    run: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Runs, checkpoints or folders of runs. Default: all of runs/."),
    ] = None,
) -> None:
    """Read and verify every file of runs: checkpoints, shards, links, parents, tokenizers. Exit 3 if anything is damaged."""
    console.Quiet.on = common.quiet
    from tinyllm.diagnostics.runs.verify import verify_runs

    with _waiting(common):
        found = verify_runs(run or [])
    if common.json:
        text.as_json(found)
    else:
        for problem in found["problems"]:
            text.line(f"BROKEN {problem['path']}: {problem['what']}")
        for note in found["notes"]:
            text.line(f"note {note['path']}: {note['what']}")
        text.line(text.verified(found))
    if found["problems"]:
        raise typer.Exit(INTEGRITY)


@command(runs_app, "lineage", LOOKING, _PANEL)
def lineage(common: Common, run: Run) -> None:
    """Trace a run back to pretraining and its data: what is missing, what has changed, and one hash of the whole lineage."""
    console.Quiet.on = common.quiet
    from tinyllm.diagnostics.runs.lineage import trace_lineage

    found = trace_lineage(run)
    if common.json:
        text.as_json(found)
        return
    for row in text.tree(found["tree"]):
        text.line(row)
    text.line(f"lineage {found['lineage'] or 'unknown: ' + found['tree']['unknown']}")


@contextmanager
def _waiting(common: Common) -> Iterator[None]:
    """Show a spinner on a terminal while files are read."""
    if common.quiet or common.json or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status("reading files"):
        yield
