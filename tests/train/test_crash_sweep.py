"""A run that is killed at any moment keeps its published checkpoints and resumes to the same result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")


FILES = {  # of a run that is resumed after its first step
    *(
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
    ),
    *("tokenizer_config.json", "optimizer.safetensors", "state.json"),
    *("lock", "metrics.jsonl", "metrics.jsonl.new", "run.json.new", "run.log"),
}


def swept(folder: Path, stride: int) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.crash_sweep", str(folder), str(stride)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.stdout, done.stderr[-2000:]
    found = json.loads(done.stdout)
    print(found)
    assert found["lost"] == []
    assert done.returncode == 0
    assert found["events"] > 150
    assert found["places in writes"] > 80
    assert set(found["files written"]) == FILES, "of each at least one write was cut off"
    assert set(found["resumed from"]) == {"nothing", "step 0", "step 1", "step 2", "step 3"}
    return found


@pytest.mark.slow
def test_killed_at_some_file_system_events_nothing_is_lost(tmp_path: Path) -> None:
    found = swept(tmp_path, 13)
    assert found["kills at events"] > 12
    assert found["kills in the middle of a write"] >= len(FILES)
    assert found["refusals in the middle of a write"] >= len(FILES)
    assert found["kills of fast-dev-runs"] > 10


@pytest.mark.slow
def test_killed_at_every_file_system_event_nothing_is_lost(tmp_path: Path) -> None:
    found = swept(tmp_path, 1)
    assert found["kills at events"] == found["events"]
    assert found["kills in the middle of a write"] == found["places in writes"]
    assert found["refusals in the middle of a write"] == found["places in writes"]
    assert found["kills of fast-dev-runs"] == found["events of a fast-dev-run"]
