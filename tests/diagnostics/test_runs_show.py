"""`tinyllm runs show`: what it returns, and how a run is named."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from tests.support import run_tree
from tinyllm.cli import run as command
from tinyllm.diagnostics.runs.listing import show_run
from tinyllm.errors import USAGE


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The six runs, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return run_tree.copy_to(tmp_path)


def test_show_returns_all_of_run_json_and_the_checkpoints() -> None:
    facts = json.loads((run_tree.PPO / "run.json").read_text())
    found = show_run("ppo-both")
    for key in ("parent", "reward_model", "data", "tokenizer_sha256", "seed", "world_size", "parameters", "versions"):
        assert found[key] == facts[key]
    assert found["figures"] == {when: facts[when] for when in ("before", "best", "last")}
    assert shlex.split(found["command"]) == facts["command"]
    links = {name: os.readlink(run_tree.PPO / "checkpoints" / name) for name in ("ckpt_best", "ckpt_latest")}
    for row in found["checkpoints"]:
        name = Path(row["path"]).name
        assert (row["best"], row["latest"]) == (name == links["ckpt_best"], name == links["ckpt_latest"])
        assert row["whole"]
        assert row["bytes"] == sum(p.stat().st_size for p in Path(row["path"]).rglob("*") if p.is_file())
    assert [row["step"] for row in found["checkpoints"]] == [0, 2, 4]


PATHS = ["runs/%s", "%s", "{here}/runs/%s", "runs/%s/checkpoints/ckpt_best", "{here}/runs/%s/checkpoints"]


@pytest.mark.parametrize("given", [path % "sft/full/talk" for path in PATHS])
def test_run_is_found_by_any_path_to_or_in_it(given: str, tree: Path) -> None:
    assert show_run(given.format(here=tree))["name"] == "sft/full/talk"


def test_run_is_found_by_a_unique_name(capsys: pytest.CaptureFixture) -> None:
    assert show_run("judge")["name"] == "rlhf/rm/judge"
    for given, fix in (
        ("talk", "fix: use one of sft/full/talk, sft/peft/lora/talk"),
        ("jugde", "fix: use rlhf/rm/judge"),
        ("", "error: there is no run ''"),
    ):
        assert command(["runs", "show", given]) == USAGE
        assert fix in capsys.readouterr().err


def test_settings_that_differ_from_the_defaults_are_shown(capsys: pytest.CaptureFixture) -> None:
    assert command(["runs", "show", "ppo-both", "--json"]) == 0
    changed = json.loads(capsys.readouterr().out)["changed_settings"]
    assert changed["rollout.group_size"] == {"value": 4, "usual": 1}
    assert changed["reward_model"] == {"value": "runs/rlhf/rm/judge", "usual": None}
    assert changed["rewards.gold"] == {"usual": 1.0}
    assert not {"name", "seed", "algorithm"} & set(changed)
    command(["runs", "show", "ppo-both"])
    assert "rollout.group_size = 4  (default 1)" in capsys.readouterr().out


def test_checkpoints_are_compared_by_size_not_content() -> None:
    weights = run_tree.TALK / run_tree.LAST / "model.safetensors"
    run_tree.flip_last_byte(weights)
    assert [row["whole"] for row in show_run("sft/full/talk")["checkpoints"]] == [True, True, True]
    weights.write_bytes(weights.read_bytes()[:-3])
    rows = show_run("sft/full/talk")["checkpoints"]
    assert [row["whole"] for row in rows] == [True, True, False]
    assert "model.safetensors: " in rows[2]["fault"]
