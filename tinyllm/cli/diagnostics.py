"""The commands `explain` and `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinyllm import console
from tinyllm.cli.options import LOOKING, Common, command
from tinyllm.cli.printing import results

Run = Annotated[Path | None, typer.Argument(help="A run directory. Default: the newest under runs/.")]
Target = Annotated[Path | None, typer.Argument(help="A run or a checkpoint. Default: this installation and machine.")]


def register(app: typer.Typer, panel: str) -> None:
    command(app, "explain", LOOKING, panel)(explain)
    command(app, "verify", ("device", "base", *LOOKING), panel)(verify)


def explain(common: Common, run: Run = None) -> None:
    """Diagnose a run from its log: symptoms, evidence, likely causes, and a suggested fix."""
    console.Quiet.on = common.quiet
    from tinyllm.diagnostics import explain as stage

    results.result(stage.run(run), as_json=common.json)


def verify(common: Common, run: Target = None) -> None:
    """Check the computations on this machine: resume, ranks, generation, LoRA, export and more. Exit 1 if a check fails."""
    console.Quiet.on = common.quiet
    from tinyllm.cli.printing import verify as printing
    from tinyllm.diagnostics import verify as stage

    watcher = printing.watcher(as_json=common.json, quiet=common.quiet)
    printing.show(stage.run(run, common.device or "auto", watcher, common.base), as_json=common.json)
