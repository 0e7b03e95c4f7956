"""The loop: ckpt_best is the best, resuming is exact and never starts over, files are float32 and not pickles."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import small
from tests.support.trained import PLANNED, cut, place, planned, train_small
from tinyllm.errors import FAILED, INTEGRITY, UserError
from tinyllm.io.files import sha256
from tinyllm.mean import Mean
from tinyllm.train import checkpoint, nonfinite
from tinyllm.train.engine import Engine


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


def test_a_run_whose_best_figure_is_the_one_before_training_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train_small(tmp_path / "worse", evaluate=lambda engine: {"planned": 1.0 + engine.updates})
    assert "note: planned was best before the first step" in capsys.readouterr().err
    train_small(tmp_path / "better")
    assert "was best before" not in capsys.readouterr().err


# --- figures that are not finite ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["min", "max"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("first", [0, 3])
def test_a_selecting_figure_that_is_not_finite_ends_the_run(
    tmp_path: Path, first: int, value: float, direction: str
) -> None:
    """Before the first step nothing is saved, so an untrained model is never the best; later the earlier checkpoints stay."""

    def broken(engine: Engine) -> dict[str, Mean]:
        return {"planned": Mean(value if engine.updates >= first else 8.0 - engine.updates, 4)}

    when = "before the first step" if first == 0 else "after step 3"
    words = rf"{when} the held-out figure planned is {value} \(a mean of 4\)"
    with pytest.raises(UserError, match=words) as caught:
        train_small(tmp_path / "run", best=("planned", direction), evaluate=broken)
    assert caught.value.code == FAILED
    there = [checkpoint.step_of(p) for p in checkpoint.steps(tmp_path / "run" / "checkpoints")]
    assert there == [0, 1, 2][:first]
    if first:
        assert place(tmp_path / "run", checkpoint.BEST) == f"step-{2 if direction == 'min' else 0:08d}"
        checkpoint.verify(tmp_path / "run" / "checkpoints" / checkpoint.BEST)
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1], parse_constant=pytest.fail)
    assert (row["step"], row["planned"], row["nonfinite"]) == (first, None, {"planned": str(value)})
    facts = json.loads((tmp_path / "run" / "run.json").read_text(), parse_constant=pytest.fail)
    assert facts["status"] == "failed"


def test_a_selecting_figure_of_nothing_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the held-out figure planned has nothing to average"):
        train_small(tmp_path / "run", evaluate=lambda engine: {"planned": Mean(0.0, 0)})
    with pytest.raises(UserError, match="the held-out figure rewards/mine has nothing to average") as caught:
        nonfinite.check_selecting({"rewards/mine": Mean(0.0, 0)}, "rewards/mine", 0, "fp32")
    assert "this reward is None" in caught.value.fix


def test_other_figures_that_are_not_finite_are_told_once_and_recorded_as_null(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def partly(engine: Engine) -> dict[str, Mean | float]:
        own: dict[str, Mean | float] = {"logps": Mean(-math.inf, 7), "repetition": Mean(0.0, 0)}
        return dict(planned(engine)) | (own if engine.updates else {"logps": 1.0})

    found = train_small(tmp_path / "run", evaluate=partly)
    said = [line for line in capsys.readouterr().err.splitlines() if "logps" in line]
    assert said == ["warning: step 1: eval logps is -inf (a mean of 7); recorded as null"]
    assert "repetition" not in found.last
    facts = json.loads((tmp_path / "run" / "run.json").read_text(), parse_constant=pytest.fail)
    assert facts["before"] == {"planned": 3.0, "logps": 1.0}
    assert facts["last"] == {"planned": 4.0, "logps": None}
    assert facts["nonfinite"] == {"best.logps": "-inf", "last.logps": "-inf"}
    again = train_small(tmp_path / "run", evaluate=partly)  # reads the state of the last checkpoint
    assert again.last == found.last


def test_a_best_figure_that_an_earlier_version_recorded_as_nan_is_replaced(tmp_path: Path) -> None:
    train_small(tmp_path / "run", steps=6, keep=9)
    folder = cut(tmp_path / "run", tmp_path / "cut", 1)
    state = folder / "checkpoints" / "step-00000001" / "trainer" / "state.json"
    text = state.read_text().replace(
        '"planned": 2.0', '"planned": NaN'
    )  # of step 1, which is the best one and the last
    assert text.count("NaN") == 2
    state.write_text(text)
    manifest = state.parents[1] / checkpoint.MANIFEST
    listed = json.loads(manifest.read_text())
    listed["files"]["trainer/state.json"] = {"size": state.stat().st_size, "sha256": sha256(state)}
    manifest.write_text(json.dumps(listed, indent=2) + "\n")
    assert train_small(folder).best == {"planned": 1.0}


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


@pytest.mark.parametrize("keep", [1, 9])
def test_a_kill_before_the_link_does_not_lose_the_best_checkpoint(tmp_path: Path, keep: int) -> None:
    """Killed when the checkpoint of step 2, the best, was published and `ckpt_best` still pointed to step 1."""
    train_small(tmp_path / "whole")
    folder = cut(tmp_path / "whole", tmp_path / "cut", 2)
    checkpoint.link(folder / "checkpoints", checkpoint.BEST, folder / "checkpoints" / "step-00000001")
    found = train_small(folder, keep=keep)
    assert found.best == {"planned": PLANNED[2]}
    assert place(folder, checkpoint.BEST) == "step-00000002"


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
    suffixes = {path.suffix for path in files}
    assert (
        {".json", ".jsonl", ".safetensors"}
        <= suffixes
        <= {".json", ".jsonl", ".yaml", ".log", ".safetensors", ".jinja"}
    )
    for path in files:
        assert path.read_bytes()[:2] not in (b"PK", b"\x80\x02", b"\x80\x04"), path  # zip (torch.save), pickle
