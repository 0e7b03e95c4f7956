"""A lifecycle that is killed while it writes its records and reports ends as an undisturbed one, and does nothing twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lifecycle import kill_sweep

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_lifecycle_killed_at_every_event_and_in_every_write_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.lifecycle.crash_sweep", str(tmp_path / "sweep"), "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.stdout, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["lost"] == []
    assert done.returncode == 0
    assert found["kills at events"] == found["events"] > 8
    assert found["kills in the middle of a write"] == found["writes"] > 4


def test_the_kill_sweep_counts_lines_while_checkpoints_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "sft" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "sft" / "metrics.jsonl").write_text("{}\n{}\n")
    scandir = os.scandir

    def vanished(folder: str | Path) -> Any:
        if str(folder).endswith("checkpoints"):
            raise FileNotFoundError(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", vanished)
    assert kill_sweep.logged(tmp_path) == {tmp_path / "runs" / "sft" / "metrics.jsonl": 2}
