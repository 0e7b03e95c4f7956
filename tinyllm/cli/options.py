"""Options that several commands share, defined once: `@command(app, "rm", TUNING, panel)` adds a group of them to a function.

The function receives them as one `Common`, and its own options as parameters of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from tinyllm import distributed as dist

OVERRIDES = "Safety overrides"  # the panel of options that switch a check off: they are never suggested

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file. Default: the one shipped for this command.")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override one setting: key.path=value. Repeatable.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Random seed: data order, dropout, sampling, new weights.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="What to start from: a run or a folder, or owner/name of a Hugging Face hub."),
]
Base = Annotated[
    Path | None,
    typer.Option("--base", help="Base model of a checkpoint that is an adapter, where it is not at the path it names."),
]
Ranks = Annotated[int, typer.Option("--nproc", min=1, help="Number of processes (ranks) on this machine.")]
Restarts = Annotated[int, typer.Option("--max-restarts", min=0, help="Restart a crashed run up to N times.")]
Fast = Annotated[bool, typer.Option("--fast-dev-run", help="Tiny model, a few steps: checks that everything runs.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume", help="Resume from the last checkpoint, or start over.", rich_help_panel=OVERRIDES
    ),
]
NewData = Annotated[
    bool,
    typer.Option("--allow-data-change", help="Resume even if the data have changed.", rich_help_panel=OVERRIDES),
]
Change = Annotated[
    list[str] | None,
    typer.Option("--change", help="Resume with another setting of train, optim or device: key.path=value. Repeatable."),
]
Rewarm = Annotated[
    bool,
    typer.Option("--rewarm", help="With more train.steps: start the learning rate schedule again, warm-up included."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print settings with their origin, and the cost, then exit.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print results and errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@dataclass(frozen=True)
class Common:
    """Values of the shared options. Options that a command does not have keep their defaults."""

    config: ConfigFile = None
    set: Set = None
    name: Name = None
    seed: Seed = None
    device: Device = None
    checkpoint: Checkpoint = None
    base: Base = None
    nproc: Ranks = 1
    max_restarts: Restarts = 0
    fast_dev_run: Fast = False
    resume: Resume = True
    allow_data_change: NewData = False
    change: Change = None
    rewarm: Rewarm = False
    dry_run: DryRun = False
    json: Json = False
    quiet: Quiet = False
    debug: Debug = False

    def keys(self) -> dict[str, Any]:
        """Return the options that set a key of the configuration, by that key."""
        return {
            "name": self.name,
            "seed": self.seed,
            "device": self.device,
            "parent": self.checkpoint,
            "base": self.base,
        }


LEARN, ALIGN, USE = "Train", "Align", "Use and inspect"  # panels of `tinyllm --help`

# groups of shared options
TUNING = tuple(f.name for f in fields(Common))
_RESUMING = ("max_restarts", "resume", "allow_data_change", "change", "rewarm")
PREPARING = tuple(name for name in TUNING if name not in ("device", "nproc", *_RESUMING))
READING = tuple(name for name in TUNING if name not in ("name", *_RESUMING))
LOOKING = ("json", "quiet", "debug")
WHOLE = ("name", "set", "seed", "device", "resume", "json", "quiet", "debug")

_DEFAULTS = {f.name: f.default for f in fields(Common)}
_KINDS = inspect.get_annotations(Common, eval_str=True)


def command(
    app: typer.Typer, name: str, group: tuple[str, ...], panel: str, more: Callable[[], str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function `f(common, own options…)` as a command that also has the shared options of `group`.

    Args:
        more: text for --help below the docstring, made when it is shown.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        keyword = inspect.Parameter.KEYWORD_ONLY
        shared = [inspect.Parameter(n, keyword, default=_DEFAULTS[n], annotation=_KINDS[n]) for n in group]

        def run(**given: Any) -> None:
            if "nproc" not in group:
                dist.require_single(name)
            common = Common(**{n: given.pop(n) for n in group})
            function(common, **given)

        run.__doc__ = function.__doc__
        run.__annotations__ = {p.name: p.annotation for p in [*own, *shared]}
        # typer reads the options from here
        run.__signature__ = inspect.Signature([*(p.replace(kind=keyword) for p in own), *shared])  # type: ignore[attr-defined]
        app.command(name, rich_help_panel=panel, cls=_with_more(more) if more else None)(run)
        return function

    return register


def _with_more(more: Callable[[], str]) -> type[TyperCommand]:
    """Return a command class that appends `more()` to its help text."""

    class Command(TyperCommand):
        def format_help(self, *arguments: Any) -> None:
            self.help = f"{self.help}\n\n{more()}"
            super().format_help(*arguments)

    return Command
