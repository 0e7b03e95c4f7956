"""Every shipped configuration loads, with and without --fast-dev-run, and has only keys that the code reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyllm import algorithms
from tinyllm.cli.resolve import STAGES, configs_folder, resolve, stage_of
from tinyllm.config import load
from tinyllm.lifecycle.stages import STAGES as LIFECYCLE

FILES = sorted(configs_folder().rglob("*.yaml"))
NAMES = {
    "pretrain/1.4M_pretrain_fast.yaml",
    "sft/full/1.4M_sft_full.yaml",
    "sft/peft/lora/1.4M_sft_lora.yaml",
    "rlhf/rm/1.4M_rm.yaml",
    "rlhf/offline/dpo/1.4M_dpo.yaml",
    "rlhf/offline/orpo/1.4M_orpo.yaml",
    "rlhf/online/ppo/1.4M_ppo.yaml",
    "rlhf/online/gspo/1.4M_gspo.yaml",
    "rlhf/online/grpo/1.4M_grpo.yaml",
}


def test_every_command_has_its_documented_configuration() -> None:
    found = {f.relative_to(configs_folder()).as_posix() for f in FILES}
    assert found >= NAMES
    demonstrations = {"rlhf/rm/1.4M_rm_weak.yaml", "rlhf/online/ppo/1.4M_ppo_overoptimise.yaml"}
    presets = demonstrations | {name for name in found if name.startswith("lifecycle/")}
    assert found - presets == {stage.default for stage in STAGES.values()}
    assert presets >= {f"lifecycle/laptop/{stage}.yaml" for stage in LIFECYCLE}


@pytest.mark.parametrize("key", STAGES)
@pytest.mark.parametrize("fast", [False, True])
def test_every_shipped_file_loads(key: str, fast: bool) -> None:
    resolved = resolve(STAGES[key], None, [], {}, {}, fast=fast)
    if fast:
        assert resolved.config.name == "fast-dev-run"
    if key in algorithms.names("offline") + algorithms.names("online"):
        assert resolved.config.algorithm == key


@pytest.mark.parametrize("key", STAGES)
def test_a_resolved_configuration_survives_yaml(key: str, tmp_path: Path) -> None:
    resolved = resolve(STAGES[key], None, ["seed=7"], {}, {}, fast=False)
    path = tmp_path / "config.yaml"
    path.write_text(resolved.to_yaml())
    assert load(STAGES[key].config, files=[path]).config == resolved.config


def test_the_1_4m_model_has_1_4m_parameters() -> None:
    config = resolve(STAGES["pretrain"], None, [], {}, {}, fast=False).config
    assert config.model.parameters() == 1_377_920


def test_every_algorithm_has_a_stage_without_its_own_configuration() -> None:
    for family, default in (("offline", "dpo"), ("online", "grpo")):
        for name in algorithms.names(family):
            assert stage_of(name, default).place == f"align-{family}"
    assert stage_of("brand_new", "grpo") is STAGES["grpo"]
