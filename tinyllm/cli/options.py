"""The options that verbs have in common, written once: `@verb(app, "rm", TUNING)` gives a function all of a group's options.

The function receives them as one `Common`, and its own options as parameters of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file; the stage's own by default.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE with a dotted key; may be repeated.")]
Name = Annotated[str | None, typer.Option("--name", help="The run's name.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of data order, dropout, sampling, fresh weights.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Checkpoint = Annotated[Path | None, typer.Option("--checkpoint", help="The run or checkpoint to start from.")]
Ranks = Annotated[int, typer.Option("--nproc", min=1, help="Processes on this machine, started with torchrun.")]
Restarts = Annotated[int, typer.Option("--max-restarts", min=0, help="After a crash go on by itself, so many times.")]
Fast = Annotated[bool, typer.Option("--fast-dev-run", help="A rehearsal: a tiny model, a handful of steps.")]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Go on where the run stopped, or start over.")]
NewData = Annotated[bool, typer.Option("--allow-data-change", help="Resume although the data are not what they were.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print every value and its origin, and the cost; do nothing.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Results and errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@dataclass(frozen=True)
class Common:
    """What was asked for in the shared options; those a verb does not have keep their defaults."""

    config: ConfigFile = None
    set: Set = None
    name: Name = None
    seed: Seed = None
    device: Device = None
    checkpoint: Checkpoint = None
    nproc: Ranks = 1
    max_restarts: Restarts = 0
    fast_dev_run: Fast = False
    resume: Resume = True
    allow_data_change: NewData = False
    dry_run: DryRun = False
    json: Json = False
    quiet: Quiet = False
    debug: Debug = False

    def keys(self) -> dict[str, Any]:
        """The options that stand for a key of the configuration."""
        return {"name": self.name, "seed": self.seed, "device": self.device, "parent": self.checkpoint}


TUNING = tuple(f.name for f in fields(Common))
TRAINING = tuple(name for name in TUNING if name != "checkpoint")
PREPARING = tuple(
    name for name in TRAINING if name not in ("device", "nproc", "max_restarts", "resume", "allow_data_change")
)
READING = tuple(name for name in TUNING if name not in ("name", "max_restarts", "resume", "allow_data_change"))
LOOKING = ("json", "quiet", "debug")
WHOLE = ("name", "set", "seed", "device", "resume", "json", "quiet", "debug")

_DEFAULTS = {f.name: f.default for f in fields(Common)}
_KINDS = inspect.get_annotations(Common, eval_str=True)


def verb(
    app: typer.Typer, name: str, group: tuple[str, ...], panel: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function `f(common, own options…)` as a command with the options of `group` behind its own."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        keyword = inspect.Parameter.KEYWORD_ONLY
        shared = [inspect.Parameter(n, keyword, default=_DEFAULTS[n], annotation=_KINDS[n]) for n in group]

        def command(**given: Any) -> None:
            common = Common(**{n: given.pop(n) for n in group})
            function(common, **given)

        command.__doc__ = function.__doc__
        command.__signature__ = inspect.Signature([*(p.replace(kind=keyword) for p in own), *shared])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in [*own, *shared]}
        app.command(name, rich_help_panel=panel)(command)
        return function

    return register
