"""The table of a lifecycle's stages and what is derived from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tinyllm import algorithms
from tinyllm.cli.resolve import STAGES as COMMANDS
from tinyllm.lifecycle.stages import PARENTS, SMOKE_TEST, STAGES, names_of, stages_by_data


def test_parents_come_before_their_children() -> None:
    order = list(STAGES)
    for name, parent in PARENTS.items():
        assert parent is None or order.index(parent) < order.index(name)


def test_every_stage_has_one_kind_of_data_and_one_family() -> None:
    found = stages_by_data()
    assert list(found)[:4] == ["documents", "conversations", "pairs", "prompts"]
    assert found["conversations"] == ("sft", "sft-lora")
    assert set(found["pairs"]) >= {"rm", "dpo", "orpo"}
    assert sorted(name for names in found.values() for name in names) == sorted(STAGES)
    assert names_of("pretrain", "sft", "reward", "offline", "online") == tuple(STAGES)


def test_algorithms_marked_for_the_lifecycle_are_stages_with_the_data_of_their_entry() -> None:
    for family in ("offline", "online"):
        marked = [entry for entry in algorithms.entries(family) if entry.in_lifecycle]
        assert names_of(family) == tuple(entry.name for entry in marked)
        assert all(STAGES[entry.name].data == entry.data for entry in marked)


def test_the_smoke_test_has_every_stage_and_a_command_for_each() -> None:
    assert set(STAGES) == set(SMOKE_TEST) - {"data", "eval", "chat"}
    assert set(SMOKE_TEST) <= set(COMMANDS)
    for name, stage in STAGES.items():
        assert COMMANDS[name].module == f"stages.{stage.module}"


def test_run_directories() -> None:
    assert STAGES["sft-lora"].run_dir("laptop") == Path("runs/sft/peft/lora/laptop")
    assert STAGES["dpo"].run_dir("laptop") == Path("runs/rlhf/offline/dpo-laptop")


def test_the_table_loads_without_torch() -> None:
    code = "import sys, tinyllm.lifecycle.stages, tinyllm.lifecycle.gates; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
