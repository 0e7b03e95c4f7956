"""`tinyllm verify RUN`: on runs, adapters, reward models and Hugging Face folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support import small
from tests.support.checked import SLOW, failed, run_checks
from tinyllm.cli import run as command
from tinyllm.diagnostics import checks
from tinyllm.errors import INTEGRITY, USAGE
from tinyllm.model.config import LoRAConfig
from tinyllm.model.transformer import SequenceScorer
from tinyllm.stages import align_offline, rm
from tinyllm.stages.config import AlignOfflineConfig, RmConfig
from tinyllm.train.engine import Engine
from tinyllm.train.run import Invocation


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in parent/ and two DPO runs of four steps on it: full weights and LoRA."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        small.saved(small.rough(), Path("parent"))
        data = small.pairs(Path("pairs.jsonl"))
        for name, lora in (("full", None), ("lora", LoRAConfig(r=2))):
            config = AlignOfflineConfig(**small.common(data), parent=Path("parent"), name=name, lora=lora)
            align_offline.run(config, Invocation("written: by hand\n"))
    return folder


@pytest.fixture(autouse=True)
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the runs, in a copy that is the current folder."""
    shutil.copytree(trained, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("runs/rlhf/offline")


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_run_passes(kind: str, runs: Path) -> None:
    found = run_checks(runs / f"dpo-{kind}")
    assert failed(found) == set()
    assert list(found) == [c.name for c in checks.CHECKS if c.on_checkpoint and c.name not in SLOW]
    skipped = {name for name, result in found.items() if result.status == "skipped"}
    assert skipped == (set() if kind == "lora" else {"lora"})
    weights = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    compared = found["state"].comparisons
    assert [row.name for row in compared] == [weights, "trainer/optimizer.safetensors"]
    assert compared[0].what.startswith(f"tensors of step-00000004 changed by restoring and saving {weights}")


@pytest.mark.parametrize("dropped", ["state", "weights"])
def test_state_changed_by_loading_fails(dropped: str, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Engine.restore

    def restore(self: Engine, tensors: dict, updates: int) -> None:
        kept = {k: v for k, v in tensors.items() if dropped != "state" or not k.startswith("exp_avg_sq.")}
        original(self, kept, updates)
        if dropped == "weights":
            next(iter(self.trainable.values())).data.view(-1)[0] += 1e-6

    monkeypatch.setattr(Engine, "restore", restore)
    found = run_checks(runs / "dpo-full")
    assert failed(found) == {"state"}
    parameters = len(list(small.rough().parameters()))
    assert [row.difference for row in found["state"].comparisons] == ([0, parameters] if dropped == "state" else [1, 0])


@pytest.mark.parametrize("named", ["run", "checkpoint"])
def test_flipped_bit_is_refused_with_exit_code_3(named: str, runs: Path, capsys: pytest.CaptureFixture) -> None:
    run = runs / "dpo-full"
    damaged = sorted((run / "checkpoints").glob("step-*"))[0] / "tokenizer.json"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert command(["verify", str(run if named == "run" else damaged.parent), "--device", "cpu"]) == INTEGRITY
    error, fix = capsys.readouterr().err.splitlines()[-2:]
    assert "sha256 differs" in error
    assert str(damaged) in error
    assert fix.startswith("fix: restore it from a backup")


def test_hugging_face_folder_has_no_manifest_and_no_optimizer_state() -> None:
    found = run_checks(Path("parent"))
    assert failed(found) == set()
    assert {name: result.reason for name, result in found.items() if result.status == "skipped"} == {
        "manifest": "the checkpoint has no manifest: it was not written by tinyllm",
        "state": "this checkpoint has no optimizer state",
        "lora": "this checkpoint is not an adapter",
    }


def test_reward_model_is_compared_by_its_rewards() -> None:
    config = RmConfig(**small.common(Path("pairs.jsonl")), parent=Path("parent"))
    found = run_checks(Path(rm.run(config, Invocation("written: by hand\n"))["run"]))
    assert failed(found) == set()
    assert found["export"].comparisons[0].what.startswith("rewards before saving vs after loading")
    assert found["generation"].reason == "a reward model does not generate text"
    assert found["state"].status == "ok"


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["language model", "reward model"])
def test_transformers_computes_the_same(kind: str) -> None:
    pytest.importorskip("transformers")
    model = small.rough() if kind == "language model" else small.rough(SequenceScorer)
    found = run_checks(small.saved(model, Path("saved")), only=["transformers"])
    assert failed(found) == set()
    assert 0 < found["transformers"].comparisons[0].difference < 1e-4


def test_missing_checkpoint_is_a_usage_error(capsys: pytest.CaptureFixture) -> None:
    assert command(["verify", "nowhere"]) == USAGE
    assert "nowhere" in capsys.readouterr().err
