"""Resolve the configuration of a command. Stages are listed by name and imported when they start."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from tinyllm import algorithms
from tinyllm.cli import training_files
from tinyllm.config import Config, Resolved, flatten, load, parse_set
from tinyllm.config.files import read_documents
from tinyllm.config.synonyms import CHOICE
from tinyllm.console import say
from tinyllm.data.config import DataConfig
from tinyllm.errors import UserError
from tinyllm.evals.config import EvalConfig
from tinyllm.stages import config as settings
from tinyllm.stages import continued
from tinyllm.stages.foreign import fitting
from tinyllm.train.fast_dev_runs import FAST_DEV_RUN


@dataclass(frozen=True)
class Stage:
    """One command, or one algorithm of a command."""

    module: str  # in tinyllm
    config: type[Config]
    default: str  # in configs/
    place: str  # its name in `stages.parents`

    def function(self, name: str = "run") -> Callable[..., dict[str, Any]]:
        return getattr(import_module(f"tinyllm.{self.module}"), name)


_PRETRAIN = "pretrain/1.4M_pretrain_fast.yaml"
STAGES = {
    "data": Stage("stages.data", settings.PretrainConfig, _PRETRAIN, "data"),
    "pretrain": Stage("stages.pretrain", settings.PretrainConfig, _PRETRAIN, "pretrain"),
    "eval": Stage("evals.run", EvalConfig, "eval/eval.yaml", "eval"),
    "sft": Stage("stages.sft", settings.SftConfig, "sft/full/1.4M_sft_full.yaml", "sft"),
    "sft-lora": Stage("stages.sft", settings.SftConfig, "sft/peft/lora/1.4M_sft_lora.yaml", "sft"),
    "chat": Stage("stages.chat", settings.ChatConfig, "chat/chat.yaml", "chat"),
    "rm": Stage("stages.rm", settings.RmConfig, "rlhf/rm/1.4M_rm.yaml", "rm"),
}
# every algorithm with a configuration of its own is a stage
STAGES |= {
    entry.name: Stage("stages.align_offline", settings.AlignOfflineConfig, entry.config, "align-offline")
    for entry in algorithms.entries("offline")
    if entry.config
}
STAGES |= {
    entry.name: Stage("stages.align_online", settings.AlignOnlineConfig, entry.config, "align-online")
    for entry in algorithms.entries("online")
    if entry.config
}


def stage_of(algorithm: str | None, default: str) -> Stage:
    """Return the stage of an algorithm, by its name or the path of a user's file.

    An algorithm without a shipped configuration uses that of `default`.
    """
    stage = STAGES.get(algorithm or default, STAGES[default])
    if algorithm is None or not algorithms.is_file(algorithm):
        return stage
    make = settings.align_offline_config if stage.place == "align-offline" else settings.align_online_config
    return replace(stage, config=make(algorithm))


OPTIONS = {
    "parent": "checkpoint",
    "tokenizer": "import",
    "data.field": "field",
    "model.vocab_size": "vocab-size",
}  # keys set by an option of another name


def configs_folder() -> Path:
    """Return the folder of the shipped configurations: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(given: Path | None, stage: Stage) -> Path:
    """Return the file the user named, or the default of the stage. `configs/…` finds shipped files from any directory."""
    return configs_folder() / stage.default if given is None else _shipped(given)


def _shipped(given: Path) -> Path:
    if not given.exists() and given.parts[:1] == ("configs",):
        shipped = configs_folder().joinpath(*given.parts[1:])
        if shipped.is_file():
            return shipped
    return given


def algorithm_in_file(given: Path) -> str:
    """Return the algorithm that a configuration names, itself or by `extends:`; empty if it names none or cannot be read."""
    found = [document.settings.get(CHOICE) for document in read_documents(_shipped(given), [])]
    return next((node.value for node in reversed(found) if node and isinstance(node.value, str)), "")


def resolve(
    stage: Stage,
    given: Path | None,
    sets: Sequence[str],
    options: Mapping[str, Any],
    environ: Mapping[str, str],
    *,
    fast: bool,
    changes: Sequence[str] = (),
) -> Resolved:
    """Return the configuration of a stage, merged from all sources.

    Args:
        given: the file of --config.
        sets: the values of --set.
        options: values of options that set a key: key -> value.
        environ: the environment, for TINYLLM_* variables.
        fast: apply the section `fast_dev_run`.
        changes: the values of --change.

    Raises: UserError for anything that is not a valid configuration.
    """
    typed = [("--set", text) for text in sets] + [("--change", text) for text in changes]
    overrides = [(*parse_set(text, option), option) for option, text in typed]
    overrides += [
        (key, str(value), f"--{OPTIONS.get(key, key)}") for key, value in options.items() if value is not None
    ]
    if fast:
        named = [value for key, value, _ in overrides if key == "name" and value != FAST_DEV_RUN]
        if named:
            say(f"--fast-dev-run names its run {FAST_DEV_RUN}; the name {named[-1]} is not used")
        overrides.append(("name", FAST_DEV_RUN, "--fast-dev-run"))
    path, foreign = find_config(given, stage), None
    if given is not None and stage.place in ("eval", "chat"):
        foreign = _borrowed(stage, path, fast=fast, given=[key for key, _, _ in overrides])
    if foreign is not None:
        path = configs_folder() / stage.default
    merged = partial(load, stage.config, files=[path], environ=environ, overrides=overrides, fast=fast)
    found = _fitted(stage, merged, given, fast=fast) if foreign is None else merged(borrowed=foreign)
    return _completed(stage, found, fast=fast)


