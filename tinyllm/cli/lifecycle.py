"""The command `lifecycle`, and the configurations of its stages: a preset's files, the user's data, and each stage's parent."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyllm import console
from tinyllm.cli.options import WHOLE, Common, command
from tinyllm.cli.printing import results
from tinyllm.errors import FAILED, UserError

if TYPE_CHECKING:
    from tinyllm.config import Resolved
    from tinyllm.lifecycle.stages import Stage

Smoke = Annotated[bool, typer.Option("--smoke", help="Every stage with a tiny model, in about a minute.")]
Preset = Annotated[str, typer.Option("--preset", help="smoke, laptop or gpu: a folder of configs/lifecycle.")]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", help="Your files of text, conversations, pairs or prompts: FILE or KIND=FILE. Repeatable."),
]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Repeat the lifecycle with N consecutive seeds.")]
Questions = Annotated[int, typer.Option("--questions", min=8, help="Held-out questions for each stage.")]


def register(app: typer.Typer, panel: str) -> None:
    command(app, "lifecycle", WHOLE, panel)(lifecycle)


def lifecycle(
    common: Common,
    smoke: Smoke = False,
    preset: Preset = "laptop",
    data: Data = None,
    seeds: Seeds = 1,
    questions: Questions = 512,
) -> None:
    """Run every stage end to end, with acceptance gates and one scorecard. Exit 1 if a gate fails."""
    console.Quiet.on = common.quiet
    if smoke or preset == "smoke":
        if data or common.set or common.name or seeds > 1:
            message = "the smoke test takes no --data, --set, --name or --seeds"
            raise UserError(message, where="--smoke", fix="leave them out, or leave out --smoke")
        configurations = smoke_configs(common.seed, common.device, os.environ)
        from tinyllm.lifecycle.run import smoke_test

        results.result(smoke_test(configurations), as_json=common.json)
        return
    lifecycles = pipeline_configs(preset, common, data or [], seeds, os.environ)
    from tinyllm.lifecycle.run import run

    name = base_name(preset, common, data or [])
    card = run(lifecycles, preset, name if seeds == 1 else f"{name}-seeds", questions=questions, resume=common.resume)
    results.scorecard(card, as_json=common.json)
    if not card["passed"]:
        raise typer.Exit(FAILED)


# --- configurations --------------------------------------------------------------------------------------------------------------


def smoke_configs(seed: int | None, device: str | None, environ: Mapping[str, str]) -> dict[str, Resolved]:
    """Return the `fast_dev_run` configuration of every command of the smoke test."""
    from tinyllm.cli.resolve import STAGES, resolve
    from tinyllm.lifecycle.stages import SMOKE_TEST

    options = {"seed": seed, "device": device}
    return {name: resolve(STAGES[name], None, [], options, environ, fast=True) for name in SMOKE_TEST}


def pipeline_configs(
    preset: str, common: Common, files: Sequence[str], seeds: int, environ: Mapping[str, str]
) -> dict[str, dict[str, Resolved]]:
    """Return name of a lifecycle -> its configurations by stage; one lifecycle per seed.

    Raises: UserError for an unknown preset or stage, files of a kind that no stage trains on, or settings that are not valid.
    """
    from tinyllm.cli.resolve import configs_folder
    from tinyllm.config import suggest
    from tinyllm.lifecycle.stages import STAGES

    folder = configs_folder() / "lifecycle"
    presets = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if preset not in presets:
        near = suggest(preset, [*presets, "smoke"])
        fix = f"use --preset {near}" if near else f"choose one of smoke, {', '.join(presets)}"
        raise UserError(f"unknown preset {preset!r}", where="--preset", fix=fix)
    by_kind = _by_kind(files)
    first, base = common.seed or 0, base_name(preset, common, files)
    found = {}
    for seed in range(first, first + seeds):
        name = base if seeds == 1 else f"{base}-seed{seed}"
        found[name] = {
            stage.name: _stage_config(stage, folder / preset, name, replace(common, seed=seed), by_kind, environ)
            for stage in STAGES.values()
            if not files or stage.data in by_kind
        }
    return found


def base_name(preset: str, common: Common, files: Sequence[str]) -> str:
    """Return the name of a lifecycle, without a seed."""
    return common.name or (f"{preset}-own" if files else preset)


def _sets_of(stage: str, sets: Sequence[str]) -> list[str]:
    """Return the settings that apply to a stage: `KEY=VALUE` applies to every stage, `STAGE:KEY=VALUE` to one."""
    from tinyllm.lifecycle.stages import STAGES

    found = []
    for text in sets:
        name, colon, rest = text.partition(":")
        if not colon or "=" in name:
            found.append(text)
        elif name not in STAGES:
            from tinyllm.config import suggest

            near = suggest(name, STAGES)
            fix = f"use {near}:{rest}" if near else f"choose one of {', '.join(STAGES)}"
            raise UserError(f"unknown stage {name!r}", where="--set", fix=fix)
        elif name == stage:
            found.append(rest)
    return found


def _stage_config(
    stage: Stage,
    folder: Path,
    run_name: str,
    common: Common,
    by_kind: Mapping[str, list[str]],
    environ: Mapping[str, str],
) -> Resolved:
    """Return the configuration of one stage: its file in the preset, the user's data, and the runs of this lifecycle it starts from."""
    from tinyllm.cli import resolve
    from tinyllm.lifecycle.stages import STAGES

    parent = STAGES[stage.parent].run_dir(run_name) if stage.parent else None
    scorer = STAGES[stage.reward_model] if stage.reward_model else None
    if scorer and by_kind and scorer.data not in by_kind:
        scorer = None  # no data to train it on
    sets = _sets_of(stage.name, common.set or [])
    if scorer:
        sets.append(f"reward_model={scorer.run_dir(run_name)}")
    if by_kind:
        sets.append(f"data.train=[{', '.join(map(_quoted, by_kind[stage.data]))}]")
    if by_kind and stage.data == "prompts":
        sets += [f"rewards={{{'reward_model' if scorer else 'exact_answer'}: 1.0}}", "task=[]", "best_by=reward"]
    options = {"name": run_name, "seed": common.seed, "device": common.device, "parent": parent}
    path = folder / f"{stage.name}.yaml"
    given = path if path.is_file() else None  # the preset changes nothing for this stage
    return resolve.resolve(resolve.STAGES[stage.name], given, sets, options, environ, fast=False)


