"""Which checkpoint a stage starts from; what is missing, damaged or unfinished is never replaced by anything."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import small
from safetensors.torch import load_file, save_file

from tinyllm.errors import INTEGRITY, USAGE, UserError
from tinyllm.model import hub, lora
from tinyllm.model.config import LoRAConfig
from tinyllm.stages.common import Files
from tinyllm.stages.parents import BEFORE, find
from tinyllm.train import checkpoint


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(place: str, ended: str = "2026-01-01T00:00:00", status: str = "completed", seed: int = 0) -> Path:
    """A run with one checkpoint."""
    run = Path("runs") / place
    path = checkpoint.save(run / "checkpoints", 5, Files(small.rough(seed=seed), small.tokenizer()).write)
    checkpoint.link(run / "checkpoints", checkpoint.BEST, path)
    facts = {"status": status} | ({"ended": ended} if ended else {})
    (run / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    return path


@pytest.mark.parametrize("stage", BEFORE)
@pytest.mark.parametrize("fast", [False, True])
def test_a_missing_parent_is_an_error_that_names_the_command(stage: str, fast: bool) -> None:
    with pytest.raises(UserError) as caught:
        find(stage, None, fast=fast)
    assert caught.value.code == USAGE
    command = {"reward model": "tinyllm rm", "sft": "tinyllm pretrain", "eval": "tinyllm pretrain"}
    assert command.get(stage, "tinyllm sft") in caught.value.fix
    assert ("--fast-dev-run" in caught.value.fix) == fast
    with pytest.raises(UserError, match="no checkpoint at elsewhere"):
        find(stage, Path("elsewhere"), fast=fast)


def test_the_newest_run_is_taken_and_what_is_recorded_is_its_step() -> None:
    made("pretrain/a", "2026-03-01T00:00:00")
    newest = made("pretrain/b", "2026-03-02T00:00:00")
    made("pretrain/c", "2026-02-01T00:00:00")
    found = find("sft", None, fast=False)
    assert found.folder == newest
    assert found.sha256 == checkpoint.fingerprint(newest)
    assert find("sft", Path("runs/pretrain/c"), fast=False).folder.parts[2] == "c"


@pytest.mark.parametrize("status", ["failed", "stopped", "running"])
def test_a_run_that_did_not_finish_is_no_parent(status: str) -> None:
    """Its best checkpoint may be the one from before the first step: random weights."""
    good = made("pretrain/good", "2026-01-01T00:00:00")
    made("pretrain/bad", "" if status == "running" else "2026-06-01T00:00:00", status)
    assert find("sft", None, fast=False).folder == good
    (good.parents[1] / "run.json").unlink()
    with pytest.raises(UserError, match="needs a checkpoint"):
        find("sft", None, fast=False)


def test_rehearsals_and_runs_moved_aside_are_no_parents() -> None:
    made("pretrain/fast-dev-run")
    made("pretrain/old~1")
    with pytest.raises(UserError, match="needs a checkpoint"):
        find("sft", None, fast=False)
    assert find("sft", None, fast=True).folder.parts[2] == "fast-dev-run"
    made("pretrain/real")
    assert find("sft", None, fast=True).folder.parts[2] == "fast-dev-run"


@pytest.mark.parametrize("given", [None, Path("runs/sft/full/x")])
def test_a_damaged_parent_is_refused_and_not_replaced(given: Path | None) -> None:
    made("sft/full/older", "2025-01-01T00:00:00")
    path = made("sft/full/x") / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="sha256 differs") as caught:
        find("rm", given, fast=False)
    assert caught.value.code == INTEGRITY


@pytest.mark.parametrize("harm", ["drop", "reshape", "unknown", "file"])
def test_weights_that_are_missing_are_never_made_up(harm: str) -> None:
    """A checkpoint from elsewhere has no manifest; its tensors must still be all there."""
    folder = small.saved(small.rough(), Path("elsewhere"))
    tensors = load_file(folder / "model.safetensors")
    first = sorted(tensors)[0]
    if harm == "drop":
        tensors.pop(first)
    elif harm == "reshape":
        tensors[first] = tensors[first][:-1].clone()
    elif harm == "unknown":
        tensors["model.more.weight"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors")
    if harm == "file":
        (folder / "model.safetensors").unlink()
    with pytest.raises(UserError) as caught:
        hub.load_causal_lm(find("sft", folder, fast=False).folder)
    assert caught.value.code == INTEGRITY


def test_an_adapter_without_its_base_is_refused() -> None:
    model = lora.attach(small.rough(), LoRAConfig(r=2))
    folder = Path("adapter")
    folder.mkdir()
    small.tokenizer().save(folder, model_max_length=96)
    lora.save(model, LoRAConfig(r=2), folder, "runs/pretrain/gone")
    with pytest.raises(UserError, match="base model 'runs/pretrain/gone' is not there") as caught:
        hub.load_causal_lm(find("chat", folder, fast=False).folder)
    assert caught.value.code == INTEGRITY
