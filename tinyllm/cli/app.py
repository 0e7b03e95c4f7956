"""The verbs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tinyllm import __version__, algorithms, dist
from tinyllm.cli import data as data_verbs
from tinyllm.cli import show
from tinyllm.cli.options import LOOKING, PREPARING, READING, TRAINING, TUNING, WHOLE, Common, verb
from tinyllm.cli.runs import runs_app
from tinyllm.dist import watch
from tinyllm.errors import FAILED, UserError
from tinyllm.train import progress

app = typer.Typer(
    help="One command takes a small language model through its whole life.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    no_args_is_help=False,
)
data_app = typer.Typer(help="Prepare text for training.", no_args_is_help=True)
_LEARNING, _ALIGNING, _USING = "Learning from text and conversations", "Aligning", "Using, and all at once"
app.add_typer(data_app, name="data", rich_help_panel=_LEARNING)
app.add_typer(runs_app, name="runs", rich_help_panel=_USING)
Algorithm = Annotated[str | None, typer.Option("--algorithm", "-a", help="One of the files in tinyllm/algorithms.")]


def _version(asked: bool) -> None:
    if asked:
        print(f"tinyllm {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    dist.check_environment()
    if context.invoked_subcommand is None:
        show.start_here()


@verb(data_app, "prepare", PREPARING, "Data")
def data_prepare(common: Common) -> None:
    """Train a tokenizer and write token shards; `pretrain` does the same where it finds none."""
    _run("data", common, function="prepare")


data_verbs.register(data_app)  # tokenizer, download


@verb(app, "pretrain", TRAINING, _LEARNING)
def pretrain(common: Common) -> None:
    """A model from raw text."""
    _run("pretrain", common)


@verb(app, "sft", TUNING, _LEARNING)
def sft(
    common: Common,
    lora: Annotated[bool, typer.Option("--lora", help="Train a LoRA adapter instead of all weights.")] = False,
) -> None:
    """Teach a pretrained model to answer."""
    _run("sft-lora" if lora else "sft", common, needs="lora" if lora else "")


@verb(app, "rm", TUNING, _ALIGNING)
def rm(common: Common) -> None:
    """A reward model from preference pairs."""
    _run("rm", common)


@verb(app, "align-offline", TUNING, _ALIGNING)
def align_offline(common: Common, algorithm: Algorithm = None) -> None:
    """Align with preferences: dpo (by default), orpo, simpo, kto."""
    _run(_known(algorithm, "offline") or "dpo", common, default="dpo", keys={"algorithm": algorithm})


@verb(app, "align-online", TUNING, _ALIGNING)
def align_online(common: Common, algorithm: Algorithm = None) -> None:
    """Align with rewards for the model's own answers: grpo (by default), dr_grpo, dapo, gspo, cispo, rloo, ppo."""
    _run(_known(algorithm, "online") or "grpo", common, default="grpo", keys={"algorithm": algorithm})


@verb(app, "eval", READING, _USING)
def evaluate(
    common: Common,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", help="bits_per_byte, choice, exact_match, gold or pass@k; may be repeated."),
    ] = None,
) -> None:
    """Perplexity and bits per byte of a checkpoint on held-out text; with --task, benchmarks."""
    _run("eval", common, keys={"task": f"[{', '.join(task)}]" if task else None})


@verb(app, "chat", tuple(n for n in READING if n != "nproc"), _USING)
def chat(
    common: Common,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="Answer this and leave; may be repeated.")
    ] = None,
) -> None:
    """Talk to a checkpoint."""
    if common.json and not prompt:
        raise UserError("--json needs something to answer", where="--json", fix='add -p "..."')
    _run("chat", common, prompts=prompt or [], stream=not common.json)


@verb(app, "explain", LOOKING, _USING)
def explain(
    common: Common,
    run: Annotated[Path | None, typer.Argument(help="A run directory; the newest under runs/ by default.")] = None,
) -> None:
    """What went wrong in a run: symptoms, evidence, causes, and one thing to try."""
    progress.Quiet.on = common.quiet
    from tinyllm.stages import explain as stage

    show.result(stage.run(run), as_json=common.json)


@verb(app, "verify", ("device", *LOOKING), _USING)
def verify(
    common: Common,
    run: Annotated[Path | None, typer.Argument(help="A run or a checkpoint; this machine by default.")] = None,
) -> None:
    """Whether the mathematics and the plumbing hold here: what was compared, and the largest difference; exit 1 where one fails."""
    progress.Quiet.on = common.quiet
    from tinyllm.cli import verified
    from tinyllm.stages import verify as stage

    watch = verified.watcher(as_json=common.json, quiet=common.quiet)
    verified.show(stage.run(run, common.device or "auto", watch), as_json=common.json)


