"""The run directory: metrics that are dropped on resume, parents, and times."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyllm.errors import UserError
from tinyllm.train.run import Run, read_facts


def test_an_incomplete_line_and_repeated_steps_are_dropped(tmp_path: Path) -> None:
    run = Run(tmp_path / "default", "name: default\n", {})
    for step in (1, 2, 3):
        run.log({"step": step, "loss": 0.5})
    with run.metrics.open("a") as file:
        file.write('{"step": 2, "lo')  # killed here
    run.drop_metrics_after(2)
    assert run.metrics.read_text().splitlines() == ['{"step": 1, "loss": 0.5}', '{"step": 2, "loss": 0.5}']
    run.finish("completed")


def parent(digest: str) -> dict:
    return {"parent": {"checkpoint": "runs/sft/full/a", "manifest_sha256": digest}}


def test_a_run_with_another_parent_is_not_continued(tmp_path: Path) -> None:
    run = Run(tmp_path / "default", "name: default\n", parent("a" * 64))
    (run.checkpoints / "step-00000001").mkdir(parents=True)
    Run(tmp_path / "default", "name: default\n", parent("a" * 64))
    with pytest.raises(UserError, match="began from") as caught:
        Run(tmp_path / "default", "name: default\n", parent("b" * 64))
    assert "--no-resume" in caught.value.fix
    assert read_facts(tmp_path / "default")["parent"]["manifest_sha256"] == "a" * 64


def test_the_seconds_of_all_sessions_add_up(tmp_path: Path) -> None:
    first = Run(tmp_path / "default", "name: default\n", {})
    first.started -= 100
    first.finish("stopped")
    Run(tmp_path / "default", "name: default\n", {}).finish("completed")
    assert 100 <= read_facts(tmp_path / "default")["seconds"] < 110
