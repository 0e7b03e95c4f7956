"""The command `lifecycle`, and the configurations of its stages: a preset's files, the user's data, and each stage's parent."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyllm import console, signals
from tinyllm.cli.options import WHOLE, Common, command
from tinyllm.cli.printing import results
from tinyllm.cli.printing.text import prints_on_stderr
from tinyllm.errors import FAILED, UserError
from tinyllm.io.shell import quote

if TYPE_CHECKING:
    from tinyllm.config import Resolved
    from tinyllm.data.config import DataConfig
    from tinyllm.lifecycle.stages import Stage

PRESET, QUESTIONS = "laptop", 512  # the defaults
Smoke = Annotated[bool, typer.Option("--smoke", help="Every stage with a tiny model, in about a minute.")]
Preset = Annotated[str, typer.Option("--preset", help="smoke, laptop or gpu: a folder of configs/lifecycle.")]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", help="Your files of text, conversations, pairs or prompts: FILE or KIND=FILE. Repeatable."),
]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Repeat the lifecycle with N consecutive seeds.")]
Questions = Annotated[int, typer.Option("--questions", min=8, help="Test questions for each stage.")]


def register(app: typer.Typer, panel: str) -> None:
    command(app, "lifecycle", WHOLE, panel)(lifecycle)


def lifecycle(
    common: Common,
    smoke: Smoke = False,
    preset: Preset = PRESET,
    data: Data = None,
    seeds: Seeds = 1,
    questions: Questions = QUESTIONS,
) -> None:
    """Run every stage end to end, with acceptance gates and one scorecard. Exit 1 if a gate fails."""
    console.Quiet.on = common.quiet
    if smoke or preset == "smoke":
        _refuse_with_smoke(common, preset=preset, seeds=seeds, questions=questions)
        configurations = smoke_configs(common.seed, common.device, data or [], os.environ)
        from tinyllm.lifecycle.run import smoke_test

        with prints_on_stderr(common.json):
            rows = smoke_test(configurations)
        results.result(rows, as_json=common.json)
        return
    lifecycles = pipeline_configs(preset, common, data or [], seeds, os.environ)
    from tinyllm.lifecycle.run import run

    name = base_name(preset, common, data or [])
    with signals.continued_by("the same command continues"), prints_on_stderr(common.json):
        whole = name if seeds == 1 else f"{name}-seeds"
        card = run(lifecycles, preset, whole, questions=questions, resume=common.resume)
    results.scorecard(card, as_json=common.json)
    if not card["passed"]:
        raise typer.Exit(FAILED)


def _refuse_with_smoke(common: Common, **own: Any) -> None:
    """Raise UserError for options that have no effect on the smoke test."""
    usual: dict[str, Any] = {
        "set": None,
        "name": None,
        "seeds": 1,
        "questions": QUESTIONS,
        "resume": True,
    }
    given = {"set": common.set, "name": common.name, "resume": common.resume, **own}
    options = [f"--{'no-' * (key == 'resume')}{key}" for key, value in usual.items() if given[key] not in (value, [])]
    options += ["--preset"] if own["preset"] not in ("smoke", PRESET) else []
    if options:
        message = f"the smoke test has settings of its own, without {', '.join(options)}"
        raise UserError(message, where="--smoke", fix=f"leave out {' and '.join(options)}, or leave out --smoke")


# --- configurations --------------------------------------------------------------------------------------------------------------


def smoke_configs(
    seed: int | None, device: str | None, files: Sequence[str], environ: Mapping[str, str]
) -> dict[str, Resolved]:
    """Return the `fast_dev_run` configuration of every command of the smoke test; with the user's files, of those that train on them."""
    from tinyllm.cli.resolve import STAGES, reading_options, resolve
    from tinyllm.lifecycle import stages

    by_kind = by_kind_of(files, reading_options([], environ))
    kinds = {"data": "documents"} | {stage.name: stage.data for stage in stages.STAGES.values()}
    names = [name for name in stages.SMOKE_TEST if not by_kind or kinds.get(name) in by_kind]
    if by_kind:
        console.say("the smoke test on your data leaves out eval and chat, which ask about the bundled world")
    options = {"seed": seed, "device": device}
    found = {}
    for name in names:
        stage = stages.STAGES.get(name)
        scorer = stage is not None and stage.reward_model is not None and "pairs" in by_kind
        sets = _data_sets(kinds[name], by_kind, scorer) if by_kind else []
        found[name] = resolve(STAGES[name], None, sets, options, environ, fast=True)
    return found


def pipeline_configs(
    preset: str, common: Common, files: Sequence[str], seeds: int, environ: Mapping[str, str]
) -> dict[str, dict[str, Resolved]]:
    """Return name of a lifecycle -> its configurations by stage; one lifecycle per seed.

    Raises: UserError for an unknown preset or stage, files of a kind that no stage trains on, or settings that are not valid.
    """
    from tinyllm.cli.resolve import configs_folder, reading_options
    from tinyllm.config import suggest
    from tinyllm.lifecycle.stages import STAGES

    folder = configs_folder() / "lifecycle"
    presets = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if preset not in presets:
        near = suggest(preset, [*presets, "smoke"])
        fix = f"use --preset {near}" if near else f"choose one of smoke, {', '.join(presets)}"
        raise UserError(f"unknown preset {preset!r}", where="--preset", fix=fix)
    for_all = [text for text in common.set or [] if ":" not in text.partition("=")[0]]
    by_kind = by_kind_of(files, reading_options(for_all, environ))
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
            if one := _with_stage(text):
                what = f"{text.partition('=')[0]} is a setting of one stage"
                raise UserError(what, where="--set", fix=f"use --set {quote(one)}")
            found.append(text)
        elif name not in STAGES:
            from tinyllm.config import suggest

            near = suggest(name, STAGES)
            fix = f"use --set {quote(f'{near}:{rest}')}" if near else f"choose one of {', '.join(STAGES)}"
            raise UserError(f"unknown stage {name!r}", where="--set", fix=fix)
        elif name == stage:
            found.append(rest)
    return found


