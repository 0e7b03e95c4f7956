"""Resolve the configuration of a command. Stages are listed by name and imported when they start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from tinyllm import algorithms
from tinyllm.config import Config, Resolved, load, parse_set
from tinyllm.errors import UserError
from tinyllm.evals.config import EvalConfig
from tinyllm.stages import config as settings
from tinyllm.train.run import FAST_DEV_RUN


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


_OPTIONS = {
    "parent": "checkpoint",
    "tokenizer": "import",
    "model.vocab_size": "vocab-size",
}  # keys set by an option of another name


def configs_folder() -> Path:
    """Return the folder of the shipped configurations: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(given: Path | None, stage: Stage) -> Path:
    """Return the file the user named, or the default of the stage. `configs/…` finds shipped files from any directory."""
    if given is None:
        return configs_folder() / stage.default
    if not given.exists() and given.parts[:1] == ("configs",):
        shipped = configs_folder().joinpath(*given.parts[1:])
        if shipped.is_file():
            return shipped
    return given


def resolve(
    stage: Stage,
    given: Path | None,
    sets: list[str],
    options: Mapping[str, Any],
    environ: Mapping[str, str],
    *,
    fast: bool,
) -> Resolved:
    """Return the configuration of a stage, merged from all sources.

    Args:
        given: the file of --config.
        sets: the values of --set.
        options: values of options that set a key: key -> value.
        environ: the environment, for TINYLLM_* variables.
        fast: apply the section `fast_dev_run`.

    Raises: UserError for anything that is not a valid configuration.
    """
    overrides = [(*parse_set(text), "--set") for text in sets]
    overrides += [
        (key, str(value), f"--{_OPTIONS.get(key, key)}") for key, value in options.items() if value is not None
    ]
    if fast:
        if options.get("name") not in (None, FAST_DEV_RUN):
            raise UserError("--fast-dev-run sets the name of the run", where="--name", fix="leave out --name")
        overrides.append(("name", FAST_DEV_RUN, "--fast-dev-run"))
    return load(stage.config, files=[find_config(given, stage)], environ=environ, overrides=overrides, fast=fast)
