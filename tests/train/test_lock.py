"""One process at a time in a run directory, and nobody has to clear up after a dead one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinyllm.errors import RESOURCES, UserError
from tinyllm.train import lock

OWNER = """
import sys, time
from pathlib import Path
from tinyllm.train import lock
lock.claim(Path(sys.argv[1]))
print(1, flush=True)
time.sleep(60)
"""
LOOKER = """
import sys, time
from pathlib import Path
from tinyllm.train import lock
file = lock._opened(Path(sys.argv[1]))
lock._lock(file)
print(1, flush=True)
time.sleep(0.1)
"""


@pytest.fixture
def owner(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path / "run")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"1\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_refused_and_told_who_was_first(tmp_path: Path, owner: subprocess.Popen) -> None:
    found = lock.holder(tmp_path / "run")
    assert found["pid"] == owner.pid
    assert found["started"][:2] == "20"
    with pytest.raises(UserError, match=f"pid {owner.pid} on {found['host']}, since {found['started'][:10]}") as caught:
        lock.claim(tmp_path / "run")
    assert caught.value.code == RESOURCES


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_owner_leaves_it_free(tmp_path: Path, owner: subprocess.Popen) -> None:
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert lock.holder(tmp_path / "run") is None
    lock.claim(tmp_path / "run")
    assert lock.holder(tmp_path / "run")["pid"] == os.getpid()
    lock.release(tmp_path / "run")
    assert lock.holder(tmp_path / "run") is None


def test_looking_does_not_take_it_nor_make_a_folder(tmp_path: Path) -> None:
    assert lock.holder(tmp_path / "nothing") is None
    assert not (tmp_path / "nothing").exists()


def test_a_folder_that_was_moved_aside_is_claimed_anew(tmp_path: Path) -> None:
    lock.claim(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "run~1")
    lock.claim(tmp_path / "run")
    assert (tmp_path / "run" / lock.NAME).exists()
    lock.release(tmp_path / "run")


def test_a_look_at_the_lock_does_not_turn_its_owner_away(tmp_path: Path) -> None:
    """`runs list` takes the lock for a moment; a run that starts then waits for it."""
    looker = subprocess.Popen([sys.executable, "-c", LOOKER, str(tmp_path / lock.NAME)], stdout=subprocess.PIPE)
    looker.stdout.readline()
    began = time.monotonic()
    lock.claim(tmp_path)
    assert time.monotonic() - began < 5
    lock.release(tmp_path)
    looker.wait()


@pytest.mark.parametrize("place", ["file/run", "/proc/run", "file"])
def test_where_nothing_can_be_written_it_is_said_at_once(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be written to") as caught:
        lock.claim(tmp_path / place)
    assert caught.value.code == RESOURCES
