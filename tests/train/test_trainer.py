"""The loop: ckpt_best is the best, resuming is exact and never starts over, files are float32 and not pickles."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import small
from tests.support.trained import PLANNED, cut, place, train_small
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.train import checkpoint


@pytest.mark.parametrize(("direction", "step"), [("min", 2), ("max", 6)])
def test_ckpt_best_and_ckpt_latest_point_to_best_and_last(tmp_path: Path, direction: str, step: int) -> None:
    found = train_small(tmp_path / "run", best=("planned", direction), keep=1)
    assert found.best == {"planned": PLANNED[step]}
    assert found.before == {"planned": 3.0}
    assert found.last == {"planned": 4.0}
    assert place(tmp_path / "run", checkpoint.BEST) == f"step-{step:08d}"
    assert place(tmp_path / "run", checkpoint.LATEST) == "step-00000006"
    kept = {p.name for p in checkpoint.steps(tmp_path / "run" / "checkpoints")}
    assert kept == {f"step-{step:08d}", "step-00000006"}
    checkpoint.verify(tmp_path / "run" / "checkpoints" / checkpoint.BEST)


def contents(folder: Path) -> dict[str, torch.Tensor]:
    files = ("trainer/optimizer.safetensors", "model.safetensors", "adapter_model.safetensors")
    return {k: v for f in files if (folder / f).exists() for k, v in load_file(folder / f).items()}


@pytest.mark.parametrize("kind", [{}, {"optimizer": "muon"}, {"adapter": True}], ids=["adamw", "muon", "lora"])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, kind: dict) -> None:
    """Weights, optimizer and learning rate, with dropout, from the middle of the warm-up."""
    whole = train_small(tmp_path / "whole", **kind)
    again = train_small(cut(tmp_path / "whole", tmp_path / "cut", 2), **kind)
    want, got = contents(whole.checkpoint), contents(again.checkpoint)
    assert want.keys() == got.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    rates = [[row["lr"] for row in small.metrics(tmp_path / name)] for name in ("whole", "cut")]
    assert rates[0] == rates[1]
    assert rates[0][0] == pytest.approx(1e-2 / 3)  # of three steps of warm-up the first
    assert again.best == whole.best
    assert again.tokens == whole.tokens


def flip_bit(folder: Path) -> None:
    """One bit of the weights."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    whole = train_small(tmp_path / "whole")
    folder = cut(tmp_path / "whole", tmp_path / "cut", 4)
    flip_bit(folder / "checkpoints" / "step-00000004")
    again = train_small(folder)
    assert "skipping a damaged checkpoint" in capsys.readouterr().err
    assert all(torch.equal(contents(again.checkpoint)[k], v) for k, v in contents(whole.checkpoint).items())
    assert [row["step"] for row in small.metrics(folder)] == [1, 6]  # log_every 10: the first and the last


def test_a_run_with_only_damaged_checkpoints_does_not_start_over(tmp_path: Path) -> None:
    train_small(tmp_path / "run", keep=1)
    for path in checkpoint.steps(tmp_path / "run" / "checkpoints"):
        flip_bit(path)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="damaged") as caught:
        train_small(tmp_path / "run")
    assert caught.value.code == INTEGRITY
    assert "--no-resume" in caught.value.fix
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpoints_are_float32_in_every_precision(tmp_path: Path, precision: str) -> None:
    found = train_small(tmp_path / "run", steps=2, precision=precision)
    tensors = contents(found.checkpoint)
    assert len(tensors) > 30
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_a_run_directory_holds_no_pickle(tmp_path: Path) -> None:
    train_small(tmp_path / "run", steps=2)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != "lock"]
    assert {path.suffix for path in files} <= {".json", ".jsonl", ".yaml", ".log", ".safetensors", ".jinja"}
    for path in files:
        assert path.read_bytes()[:2] not in (b"PK", b"\x80\x02", b"\x80\x04"), path  # zip (torch.save), pickle
