"""`docs/algorithms.md` against the code: defaults, bounds, and what it says of the shipped configurations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.algorithms import cases
from tinyllm.algorithms import load
from tinyllm.cli.resolve import configs_folder
from tinyllm.config import load as load_config
from tinyllm.model.config import LoRAConfig
from tinyllm.stages.config import AlignOnlineConfig

GUIDE = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
FAMILY = {name: family for family, name in cases.ALL}


def table(after: str) -> list[list[str]]:
    """The rows of the first table behind a heading, without its header."""
    text = GUIDE.split(f"\n{after}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", text, re.M)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def shown(value: Any) -> str:
    """A default as the guide writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if value in ((), {}):
        return "none"
    return " ".join(value) if isinstance(value, tuple) else str(value)


def section(name: str) -> type:
    return LoRAConfig if name == "lora" else load(name, FAMILY[name]).settings


DEFAULTS = {
    row[0].strip("`"): dict(re.findall(r"`(\w+) ([^`]+)`", row[1])) for row in table("## Settings and defaults")
}
LOSSES = {row[0].strip("`"): row[1:] for row in table("### The losses")}


def test_every_algorithm_is_in_the_tables() -> None:
    assert set(DEFAULTS) == {"lora", *FAMILY}
    assert set(LOSSES) == set(cases.NAMES["online"])
    assert sum(map(len, DEFAULTS.values())) >= 50


@pytest.mark.parametrize("name", DEFAULTS)
def test_documented_defaults_are_those_of_the_settings_and_none_is_missing(name: str) -> None:
    defaults = {key: field.default for key, field in section(name).model_fields.items()}
    assert DEFAULTS[name].keys() == defaults.keys()
    for key, text in DEFAULTS[name].items():
        if isinstance(defaults[key], int | float) and not isinstance(defaults[key], bool):
            assert float(text) == defaults[key], key
        else:
            assert text == shown(defaults[key]), key


@pytest.mark.parametrize("name", LOSSES)
def test_bounds_and_kl_in_the_table_of_losses_are_the_defaults(name: str) -> None:
    settings = section(name)()
    clip, kl = LOSSES[name][2:4]
    low, high = clip.split(" / ")
    assert float(high) == getattr(settings, "clip_high", getattr(settings, "clip", None))
    if low == "none":
        assert not hasattr(settings, "clip_low")
    else:
        assert float(low) == getattr(settings, "clip_low", getattr(settings, "clip", None))
    coefficient, _, place = kl.partition(" in the ")
    assert (0.0 if kl == "none" else float(coefficient)) == getattr(settings, "kl_coef", 0.0)
    assert place in ("", "loss", "reward")
    assert (place == "reward") == (name in ("ppo", "rloo"))  # where tests/algorithms/test_unfinished.py has it


def test_defaults_stand_in_the_tables_only() -> None:
    """In prose nothing would compare them."""
    assert re.findall(r"\bDefaults?\b[^\n]*", GUIDE) == []


def shipped(name: str) -> AlignOnlineConfig:
    return load_config(AlignOnlineConfig, files=[configs_folder() / load(name, "online").config]).config


def test_what_the_guide_says_of_shipped_configurations() -> None:
    """RLOO: one minibatch. DAPO: dynamic sampling and the overlong buffer. GSPO: ten times the bounds of the paper."""
    assert "the shipped setting is `rollout.minibatches: 1`" in GUIDE
    assert shipped("rloo").rollout.minibatches == 1
    assert "Its shipped configuration uses them." in GUIDE
    assert shipped("dapo").rollout.sampling_rounds > 1
    assert shipped("dapo").rollout.overlong_buffer > 0
    bounds = shipped("gspo").settings()
    assert (bounds.clip_low, bounds.clip_high) == pytest.approx((10 * 3e-4, 10 * 4e-4))
