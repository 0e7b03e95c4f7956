"""The checkpoint that a stage starts from; a missing, damaged or unfinished one is an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import small
from tinyllm.errors import INTEGRITY, USAGE, UserError
from tinyllm.model import hub, lora
from tinyllm.model.config import LoRAConfig
from tinyllm.stages.checkpoint_files import CheckpointFiles
from tinyllm.stages.parents import PARENT_PLACES, find_checkpoint
from tinyllm.train import checkpoint


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(place: str, ended: str = "2026-01-01T00:00:00", status: str = "completed", seed: int = 0) -> Path:
    """A run with one checkpoint."""
    run = Path("runs") / place
    path = checkpoint.save(run / "checkpoints", 5, CheckpointFiles(small.rough(seed=seed), small.tokenizer()).write)
    checkpoint.link(run / "checkpoints", checkpoint.BEST, path)
    facts = {"status": status} | ({"ended": ended} if ended else {})
    (run / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    return path


@pytest.mark.parametrize("stage", PARENT_PLACES)
@pytest.mark.parametrize("fast", [False, True])
def test_a_missing_parent_is_an_error_with_the_command_that_makes_one(stage: str, fast: bool) -> None:
    with pytest.raises(UserError) as caught:
        find_checkpoint(stage, None, fast=fast)
    assert caught.value.code == USAGE
    command = {"reward model": "tinyllm rm", "sft": "tinyllm pretrain", "eval": "tinyllm pretrain"}
    assert command.get(stage, "tinyllm sft") in caught.value.fix
    assert ("--fast-dev-run" in caught.value.fix) == fast
    with pytest.raises(UserError, match="there is no run or checkpoint 'elsewhere'") as caught:
        find_checkpoint(stage, Path("elsewhere"), fast=fast)
    assert command.get(stage, "tinyllm sft") in caught.value.fix


def test_the_newest_run_is_chosen_and_its_step_is_recorded() -> None:
    made("pretrain/a", "2026-03-01T00:00:00")
    newest = made("pretrain/b", "2026-03-02T00:00:00")
    made("pretrain/c", "2026-02-01T00:00:00")
    found = find_checkpoint("sft", None, fast=False)
    assert found.folder == newest
    assert found.sha256 == checkpoint.fingerprint(newest)
    assert find_checkpoint("sft", Path("runs/pretrain/c"), fast=False).folder.parts[2] == "c"


@pytest.mark.parametrize("status", ["failed", "stopped", "running"])
def test_an_unfinished_run_is_not_a_parent(status: str) -> None:
    """Its best checkpoint may be the one from before the first step: random weights."""
    good = made("pretrain/good", "2026-01-01T00:00:00")
    made("pretrain/bad", "" if status == "running" else "2026-06-01T00:00:00", status)
    assert find_checkpoint("sft", None, fast=False).folder == good
    (good.parents[1] / "run.json").unlink()
    with pytest.raises(UserError, match="needs a checkpoint"):
        find_checkpoint("sft", None, fast=False)


def test_fast_dev_runs_and_runs_moved_aside_are_not_parents() -> None:
    made("pretrain/fast-dev-run")
    made("pretrain/old~1")
    with pytest.raises(UserError, match="needs a checkpoint"):
        find_checkpoint("sft", None, fast=False)
    assert find_checkpoint("sft", None, fast=True).folder.parts[2] == "fast-dev-run"
    made("pretrain/real")
    assert find_checkpoint("sft", None, fast=True).folder.parts[2] == "fast-dev-run"


@pytest.mark.parametrize("given", [None, Path("runs/sft/full/x")])
def test_a_damaged_parent_is_refused_and_not_replaced(given: Path | None) -> None:
    made("sft/full/older", "2025-01-01T00:00:00")
    path = made("sft/full/x") / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="sha256 differs") as caught:
        find_checkpoint("rm", given, fast=False)
    assert caught.value.code == INTEGRITY


@pytest.mark.parametrize("damage", ["drop", "reshape", "unknown", "file"])
def test_missing_weights_are_refused(damage: str) -> None:
    """A checkpoint from elsewhere has no manifest; its tensors must still be all there."""
    folder = small.saved(small.rough(), Path("elsewhere"))
    tensors = load_file(folder / "model.safetensors")
    first = sorted(tensors)[0]
    if damage == "drop":
        tensors.pop(first)
    elif damage == "reshape":
        tensors[first] = tensors[first][:-1].clone()
    elif damage == "unknown":
        tensors["model.more.weight"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors")
    if damage == "file":
        (folder / "model.safetensors").unlink()
    with pytest.raises(UserError) as caught:
        hub.load_causal_lm(find_checkpoint("sft", folder, fast=False).folder)
    assert caught.value.code == INTEGRITY


def test_an_adapter_without_its_base_is_refused() -> None:
    model = lora.attach(small.rough(), LoRAConfig(r=2))
    folder = Path("adapter")
    folder.mkdir()
    small.tokenizer().save(folder, model_max_length=96)
    lora.save(model, LoRAConfig(r=2), folder, "runs/pretrain/gone")
    with pytest.raises(UserError, match="base model 'runs/pretrain/gone' does not exist") as caught:
        hub.load_causal_lm(find_checkpoint("chat", folder, fast=False).folder)
    assert caught.value.code == INTEGRITY