def _quoted(path: str) -> str:
    return "'" + path.replace("'", "''") + "'"


def _by_kind(files: Sequence[str]) -> dict[str, list[str]]:
    """Return kind of data -> the user's files of that kind, detected from their first records and reported."""
    if not files:
        return {}
    from tinyllm.console import say
    from tinyllm.data.records.detect import guess_kind
    from tinyllm.data.records.formats import KIND_ALIASES, KINDS, TITLES
    from tinyllm.lifecycle.stages import stages_by_data

    stages = stages_by_data()
    found: dict[str, list[str]] = {}
    for file in files:
        kind, named, path = file.partition("=")
        kind = KIND_ALIASES.get(kind, kind)
        kind, file = (kind, path) if named and kind in KINDS else (guess_kind(file), file)
        if kind not in stages:
            message = f"{file} contains {TITLES[kind]}, which no stage of the lifecycle trains on"
            raise UserError(message, where="--data", fix="leave it out")
        say(f"{file}: {kind}, for {', '.join(stages[kind])}")
        found.setdefault(kind, []).append(file)
    for kind in ("documents", "conversations"):
        if kind not in found:
            fix = f"add a file with {kind}: later stages start from the model trained on them"
            raise UserError(f"no file contains {kind}", where="--data", fix=fix)
    for kind, names in stages.items():
        if kind not in found:
            say(f"no {kind}: skipping {', '.join(names)}")
    return found
