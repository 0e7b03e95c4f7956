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


def swept(folder: Path, stride: int) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.crash_sweep", str(folder), str(stride)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    print(found)
    return found


def test_killed_at_some_file_system_events_nothing_is_lost(tmp_path: Path) -> None:
    found = swept(tmp_path, 11)
    assert found["lost"] == []
    assert found["events"] > 150
    assert found["killed at events"] > 15
    assert found["rehearsals killed"] > 10


@pytest.mark.slow
def test_killed_at_every_file_system_event_nothing_is_lost(tmp_path: Path) -> None:
    found = swept(tmp_path, 1)
    assert found["lost"] == []
    assert found["killed at events"] == found["events"]
