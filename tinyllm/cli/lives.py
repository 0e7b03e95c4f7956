"""The configurations of a whole life: a preset's files, the user's data where they belong, and each stage's parent by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tinyllm.cli.options import Common
from tinyllm.cli.stages import STAGES, configs_folder, resolve
from tinyllm.config import Resolved, suggest
from tinyllm.errors import UserError

_ORDER = ("pretrain", "sft", "sft-lora", "rm", "dpo", "orpo", "ppo", "gspo", "grpo")
_READS = {  # which kind of the user's records a stage learns from
    "documents": ("pretrain",),
    "conversations": ("sft", "sft-lora"),
    "pairs": ("rm", "dpo", "orpo"),
    "prompts": ("ppo", "gspo", "grpo"),
}
_KIND_OF = {stage: kind for kind, stages in _READS.items() for stage in stages}


def rehearsal(seed: int | None, device: str | None, environ: Mapping[str, str]) -> dict[str, Resolved]:
    options = {"seed": seed, "device": device}
    return {key: resolve(stage, None, [], options, environ, fast=True) for key, stage in STAGES.items()}


def lives(
    preset: str, common: Common, files: Sequence[str], seeds: int, environ: Mapping[str, str]
) -> dict[str, dict[str, Resolved]]:
    """Name of a life -> its configurations by stage; one life a seed."""
    folder = configs_folder() / "lifecycle"
    known = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if preset not in known:
        near = suggest(preset, [*known, "smoke"])
        fix = f"use --preset {near}" if near else f"choose one of smoke, {', '.join(known)}"
        raise UserError(f"there is no preset {preset!r}", where="--preset", fix=fix)
    given = _sorted_out(files)
    first, name = common.seed or 0, base_name(preset, common, files)
    found = {}
    for seed in range(first, first + seeds):
        life = name if seeds == 1 else f"{name}-seed{seed}"
        found[life] = {
            stage: _configured(stage, folder / preset, life, replace(common, seed=seed), given, environ)
            for stage in _ORDER
            if not files or _KIND_OF[stage] in given
        }
    return found


def base_name(preset: str, common: Common, files: Sequence[str]) -> str:
    return common.name or (f"{preset}-own" if files else preset)


def _own_sets(stage: str, sets: Sequence[str]) -> list[str]:
    """`--set KEY=VALUE` is for every stage, `--set STAGE:KEY=VALUE` for one."""
    found = []
    for text in sets:
        name, colon, rest = text.partition(":")
        if not colon or "=" in name:
            found.append(text)
        elif name not in _ORDER:
            near = suggest(name, _ORDER)
            raise UserError(
                f"there is no stage {name!r}",
                where="--set",
                fix=f"use {near}:{rest}" if near else f"choose one of {', '.join(_ORDER)}",
            )
        elif name == stage:
            found.append(rest)
    return found


def _configured(
    stage: str, folder: Any, life: str, common: Common, given: Mapping[str, list[str]], environ: Mapping[str, str]
) -> Resolved:
    from tinyllm.stages.parents import PRETRAIN, REWARD, RUNS, SFT_FULL

    parent = None if stage == "pretrain" else RUNS / (PRETRAIN if stage.startswith("sft") else SFT_FULL) / life
    sets = _own_sets(stage, common.set or [])
    if stage == "ppo" and (not given or "pairs" in given):
        sets.append(f"reward_model={RUNS / REWARD / life}")
    if given:
        sets.append(f"data.train=[{', '.join(map(_quoted, given[_KIND_OF[stage]]))}]")
    if given and _KIND_OF[stage] == "prompts":
        by_model = stage == "ppo" and "pairs" in given
        sets += [f"rewards={{{'reward_model' if by_model else 'exact_answer'}: 1.0}}", "task=[]", "best_by=reward"]
    options = {"name": life, "seed": common.seed, "device": common.device, "parent": parent}
    return resolve(STAGES[stage], folder / f"{stage}.yaml", sets, options, environ, fast=False)


def _quoted(path: str) -> str:
    return "'" + path.replace("'", "''") + "'"


def _sorted_out(files: Sequence[str]) -> dict[str, list[str]]:
    """The user's files by the kind of record they hold, found by looking inside and said aloud."""
    if not files:
        return {}
    from tinyllm.data.records import kind_of
    from tinyllm.train.progress import say

    found: dict[str, list[str]] = {}
    for file in files:
        kind, named, path = file.partition("=")
        kind, file = (kind, path) if named and kind in _READS else (kind_of(file), file)
        if kind not in _READS:
            raise UserError(
                f"{file} holds {kind}, which no stage of the lifecycle reads", where="--data", fix="leave it out"
            )
        say(f"{file}: {kind}, for {', '.join(_READS[kind])}")
        found.setdefault(kind, []).append(file)
    for kind in ("documents", "conversations"):
        if kind not in found:
            raise UserError(
                f"there are no {kind} among the files",
                where="--data",
                fix=f"add a file with {kind}: later stages start from them",
            )
    for kind, stages in _READS.items():
        if kind not in found:
            say(f"no {kind}: {', '.join(stages)} left out")
    return found
