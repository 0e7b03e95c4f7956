"""Exclusive ownership of a run directory: one process at a time, and no stale locks."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinyllm.errors import RESOURCES, UserError
from tinyllm.train import lock

OWNER = """
import sys, time
from pathlib import Path
from tinyllm.train import lock
lock.acquire(Path(sys.argv[1]))
print(1, flush=True)
time.sleep(60)
"""
PROBE = """
import sys, time
from pathlib import Path
from tinyllm.train import lock
file = lock._open(Path(sys.argv[1]))
lock._try_lock(file)
print(1, flush=True)
time.sleep(0.1)
"""


FORKING = """
import os, sys, time
from pathlib import Path
from tinyllm.train import lock
lock.acquire(Path(sys.argv[1]))
if not os.fork():
    print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path / "run")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"1\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_the_error_names_the_owner(tmp_path: Path, owner: subprocess.Popen) -> None:
    found = lock.owner(tmp_path / "run")
    assert found is not None
    assert found["pid"] == owner.pid
    assert found["started"][:2] == "20"
    with pytest.raises(UserError, match=f"pid {owner.pid} on {found['host']}, since {found['started'][:10]}") as caught:
        lock.acquire(tmp_path / "run")
    assert caught.value.code == RESOURCES


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_the_lock_is_free_after_its_owner_is_killed(tmp_path: Path, owner: subprocess.Popen) -> None:
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert lock.owner(tmp_path / "run") is None
    lock.acquire(tmp_path / "run")
    found = lock.owner(tmp_path / "run")
    assert found is not None
    assert found["pid"] == os.getpid()
    lock.release(tmp_path / "run")
    assert lock.owner(tmp_path / "run") is None


@pytest.mark.skipif(sys.platform == "win32", reason="fork")
def test_a_forked_child_does_not_keep_the_lock_of_a_killed_parent(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", FORKING, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        assert lock.owner(tmp_path) is None
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_file_system_without_locks_is_used_unlocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    lock.acquire(tmp_path)
    lock.acquire(tmp_path)
    lock.release(tmp_path)
    assert lock.owner(tmp_path) is None


def test_owner_neither_takes_the_lock_nor_creates_the_folder(tmp_path: Path) -> None:
    assert lock.owner(tmp_path / "nothing") is None
    assert not (tmp_path / "nothing").exists()


def test_a_folder_that_was_moved_is_locked_again_under_its_old_name(tmp_path: Path) -> None:
    lock.acquire(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "run~1")
    lock.acquire(tmp_path / "run")
    assert (tmp_path / "run" / lock.NAME).exists()
    lock.release(tmp_path / "run")


def test_acquire_waits_for_a_process_that_only_tests_the_lock(tmp_path: Path) -> None:
    """`runs list` takes a free lock for a moment; a run that starts then waits for it."""
    probe = subprocess.Popen([sys.executable, "-c", PROBE, str(tmp_path / lock.NAME)], stdout=subprocess.PIPE)
    assert probe.stdout is not None
    probe.stdout.readline()
    began = time.monotonic()
    lock.acquire(tmp_path)
    assert time.monotonic() - began < 20
    lock.release(tmp_path)
    probe.wait()


@pytest.mark.parametrize("place", ["file/run", "/proc/run", "file"])
def test_a_folder_that_is_not_writable_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be written to") as caught:
        lock.acquire(tmp_path / place)
    assert caught.value.code == RESOURCES


# --- seen from elsewhere ---------------------------------------------------------------------------------------------------------

ANOTHER_USER = """
import os, sys
from pathlib import Path
from tinyllm.train import lock
os.setgid(65534)
os.setuid(65534)
folder = Path(sys.argv[1])
print(os.access(folder / lock.NAME, os.W_OK), lock.is_held(folder), (lock.owner(folder) or {}).get("pid"))
"""


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="becomes another user")
def test_a_user_who_may_only_read_sees_that_a_run_is_alive(owner: subprocess.Popen, tmp_path: Path) -> None:
    def seen() -> str:
        command = [sys.executable, "-c", ANOTHER_USER, str(tmp_path / "run")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o055)
    file = tmp_path / "run" / lock.NAME
    assert seen() == f"False True {owner.pid}\n"
    file.chmod(0o600)
    assert seen() == "False None None\n"  # cannot be told
    file.chmod(0o644)
    owner.kill()
    owner.wait()
    assert seen() == "False False None\n"


def test_where_locks_do_not_work_a_recorded_owner_may_be_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / lock.NAME).write_text('{"pid": 1, "host": "elsewhere", "started": "2026"}\n')

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert lock.is_held(tmp_path) is None
    assert lock.owner(tmp_path) is None
    lock.acquire(tmp_path)
    lock.release(tmp_path)
    assert lock.is_held(tmp_path) is False, "a released lock names no one"


@pytest.mark.parametrize("content", ["", "[1]", "7", "{", "null"])
def test_a_lock_file_that_names_no_one_is_held_by_an_unknown_process(
    owner: subprocess.Popen, tmp_path: Path, content: str
) -> None:
    (tmp_path / "run" / lock.NAME).write_text(content)
    assert lock.owner(tmp_path / "run") == {"pid": None, "host": None, "started": None}
    assert lock.is_held(tmp_path / "run")


def test_a_folder_that_cannot_be_written_to_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Path] = []

    def denied(path: Path, *_: object, **__: object) -> None:
        tried.append(path)
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError, match="cannot be written to: Permission denied"):
        lock._open(tmp_path / "run" / lock.NAME)
    assert tried == [tmp_path / "run" / lock.NAME]
