"""The Typer application: global options and the commands, each group registered by its own file."""

from __future__ import annotations

from typing import Annotated

import typer

from tinyllm import __version__
from tinyllm import distributed as dist
from tinyllm.cli import data, diagnostics, lifecycle, runs, training
from tinyllm.cli.options import ALIGN, LEARN, USE
from tinyllm.cli.printing import results

app = typer.Typer(
    help="Train, align, evaluate and chat with a small language model, from raw text to chat.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    no_args_is_help=False,
)


def _version(requested: bool) -> None:
    if requested:
        print(f"tinyllm {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    dist.check_environment()
    if context.invoked_subcommand is None:
        results.start_here()


app.add_typer(data.data_app, name="data", rich_help_panel=LEARN)
training.register_learning(app, LEARN)
training.register_alignment(app, ALIGN)
training.register_use(app, USE)
diagnostics.register(app, USE)
lifecycle.register(app, USE)
app.add_typer(runs.runs_app, name="runs", rich_help_panel=USE)
