"""The stages of a lifecycle, in order. Light to import: no torch.

`STAGES` is the only list: execution order, parents, the kinds of data each stage trains on, the stages of a gate and of the smoke test are
derived from it. Alignment algorithms come from their registry.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from tinyllm import algorithms
from tinyllm.stages.parents import OFFLINE, ONLINE, PRETRAIN, REWARD, RUNS, SFT_FULL, SFT_LORA
from tinyllm.train.run import Invocation

Family = Literal["pretrain", "sft", "reward", "offline", "online"]


@dataclass(frozen=True)
class Stage:
    """One training run of a lifecycle."""

    name: str
    title: str
    family: Family
    module: str
    """in tinyllm.stages, with a function `run(config, call)`"""
    directory: str
    """below runs/, without the name of the run"""
    parent: str | None
    """the stage whose checkpoint it starts from"""
    data: str
    """the kind of records it trains on"""
    reward_model: str | None = None
    """the stage whose model scores the sampled answers"""

    @property
    def is_policy(self) -> bool:
        """A language model that answers questions; a reward model does not."""
        return self.family != "reward"

    def run_dir(self, run_name: str) -> Path:
        """Return the run directory of a run with this name."""
        return RUNS / f"{self.directory}{run_name}"

    def run(self, config: Any, call: Invocation) -> dict[str, Any]:
        """Train. Imports torch."""
        run = import_module(f"tinyllm.stages.{self.module}").run
        return run(config, call)


_REWARD_MODELS = {"ppo": "rm"}


def _aligned(family: Literal["offline", "online"], module: str, directory: str) -> list[Stage]:
    """Return a stage for every algorithm of the family that is marked IN_LIFECYCLE."""
    return [
        Stage(
            name=entry.name,
            title=entry.name.upper(),
            family=family,
            module=module,
            directory=f"{directory}/{entry.name}-",
            parent="sft",
            data=entry.data,
            reward_model=_REWARD_MODELS.get(entry.name),
        )
        for entry in algorithms.entries(family)
        if entry.in_lifecycle
    ]


_STAGES = (
    Stage("pretrain", "Pretraining", "pretrain", "pretrain", f"{PRETRAIN}/", None, "documents"),
    Stage("sft", "Supervised fine-tuning", "sft", "sft", f"{SFT_FULL}/", "pretrain", "conversations"),
    Stage("sft-lora", "Supervised fine-tuning with LoRA", "sft", "sft", f"{SFT_LORA}/", "pretrain", "conversations"),
    Stage("rm", "Reward model", "reward", "rm", f"{REWARD}/", "sft", "pairs"),
    *_aligned("offline", "align_offline", OFFLINE),
    *_aligned("online", "align_online", ONLINE),
)
STAGES: dict[str, Stage] = {stage.name: stage for stage in _STAGES}
PARENTS = {stage.name: stage.parent for stage in _STAGES}


def names_of(*families: Family) -> tuple[str, ...]:
    """Return the stages of these families, in order."""
    return tuple(stage.name for stage in _STAGES if stage.family in families)


def stages_by_data() -> dict[str, tuple[str, ...]]:
    """Return kind of data -> the stages that train on it."""
    kinds = dict.fromkeys(stage.data for stage in _STAGES)
    return {kind: tuple(stage.name for stage in _STAGES if stage.data == kind) for kind in kinds}


# `data`, `eval` and `chat` are part of the smoke test only
SMOKE_TEST = (
    "data",
    *names_of("pretrain"),
    "eval",
    *names_of("sft"),
    "chat",
    *names_of("reward", "offline", "online"),
)
