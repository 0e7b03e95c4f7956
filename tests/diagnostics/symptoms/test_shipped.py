"""With the shipped settings every check gets enough figures, and what does not apply is known: checks by stage and algorithm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.synthetic_runs import HEALTHY, left_out, write_run
from tinyllm import algorithms
from tinyllm.cli.resolve import STAGES, configs_folder, resolve
from tinyllm.config import dump
from tinyllm.lifecycle.stages import STAGES as LIFECYCLE

TRAINING = [key for key in STAGES if key not in ("eval", "chat", "data")]
PRESETS = [(key, f"lifecycle/laptop/{key}.yaml") for key in LIFECYCLE]
NO_CRITIC, NO_GROUPS, NO_MODEL = {"idle_critic"}, {"constant_groups"}, {"over_optimised"}
TOO_SHORT = {  # --fast-dev-run of forty steps, logged every fifth
    **{key: {"slowed", "gradient_spikes"} for key in ("dpo", "kto", "simpo")},
    "orpo": set(),
    "rm": {"gradient_spikes"},
}


def not_applicable(key: str, rewards: dict[str, float]) -> set[str]:
    if key not in algorithms.names("online"):
        return set()
    found = NO_GROUPS if key == "ppo" else NO_CRITIC
    found = found | (set() if "reward_model" in rewards else NO_MODEL)
    return found | {"rloo": {"clipping", "kl_spike"}, "cispo": {"clipping"}}.get(key, set())


def shipped(key: str, path: str | None, fast: bool) -> dict[str, Any]:
    """Return the settings that decide how many figures a run has, by dotted key."""
    file = configs_folder() / path if path else None
    settings = dump(resolve(STAGES[key], file, [], {}, {}, fast=fast).config)
    names = ("steps", "log_every", "eval_every")
    found = {f"train.{name}": settings["train"][name] for name in names}
    found["optim.warmup_steps"] = settings["optim"]["warmup_steps"]
    return found | {name: settings[name] for name in ("algorithm", "rollout", "rewards") if name in settings}


@pytest.mark.parametrize(
    ("key", "path", "fast"),
    [(key, None, fast) for key in TRAINING for fast in (False, True)] + [(*preset, False) for preset in PRESETS],
)
def test_every_check_has_enough_figures(key: str, path: str | None, fast: bool, tmp_path: Path) -> None:
    settings = shipped(key, path, fast)
    family = next((f for f in ("offline", "online") if key in algorithms.names(f)), key.removesuffix("-lora"))
    template = key if key in HEALTHY else {"offline": "dpo", "online": "grpo"}.get(family, family)
    missing = left_out(write_run(tmp_path / "run", template, config=settings))
    rewards = settings.get("rewards", {})
    assert {name for name, entry in missing.items() if not entry.figure} == not_applicable(key, rewards)
    lacking = {name: f"{entry.figure}: {entry.why}" for name, entry in missing.items() if entry.figure}
    assert set(lacking) == (TOO_SHORT.get(key, set()) if fast else set()), lacking