@verb(app, "lifecycle", WHOLE, _USING)
def lifecycle(
    common: Common,
    smoke: Annotated[bool, typer.Option("--smoke", help="Every stage as a rehearsal, in about a minute.")] = False,
    preset: Annotated[
        str, typer.Option("--preset", help="smoke, laptop or gpu: a folder of configs/lifecycle.")
    ] = "laptop",
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Your own text, conversations, pairs and prompts, in any order; may be repeated."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Live it so often, with seeds one apart.")] = 1,
    questions: Annotated[
        int, typer.Option("--questions", min=8, help="Held-out questions every stage is asked.")
    ] = 512,
) -> None:
    """Every stage, end to end, in one process, with gates and one scorecard; exit 1 where a gate fails."""
    progress.Quiet.on = common.quiet
    from tinyllm.cli import lives

    if smoke or preset == "smoke":
        if data or common.set or common.name or seeds > 1:
            what = "the rehearsal takes no --data, --set, --name or --seeds"
            raise UserError(what, where="--smoke", fix="leave them out, or leave out --smoke")
        configurations = lives.rehearsal(common.seed, common.device, os.environ)
        from tinyllm.stages.lifecycle import rehearse

        show.result(rehearse(configurations), as_json=common.json)
        return
    found = lives.lives(preset, common, data or [], seeds, os.environ)
    from tinyllm.stages.lifecycle import run

    name = lives.base_name(preset, common, data or [])
    card = run(found, preset, name if seeds == 1 else f"{name}-seeds", questions=questions, resume=common.resume)
    show.scorecard(card, as_json=common.json)
    if not card["passed"]:
        raise typer.Exit(FAILED)


def _known(algorithm: str | None, family: str) -> str | None:
    if algorithm is not None and algorithm not in (known := algorithms.names(family)):
        from tinyllm.config import nearest

        near = " or ".join(nearest(algorithm, known))
        fix = f"use --algorithm {near}" if near else f"choose one of {', '.join(known)}"
        raise UserError(f"there is no {family} algorithm {algorithm!r}", where="--algorithm", fix=fix)
    return algorithm


def _run(
    key: str,
    common: Common,
    *,
    default: str = "",
    keys: dict[str, Any] | None = None,
    needs: str = "",
    function: str = "run",
    **more: Any,
) -> None:
    """Resolve the configuration, and only then, with everything in order, import the stage and start it."""
    from tinyllm.cli.stages import resolve, stage_of  # settings take a tenth of a second, and --help needs none
    from tinyllm.stages import contradictions

    stage = stage_of(key, default or key)
    progress.Quiet.on = common.quiet
    options = {k: v for k, v in {**common.keys(), **(keys or {})}.items() if v is not None}
    resolved = resolve(stage, common.config, common.set or [], options, os.environ, fast=common.fast_dev_run)
    if needs and getattr(resolved.config, needs) is None:
        raise UserError(
            f"--{needs} was asked for, and the configuration has no section {needs}",
            where="--config",
            fix=f"add --set {needs}.r=16",
        )
    contradictions.refuse(resolved.config, common.nproc)
    if watch.folder() is None and (common.nproc > 1 or common.max_restarts) and not common.dry_run:
        _launch(common, stage.place, resolved.config.data)
    for doubt in contradictions.doubts(resolved.config):
        progress.say(f"warning: {doubt}")
    if common.dry_run:
        show.plan(stage.place, resolved, fast=common.fast_dev_run, as_json=common.json)
        return
    from tinyllm.stages.call import Call
    from tinyllm.stages.look import look

    look(resolved.config)
    resume = common.resume or watch.has_begun()  # to start over is done once, not at every restart
    call = Call(resolved.to_yaml(), fast=common.fast_dev_run, resume=resume, allow_data_change=common.allow_data_change)
    found = stage.function(function)(resolved.config, call, **more)
    if dist.is_main():
        show.result(found, as_json=common.json)


def _launch(common: Common, stage: str, data: Any) -> None:
    """Leave the work to processes of their own, and end with their exit code; under torchrun they are there already."""
    if dist.world_size() == 1:
        if "-" in (*data.train, *data.val) and stage != "pretrain":
            what = "standard input is there for one process, and once"  # pretraining alone makes files of it first
            raise UserError(what, where="data.train", fix="write it to a file and name that, or leave out --nproc")
        from tinyllm.dist.launcher import launch

        debug = common.debug or bool(os.environ.get("TINYLLM_DEBUG"))
        command = [sys.executable, "-m", "tinyllm", *sys.argv[1:]]
        raise typer.Exit(launch(common.nproc, command, common.max_restarts, debug=debug))
    if common.max_restarts:
        what = "--max-restarts is for ranks that --nproc starts"
        raise UserError(what, where="--max-restarts", fix="give it to torchrun instead: torchrun --max-restarts=3 …")