def _fitted(stage: Stage, merged: Callable[..., Resolved], given: Path | None, *, fast: bool) -> Resolved:
    """Return the configuration with the settings that fit the model it starts from, where the shipped ones do not."""
    doubt: UserError | None = None
    try:
        found = merged()
    except (
        UserError
    ) as error:  # perhaps only the default micro-batch does not divide the user's batch: one that fits will
        doubt = error
        try:
            found = merged(borrowed=[fitting.ONE_ROW])
        except UserError:
            raise error from None
    shipped = configs_folder() / stage.default if given is None else None
    fitted, note = fitting.settings(stage.place, found, shipped, fast=fast)
    if doubt is not None and not fitted:
        raise doubt
    return replace(merged(borrowed=fitted), notes=(note,) if note else ()) if fitted else found


def _completed(stage: Stage, found: Resolved, *, fast: bool) -> Resolved:
    """Return the configuration with the model of a checkpoint to continue from. Raises: UserError for the name of fast-dev-runs."""
    if not fast and flatten(found.config).get("name") == FAST_DEV_RUN:
        what = f"{FAST_DEV_RUN} is the name of runs with --fast-dev-run, which replace each other"
        where = found.origins.get("name", "name")
        raise UserError(what, where=where, fix="choose another --name, or add --fast-dev-run")
    if stage.config is settings.PretrainConfig:
        found = continued.resolve_checkpoint(found, configs_folder(), fast=fast)
    return found


def _borrowed(stage: Stage, path: Path, *, fast: bool, given: list[str]) -> list[training_files.Setting] | None:
    """Return what a command takes from the configuration of a training stage; None if the file is one of its own."""
    stages = {name: STAGES[name].config for name in ("pretrain", "sft", "rm")}
    stages |= {STAGES[name].place: STAGES[name].config for name in ("dpo", "grpo")}
    named = stage_in_path(path)
    if named is not None:
        stages = {named.place: named.config} | stages
    algorithm = algorithm_in_file(path)
    if algorithms.is_file(algorithm):
        stages |= _own_algorithm(algorithm)
    name = training_files.stage_in(path, stage.config, stages)
    if name is None:
        return None
    return training_files.borrowed(path, name, stages[name], stage.config, fast=fast, given=given)


def _own_algorithm(path: str) -> dict[str, type[Config]]:
    """Return the settings of the family that a user's own algorithm belongs to."""
    for default in ("dpo", "grpo"):
        with suppress(UserError):
            return {STAGES[default].place: stage_of(path, default).config}
    return {}


def stage_in_path(config: Path) -> Stage | None:
    """Return the training stage named in the path of a configuration: `my_sft.yaml`, `configs/rlhf/rm/x.yaml`."""
    known = {name: STAGES[name] for name in ("pretrain", "sft", "rm")}
    known |= {name: stage_of(name, "dpo") for name in algorithms.names("offline")}
    known |= {name: stage_of(name, "grpo") for name in algorithms.names("online")}
    for part in (config.stem, *reversed(config.parts[:-1])):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in known:
                return known[word]
    return None


class _Reading(Config):
    data: DataConfig = DataConfig()


_READING = ("encoding", "delimiter", "format", "field", "on_bad_line")  # keys that say how a file is read


def reading_options(sets: Sequence[str], environ: Mapping[str, str], format: str | None = None) -> DataConfig:
    """Return the settings of data.* that say how files are read, while it is not known yet which stage reads them."""

    def is_reading(key: str) -> bool:
        section, _, name = key.partition(".")
        return section == "data" and name.partition(".")[0] in _READING

    overrides = [(key, value, "--set") for key, value in map(parse_set, sets) if is_reading(key)]
    overrides += [("data.format", format, "--format")] if format else []
    given = {name: value for name, value in environ.items() if is_reading(_key_of(name))}
    return load(_Reading, files=[], environ=given, overrides=overrides, fast=False).config.data


def _key_of(variable: str) -> str:
    return variable.removeprefix("TINYLLM_").lower().replace("__", ".")
