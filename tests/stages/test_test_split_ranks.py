"""Test figures of a run with two ranks: those of one process, and kept when the finished command is repeated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "data.train=world:400",
    "train.steps=6",
    "train.eval_every=3",
    "train.batch_size=8",
    "train.micro_batch_size=4",
    "train.precision=fp32",
    "model.hidden_size=32",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=1",
    "model.intermediate_size=64",
)


def pretrain(folder: Path, name: str, *options: str) -> dict[str, Any]:
    """Run the command. Return the test figures in run.json."""
    line = [sys.executable, "-m", "tinyllm", "pretrain", "--device", "cpu", "--name", name, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*line, *(word for text in SETTINGS for word in ("--set", text))]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "runs" / "pretrain" / name / "run.json").read_text())["test"]


@pytest.mark.slow
@pytest.mark.two_cores
def test_two_ranks_have_the_figures_of_one_and_keep_them_when_repeated(tmp_path: Path) -> None:
    one, two = pretrain(tmp_path, "one"), pretrain(tmp_path, "two", "--nproc", "2")
    assert one["records"] == two["records"] == 256
    for when in ("before", "best", "last"):
        assert two[when]["step"] == one[when]["step"]
        assert two[when]["counts"] == one[when]["counts"]
        assert two[when]["figures"] == pytest.approx(one[when]["figures"], rel=1e-4)
    assert two["best"]["figures"]["loss"] < two["before"]["figures"]["loss"] - 0.01
    log = tmp_path / "runs" / "pretrain" / "two" / "metrics.jsonl"
    logged = log.read_text()
    assert (
        pretrain(tmp_path, "two", "--nproc", "2") == two
    )  # every rank reads the recorded figures, or they would wait for each other
    assert log.read_text() == logged