def _with_stage(text: str) -> str:
    """Return `KEY=VALUE` with the one stage in front that it can be for; empty if it may be for every stage."""
    from tinyllm.lifecycle.stages import STAGES, names_of

    section, _, rest = text.partition("=")[0].partition(".")
    owner = {"model": "pretrain", "lora": "sft-lora"}.get(section, section)
    if owner not in STAGES or not rest:
        return ""
    # `dpo.beta` is a key of the stage dpo; `dpo.train.steps` and `sft.flawed` have the stage where a section would be
    has_section = owner != section or (section in names_of("offline", "online") and "." not in rest)
    return f"{owner}:{text}" if has_section else f"{owner}:{text.partition('.')[2]}"


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
    sets += _data_sets(stage.data, by_kind, scorer is not None) if by_kind else []
    options = {"name": run_name, "seed": common.seed, "device": common.device, "parent": parent}
    path = folder / f"{stage.name}.yaml"
    given = path if path.is_file() else None  # the preset changes nothing for this stage
    return resolve.resolve(resolve.STAGES[stage.name], given, sets, options, environ, fast=False)


def _data_sets(kind: str, by_kind: Mapping[str, list[str]], scored: bool) -> list[str]:
    """Return the settings with which a stage trains on the user's files; `scored` by a reward model."""
    sets = [f"data.train=[{', '.join(map(_quoted, by_kind[kind]))}]"]
    if kind == "prompts":
        sets += [f"rewards={{{'reward_model' if scored else 'exact_answer'}: 1.0}}", "task=[]", "best_by=reward"]
    return sets


def _quoted(path: str) -> str:
    return "'" + path.replace("'", "''") + "'"


def by_kind_of(files: Sequence[str], data: DataConfig) -> dict[str, list[str]]:
    """Return kind of data -> the user's files of that kind, detected from their first records and reported.

    Args:
        files: FILE, KIND=FILE, or a folder, whose files may be of several kinds.
        data: how files are read.
    """
    if not files:
        return {}
    from tinyllm.console import say
    from tinyllm.data.records.formats import TITLES
    from tinyllm.data.records.report import skipped_line
    from tinyllm.data.sources.paths import skipped_files
    from tinyllm.lifecycle.stages import stages_by_data

    stages = stages_by_data()
    found: dict[str, list[str]] = {}
    for given in files:
        by_kind = _kinds_in(given, data)
        for kind, paths in by_kind.items():
            name = paths[0] if len(paths) == 1 else f"{len(paths):,} files in {given}"
            if kind not in stages:
                message = f"{name} contains {TITLES[kind]}, which no stage of the lifecycle trains on"
                raise UserError(message, where="--data", fix="leave it out")
            say(f"{name}: {kind}, for {', '.join(stages[kind])}")
            found.setdefault(kind, []).extend(paths)
        if left_out := skipped_files([given]):
            say(skipped_line(left_out))
    for kind in ("documents", "conversations"):
        if kind not in found:
            raise _missing(kind, found, files, data)
    for kind, names in stages.items():
        if kind not in found:
            say(f"no {kind}: skipping {', '.join(names)}" + _CONSEQUENCES.get(kind, ""))
    return found


_CONSEQUENCES = {
    "pairs": "; PPO is rewarded by exact_answer",
    "prompts": "; questions of the exam are the last ones of test conversations",
}


def _missing(kind: str, found: Mapping[str, list[str]], files: Sequence[str], data: DataConfig) -> UserError:
    """Return the error for files without records of a kind that the lifecycle needs; names a file that can be read as this kind."""
    from tinyllm.data.records.detect import fits_kind
    from tinyllm.data.sources.paths import TABLES, skipped_files

    fix = f"add a file with {kind}: later stages start from the model trained on them"
    tables = [path for path in skipped_files(files) if path.lower().removesuffix(".gz").endswith(TABLES)]
    for path in [*tables, *found.get("prompts", [])] if kind == "conversations" else []:
        if fits_kind(path, kind, data):
            fix = f"train on its prompts and answers as conversations: --data {quote(f'{kind}={path}')}"
            break
    return UserError(f"no file contains {kind}", where="--data", fix=fix)


def _kinds_in(given: str, data: DataConfig) -> dict[str, list[str]]:
    """Return kind of data -> files, for one value of --data."""
    from tinyllm.data.records.detect import guess_kind
    from tinyllm.data.records.formats import KIND_ALIASES, KINDS
    from tinyllm.data.sources.paths import expand

    kind, named, path = given.partition("=")
    kind = KIND_ALIASES.get(kind, kind)
    if named and kind in KINDS:
        return {kind: [path]}
    if not Path(given).is_dir():
        return {guess_kind(given, data): [given]}
    found: dict[str, list[str]] = {}
    for file in expand([given]):
        found.setdefault(guess_kind(file, data), []).append(str(file))
    return found if len(found) > 1 else {kind: [given] for kind in found}
