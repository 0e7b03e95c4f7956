"""`tinyllm runs`: what ran, from what, and whether it is intact. How it is shown: `runs_text`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tinyllm.cli import runs_text as text
from tinyllm.cli.options import LOOKING, Common, verb
from tinyllm.errors import INTEGRITY
from tinyllm.train import progress

runs_app = typer.Typer(help="What ran, from what, and whether it is intact; by itself: the list.")
_PANEL = "Runs"
All = Annotated[bool, typer.Option("--all", help="Rehearsals and runs that were moved aside, too.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A path, or a name as `runs list` shows it.")]


@runs_app.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_(Common())


@verb(runs_app, "list", LOOKING, _PANEL)
def list_(
    common: Common,
    path: Annotated[Path | None, typer.Argument(help="Only the runs below this folder; runs/ by default.")] = None,
    everything: All = False,
) -> None:
    """A row a run: stage, status, steps, what moved, seconds, when it ended, size; the newest last."""
    progress.Quiet.on = common.quiet
    from tinyllm.stages import runs

    found = runs.list_(path, everything=everything)
    if common.json:
        text.as_json(found)
    else:
        text.listed(found)


@verb(runs_app, "show", LOOKING, _PANEL)
def show(common: Common, run: Run) -> None:
    """One run: command, settings, versions, parent, data, checkpoints, figures."""
    progress.Quiet.on = common.quiet
    from tinyllm.stages import runs

    found = runs.show(run)
    found["changed_settings"] = text.changed(found)
    if common.json:
        text.as_json(found)
    else:
        text.shown(found)


@verb(runs_app, "verify", LOOKING, _PANEL)
def verify(
    common: Common,
    run: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Runs, checkpoints or folders of runs; all of runs/ by default."),
    ] = None,
) -> None:
    """Read every byte: checkpoints, shards, links, parents, tokenizers; a line a problem, exit code 3 where there is one."""
    progress.Quiet.on = common.quiet
    from tinyllm.stages.runs.verify import verify as check

    with _waiting(common):
        found = check(run or [])
    if common.json:
        text.as_json(found)
    else:
        for problem in found["problems"]:
            text.line(f"BROKEN {problem['path']}: {problem['what']}")
        for note in found["notes"]:
            text.line(f"note {note['path']}: {note['what']}")
        text.line(f"{found['runs']} runs, {found['checkpoints']} checkpoints, {len(found['problems'])} problems")
    if found["problems"]:
        raise typer.Exit(INTEGRITY)


@verb(runs_app, "lineage", LOOKING, _PANEL)
def lineage(common: Common, run: Run) -> None:
    """From a run up to pretraining and the data: what is still there, what has changed, and one hash for all of it."""
    progress.Quiet.on = common.quiet
    from tinyllm.stages.runs.lineage import lineage as trace

    found = trace(run)
    if common.json:
        text.as_json(found)
        return
    for row in text.tree(found["tree"]):
        text.line(row)
    text.line(f"lineage {found['lineage'] or 'unknown: ' + found['tree']['unknown']}")


@contextmanager
def _waiting(common: Common) -> Iterator[None]:
    """A sign of life for a person, where gigabytes are read."""
    if common.quiet or common.json or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status("reading every byte"):
        yield
