"""Which verb runs which stage, with which configuration by default. Names only: a stage is imported when it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tinyllm.config import Config, Resolved, load, parse_set
from tinyllm.errors import UserError
from tinyllm.stages import config as settings
from tinyllm.train.run import FAST_DEV_RUN


@dataclass(frozen=True)
class Stage:
    """One verb, or one algorithm of a verb."""

    module: str  # in tinyllm.stages
    config: type[Config]
    default: str  # in configs/
    place: str  # the name `stages.parents` knows it by

    def function(self, name: str = "run") -> Callable[..., dict[str, Any]]:
        return getattr(import_module(f"tinyllm.stages.{self.module}"), name)


_PRETRAIN = "pretrain/1.4M_pretrain_fast.yaml"
# those with a shipped configuration, in the guide's order; the first by default
OFFLINE, ONLINE = ("dpo", "orpo", "simpo", "kto"), ("ppo", "gspo", "grpo", "dapo", "rloo")
STAGES = {
    "data": Stage("data", settings.PretrainConfig, _PRETRAIN, "data"),
    "pretrain": Stage("pretrain", settings.PretrainConfig, _PRETRAIN, "pretrain"),
    "eval": Stage("evaluate", settings.EvalConfig, "eval/eval.yaml", "eval"),
    "sft": Stage("sft", settings.SftConfig, "sft/full/1.4M_sft_full.yaml", "sft"),
    "sft-lora": Stage("sft", settings.SftConfig, "sft/peft/lora/1.4M_sft_lora.yaml", "sft"),
    "chat": Stage("chat", settings.ChatConfig, "chat/chat.yaml", "chat"),
    "rm": Stage("rm", settings.RmConfig, "rlhf/rm/1.4M_rm.yaml", "rm"),
}
for _name in OFFLINE:
    STAGES[_name] = Stage(
        "align_offline", settings.AlignOfflineConfig, f"rlhf/offline/{_name}/1.4M_{_name}.yaml", "align-offline"
    )
for _name in ONLINE:
    STAGES[_name] = Stage(
        "align_online", settings.AlignOnlineConfig, f"rlhf/online/{_name}/1.4M_{_name}.yaml", "align-online"
    )


def stage_of(algorithm: str | None, default: str) -> Stage:
    """The stage of an algorithm; one without a configuration of its own starts from the default's."""
    return STAGES.get(algorithm or default, STAGES[default])


_OPTIONS = {
    "parent": "checkpoint",
    "tokenizer": "import",
    "model.vocab_size": "vocab-size",
}  # keys whose option has another name


def configs_folder() -> Path:
    """Where the shipped configurations are: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(given: Path | None, stage: Stage) -> Path:
    """The file the user named (`configs/…` means a shipped one from any directory), or the stage's default."""
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
    """The stage's configuration, from all its sources. `options` are values of options that stand for a key: key -> value."""
    overrides = [(*parse_set(text), "--set") for text in sets]
    overrides += [
        (key, str(value), f"--{_OPTIONS.get(key, key)}") for key, value in options.items() if value is not None
    ]
    if fast:
        if options.get("name") not in (None, FAST_DEV_RUN):
            raise UserError("--fast-dev-run has a name of its own", where="--name", fix="leave out --name")
        overrides.append(("name", FAST_DEV_RUN, "--fast-dev-run"))
    return load(stage.config, files=[find_config(given, stage)], environ=environ, overrides=overrides, fast=fast)
