"""The loop's promises: the best checkpoint is the best, resuming is exact and never starts over, files are float32 and no pickles."""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import small
from safetensors.torch import load_file

from tinyllm.algorithms import next_token
from tinyllm.data.batches import Source
from tinyllm.data.datasets import Answers
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.model import lora
from tinyllm.model.config import LoRAConfig
from tinyllm.stages.common import Files
from tinyllm.stages.fit import Fit, Fitted, Job
from tinyllm.train import checkpoint
from tinyllm.train.config import OptimConfig, TrainConfig
from tinyllm.train.engine import Engine
from tinyllm.train.run import Run

ROWS = [([5 + (3 * i + j) % 200 for j in range(4 + i % 7)], [j > 1 for j in range(4 + i % 7)]) for i in range(30)]
TOLD = [3.0, 2.0, 1.0, 2.5, 1.5, 2.0, 4.0]  # what evaluation is made to say before the first step and after each


def told(engine: Engine) -> dict[str, float]:
    assert not engine.model.training, "dropout is off while a model is judged"
    return {"told": TOLD[engine.updates]}


def fitted(
    folder: Path,
    *,
    steps: int = 6,
    best: tuple = ("told", "min"),
    keep: int = 9,
    precision: str = "fp32",
    optimizer: str = "adamw",
    adapter: bool = False,
) -> Fitted:
    """Train the small model for some steps in `folder`, or go on with what is there."""
    model = small.rough(scale=0.1)
    config = LoRAConfig(r=2) if adapter else None
    if config:
        lora.attach(model, config)
    files = Files(model, small.tokenizer(), adapter=config, base="base")
    train = TrainConfig(
        steps=steps,
        batch_size=6,
        micro_batch_size=3,
        eval_every=1,
        save_every=1,
        keep=keep,
        dropout=0.1,
        precision=precision,
        compile="off",
    )
    job = Job(
        title="test",
        model=model,
        loss=partial(next_token.loss, next_token.Settings()),
        source=Source(Answers(ROWS, 3), 6, 3, seed=0),
        evaluate=told,
        write=files.write,
        restore=files.restore,
        train=train,
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=3, optimizer=optimizer),
        seed=0,
        best=best,
    )
    return Fit(Run(folder, f"steps: {steps}\n", {}), job).go()


def place(folder: Path, name: str) -> str:
    return (folder / "checkpoints" / name).resolve().name


@pytest.mark.parametrize(("direction", "step"), [("min", 2), ("max", 6)])
def test_the_best_checkpoint_is_the_best_and_the_latest_the_last(tmp_path: Path, direction: str, step: int) -> None:
    found = fitted(tmp_path / "run", best=("told", direction), keep=1)
    assert found.best == {"told": TOLD[step]}
    assert found.before == {"told": 3.0}
    assert found.last == {"told": 4.0}
    assert place(tmp_path / "run", checkpoint.BEST) == f"step-{step:08d}"
    assert place(tmp_path / "run", checkpoint.LATEST) == "step-00000006"
    kept = {p.name for p in checkpoint.steps(tmp_path / "run" / "checkpoints")}
    assert kept == {f"step-{step:08d}", "step-00000006"}
    checkpoint.verify(tmp_path / "run" / "checkpoints" / checkpoint.BEST)


def cut(whole: Path, folder: Path, after: int) -> Path:
    """A copy of a run as it was after some step."""
    shutil.copytree(whole, folder, symlinks=True)
    for path in checkpoint.steps(folder / "checkpoints"):
        if checkpoint.step_of(path) > after:
            shutil.rmtree(path)
    return folder


def contents(folder: Path) -> dict[str, torch.Tensor]:
    files = ("trainer/optimizer.safetensors", "model.safetensors", "adapter_model.safetensors")
    return {k: v for f in files if (folder / f).exists() for k, v in load_file(folder / f).items()}


@pytest.mark.parametrize("kind", [{}, {"optimizer": "muon"}, {"adapter": True}], ids=["adamw", "muon", "lora"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(tmp_path: Path, kind: dict) -> None:
    """Weights, optimizer and learning rate, with dropout, from the middle of the warm-up."""
    whole = fitted(tmp_path / "whole", **kind)
    again = fitted(cut(tmp_path / "whole", tmp_path / "cut", 2), **kind)
    want, got = contents(whole.checkpoint), contents(again.checkpoint)
    assert want.keys() == got.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    rates = [[row["lr"] for row in small.metrics(tmp_path / name)] for name in ("whole", "cut")]
    assert rates[0] == rates[1]
    assert rates[0][0] == pytest.approx(1e-2 / 3)  # of three steps of warm-up the first
    assert again.best == whole.best
    assert again.tokens == whole.tokens


def harmed(folder: Path) -> None:
    """One bit of the weights."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    whole = fitted(tmp_path / "whole")
    folder = cut(tmp_path / "whole", tmp_path / "cut", 4)
    harmed(folder / "checkpoints" / "step-00000004")
    again = fitted(folder)
    assert "passing over a damaged checkpoint" in capsys.readouterr().err
    assert all(torch.equal(contents(again.checkpoint)[k], v) for k, v in contents(whole.checkpoint).items())
    assert [row["step"] for row in small.metrics(folder)] == [1, 6]  # log_every 10: the first and the last


def test_where_every_checkpoint_is_damaged_nothing_starts_over(tmp_path: Path) -> None:
    fitted(tmp_path / "run", keep=1)
    for path in checkpoint.steps(tmp_path / "run" / "checkpoints"):
        harmed(path)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="damaged") as caught:
        fitted(tmp_path / "run")
    assert caught.value.code == INTEGRITY
    assert "--no-resume" in caught.value.fix
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_resuming_needs_is_float32_whatever_the_precision(tmp_path: Path, precision: str) -> None:
    found = fitted(tmp_path / "run", steps=2, precision=precision)
    tensors = contents(found.checkpoint)
    assert len(tensors) > 30
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_a_run_directory_holds_no_pickle(tmp_path: Path) -> None:
    fitted(tmp_path / "run", steps=2)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != "lock"]
    assert {path.suffix for path in files} <= {".json", ".jsonl", ".yaml", ".log", ".safetensors", ".jinja"}
    for path in files:
        assert path.read_bytes()[:2] not in (b"PK", b"\x80\x02", b"\x80\x04"), path  # zip (torch.save), pickle
